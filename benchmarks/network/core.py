"""Compare the runtimes and precisions that run the network on this machine (``make benchmark-core``).

One image passes the standard network (the owner's base, 25.4 M parameters, random weights) at 256 and 512, and a
package's network. Each candidate is a process of its own, so that its memory can be measured and no runtime's threads
disturb another's. Candidates take turns, round after round, so that a drift of the machine affects all alike. The base
is PyTorch eager in float32, written as in the paper (``benchmarks.network.paper``), and decibels are PSNR against it:
with random weights they show that a form computes the same, not how photographs look.

The record also has the ladder of rewrites in the engine's own runtime, the first call, and what the processor reaches
at best.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.network.peak import higher_of, measured_peaks
from benchmarks.report import tables
from benchmarks.report.tables import EQUAL_DB, ON_GPU, OURS
from export.errors import ExportError
from export.machine import peak_memory_mib
from export.precision import PRECISIONS
from operations.recording import (
    add_record_option,
    describe_circumstances,
    exit_on_interrupt,
    finish_run,
    format_make_command,
    show_progress,
)

if TYPE_CHECKING:  # imported where it is needed: the candidates' processes start without it
    from torch import nn

    from export.network.restormer import Restormer

Tensor = NDArray[np.float32]
Run = Callable[[Tensor], Tensor]
BASE = "PyTorch eager float32, as in the paper"
PATIENCE = 600.0  #: seconds until a candidate has to be ready and to answer once: torch.compile takes minutes
BUILDING = 3600.0  #: the same for TensorRT, which times the kernels of thousands of layers (INT8: 3,577)
SLOWEST = 30.0  #: seconds a call may take: a slower candidate is timed once, the base `BASE_TURNS` times
BASE_TURNS = 2
COMPILED = 256  #: the largest side of a random network that torch.compile is tried at
TOO_LONG = f"compiling takes minutes at every size: tried at {COMPILED}x{COMPILED} and on the package's network"
CALIBRATION = 8  #: photographs for the INT8 ranges of a trained network


@dataclass(frozen=True)
class Candidate:
    """A way to run a network: the runtime, the graph file it reads, and the precision."""

    name: str
    kind: str
    graph: str = ""
    precision: str = "fp32"


def candidates() -> list[Candidate]:
    """Return everything to compare; a candidate that this machine cannot run reports that when it starts."""
    found = [
        Candidate(BASE, "paper"),
        Candidate("PyTorch eager float32, our network", "eager"),
        Candidate("PyTorch eager float32, our network channels-last", "eager channels-last"),
        Candidate("PyTorch eager bfloat16, our network channels-last", "eager channels-last", precision="bf16"),
        Candidate("torch.compile float32", "compile"),
        Candidate("torch.compile bfloat16", "compile", precision="bf16"),
        Candidate("ONNX Runtime float32", "ort", "plain"),
        Candidate("OpenVINO float32", "openvino", "plain"),
        *(Candidate(f"{OURS}, {name}", "openvino", "engine", name) for name in ("fp32", "bf16", "fp16")),
        # An upper bound: the plan of a real INT8 engine may leave convolutions out for fidelity.
        Candidate(f"{OURS}, int8, every convolution it can take", "openvino", "int8 engine", "int8"),
    ]
    import torch

    if torch.cuda.is_available():  # not run on a GPU yet (docs/gpu-checklist.md)
        found += [
            Candidate("GPU: PyTorch eager float32", "cuda"),  # benchmarks.network.gpu has its other forms
            Candidate("GPU: ONNX Runtime CUDA, float16", "ort cuda", "fp16", "fp16"),
            Candidate("GPU: ONNX Runtime TensorRT, float16", "ort tensorrt", "fp16", "fp16"),
            Candidate("GPU: TensorRT FP16", "tensorrt", "fp16", "fp16"),
            Candidate("GPU: TensorRT INT8", "tensorrt", "int8", "int8"),
        ]
    return found


def load_candidate(candidate: Candidate, folder: Path) -> Run:
    """Load a candidate. Raises `ExportError` with the reason if this machine cannot run it."""
    kind, path = candidate.kind, folder / f"{candidate.graph}.onnx"
    if kind == "openvino":
        from export.targets import cpu

        precision = PRECISIONS[candidate.precision]
        if reason := cpu.why_not(precision):
            raise ExportError(reason)
        return cpu.runner_from_model(cpu.compile_engine(path, cpu.settings(precision)))
    if kind.startswith("ort"):
        from export import onnx_runtime as ort

        provider = {"ort": ort.CPU, "ort cuda": ort.CUDA, "ort tensorrt": ort.TENSORRT}[kind]
        return ort.runner_from_graph(path.read_bytes(), provider)[0]
    if kind == "tensorrt":
        from export.request import Options
        from export.targets.tensorrt import LoadedPlan, TensorRT

        options = Options(max_batch=1)  # one image at a time, like the others
        plan = TensorRT().build_plan(path.read_bytes(), options, tf32=True)
        return LoadedPlan(TensorRT().library(), plan.data).run
    return _load_torch(candidate, folder)


def _load_torch(candidate: Candidate, folder: Path) -> Run:
    import torch

    from benchmarks.network import paper

    saved = torch.load(folder / "network.pt", weights_only=False)
    kind, number = candidate.kind, torch.bfloat16 if candidate.precision == "bf16" else torch.float32
    if number is torch.bfloat16:
        import openvino

        if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise ExportError("this CPU has no bfloat16 arithmetic; PyTorch emulates it at a fraction of the speed")
    if kind == "paper":
        weights, eps = saved.state_dict(), saved.architecture.eps
        return lambda image: np.asarray(paper.restormer(weights, torch.from_numpy(image), eps=eps).numpy())
    device = "cuda" if kind == "cuda" else "cpu"
    layout = torch.contiguous_format if kind in ("eager", "cuda") else torch.channels_last
    torch.backends.cudnn.allow_tf32 = False  # on by default: float32 means float32 here
    network = saved.to(device, number, memory_format=layout)
    if kind == "compile":
        network = torch.compile(network)

    def run(image: Tensor) -> Tensor:
        with torch.inference_mode():
            given = torch.from_numpy(image).to(device, memory_format=layout)
            return np.asarray(network(given).float().cpu().numpy())

    return run


def serve_candidate(candidate: Candidate, folder: Path, pipe: Connection) -> None:
    """Run in a candidate's process: report when it is ready, then time a call for every message."""
    try:
        image, began = np.load(folder / "image.npy"), time.perf_counter()
        run = load_candidate(candidate, folder)
        ready = time.perf_counter()
        output = run(image)
        np.save(folder / f"{os.getpid()}.npy", output)
        pipe.send({"ready_s": ready - began, "first_s": time.perf_counter() - ready, "output": f"{os.getpid()}.npy"})
        while pipe.recv():
            began = time.perf_counter()
            run(image)
            seconds = time.perf_counter() - began
            memory = None if candidate.name.startswith(ON_GPU) else peak_memory_mib()
            pipe.send({"seconds": seconds, "memory_mib": memory})
    except EOFError:
        return
    except ExportError as error:
        pipe.send({"not_run": str(error)})
    except Exception as error:  # noqa: BLE001  any exception of a runtime is a row of the table
        pipe.send({"not_run": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"})


class Worker:
    """A candidate in its process."""

    def __init__(self, candidate: Candidate, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.candidate, self.seconds = candidate, list[float]()
        self.memory: int | None = None
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve_candidate, args=(candidate, folder, theirs), daemon=True)
        on_interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # this process answers Ctrl-C and ends the other
        try:
            self._process.start()
        finally:
            signal.signal(signal.SIGINT, on_interrupt)
        theirs.close()
        self.first = self._answer(BUILDING if "tensorrt" in candidate.kind else PATIENCE)
        if "not_run" in self.first:
            self.stop()

    @property
    def is_running(self) -> bool:
        """Whether it can run a turn."""
        return "not_run" not in self.first

    @property
    def is_timed(self) -> bool:
        """Whether it lived to the end and has figures."""
        return self.is_running and bool(self.seconds)

    @property
    def reason(self) -> str:
        """Return why it has no figures."""
        return str(self.first.get("not_run", "it was never called"))

    @property
    def median(self) -> float:
        """Return seconds an image."""
        return statistics.median(self.seconds)

    def needs_turn(self, turns: int) -> bool:
        """Return whether to time it once more: slow candidates get only this many turns."""
        return self.is_running and (len(self.seconds) < turns or self.seconds[0] <= SLOWEST)

    def decibels(self, reference: Tensor, folder: Path) -> float:
        """Return the PSNR of its first image against a reference; `EQUAL_DB` for equal bits."""
        from export.metrics import psnr

        return min(psnr(np.load(folder / self.first["output"]), reference), EQUAL_DB)

    def turn(self) -> None:
        """Time one call."""
        self._pipe.send(True)
        answer = self._answer(PATIENCE)
        if "not_run" in answer:
            self.first = answer
            return
        self.seconds.append(answer["seconds"])
        self.memory = answer["memory_mib"]

    def stop(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.join()

    def _answer(self, patience: float) -> dict[str, Any]:
        try:
            if self._pipe.poll(patience):
                answer: dict[str, Any] = self._pipe.recv()
                return answer
        except (EOFError, OSError):
            self._process.join()
            return {"not_run": f"its process died (exit code {self._process.exitcode}): too little memory?"}
        self._process.terminate()
        return {"not_run": f"no answer within {patience:g} s"}


def compare(found: list[Candidate], folder: Path, rounds: int) -> list[Worker]:
    """Start all candidates one after another, then time them in turns."""
    workers = []
    for candidate in found:
        show_progress(f"{candidate.name}: getting ready ...")
        workers.append(Worker(candidate, folder))
    for turn in range(rounds):
        for worker in workers:
            if worker.needs_turn(BASE_TURNS if worker.candidate.name == BASE else 1):
                show_progress(f"round {turn + 1}/{rounds}: {worker.candidate.name}")
                worker.turn()
    for worker in workers:
        worker.stop()
    show_progress()
    return workers


def row(worker: Worker, base: float, reference: Tensor, folder: Path) -> dict[str, Any]:
    """Return a candidate's figures, or why there are none."""
    if not worker.is_timed:
        return {"not_run": worker.reason}
    return {
        "median_s": worker.median,
        "least_s": min(worker.seconds),
        "most_s": max(worker.seconds),
        "speedup": base / worker.median,
        "psnr_db": worker.decibels(reference, folder),
        "seconds": worker.seconds,
        "memory_mib": worker.memory,
        "ready_s": worker.first["ready_s"],
        "first_s": worker.first["first_s"],
        "precision": worker.candidate.precision,
    }


def steps_of(workers: list[Worker], folder: Path) -> list[dict[str, Any]]:
    """Return the figures of each step, as times the speed of the first that ran, or why it did not run."""
    timed = [worker for worker in workers if worker.is_timed]
    reference = np.load(folder / timed[0].first["output"]) if timed else np.empty(0, np.float32)
    base = timed[0].median if timed else 0.0
    return [{"step": worker.candidate.name, **row(worker, base, reference, folder)} for worker in workers]


def write_inputs(network: Restormer, image: Tensor, folder: Path, calibration: Mapping[str, Tensor]) -> float:
    """Write the network, its graphs and the image for the candidates; return GFLOP an image.

    ``calibration``: images of the same size for the INT8 ranges (min-max), other than the one that is measured.
    """
    import torch

    from benchmarks.network import roofline
    from export.network import int8
    from export.network.cpu_form import cpu_graph
    from export.network.graph import onnx_bytes, onnx_from_network
    from export.network.rewrites import rewrite_network
    from export.targets import cpu

    side = image.shape[-1]
    folder.mkdir(exist_ok=True)
    torch.save(network, folder / "network.pt")
    np.save(folder / "image.npy", image)
    ready = rewrite_network(network)
    forms = {"plain": onnx_from_network(network, side=side), "engine": cpu_graph(ready, side=side)}
    has_int8, has_gpu = not cpu.why_not(PRECISIONS["int8"]), torch.cuda.is_available()
    ranges = int8.calibrate(ready, calibration, "minmax") if has_int8 or has_gpu else None
    if has_int8:
        forms["int8 engine"] = cpu_graph(ready, ranges, side=side)
    if has_gpu:
        made = roofline.typed_graphs(network, side=side, ranges=ranges)
        forms |= {"fp16": made["fp16"], "int8": made["int8"]}
    for name, model in forms.items():
        (folder / f"{name}.onnx").write_bytes(onnx_bytes(model))
    return 2 * sum(layer.macs for layer in roofline.graph_layers(forms["plain"], fused=False)) / 1e9


def measure_ladder(
    network: Restormer, image: Tensor, folder: Path, rounds: int, precision: str
) -> list[dict[str, Any]]:
    """Measure what each rewrite brings: the engine's runtime on the graph after it and all steps before."""
    from benchmarks.network.paper import Plain
    from export.network.cpu_form import channel_norms, grouped_feed_forward, masked_attention
    from export.network.graph import onnx_bytes, onnx_from_network
    from export.network.rewrites import fold_norms, pad_feed_forward, split_projections

    steps: list[tuple[str, Callable[[Any], Any]]] = [
        ("as in the paper", lambda each: each),
        ("products normalised after q·kᵀ, LayerNorm as one node", lambda each: each),
        ("LayerNorm's weight and bias folded into the next convolution", fold_norms),
        ("feed-forward padded to multiples of 8", pad_feed_forward),
        ("projections split into a convolution each", split_projections),
        ("LayerNorm as reductions over the channel axis", channel_norms),
        ("attention over [pixels, channels], output projection multiplied in", masked_attention),
        ("feed-forward in groups of channels, whose maps stay in the cache",
         partial(grouped_feed_forward, side=image.shape[-1])),
    ]  # fmt: skip
    found: list[Candidate] = []
    form: nn.Module = network
    for number, (name, step) in enumerate(steps):
        show_progress(f"ladder: exporting {number + 1} of {len(steps)} ...")
        form = step(form)
        exported: Any = form if number else Plain(network)
        path = folder / f"step{number}.onnx"
        path.write_bytes(onnx_bytes(onnx_from_network(exported, side=image.shape[-1])))
        found.append(Candidate(name, "openvino", path.stem, precision))
    return steps_of(compare(found, folder, rounds), folder)


def measure_network(
    name: str, network: Restormer, image: Tensor, weights: str, calibration: Mapping[str, Tensor], folder: Path,
    rounds: int,
) -> dict[str, Any]:  # fmt: skip
    """Measure every candidate on one network at one size."""
    show_progress(f"{name}: exporting ...")
    gflop = write_inputs(network, image, folder, calibration)
    is_compiled = weights == "trained" or image.shape[-1] <= COMPILED
    wanted = {each: is_compiled or each.kind != "compile" for each in candidates()}
    chosen = [each for each, is_wanted in wanted.items() if is_wanted]
    workers = {worker.candidate: worker for worker in compare(chosen, folder, rounds)}
    base = next(iter(workers.values()))
    if not base.is_timed:
        raise ExportError(f"the base of the comparison, {BASE}, could not be timed on {name}: {base.reason}")
    reference = np.load(folder / base.first["output"])
    return {
        "side": image.shape[-1],
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "gflop": gflop,
        "weights": weights,
        "rows": {
            each.name: row(workers[each], base.median, reference, folder) if is_wanted else {"not_run": TOO_LONG}
            for each, is_wanted in wanted.items()
        },
    }


def record(arguments: argparse.Namespace, command: str) -> dict[str, Any]:
    """Measure everything. Raises `ExportError` for a package or photographs that cannot be read."""
    import torch

    from benchmarks.network.random_weights import random_image, standard_network
    from export import planning
    from export.fidelity import core_tensors
    from export.package.model_package import network_from_package, package_from_folder
    from export.targets import cpu
    from hosts import gpus
    from imaging import SIDE

    if gpus() and not torch.cuda.is_available():
        raise ExportError(
            "there is a GPU, but PyTorch does not see it: install a CUDA build of PyTorch, "
            "or set CUDA_VISIBLE_DEVICES= to measure the CPU alone"
        )
    trained = network_from_package(package_from_folder(arguments.package))
    photograph = next(iter(core_tensors(arguments.photos).values()))
    calibration = planning.calibration_images(arguments.calibration, SIDE, CALIBRATION)
    rounds, standard = arguments.rounds, standard_network()
    noise = {side: [random_image(side, seed=seed) for seed in range(2)] for side in (256, 512)}
    runs = {f"standard {side}": (standard, image, "random", {"other": other}) for side, (image, other) in noise.items()}
    runs["demo 512"] = (trained, photograph, "trained", calibration)
    document: dict[str, Any] = {
        "circumstances": describe_circumstances(command),
        "peak": measured_peaks(),
        "networks": {},
    }
    with tempfile.TemporaryDirectory() as temporary:
        for name, (network, image, weights, images) in runs.items():
            folder = Path(temporary, name)
            document["networks"][name] = measure_network(name, network, image, weights, images, folder, rounds)
            document["peak"] = higher_of(document["peak"], measured_peaks())
        small, image = Path(temporary, "standard 256"), noise[256][0]
        precision = "fp32" if cpu.why_not(PRECISIONS["bf16"]) else "bf16"
        document["ladder_of"] = f"standard network at 256, OpenVINO in {precision}"
        document["ladder"] = measure_ladder(standard, image, small, rounds, precision)
    return document


def print_tables(document: Mapping[str, Any]) -> None:
    """Print what was measured."""
    for name, network in document["networks"].items():
        print(f"\n{name}: {network['parameters']:,} parameters, {network['gflop']:.0f} GFLOP an image, "
              f"{network['weights']} weights\n{tables.network_table(network, document['peak'])}")  # fmt: skip
    print(f"\nladder, {document['ladder_of']}\n{tables.steps_table(document['ladder'])}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path, default=Path("demo/package"), help="trained network to measure too")
    parser.add_argument("--photos", type=Path, default=Path("demo/photos"), help="the first is the image it runs on")
    parser.add_argument(
        "--calibration", type=Path, default=Path("demo/calibration"), help="photographs for its INT8 ranges"
    )
    parser.add_argument("--rounds", type=int, default=5)
    add_record_option(parser)
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds must be 1 or more")
    try:
        document = record(arguments, format_make_command("benchmark-core", parser, arguments, "record"))
    except ExportError as error:
        raise SystemExit(f"error: {error}") from None
    print_tables(document)
    finish_run(document, arguments.record)


if __name__ == "__main__":
    exit_on_interrupt(main)
