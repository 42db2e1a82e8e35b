"""Measure how faithful an engine is to the float32 network, on real photographs.

The photographs are prepared by ``imaging``, exactly as the server prepares them. The reference is the network as the
package has it, in PyTorch float32, before any rewrite. Every way of running the network is a stage of one ladder.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from export.errors import ExportError, GateError
from export.metrics import Distance, distance
from export.network import half
from export.package.pairs import core_tensor_as_trained
from export.precision import Precision
from export.progress import track
from export.request import Request, photographs
from imaging import SIDE, InvalidPhotograph, core_from_file

Tensor = NDArray[np.float32]
Runner = Callable[[Tensor], Tensor]
MAX_PHOTOGRAPHS = 16
BATCH = 8  #: of different photographs, for engines that take batches


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """A measured stage of the ladder: the worst figures over all photographs, against PyTorch float32.

    ``executes`` names the types that the arithmetic ran in. ``psnr`` is in dB, the errors are in [0, 1].
    ``ground_truth`` is the mean distance to the ground truth, where there is some.
    """

    stage: str
    executes: str
    max_error: float
    mean_error: float
    psnr: float
    ssim: float
    worst: str
    ground_truth: Distance | None = None

    def row(self) -> str:
        """Format one line of the table."""
        figures = f"{self.max_error:10.2e} {self.mean_error:10.2e} {self.psnr:8.1f} {self.ssim:8.5f}"
        mean = self.ground_truth
        to_ground_truth = f"{mean.l1:8.4f} {mean.psnr:7.2f} {mean.ssim:6.3f}" if mean else f"{'–':>23}"
        return f"{self.stage:<26} {self.executes:<24} {figures} {to_ground_truth}  {self.worst}"

    def document(self) -> dict[str, Any]:
        """Return the stage's entry in an engine's JSON, whose keys are older than these names."""
        figures = asdict(self)
        stage, ground_truth = figures.pop("stage"), figures.pop("ground_truth")
        return {"rung": stage, **figures, "truth": ground_truth}


@dataclass(frozen=True, kw_only=True)
class NotRun:
    """A stage that cannot be measured here, and why."""

    stage: str
    reason: str

    def row(self) -> str:
        """Format one line of the table."""
        return f"{self.stage:<26} n/a: {self.reason}"

    def document(self) -> dict[str, Any]:
        """Return the stage's entry in an engine's JSON."""
        return {"rung": self.stage, "reason": self.reason}


Stage = Fidelity | NotRun
HEADER = (
    f"{'against torch float32':<26} {'executes':<24} {'max error':>10} {'mean':>10} {'PSNR dB':>8} {'SSIM':>8} "
    f"{'truth L1':>8} {'PSNR dB':>7} {'SSIM':>6}  worst photograph"
)


@dataclass(frozen=True)
class Reference:
    """The photographs, what PyTorch float32 makes of them, and the ground truth of those that have one.

    All are core tensors ``[1, 3, 512, 512]`` by file name; ``outputs`` and ``ground_truth`` are clamped to [0, 1].
    ``worst_outputs`` keeps each stage's output for its worst photograph.
    """

    images: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    ground_truth: Mapping[str, Tensor]
    worst_outputs: dict[str, Tensor] = field(default_factory=dict)

    def measure(self, stage: str, executes: str, run: Runner) -> Fidelity:
        """Run every photograph through ``run``; outputs are clamped to [0, 1], as they are served.

        Raises `GateError` if an output is not finite.
        """
        figures: dict[str, tuple[Distance, float]] = {}
        to_ground_truth = []
        for name, image in track(self.images.items()):
            output, expected = np.asarray(run(image), np.float32), self.outputs[name]
            if not np.isfinite(output).all():
                raise GateError(f"{stage}: the output for {name} holds NaN or infinity; nothing was published")
            output = output.clip(0, 1)
            error = _distance(output, expected)
            if not figures or error.psnr < min(other.psnr for other, _ in figures.values()):
                self.worst_outputs[stage] = output
            figures[name] = (error, float(np.abs(output - expected).max()))
            if name in self.ground_truth:
                to_ground_truth.append(_distance(output, self.ground_truth[name]))
        worst = min(figures, key=lambda name: figures[name][0].psnr)
        return Fidelity(
            stage=stage,
            executes=executes,
            max_error=max(largest for _, largest in figures.values()),
            mean_error=max(error.l1 for error, _ in figures.values()),
            psnr=min(figures[worst][0].psnr, 200.0),  # equal pictures: infinity is not JSON
            ssim=min(error.ssim for error, _ in figures.values()),
            worst=worst,
            ground_truth=_mean(to_ground_truth) if to_ground_truth else None,
        )

    def measure_batch(self, stage: str, executes: str, run: Runner, size: int) -> Fidelity:
        """Run one batch of different photographs; compare each output with that of its photograph alone.

        If there are fewer photographs, they are repeated, rotated and mirrored.
        """
        images = {}
        for position in range(size):
            turn, which = divmod(position, len(self.images))
            name, image = list(self.images.items())[which]
            mirrored = image if turn < 4 else image[..., ::-1]
            images[f"{name}, turned {turn}" if turn else name] = np.ascontiguousarray(np.rot90(mirrored, turn, (2, 3)))
        alone = {name: np.asarray(run(image), np.float32).clip(0, 1) for name, image in track(images.items())}
        outputs = iter(np.split(run(np.concatenate(list(images.values()))), size))
        return Reference(images, alone, {}).measure(stage, executes, lambda image: next(outputs))

    def ground_truth_distance(self) -> Distance | None:
        """Return the mean distance of PyTorch float32 itself to the ground truth."""
        distances = [_distance(self.outputs[name], target) for name, target in self.ground_truth.items()]
        return _mean(distances) if distances else None


def reference_from_request(network: nn.Module, request: Request) -> Reference:
    """Run the request's photographs through the network in float32; ground truth has the same stem.

    The images of pairs are prepared as `export.evaluate` prepares them.
    """
    pairs = request.read_pairs()
    images = {pair.name: core_tensor_as_trained(pair.input) for pair in pairs} or core_tensors(request.photos)
    run = torch_runner(network)
    outputs = {name: run(image).clip(0, 1) for name, image in track(images.items())}
    if bad := [name for name, output in outputs.items() if not np.isfinite(output).all()]:
        raise ExportError(f"the float32 network itself makes NaN or infinity of {bad[0]}: is it trained?")
    if pairs:
        return Reference(images, outputs, {pair.name: core_tensor_as_trained(pair.target) for pair in pairs})
    targets = {path.stem: path for path in photographs(request.ground_truth, "--truth", 0)}
    paired = [(name, targets[Path(name).stem]) for name in images if Path(name).stem in targets]
    return Reference(images, outputs, {name: core_tensor(path) for name, path in paired})


def core_tensors(folder: Path, count: int = MAX_PHOTOGRAPHS) -> dict[str, Tensor]:
    """Read the first photographs of a folder as core tensors ``[1, 3, 512, 512]``, by file name."""
    paths = photographs(folder, "--photos")[:count]
    return {path.name: core_tensor(path) for path in paths}


def torch_runner(network: nn.Module, *, device: str = "cpu", compiled: bool = False, tf32: bool = False) -> Runner:
    """Run PyTorch in the network's own type, on a device; see `export.network.half` for float16 and TF32 on a CPU."""
    placed = network.to(device)
    forward: Callable[[torch.Tensor], torch.Tensor] = torch.compile(placed) if compiled else placed

    # Not inference mode: outside it every convolution reaches `Half` in one form.
    def run(image: Tensor) -> Tensor:
        with torch.no_grad(), half.emulation(placed, tf32=tf32):
            result: Tensor = forward(torch.from_numpy(image).to(device)).cpu().numpy()
        return result

    return run


