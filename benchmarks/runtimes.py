"""Which CPU runtime runs the core fastest: PyTorch, ONNX Runtime or OpenVINO (``make benchmark-runtimes``).

One photograph (1x3x512x512) through the network of a package. All candidates run in turn, round after round, in one
process and on the same cores, so that a drift of the machine hits them alike; the table gives the median and the
spread, the ratio to PyTorch, and the decibels against PyTorch float32.

What to expect: the network is 1x1 and depthwise convolutions over wide maps, so most of the time goes into moving
memory, and bfloat16 halves the bytes. OpenVINO is the only one of the three that executes bfloat16 from a float32
graph.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime

from export import cpu
from export.fidelity import Runner, core_tensors, torch_runner
from export.graph import onnx_bytes, onnx_from_network
from export.metrics import psnr
from export.names import INPUT
from export.package import network_from_package, package_from_folder
from export.precision import PRECISIONS
from export.rewrites import rewritten, split_projections


def candidates(package: Path, folder: Path) -> dict[str, Runner]:
    """The same network in each runtime; ``folder`` takes the graphs."""
    network = network_from_package(package_from_folder(package))
    graphs = {"fused projections": network, "rewritten": split_projections(rewritten(network))}
    runners: dict[str, Runner] = {"PyTorch float32": torch_runner(network)}
    for name, graph in graphs.items():
        path = folder / f"{name}.onnx"
        path.write_bytes(onnx_bytes(onnx_from_network(graph)))
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        runners[f"ONNX Runtime float32, {name}"] = lambda image, s=session: s.run(None, {INPUT: image})[0]
        for precision in (PRECISIONS["fp32"], PRECISIONS["bf16"]):
            if not cpu.why_not(precision):
                compiled = cpu.compiled(path, cpu.settings(precision))
                runners[f"OpenVINO {precision.name}, {name}"] = cpu.runner(compiled)
    return runners


def timed(runners: dict[str, Runner], image: np.ndarray, rounds: int) -> dict[str, list[float]]:
    """Seconds of every run, after one warm-up each; the candidates take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for turn in range(rounds + 1):
        print(f"\r  round {turn}/{rounds}", end="", file=sys.stderr, flush=True)
        for name, run in runners.items():
            started = time.perf_counter()
            run(image)
            if turn:
                seconds[name].append(time.perf_counter() - started)
    print(file=sys.stderr)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path, default=Path("demo/package"))
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    image = next(iter(core_tensors(Path("demo/photos")).values()))
    with tempfile.TemporaryDirectory() as folder:
        runners = candidates(arguments.package, Path(folder))
        reference = runners["PyTorch float32"](image)
        decibels = {name: min(psnr(run(image), reference), 200.0) for name, run in runners.items()}
        seconds = timed(runners, image, arguments.rounds)
    base = statistics.median(seconds["PyTorch float32"])
    title = f"1x3x512x512, {os.cpu_count()} cores"
    print(f"{title:<40} {'median s':>9} {'min–max':>13} {'×':>6} {'PSNR dB':>8}")
    figures = {}
    for name, values in seconds.items():
        median = statistics.median(values)
        spread = f"{min(values):.3f}–{max(values):.3f}"
        print(f"{name:<40} {median:9.3f} {spread:>13} {base / median:6.2f} {decibels[name]:8.1f}")
        figures[name] = {"median_s": median, "speedup": base / median, "psnr": decibels[name]}
    print(json.dumps({"cores": os.cpu_count(), "python": platform.python_version(), "runtimes": figures}))


if __name__ == "__main__":
    main()
