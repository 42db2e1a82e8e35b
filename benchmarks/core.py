"""The network alone, in every runtime and precision this machine executes (``make benchmark-core``).

One image through the paper's standard network (26.1 M parameters, random weights) at 256 and 512, and through a
package's. Each candidate is a process of its own, so that memory is its own and no runtime's threads disturb another's;
they take turns, round after round, so that a drift of the machine hits all alike. The base is PyTorch eager in float32,
the network written as in the paper (``benchmarks.paper``): what one has without this repository. Decibels are against
the same in float32; with random weights they say that a form computes the same, not how photographs look.

Then the ladder: what each rewrite brings, in the engine's own runtime; threads and streams; and the first call.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.circumstances import circumstances, make_command
from benchmarks.command_line import add_record, finish
from export.errors import ExportError

Tensor = NDArray[np.float32]
Run = Callable[[Tensor], Tensor]
BASE = "PyTorch eager float32, as in the paper"
GOAL = 10.0  #: times the base at 256x256, on a processor with AMX
PATIENCE = 600.0  #: seconds a candidate gets to be ready and answer once: torch.compile takes minutes
SLOWEST = 30.0  #: seconds a call may take: a slower candidate is timed once
COMPILED = 256  #: the side torch.compile is tried at, beside a package's own: minutes for each size


@dataclass(frozen=True)
class Candidate:
    """A way to run a network: ``kind`` is how, ``graph`` names the file it reads, ``options`` are the runtime's."""

    name: str
    kind: str
    graph: str = ""
    precision: str = "fp32"
    options: tuple[tuple[str, str], ...] = ()


def candidates() -> list[Candidate]:
    """Everything to compare on this machine; what it cannot run says so when it is tried."""
    found = [
        Candidate(BASE, "paper"),
        Candidate("PyTorch eager float32, our network", "eager"),
        Candidate("PyTorch eager bfloat16, our network", "eager", precision="bf16"),
        Candidate("torch.compile float32", "compile"),
        Candidate("torch.compile bfloat16", "compile", precision="bf16"),
        Candidate("ONNX Runtime float32", "ort", "plain"),
        Candidate("OpenVINO float32", "openvino", "plain"),
        *(Candidate(f"our cpu engine, {name}", "openvino", "engine", name) for name in ("fp32", "bf16", "fp16")),
        Candidate("our cpu engine, int8", "openvino", "int8 engine", "int8"),
    ]
    import torch

    return [*found, *on_gpu()] if torch.cuda.is_available() else found


def on_gpu() -> list[Candidate]:
    """The matrix of a GPU host. Not run on a GPU yet (docs/gpu-checklist.md)."""
    return [
        Candidate("GPU: PyTorch eager float32", "cuda"),
        Candidate("GPU: PyTorch autocast float16", "cuda autocast", precision="fp16"),
        Candidate("GPU: torch.compile float16", "cuda compile", precision="fp16"),
        Candidate("GPU: CUDA graph float16", "cuda graph", precision="fp16"),
        Candidate("GPU: ONNX Runtime CUDA, float16", "ort cuda", "fp16", "fp16"),
        Candidate("GPU: ONNX Runtime TensorRT, float16", "ort tensorrt", "fp16", "fp16"),
        Candidate("GPU: TensorRT FP16", "tensorrt", "fp16", "fp16"),
        Candidate("GPU: TensorRT INT8", "tensorrt", "int8", "int8"),
    ]


def prepared(candidate: Candidate, folder: Path) -> Run:
    """The candidate, ready to be called. Raises `ExportError` saying why this machine cannot run it."""
    kind, path = candidate.kind, folder / f"{candidate.graph}.onnx"
    if kind == "openvino":
        return _openvino(candidate, path)
    if kind.startswith("ort"):
        from export import ort

        provider = {"ort": ort.CPU, "ort cuda": ort.CUDA, "ort tensorrt": ort.TENSORRT}[kind]
        return ort.session(path.read_bytes(), provider)[0]
    if kind == "tensorrt":
        from export import tensorrt

        return tensorrt.runner(tensorrt.built("tensorrt", path.read_bytes(), tensorrt.Options()).plan)
    return _torch(candidate, folder)