def require_fidelity(reached: Fidelity, reference: Distance | None, precision: Precision, gate: float) -> None:
    """Raise `GateError` for a stage below the gate, or one that loses too much against the ground truth.

    ``reference`` is the distance of PyTorch float32 to the ground truth.
    """
    if reached.psnr < gate:
        raise GateError(
            f"fidelity {reached.psnr:.1f} dB on {reached.worst} is below the gate of {precision.name}, "
            f"{gate:.0f} dB: nothing was published"
        )
    if reached.ground_truth and reference and reference.psnr - reached.ground_truth.psnr > precision.max_loss:
        raise GateError(
            f"PSNR loss against ground truth is {reference.psnr - reached.ground_truth.psnr:.2f} dB, the maximum of "
            f"{precision.name} is {precision.max_loss} dB: nothing was published"
        )


def difference_picture(image: Tensor, reference: Tensor, output: Tensor) -> NDArray[np.uint8]:
    """Draw input, reference, output and their difference (scaled to its largest value) side by side, HxWx3."""
    error = np.abs(output - reference)
    panels = [image, reference, output.clip(0, 1), error / max(float(error.max()), 1e-9)]
    pixels: NDArray[np.uint8] = np.round(np.concatenate([_hwc(p) for p in panels], axis=1) * 255).astype(np.uint8)
    return pixels


def core_tensor(path: Path, side: int = SIDE) -> Tensor:
    """Read one photograph as the server prepares it: ``[1, 3, side, side]``."""
    try:
        return core_from_file(path.read_bytes(), side=side)[None]
    except InvalidPhotograph as error:
        raise ExportError(f"{path}: {error}") from error


def _distance(output: Tensor, reference: Tensor) -> Distance:
    return distance(_hwc(output), _hwc(reference))


def _hwc(tensor: Tensor) -> Tensor:
    image: Tensor = tensor[0].transpose(1, 2, 0)
    return image


def _mean(distances: list[Distance]) -> Distance:
    return Distance(**{f: float(np.mean([getattr(d, f) for d in distances])) for f in ("l1", "psnr", "ssim")})
