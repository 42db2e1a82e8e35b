"""How faithful an engine is to the float32 network, on real photographs.

The photographs are prepared by ``imaging``, exactly as the server prepares them. The reference is the network as the
package has it, in PyTorch float32, before any rewrite. Every way of running the network is a rung of one ladder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from export.errors import ExportError, GateError
from export.metrics import Distance, distance
from export.network import half
from export.package.pairs import Pair, opened, squared, tensor_from_pixels
from export.precision import Precision
from imaging import SIDE, SUFFIXES, InvalidPhotograph, prepared

Tensor = NDArray[np.float32]
Runner = Callable[[Tensor], Tensor]
MOST_PHOTOGRAPHS = 16


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """One rung of the ladder: the worst figures over all photographs, against PyTorch float32.

    ``executes`` names the types the arithmetic really ran in. ``psnr`` is in dB, the errors in [0, 1]. ``truth`` holds
    the mean distance to the ground truth, where there is some.
    """

    rung: str
    executes: str
    max_error: float
    mean_error: float
    psnr: float
    ssim: float
    worst: str
    truth: Distance | None = None

    def row(self) -> str:
        """One line of the table."""
        figures = f"{self.max_error:10.2e} {self.mean_error:10.2e} {self.psnr:8.1f} {self.ssim:8.5f}"
        truth = f"{self.truth.l1:8.4f} {self.truth.psnr:7.2f} {self.truth.ssim:6.3f}" if self.truth else f"{'–':>23}"
        return f"{self.rung:<26} {self.executes:<24} {figures} {truth}  {self.worst}"


@dataclass(frozen=True, kw_only=True)
class NotRun:
    """A rung that cannot be measured here, and why."""

    rung: str
    reason: str

    def row(self) -> str:
        """One line of the table."""
        return f"{self.rung:<26} n/a: {self.reason}"


HEADER = (
    f"{'against torch float32':<26} {'executes':<24} {'max error':>10} {'mean':>10} {'PSNR dB':>8} {'SSIM':>8} "
    f"{'truth L1':>8} {'PSNR dB':>7} {'SSIM':>6}  worst photograph"
)


@dataclass(frozen=True)
class Yardstick:
    """The photographs, what PyTorch float32 makes of them, and the true targets of those that have one.

    All are core tensors ``[1, 3, 512, 512]`` by file name; references and targets are clamped to [0, 1].
    ``worst_outputs`` keeps each rung's output for its worst photograph.
    """

    images: Mapping[str, Tensor]
    references: Mapping[str, Tensor]
    targets: Mapping[str, Tensor]
    worst_outputs: dict[str, Tensor] = field(default_factory=dict)

    def measure(self, rung: str, executes: str, run: Runner) -> Fidelity:
        """Runs ``run`` on every photograph; outputs are clamped to [0, 1] as they are served.

        Raises `GateError` if an output is not finite.
        """
        figures: dict[str, tuple[Distance, float]] = {}
        truths = []
        for name, image in self.images.items():
            output, reference = np.asarray(run(image), np.float32), self.references[name]
            if not np.isfinite(output).all():
                raise GateError(f"{rung}: the output for {name} holds NaN or infinity; nothing was published")
            output = output.clip(0, 1)
            found = _distance(output, reference)
            if not figures or found.psnr < min(other.psnr for other, _ in figures.values()):
                self.worst_outputs[rung] = output
            figures[name] = (found, float(np.abs(output - reference).max()))
            if name in self.targets:
                truths.append(_distance(output, self.targets[name]))
        worst = min(figures, key=lambda name: figures[name][0].psnr)
        return Fidelity(
            rung=rung,
            executes=executes,
            max_error=max(largest for _, largest in figures.values()),
            mean_error=max(found.l1 for found, _ in figures.values()),
            psnr=min(figures[worst][0].psnr, 200.0),  # equal pictures: infinity is not JSON
            ssim=min(found.ssim for found, _ in figures.values()),
            worst=worst,
            truth=_mean(truths) if truths else None,
        )

    def reference_truth(self) -> Distance | None:
        """What PyTorch float32 itself reaches against the ground truth."""
        found = [_distance(self.references[name], target) for name, target in self.targets.items()]
        return _mean(found) if found else None


def yardstick(network: nn.Module, folder: Path, targets: Path | None = None, pairs: Sequence[Pair] = ()) -> Yardstick:
    """The photographs of a folder through the network in float32; targets are matched by name, less the suffix.

    ``pairs`` replace both folders; their images are prepared as `export.evaluate` prepares them.
    """
    images = {pair.name: tensor_from_pixels(squared(opened(pair.input))) for pair in pairs} or core_tensors(folder)
    run = torch_runner(network)
    references = {name: run(image).clip(0, 1) for name, image in images.items()}
    if bad := [name for name, reference in references.items() if not np.isfinite(reference).all()]:
        raise ExportError(f"the float32 network itself makes NaN or infinity of {bad[0]}: is it trained?")
    if pairs:
        aims = {pair.name: tensor_from_pixels(squared(opened(pair.target))) for pair in pairs}
        return Yardstick(images, references, aims)
    truth = {path.stem: path for path in photographs(targets)} if targets else {}
    paired = [(name, truth[Path(name).stem]) for name in images if Path(name).stem in truth]
    return Yardstick(images, references, {name: core_tensor(path) for name, path in paired})


def core_tensors(folder: Path, most: int = MOST_PHOTOGRAPHS) -> dict[str, Tensor]:
    """The first photographs of a folder as core tensors ``[1, 3, 512, 512]``, by file name."""
    paths = photographs(folder)[:most]
    if not paths:
        raise ExportError(
            f"no photographs in {folder}: fidelity is measured on photographs, give a folder as PHOTOS=..."
        )
    return {path.name: core_tensor(path) for path in paths}


def torch_runner(network: nn.Module, *, device: str = "cpu", compiled: bool = False, tf32: bool = False) -> Runner:
    """PyTorch in the network's own type, on a device; float16 and TF32 on a CPU as `export.network.half` says."""
    placed = network.to(device)
    forward: Callable[[torch.Tensor], torch.Tensor] = torch.compile(placed) if compiled else placed

    # Not inference mode: outside it every convolution reaches `Half` in one form.
    def run(image: Tensor) -> Tensor:
        with torch.no_grad(), half.arithmetic(placed, tf32=tf32):
            result: Tensor = forward(torch.from_numpy(image).to(device)).cpu().numpy()
        return result

    return run