def _openvino(candidate: Candidate, path: Path) -> Run:
    from export import cpu
    from export.precision import PRECISIONS

    precision = PRECISIONS[candidate.precision]
    if reason := cpu.why_not(precision):
        raise ExportError(reason)
    return cpu.runner(cpu.compiled(path, {**cpu.settings(precision), **dict(candidate.options)}))


def _torch(candidate: Candidate, folder: Path) -> Run:
    import torch

    from benchmarks import paper

    saved = torch.load(folder / "network.pt", weights_only=False)
    kind, half = candidate.kind, {"bf16": torch.bfloat16, "fp16": torch.float16}.get(candidate.precision)
    if half is torch.bfloat16 and not kind.startswith("cuda"):
        import openvino

        if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise ExportError(
                "this CPU has no bfloat16 arithmetic; PyTorch emulates it, many times slower than float32"
            )
    if kind == "paper":
        weights = saved.state_dict()
        return lambda image: np.asarray(paper.restormer(weights, torch.from_numpy(image)).numpy())
    device = "cuda" if kind.startswith("cuda") else "cpu"
    network = saved.to(device, half) if half and kind != "cuda autocast" else saved.to(device)
    if kind.endswith("compile"):
        network = torch.compile(network.to(memory_format=torch.channels_last))
    call = _captured(network, folder) if kind == "cuda graph" else network

    def run(image: Tensor) -> Tensor:
        with torch.inference_mode(), torch.autocast("cuda", torch.float16, enabled=kind == "cuda autocast"):
            return np.asarray(call(torch.from_numpy(image).to(device)).float().cpu().numpy())

    return run


def _captured(network: Any, folder: Path) -> Any:
    """A CUDA graph of the network at the image's size."""
    import torch

    slot = torch.from_numpy(np.load(folder / "image.npy")).cuda()
    with torch.inference_mode():
        for _ in range(3):
            network(slot)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = network(slot)

    def call(image: Any) -> Any:
        slot.copy_(image)
        graph.replay()
        return output

    return call


