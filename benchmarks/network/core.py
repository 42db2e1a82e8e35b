"""The network alone, in every runtime and precision this machine executes (``make benchmark-core``).

One image through the paper's standard network (26.1 M parameters, random weights) at 256 and 512, and through a
package's. Each candidate is a process of its own, so that memory is its own and no runtime's threads disturb another's;
they take turns, round after round, so that a drift of the machine hits all alike. The base is PyTorch eager in float32,
the network written as in the paper (``benchmarks.network.paper``): what one has without this repository. Decibels are
against the same in float32; with random weights they say that a form computes the same, not how photographs look.

Then, in the engine's own runtime: the ladder of what each rewrite brings; what was tried beyond it, and left; threads
and streams; and the first call. Last whether the goal is reached, and what this machine's arithmetic allows at most.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import os
import re
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.network.peak import higher, peak_of, peaks
from export.errors import ExportError
from operations.recording import (
    add_record_option,
    describe_circumstances,
    exit_on_interrupt,
    finish_run,
    format_make_command,
    show_progress,
)

Tensor = NDArray[np.float32]
Run = Callable[[Tensor], Tensor]
BASE = "PyTorch eager float32, as in the paper"
OWN = "PyTorch eager float32, our network channels-last"  #: the fastest of eager float32 that we know of
ON_GPU = "GPU: "  #: how the names of what runs there begin
OURS = "our cpu engine"  #: how the names of this project's runtimes begin
#: What an engine has to reach on a machine with AMX: times the base on that network, and decibels on the trained one.
GOAL, GOAL_NETWORK, GOAL_DB = 10.0, "standard 256", 45.0
PATIENCE = 600.0  #: seconds a candidate gets to be ready and answer once: torch.compile takes minutes
SLOWEST = 30.0  #: seconds a call may take: a slower candidate is timed once, the base `BASE_TURNS` times
BASE_TURNS = 2
COMPILED = 256  #: the side torch.compile is tried at, beside a package's own
TOO_LONG = f"compiling takes minutes at every size: tried at {COMPILED}x{COMPILED} and on the package's network"
#: What was tried and left: its place in the record, and its title.
TRIED = {"tried": "tried, and left", "tried_in_int8": "tried in INT8, and left"}
TRIES = 3  #: rounds at most of what was tried and left
CALIBRATION = 8  #: photographs that the INT8 ranges of a trained network are from


@dataclass(frozen=True)
class Candidate:
    """A way to run a network: ``kind`` is how, ``graph`` names the file it reads, ``options`` are the runtime's,
    ``batch`` is how many images a call has."""

    name: str
    kind: str
    graph: str = ""
    precision: str = "fp32"
    options: tuple[tuple[str, str], ...] = ()
    batch: int = 1

    @property
    def is_on_gpu(self) -> bool:
        """Whether the processor only feeds it."""
        return self.name.startswith(ON_GPU)


def candidates() -> list[Candidate]:
    """Everything to compare on this machine; what it cannot run says so when it is tried."""
    found = [
        Candidate(BASE, "paper"),
        Candidate("PyTorch eager float32, our network", "eager"),
        Candidate(OWN, "eager channels-last"),
        Candidate("PyTorch eager bfloat16, our network channels-last", "eager channels-last", precision="bf16"),
        Candidate("torch.compile float32", "compile"),
        Candidate("torch.compile bfloat16", "compile", precision="bf16"),
        Candidate("ONNX Runtime float32", "ort", "plain"),
        Candidate("OpenVINO float32", "openvino", "plain"),
        *(Candidate(f"{OURS}, {name}", "openvino", "engine", name) for name in ("fp32", "bf16", "fp16")),
        # What a plan may leave out for fidelity is in: `make engine PRECISION=int8` is as fast at most.
        Candidate(f"{OURS}, int8, every convolution it can take", "openvino", "int8 engine", "int8"),
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
        from export import onnx_runtime as ort

        provider = {"ort": ort.CPU, "ort cuda": ort.CUDA, "ort tensorrt": ort.TENSORRT}[kind]
        return ort.session(path.read_bytes(), provider)[0]
    if kind == "tensorrt":
        from export.request import Options
        from export.targets.tensorrt import TensorRT

        options = Options(max_batch=1)  # one image at a time, as all that is timed beside it
        return TensorRT().runner(TensorRT().build_plan(path.read_bytes(), options).data)
    return _torch(candidate, folder)


def _openvino(candidate: Candidate, path: Path) -> Run:
    from export.precision import PRECISIONS
    from export.targets import cpu

    precision = PRECISIONS[candidate.precision]
    if reason := cpu.why_not(precision):
        raise ExportError(reason)
    options = {**cpu.settings(precision), **dict(candidate.options)}
    return cpu.runner(cpu.compiled(path, options, batch=candidate.batch))


def _torch(candidate: Candidate, folder: Path) -> Run:
    import torch

    from benchmarks.network import paper

    saved = torch.load(folder / "network.pt", weights_only=False)
    kind, half = candidate.kind, {"bf16": torch.bfloat16, "fp16": torch.float16}.get(candidate.precision)
    if half is torch.bfloat16 and not kind.startswith("cuda"):
        import openvino

        if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise ExportError(
                "this CPU has no bfloat16 arithmetic; PyTorch emulates it, many times slower than float32"
            )
    if kind == "paper":
        weights, eps = saved.state_dict(), saved.architecture.eps
        return lambda image: np.asarray(paper.restormer(weights, torch.from_numpy(image), eps=eps).numpy())
    device = "cuda" if kind.startswith("cuda") else "cpu"
    network = saved.to(device, half) if half and kind != "cuda autocast" else saved.to(device)
    layout = torch.contiguous_format if kind in ("eager", "cuda") else torch.channels_last
    torch.backends.cudnn.allow_tf32 = False  # on by default: float32 means float32 here
    network = network.to(memory_format=layout)
    if kind.endswith("compile"):
        network = torch.compile(network)
    call = _captured(network, folder) if kind == "cuda graph" else network

    def run(image: Tensor) -> Tensor:
        with torch.inference_mode(), torch.autocast("cuda", torch.float16, enabled=kind == "cuda autocast"):
            given = torch.from_numpy(image).to(device, memory_format=layout)
            return np.asarray(call(given).float().cpu().numpy())

    return run


def _captured(network: Any, folder: Path) -> Any:
    """A CUDA graph of the network at the image's size."""
    import torch

    slot = torch.from_numpy(np.load(folder / "image.npy")).to("cuda", memory_format=torch.channels_last)
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
    try:
        image, began = np.repeat(np.load(folder / "image.npy"), candidate.batch, axis=0), time.perf_counter()
        run = prepared(candidate, folder)
        ready = time.perf_counter()
        output = run(image)
        np.save(folder / f"{os.getpid()}.npy", output)
        pipe.send({"ready_s": ready - began, "first_s": time.perf_counter() - ready, "output": f"{os.getpid()}.npy"})
        while pipe.recv():
            began = time.perf_counter()
            run(image)
            pipe.send({"seconds": time.perf_counter() - began, "memory_mib": _memory_mib(candidate)})
    except EOFError:
        return
    except ExportError as error:
        pipe.send({"not_run": str(error)})
    except Exception as error:  # noqa: BLE001  a runtime's own exception, whatever it is: a row of the table, not the end
        pipe.send({"not_run": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"})


def _memory_mib(candidate: Candidate) -> int | None:
    """The most memory this process has had; of a GPU what PyTorch took there, None of others, who do not tell."""
    from export.machine import peak_memory_mib

    if not candidate.is_on_gpu:
        return peak_memory_mib()
    if not candidate.kind.startswith("cuda"):
        return None
    import torch

    return int(torch.cuda.max_memory_allocated()) // 2**20


class Worker:
    """A candidate in its process."""

    def __init__(self, candidate: Candidate, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.candidate, self.seconds = candidate, list[float]()  # of an image
        self.memory: int | None = None
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(candidate, folder, theirs), daemon=True)
        on_interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is ours to answer, and ends it too
        try:
            self._process.start()
        finally:
            signal.signal(signal.SIGINT, on_interrupt)
        theirs.close()
        self.first = self._answer(PATIENCE)
        if "not_run" in self.first:
            self.stop()

    @property
    def is_running(self) -> bool:
        """Whether it can be told to run."""
        return "not_run" not in self.first

    @property
    def was_timed(self) -> bool:
        """Whether it lived to the end and has figures."""
        return self.is_running and bool(self.seconds)

    @property
    def reason(self) -> str:
        """Why it has none."""
        return str(self.first.get("not_run", "it was never called"))

    @property
    def median(self) -> float:
        """Seconds an image."""
        return statistics.median(self.seconds)

    def wants(self, turns: int) -> bool:
        """Whether it is to be timed once more: the slow ones are not, after so many turns."""
        return self.is_running and (len(self.seconds) < turns or self.seconds[0] <= SLOWEST)

    def decibels(self, reference: Tensor, folder: Path) -> float:
        """Of its first image against a reference; 200 where they are the same in every bit."""
        from export.metrics import psnr

        return min(psnr(np.load(folder / self.first["output"])[:1], reference[:1]), 200.0)

    def turn(self) -> None:
        """One timed call."""
        self._pipe.send(True)
        answer = self._answer(PATIENCE)
        if "not_run" in answer:
            self.first = answer
            return
        self.seconds.append(answer["seconds"] / self.candidate.batch)
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
        show_progress(f"{candidate.name}: getting ready ...")
        workers.append(Worker(candidate, folder))
    for turn in range(rounds):
        for worker in workers:
            if worker.wants(BASE_TURNS if worker.candidate.name == BASE else 1):
                show_progress(f"round {turn + 1}/{rounds}: {worker.candidate.name}")
                worker.turn()
    for worker in workers:
        worker.stop()
    show_progress()
    return workers


def row(worker: Worker, base: float, reference: Tensor, folder: Path) -> dict[str, Any]:
    """A candidate's figures, or why there are none."""
    if not worker.was_timed:
        return {"not_run": worker.reason}
    return {
        "median_s": worker.median,
        "least_s": min(worker.seconds),
        "most_s": max(worker.seconds),
        "seconds": worker.seconds,
        "speedup": base / worker.median,
        "psnr_db": worker.decibels(reference, folder),
        "memory_mib": worker.memory,
        "ready_s": worker.first["ready_s"],
        "first_s": worker.first["first_s"],
        "precision": worker.candidate.precision,
    }


def peak_share(name: str, row: Mapping[str, Any], gflop: float, peak: Mapping[str, float | None]) -> float | None:
    """What a candidate reaches of a matrix product's speed in its precision; None where that was not measured."""
    top = peak_of(peak, row["precision"], on_gpu=name.startswith(ON_GPU))
    return gflop / row["median_s"] / top if top else None


def random_network() -> Any:
    """The paper's standard network, all of its weights random."""
    import torch

    from export.network.architecture import restormer
    from export.network.restormer import Restormer

    torch.manual_seed(0)
    return awake(Restormer(restormer()).eval())


def awake(network: Any) -> Any:
    """A new network with random norms and temperatures, in place.

    They begin as ones and zeros. A runtime takes those out of the graph, and a rewrite that spares them would be
    measured where there is nothing to spare.
    """
    import torch

    for name, parameter in network.named_parameters():
        if re.search(r"norm[12]\.weight$|temperature$", name):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        elif re.search(r"norm[12]\.bias$", name):
            torch.nn.init.uniform_(parameter, -0.5, 0.5)
    return network


def calibration_images(folder: Path) -> dict[str, Tensor]:
    """Photographs for INT8's ranges, spread over a folder's names; none where nothing here has a use for them."""
    import torch

    from export import fidelity
    from export.precision import PRECISIONS
    from export.targets import cpu

    if cpu.why_not(PRECISIONS["int8"]) and not torch.cuda.is_available():
        return {}
    paths = fidelity.photographs(folder)
    if not paths:
        raise ExportError(f"no photographs in {folder}: INT8's ranges come from photographs, give CALIBRATION=folder")
    return {path.name: fidelity.core_tensor(path) for path in paths[:: -(-len(paths) // CALIBRATION)]}


def written(network: Any, image: Tensor, folder: Path, calibration: Mapping[str, Tensor]) -> float:
    """Puts the network, its graphs and the image where the candidates read them; returns GFLOP an image.

    ``calibration``: images of the same size, others than the one that is measured, for INT8's ranges (min-max).
    """
    import torch

    from benchmarks.network import roofline
    from export.network import int8
    from export.network.cpu_form import cpu_graph
    from export.network.graph import onnx_bytes, onnx_from_network
    from export.network.rewrites import rewritten
    from export.precision import PRECISIONS
    from export.targets import cpu

    side = image.shape[-1]
    folder.mkdir(exist_ok=True)
    torch.save(network, folder / "network.pt")
    np.save(folder / "image.npy", image)
    ready = rewritten(network)
    forms = {"plain": onnx_from_network(network, side=side), "engine": cpu_graph(ready, side=side)}
    has_int8, has_gpu = not cpu.why_not(PRECISIONS["int8"]), torch.cuda.is_available()
    ranges = int8.calibrated(ready, calibration, "minmax", lambda: None) if has_int8 or has_gpu else None
    if has_int8:
        forms["int8 engine"] = cpu_graph(ready, ranges, side=side)
    if has_gpu:
        made = roofline.graphs(network, side=side, ranges=ranges)
        forms |= {"fp16": made["fp16"], "int8": made["int8"]}
    for name, model in forms.items():
        (folder / f"{name}.onnx").write_bytes(onnx_bytes(model))
    return 2 * sum(layer.macs for layer in roofline.layers(forms["plain"], fused=False)) / 1e9


def ladder(network: Any, image: Tensor, folder: Path, rounds: int, precision: str) -> list[dict[str, Any]]:
    """What each step brings: the engine's runtime on the graph after it, and after all steps before."""
    from benchmarks.network.paper import Plain
    from export.network.cpu_form import channel_norms, grouped_feed_forward, masked_attention
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
    found, form = [], network
    for number, (name, step) in enumerate(steps):
        show_progress(f"ladder: exporting {number + 1} of {len(steps)} ...")
        form = step(form)
        exported = form if number else Plain(network)
        found.append(_exported(name, exported, f"step{number}", image, folder, precision))
    return steps_of(compared(found, folder, rounds), folder)


def tried(network: Any, image: Tensor, folder: Path, rounds: int, precision: str) -> list[dict[str, Any]]:
    """The engine as it is, and what was tried beyond the ladder and left, each alone. Wants `written`'s engine."""
    from export.network.cpu_form import channels_last
    from export.network.rewrites import rewritten

    form = channels_last(rewritten(network), side=image.shape[-1])
    show_progress("tried, and left: exporting ...")
    found = [
        Candidate("the engine as it is", "openvino", "engine", precision),
        *(Candidate(f"{words} images a call", "openvino", "engine", precision, batch=count)
          for words, count in (("two", 2), ("four", 4))),
        _exported("no temperature: the most that folding it into q can bring", without_temperature(form), "bare", image,
                  folder, precision),
        _exported("LayerNorm's centring folded into the next convolution", centring_folded(form), "centred", image,
                  folder, precision),
        Candidate("OpenVINO's hint for throughput", "openvino", "engine", precision,
                  (("PERFORMANCE_HINT", "THROUGHPUT"),)),
        Candidate("OpenVINO without its graph pass that compiles elementwise work (snippets)", "openvino", "engine",
                  precision, (("SNIPPETS_MODE", "DISABLE"),)),
    ]  # fmt: skip
    return steps_of(compared(found, folder, min(rounds, TRIES)), folder)


def tried_in_int8(network: Any, image: Tensor, other: Tensor, folder: Path, rounds: int) -> list[dict[str, Any]]:
    """The INT8 engine as it is, and with more convolutions in INT8 (ranges of ``other``, as its own); none where this
    processor has no use for INT8. Wants `written`'s engine."""
    import onnx
    import torch

    from export.network import int8
    from export.network.cpu_form import channels_last
    from export.network.graph import onnx_bytes
    from export.network.rewrites import rewritten
    from export.precision import PRECISIONS
    from export.targets import cpu

    if cpu.why_not(PRECISIONS["int8"]):
        return []
    show_progress("tried in INT8, and left: quantizing ...")
    form = channels_last(rewritten(network), side=image.shape[-1])
    inner = {name: each for name, each in form.named_modules() if isinstance(each, torch.nn.Conv2d)}
    ranges = int8.calibrated(form, {"other": other}, "minmax", lambda: None, inner)
    engine = onnx.load(folder / "int8 engine.onnx")
    more = {
        "the feed-forward's output projections in INT8 too": (".ffn.project_out",),
        "the feed-forward's depthwise convolutions in INT8 too": (".ffn.dwconv.",),
        "every depthwise convolution in INT8 too": (".ffn.dwconv.", ".attn.qkv_dwconv."),
    }
    found = [Candidate("the INT8 engine as it is", "openvino", "int8 engine", "int8")]
    for number, (name, parts) in enumerate(more.items()):
        taken = {module: largest for module, largest in ranges.items() if any(part in module for part in parts)}
        (folder / f"more{number}.onnx").write_bytes(onnx_bytes(int8.quantized_graph(engine, taken)))
        found.append(Candidate(name, "openvino", f"more{number}", "int8"))
    return steps_of(compared(found, folder, min(rounds, TRIES)), folder)


def _exported(name: str, form: Any, graph: str, image: Tensor, folder: Path, precision: str) -> Candidate:
    """A form of the network as a candidate in the engine's runtime, its graph written."""
    from export.network.graph import onnx_bytes, onnx_from_network

    (folder / f"{graph}.onnx").write_bytes(onnx_bytes(onnx_from_network(form, side=image.shape[-1])))
    return Candidate(name, "openvino", graph, precision)


def without_temperature(network: Any) -> Any:
    """The engine's form less the temperature: another function, to see what the multiplication costs.

    Folded into q it would still have to be taken out of q's length, which the product is divided by.
    """
    from export.network.cpu_form import MaskedAttention

    result = copy.deepcopy(network)
    for layer in result.modules():
        if isinstance(layer, MaskedAttention):
            del layer.temperature
            layer.temperature = 1.0  # type: ignore[assignment]
    return result


def centring_folded(network: Any) -> Any:
    """The engine's form with LayerNorm's centring in the convolutions that follow: W(x - mean x) = (W - row means)x."""
    from export.network.restormer import TransformerBlock

    result = copy.deepcopy(network)
    for block in result.modules():
        if isinstance(block, TransformerBlock):
            for norm, points in ((block.norm1, block.attn.qkv), (block.norm2, block.ffn.project_in)):
                for point in points if norm.is_centred else ():
                    point.weight.data -= point.weight.data.mean(1, keepdim=True)
                norm.is_centred = False
    return result


def steps_of(workers: list[Worker], folder: Path) -> list[dict[str, Any]]:
    """Seconds an image of each, and how many times as fast as the first that ran it is; or why it did not run."""
    timed = [worker for worker in workers if worker.was_timed]
    reference = np.load(folder / timed[0].first["output"]) if timed else np.empty(0)
    return [
        {
            "step": worker.candidate.name,
            "median_s": worker.median,
            "least_s": min(worker.seconds),
            "most_s": max(worker.seconds),
            "speedup": timed[0].median / worker.median,
            "psnr_db": worker.decibels(reference, folder),
        }
        if worker.was_timed
        else {"step": worker.candidate.name, "not_run": worker.reason}
        for worker in workers
    ]


def is_within_spread(step: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether the rounds of one lie among those of the other, so that the two medians say nothing."""
    return bool(step["least_s"] <= other["most_s"] and other["least_s"] <= step["most_s"])


def settings(folder: Path, rounds: int, precision: str) -> dict[str, Any]:
    """Threads, streams and a cache: seconds an image, and images a second when as many run as there are streams."""
    cores = len(os.sched_getaffinity(0))
    cache = str(folder / "cache")
    threads = sorted({1, max(1, cores // 2), cores})
    ways = {counted(count, "thread"): {"INFERENCE_NUM_THREADS": str(count)} for count in threads}
    ways |= {"compiled into a cache": {"CACHE_DIR": cache}, "compiled from the cache": {"CACHE_DIR": cache}}
    found = [Candidate(name, "openvino", "engine", precision, tuple(options.items())) for name, options in ways.items()]
    workers = compared(found, folder, rounds)
    rows = {
        worker.candidate.name: {
            "median_s": worker.median,
            "ready_s": worker.first["ready_s"],
            "first_s": worker.first["first_s"],
        }
        if worker.was_timed
        else {"not_run": worker.reason}
        for worker in workers
    }
    image = np.load(folder / "image.npy")
    return {"rows": rows, "streams": _streams(folder / "engine.onnx", image, precision, cores, rounds)}


def _streams(path: Path, image: Tensor, precision: str, cores: int, rounds: int) -> dict[str, list[float]]:
    """Images a second of each round, with one stream over all cores, and with a stream a core, both kept busy."""
    import openvino

    from export.precision import PRECISIONS
    from export.targets import cpu

    queues = {}
    for streams in sorted({1, cores}):
        options = {**cpu.settings(PRECISIONS[precision]), "NUM_STREAMS": str(streams)}
        queues[streams] = openvino.AsyncInferQueue(cpu.compiled(path, options), streams)
    rates: dict[str, list[float]] = {counted(streams, "stream"): [] for streams in queues}
    for turn in range(rounds + 1):  # the first is a warm-up
        for streams, queue in queues.items():
            show_progress(f"streams: {streams}, round {turn}/{rounds}")
            began = time.perf_counter()
            for _ in range(4 * streams):
                queue.start_async({0: image})
            queue.wait_all()
            if turn:
                rates[counted(streams, "stream")].append(4 * streams / (time.perf_counter() - began))
    return rates


def counted(count: int, what: str) -> str:
    """So many of them, in words: 1 thread, 2 threads."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def measured(
    name: str, network: Any, image: Tensor, weights: str, calibration: Mapping[str, Tensor], folder: Path, rounds: int,
) -> dict[str, Any]:  # fmt: skip
    """One network at one size: every candidate."""
    show_progress(f"{name}: exporting ...")
    gflop = written(network, image, folder, calibration)
    is_compiled = weights == "trained" or image.shape[-1] <= COMPILED
    found = {each: is_compiled or each.kind != "compile" for each in candidates()}
    workers = {
        worker.candidate: worker for worker in compared([e for e, wanted in found.items() if wanted], folder, rounds)
    }
    base = next(iter(workers.values()))
    if not base.was_timed:
        raise ExportError(f"the base of the comparison, {BASE}, could not be timed on {name}: {base.reason}")
    reference = np.load(folder / base.first["output"])
    return {
        "side": image.shape[-1],
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "gflop": gflop,
        "weights": weights,
        "rows": {
            each.name: row(workers[each], base.median, reference, folder) if wanted else {"not_run": TOO_LONG}
            for each, wanted in found.items()
        },
    }


def lines(document: Mapping[str, Any]) -> list[str]:
    """The tables."""
    made = []
    for name, found in document["networks"].items():
        made += [
            "",
            f"{name}: {found['parameters'] / 1e6:.1f} M parameters, {found['gflop']:.0f} GFLOP an image, "
            f"{found['weights']} weights",
            f"{'':<52} {'median s':>9} {'least–most':>15} {'×':>6} {'dB':>6} {'MiB':>6} {'of peak':>8}",
        ]
        made += [
            f"{runtime:<52} {_figures(runtime, each, found['gflop'], document['peak'])}"
            for runtime, each in found["rows"].items()
        ]
    for title, steps in (("the ladder", document["ladder"]), *((name, document[key]) for key, name in TRIED.items())):
        made += ["", f"{title}, {document['ladder_of']}"]
        made += [f"{each['step']:<70} {_figures_of_a_step(each)}" for each in steps]
    made += ["", f"{'settings of the engine':<30} {'s':>7} {'ready s':>8} {'first call s':>13}"]
    for name, each in document["settings"]["rows"].items():
        told = "not_run" not in each and f"{each['median_s']:7.3f} {each['ready_s']:8.2f} {each['first_s']:13.3f}"
        made.append(f"{name:<30} {told or 'not run: ' + each['not_run']}")
    for name, rates in document["settings"]["streams"].items():
        made.append(f"{name:<30} {statistics.median(rates):7.3f} images a second ({min(rates):.3f}–{max(rates):.3f})")
    return [*made, "", verdict(document)]


def _figures(name: str, each: Mapping[str, Any], gflop: float, peak: Mapping[str, float | None]) -> str:
    if reason := each.get("not_run"):
        return f"not run: {reason}"
    share = peak_share(name, each, gflop, peak)
    spread, memory = f"{each['least_s']:.2f}–{each['most_s']:.2f}", each["memory_mib"]
    return (
        f"{each['median_s']:9.3f} {spread:>15} {each['speedup']:6.2f} {each['psnr_db']:6.1f} "
        f"{'–' if memory is None else memory:>6} {'–' if share is None else format(share, '.0%'):>8}"
    )


def _figures_of_a_step(each: Mapping[str, Any]) -> str:
    if reason := each.get("not_run"):
        return f"not run: {reason}"
    return f"{each['median_s']:7.3f} s {each['speedup']:5.2f}x {each['psnr_db']:6.1f} dB"


def ran(network: Mapping[str, Any]) -> dict[str, Any]:
    """The rows of the runtimes that could be measured; the first is what the others are compared with."""
    return {name: each for name, each in network["rows"].items() if "median_s" in each}


def trained(document: Mapping[str, Any]) -> str:
    """The name of the network whose weights were trained."""
    return next(name for name, network in document["networks"].items() if network["weights"] == "trained")


def fastest_engine(document: Mapping[str, Any], network: str) -> tuple[str, dict[str, Any]] | None:
    """The fastest of this project's engines on a network, of those that are faithful enough on the trained one."""
    demo, found = ran(document["networks"][trained(document)]), ran(document["networks"][network])
    faithful = {name for name, each in demo.items() if name.startswith(OURS) and each["psnr_db"] >= GOAL_DB}
    rows = [(name, each) for name, each in found.items() if name in faithful]
    return max(rows, key=lambda item: item[1]["speedup"], default=None)


def verdict(document: Mapping[str, Any]) -> str:
    """Whether the goal is reached, what this machine's arithmetic allows at most, and what was tried for more."""
    goal = f"{GOAL:g} times PyTorch eager float32 on the standard network at 256x256, and {GOAL_DB:g} dB on the demo's"
    is_for_this = "amx_bf16" in document["circumstances"]["isa"]
    best = fastest_engine(document, GOAL_NETWORK)
    reached = f"none of our engines that ran here keeps {GOAL_DB:g} dB"
    if best:
        decibels = ran(document["networks"][trained(document)])[best[0]]["psnr_db"]
        reached = f"{best[0]} is {best[1]['speedup']:.1f} times as fast, at {decibels:.1f} dB"
    if is_for_this:
        met = "reached" if best and best[1]["speedup"] >= GOAL else "**missed**"
        said = f"The goal on a machine with AMX, {goal}, is {met}: {reached}."
    else:
        beyond = ": reached even here" if best and best[1]["speedup"] >= GOAL else ""
        said = f"The goal on a machine with AMX is {goal}; this one has none. Here {reached}{beyond}."
    return " ".join(part for part in (said, _apart(document, best), _allowed(document, best), _left(document)) if part)


def _apart(document: Mapping[str, Any], best: tuple[str, Mapping[str, Any]] | None) -> str:
    """Between which ratios the rounds lie, and the ratio to the fastest base there is in eager PyTorch."""
    rows = ran(document["networks"][GOAL_NETWORK])
    if not best or OWN not in rows:
        return ""
    base, ours, own = rows[BASE], best[1], rows[OWN]
    by_round = [theirs / each for theirs, each in zip(base["seconds"], ours["seconds"], strict=False)]
    return (
        f"Round by round that is {min(by_round):.1f} to {max(by_round):.1f} times. The base keeps PyTorch's usual "
        f"memory layout; beside the fastest of eager float32 that we know of, our own network with its channels "
        f"last, it is {own['median_s'] / ours['median_s']:.1f} times."
    )


def _allowed(document: Mapping[str, Any], best: tuple[str, Mapping[str, Any]] | None) -> str:
    """How fast multiplications alone would be: a calculation from the measured peak."""
    if not best:
        return ""
    found, precision = document["networks"][GOAL_NETWORK], best[1]["precision"]
    top = peak_of(document["peak"], precision)
    if not top:
        return f"What this machine's arithmetic allows in {precision} was not measured."
    base = next(iter(ran(found).values()))["median_s"]
    allowed = base / (found["gflop"] / top)
    beyond = f": {GOAL:g} is out of reach here" if allowed < GOAL else ""
    unit = "GOP/s" if precision == "int8" else "GFLOP/s"
    return (
        f"All of the network's multiplications, at the {top:,.0f} {unit} that a matrix product reaches here in "
        f"{precision}, would be {allowed:.1f} times as fast{beyond}."
    )


def _left(document: Mapping[str, Any]) -> str:
    """What was tried beyond the rewrites, in short."""
    told, within = [], []
    for key in TRIED:
        engine, *steps = [each for each in document[key] if "median_s" in each] or [{}]
        for each in steps:
            if is_within_spread(each, engine):
                within.append(each["step"])
            else:
                told.append(f"{each['step']}, {each['speedup']:.2f}")
    said = [f"Tried beyond the rewrites and left, as times the engine's speed: {'; '.join(told)}."] if told else []
    return " ".join([*said, *([f"Within the spread of the rounds: {'; '.join(within)}."] if within else [])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path, default=Path("demo/package"), help="the trained network to measure too")
    parser.add_argument("--photos", type=Path, default=Path("demo/photos"), help="the first is what it is measured on")
    parser.add_argument(
        "--calibration", type=Path, default=Path("demo/calibration"), help="photographs its INT8 ranges come from"
    )
    parser.add_argument("--rounds", type=int, default=5)
    add_record_option(parser)
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds: 1 or more")
    try:
        document = recorded(arguments, format_make_command("benchmark-core", parser, arguments, "record"))
    except ExportError as error:
        raise SystemExit(f"error: {error}") from None
    print("\n".join(lines(document)))
    finish_run(document, arguments.record)


def recorded(arguments: argparse.Namespace, command: str) -> dict[str, Any]:
    """Everything, as the JSON has it. Raises `ExportError` for a package or photographs that are none."""
    import torch

    from export.fidelity import core_tensors
    from export.machine import gpus
    from export.package.model_package import network_from_package, package_from_folder
    from export.precision import PRECISIONS
    from export.targets import cpu

    if gpus() and not torch.cuda.is_available():
        raise ExportError(
            "there is a GPU, and a PyTorch that does not see it: install a CUDA build of PyTorch, "
            "or set CUDA_VISIBLE_DEVICES= to measure the CPU alone"
        )
    trained = network_from_package(package_from_folder(arguments.package))
    photograph = next(iter(core_tensors(arguments.photos).values()))
    calibration, rounds = calibration_images(arguments.calibration), arguments.rounds
    standard, generator = random_network(), np.random.default_rng(0)
    document: dict[str, Any] = {"circumstances": describe_circumstances(command), "peak": peaks(), "networks": {}}
    with tempfile.TemporaryDirectory() as temporary:
        noise = {side: [generator.random((1, 3, side, side), np.float32) for _ in range(2)] for side in (256, 512)}
        for side, (image, other) in noise.items():
            name, folder = f"standard {side}", Path(temporary, str(side))
            document["networks"][name] = measured(name, standard, image, "random", {"other": other}, folder, rounds)
            document["peak"] = higher(document["peak"], peaks())
        document["networks"]["demo 512"] = measured(
            "demo 512", trained, photograph, "trained", calibration, Path(temporary, "demo"), rounds
        )
        document["peak"] = higher(document["peak"], peaks())
        small, (image, other) = Path(temporary, "256"), noise[256]
        precision = "fp32" if cpu.why_not(PRECISIONS["bf16"]) else "bf16"
        document["ladder_of"] = f"standard network at 256, OpenVINO in {precision}"
        document["ladder"] = ladder(standard, image, small, rounds, precision)
        document["tried"] = tried(standard, image, small, rounds, precision)
        document["tried_in_int8"] = tried_in_int8(standard, image, other, small, rounds)
        document["settings"] = settings(small, rounds, precision)
    return document


if __name__ == "__main__":
    exit_on_interrupt(main)