def require_fidelity(reached: Fidelity, reference: Distance | None, precision: Precision, gate: float) -> None:
    """Refuses (`GateError`) what is below the gate, or lost too much against the ground truth."""
    if reached.psnr < gate:
        raise GateError(
            f"fidelity {reached.psnr:.1f} dB on {reached.worst} is below the gate of {precision.name}, "
            f"{gate:.0f} dB: nothing was published"
        )
    if reached.truth and reference and reference.psnr - reached.truth.psnr > precision.loss:
        raise GateError(
            f"{reference.psnr - reached.truth.psnr:.2f} dB lost against the ground truth, {precision.name} may lose "
            f"{precision.loss} dB: nothing was published"
        )


def difference_picture(image: Tensor, reference: Tensor, output: Tensor) -> NDArray[np.uint8]:
    """Input, reference, output and their difference (scaled to its largest) side by side, HxWx3."""
    error = np.abs(output - reference)
    panels = [image, reference, output.clip(0, 1), error / max(float(error.max()), 1e-9)]
    pixels: NDArray[np.uint8] = np.round(np.concatenate([_hwc(p) for p in panels], axis=1) * 255).astype(np.uint8)
    return pixels


def photographs(folder: Path) -> list[Path]:
    """The photographs of a folder, by name."""
    return sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)


def core_tensor(path: Path, side: int = SIDE) -> Tensor:
    """One photograph as the server prepares it: ``[1, 3, side, side]``."""
    try:
        return prepared(path.read_bytes(), side=side)[None]
    except InvalidPhotograph as error:
        raise ExportError(f"{path}: {error}") from error


def _distance(output: Tensor, reference: Tensor) -> Distance:
    return distance(_hwc(output), _hwc(reference))


def _hwc(tensor: Tensor) -> Tensor:
    image: Tensor = tensor[0].transpose(1, 2, 0)
    return image


def _mean(distances: list[Distance]) -> Distance:
    return Distance(**{f: float(np.mean([getattr(d, f) for d in distances])) for f in ("l1", "psnr", "ssim")})