def work(candidate: Candidate, folder: Path, pipe: Connection) -> None:
    """A candidate's process: says when it is ready, then times a call whenever it is told to."""
    from export.machine import peak_memory_mib

    try:
        image, began = np.load(folder / "image.npy"), time.perf_counter()
        run = prepared(candidate, folder)
        ready = time.perf_counter()
        output = run(image)
        np.save(folder / f"{os.getpid()}.npy", output)
        pipe.send({"ready_s": ready - began, "first_s": time.perf_counter() - ready, "output": f"{os.getpid()}.npy"})
        while pipe.recv():
            began = time.perf_counter()
            run(image)
            pipe.send({"seconds": time.perf_counter() - began, "memory_mib": peak_memory_mib()})
    except EOFError:
        return
    except ExportError as error:
        pipe.send({"not_run": str(error)})
    except Exception as error:  # noqa: BLE001  a runtime's own exception, whatever it is: a row of the table, not the end
        pipe.send({"not_run": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"})


class Worker:
    """A candidate in its process."""

    def __init__(self, candidate: Candidate, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.candidate, self.seconds, self.first, self.memory = candidate, [], {}, 0  # type: ignore[var-annotated]
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(candidate, folder, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self.first = self._answer(PATIENCE)
        if "not_run" in self.first:
            self.stop()

    @property
    def is_running(self) -> bool:
        """Whether it can be told to run."""
        return "not_run" not in self.first

    def turn(self) -> None:
        """One timed call."""
        self._pipe.send(True)
        answer = self._answer(PATIENCE)
        if "not_run" in answer:
            self.first = answer
            return
        self.seconds.append(answer["seconds"])
        self.memory = answer["memory_mib"]

    def stop(self) -> None:
        """Ends the process."""
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


def compared(found: list[Candidate], folder: Path, rounds: int) -> list[Worker]:
    """All candidates, started one after another and then timed in turns."""
    workers = []
    for candidate in found:
        say(f"{candidate.name}: getting ready ...")
        workers.append(Worker(candidate, folder))
    for turn in range(rounds):
        for worker in workers:
            if worker.is_running and not (worker.seconds and worker.seconds[0] > SLOWEST):
                say(f"round {turn + 1}/{rounds}: {worker.candidate.name}")
                worker.turn()
    for worker in workers:
        worker.stop()
    say("")
    return workers


def row(
    worker: Worker, base: float, gflop: float, peak: Mapping[str, float | None], reference: Tensor, folder: Path
) -> Any:
    """A candidate's figures, or why there are none."""
    from export.metrics import psnr

    if not worker.is_running or not worker.seconds:
        return {"not_run": worker.first.get("not_run", "it was never called")}
    median = statistics.median(worker.seconds)
    top = peak["bfloat16_gflops"] if worker.candidate.precision == "bf16" else peak["float32_gflops"]
    is_gpu = worker.candidate.name.startswith("GPU")
    return {
        "median_s": median,
        "least_s": min(worker.seconds),
        "most_s": max(worker.seconds),
        "rounds": len(worker.seconds),
        "speedup": base / median,
        "psnr_db": min(psnr(np.load(folder / worker.first["output"]), reference), 200.0),
        "memory_mib": worker.memory,
        "peak_share": gflop / median / top if top and not is_gpu else None,
        "ready_s": worker.first["ready_s"],
        "first_s": worker.first["first_s"],
        "precision": worker.candidate.precision,
    }


def peaks() -> dict[str, float | None]:
    """What this machine reaches at best: matrix products in GFLOP/s (PyTorch, the best of some), copies in GB/s."""
    import openvino
    import torch

    def best(function: Callable[[], Any]) -> float:
        seconds = []
        for _ in range(6):
            began = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - began)
        return min(seconds)

    side, capabilities = 2048, openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    wide = torch.rand(side, side)
    narrow = wide.bfloat16()
    source = np.ones(64 * 2**20, np.float32)
    target = np.empty_like(source)
    operations = 2 * side**3 / 1e9
    return {
        "float32_gflops": operations / best(lambda: wide @ wide),
        "bfloat16_gflops": operations / best(lambda: narrow @ narrow) if "BF16" in capabilities else None,
        "copy_gb_s": source.nbytes / 1e9 / best(lambda: np.copyto(target, source)),
    }


def written(network: Any, image: Tensor, folder: Path) -> float:
    """Puts the network, its graphs and the image where the candidates read them; returns GFLOP an image."""
    import torch

    from benchmarks import roofline
    from export import cpu, int8
    from export.channels import channels_last
    from export.graph import onnx_bytes, onnx_from_network
    from export.precision import PRECISIONS
    from export.rewrites import rewritten, split_projections

    side = image.shape[-1]
    folder.mkdir(exist_ok=True)
    torch.save(network, folder / "network.pt")
    np.save(folder / "image.npy", image)
    forms = {"plain": onnx_from_network(network, side=side)}
    forms["engine"] = onnx_from_network(channels_last(rewritten(network)), side=side)
    if not cpu.why_not(PRECISIONS["int8"]):  # every convolution that a plan may take, on the ranges of this image
        ready = rewritten(network)
        ranges = int8.calibrated(ready, {"image": image}, "minmax", lambda: None)
        plain = onnx_from_network(split_projections(ready), side=side)
        forms["int8 engine"] = int8.quantized_graph(plain, ranges)
    if torch.cuda.is_available():
        made = roofline.graphs(network)
        forms |= {"fp16": made["fp16"], "int8": made["int8"]}
    for name, model in forms.items():
        (folder / f"{name}.onnx").write_bytes(onnx_bytes(model))
    return 2 * sum(layer.macs for layer in roofline.layers(forms["plain"], fused=False)) / 1e9


def ladder(network: Any, image: Tensor, folder: Path, rounds: int, precision: str) -> list[dict[str, Any]]:
    """What each step brings: the engine's runtime on the graph after it, and after all steps before."""
    from export.channels import channel_norms, masked_attention
    from export.graph import onnx_bytes, onnx_from_network
    from export.metrics import psnr
    from export.rewrites import fold_norms, pad_feed_forward, split_projections

    steps: list[tuple[str, Callable[[Any], Any]]] = [
        ("products normalised after q·kᵀ, LayerNorm as one node", lambda each: each),
        ("LayerNorm's weight and bias folded into the next convolution", fold_norms),
        ("feed-forward padded to multiples of 8", pad_feed_forward),
        ("projections split into a convolution each", split_projections),
        ("LayerNorm as reductions over the channel axis", channel_norms),
        ("attention over [pixels, channels], output projection multiplied in", masked_attention),
    ]
    found, form = [], network
    for number, (_, step) in enumerate(steps):
        say(f"ladder: exporting {number + 1} of {len(steps)} ...")
        form = step(form)
        (folder / f"step{number}.onnx").write_bytes(onnx_bytes(onnx_from_network(form, side=image.shape[-1])))
        found.append(Candidate(steps[number][0], "openvino", f"step{number}", precision))
    workers = compared(found, folder, rounds)
    reference = np.load(folder / workers[0].first["output"])
    first = statistics.median(workers[0].seconds)
    return [
        {
            "step": worker.candidate.name,
            "median_s": statistics.median(worker.seconds),
            "least_s": min(worker.seconds),
            "most_s": max(worker.seconds),
            "speedup": first / statistics.median(worker.seconds),
            "psnr_db": min(psnr(np.load(folder / worker.first["output"]), reference), 200.0),
        }
        for worker in workers
    ]


def settings(folder: Path, rounds: int, precision: str) -> dict[str, Any]:
    """Threads, streams and a cache: seconds an image, and images a second when as many run as there are streams."""
    cores = len(os.sched_getaffinity(0))
    cache = str(folder / "cache")
    threads = sorted({1, max(1, cores // 2), cores})
    ways = {f"{count} threads": {"INFERENCE_NUM_THREADS": str(count)} for count in threads}
    ways |= {"compiled into a cache": {"CACHE_DIR": cache}, "compiled from the cache": {"CACHE_DIR": cache}}
    found = [Candidate(name, "openvino", "engine", precision, tuple(options.items())) for name, options in ways.items()]
    workers = compared(found, folder, rounds)
    rows = {
        worker.candidate.name: {
            "median_s": statistics.median(worker.seconds),
            "ready_s": worker.first["ready_s"],
            "first_s": worker.first["first_s"],
        }
        for worker in workers
    }
    return {"rows": rows, "streams": _streams(folder / "engine.onnx", np.load(folder / "image.npy"), precision, cores)}


def _streams(path: Path, image: Tensor, precision: str, cores: int) -> dict[str, float]:
    """Images a second with one stream over all cores, and with a stream a core, both kept busy."""
    import openvino

    from export import cpu
    from export.precision import PRECISIONS

    rates = {}
    for streams in sorted({1, cores}):
        options = {**cpu.settings(PRECISIONS[precision]), "NUM_STREAMS": str(streams)}
        queue = openvino.AsyncInferQueue(cpu.compiled(path, options), streams)
        for _ in range(streams):
            queue.start_async({0: image})
        queue.wait_all()
        began = time.perf_counter()
        for _ in range(4 * streams):
            queue.start_async({0: image})
        queue.wait_all()
        rates[f"{streams} streams"] = 4 * streams / (time.perf_counter() - began)
    return rates


def measured(
    name: str, network: Any, image: Tensor, weights: str, folder: Path, rounds: int, peak: Any
) -> dict[str, Any]:
    """One network at one size: every candidate."""
    say(f"{name}: exporting ...")
    gflop = written(network, image, folder)
    is_compiled = weights == "trained" or image.shape[-1] <= COMPILED
    found = [each for each in candidates() if is_compiled or each.kind != "compile"]
    workers = compared(found, folder, rounds)
    base = workers[0]
    if not base.seconds:
        raise SystemExit(f"error: the base could not be timed: {base.first.get('not_run')}")
    reference, median = np.load(folder / base.first["output"]), statistics.median(base.seconds)
    return {
        "side": image.shape[-1],
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "gflop": gflop,
        "weights": weights,
        "rows": {w.candidate.name: row(w, median, gflop, peak, reference, folder) for w in workers},
    }


def lines(document: Mapping[str, Any]) -> list[str]:
    """The tables."""
    made = []
    for name, found in document["networks"].items():
        made += [
            "",
            f"{name}: {found['parameters'] / 1e6:.1f} M parameters, {found['gflop']:.0f} GFLOP an image, "
            f"{found['weights']} weights",
        ]
        made.append(f"{'':<42} {'median s':>9} {'least–most':>15} {'×':>6} {'dB':>6} {'MiB':>6} {'of peak':>8}")
        for runtime, each in found["rows"].items():
            if reason := each.get("not_run"):
                made.append(f"{runtime:<42} not run: {reason}")
                continue
            spread, share = f"{each['least_s']:.2f}–{each['most_s']:.2f}", each["peak_share"]
            made.append(
                f"{runtime:<42} {each['median_s']:9.3f} {spread:>15} {each['speedup']:6.2f} {each['psnr_db']:6.1f} "
                f"{each['memory_mib']:6} {'–' if share is None else format(share, '.0%'):>8}"
            )
    made += ["", f"the ladder, {document['ladder_of']}"]
    for each in document["ladder"]:
        made.append(f"{each['step']:<70} {each['median_s']:7.3f} s {each['speedup']:5.2f}x {each['psnr_db']:6.1f} dB")
    made += ["", f"{'settings of the engine':<30} {'s':>7} {'ready s':>8} {'first call s':>13}"]
    for name, each in document["settings"]["rows"].items():
        made.append(f"{name:<30} {each['median_s']:7.3f} {each['ready_s']:8.2f} {each['first_s']:13.3f}")
    made += [f"{name:<30} {rate:7.3f} images a second" for name, rate in document["settings"]["streams"].items()]
    return [*made, "", verdict(document)]


def verdict(document: Mapping[str, Any]) -> str:
    """Whether the goal is reached, and what stands in its way: a calculation from the measured peak."""
    found = document["networks"]["standard 256"]
    engines = {name: each for name, each in found["rows"].items() if name.startswith("our") and "median_s" in each}
    name, best = max(engines.items(), key=lambda item: item[1]["speedup"])
    reached = "reached" if best["speedup"] >= GOAL else "missed"
    top = document["peak"]["bfloat16_gflops"] if best["precision"] == "bf16" else document["peak"]["float32_gflops"]
    allowed = found["rows"][BASE]["median_s"] / (found["gflop"] / top)
    return (
        f"goal, {GOAL:g} times PyTorch eager float32 at 256 on a processor with AMX: {reached}, {best['speedup']:.1f} "
        f"by {name}; multiplications alone, at this processor's peak of {top:.0f} GFLOP/s, would be {allowed:.1f}"
    )


def say(text: str) -> None:
    """Progress on standard error, in one line."""
    print(f"\r\033[K  {text}" if text else "\r\033[K", end="", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path, default=Path("demo/package"), help="the trained network to measure too")
    parser.add_argument("--photos", type=Path, default=Path("demo/photos"), help="the first is what it is measured on")
    parser.add_argument("--rounds", type=int, default=5)
    add_record(parser)
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds: 1 or more")
    import torch

    from export import cpu
    from export.architecture import restormer
    from export.fidelity import core_tensors
    from export.network import Restormer
    from export.package import network_from_package, package_from_folder
    from export.precision import PRECISIONS

    try:
        trained = network_from_package(package_from_folder(arguments.package))
        photograph = next(iter(core_tensors(arguments.photos).values()))
    except ExportError as error:
        raise SystemExit(f"error: {error}") from None
    torch.manual_seed(0)
    standard = Restormer(restormer()).eval()
    document: dict[str, Any] = {
        "circumstances": circumstances(make_command("benchmark-core", parser, arguments, "record")),
        "peak": peaks(),
        "networks": {},
    }
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as temporary:
        for side in (256, 512):
            image, folder = generator.random((1, 3, side, side), np.float32), Path(temporary, str(side))
            document["networks"][f"standard {side}"] = measured(
                f"standard {side}", standard, image, "random", folder, arguments.rounds, document["peak"]
            )
        document["networks"]["demo 512"] = measured(
            "demo 512", trained, photograph, "trained", Path(temporary, "demo"), arguments.rounds, document["peak"]
        )
        small = Path(temporary, "256")
        precision = "fp32" if cpu.why_not(PRECISIONS["bf16"]) else "bf16"
        document["ladder_of"] = f"standard network at 256, OpenVINO in {precision}"
        document["ladder"] = ladder(standard, np.load(small / "image.npy"), small, arguments.rounds, precision)
        document["settings"] = settings(small, arguments.rounds, precision)
    print("\n".join(lines(document)))
    finish(document, arguments.record)


if __name__ == "__main__":
    main()
