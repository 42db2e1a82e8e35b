"""Measure which precision is fastest on this CPU. Whether it passes its gate is decided by the build."""

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from export.network import int8
from export.network.cpu_form import cpu_graph
from export.network.graph import onnx_bytes
from export.network.rewrites import rewrite_network
from export.package.model_package import network_from_package, package_from_folder
from export.precision import PRECISIONS
from export.progress import say, step
from export.targets import cpu
from imaging import SIDE

ROUNDS = 5


def rank_precisions(package: Path) -> list[str]:
    """Return the precisions that this CPU executes, the fastest for the package's network first; print the times."""
    reasons = {name: cpu.why_not(precision) for name, precision in PRECISIONS.items()}
    names = [name for name, reason in reasons.items() if not reason]
    for name, reason in reasons.items():
        if reason:
            say(f"--precision auto: not {name}: {reason}")
    if len(names) == 1:
        say(f"--precision auto: {names[0]}, the only one that this CPU executes")
        return names
    seconds = _measure_seconds(package, names)
    for name, median in sorted(seconds.items(), key=lambda item: item[1]):
        say(f"--precision auto: {name} takes {median:.3f} s per image")
    return sorted(seconds, key=lambda name: seconds[name])


def _measure_seconds(package: Path, names: list[str]) -> dict[str, float]:
    """Measure the median seconds per image, in interleaved rounds so that drift of the machine affects all alike."""
    ready = rewrite_network(network_from_package(package_from_folder(package)))
    image = np.random.default_rng(0).random((1, 3, SIDE, SIDE), np.float32)
    times: dict[str, list[float]] = {name: [] for name in names}
    with step(f"timing {', '.join(names)}"), tempfile.TemporaryDirectory() as folder:
        models = {"": cpu_graph(ready)}
        if "int8" in names:  # the scales do not matter for speed
            models["int8"] = cpu_graph(ready, dict.fromkeys(int8.candidates(ready), 1.0))
        runners = {}
        for name in names:
            path = Path(folder, f"{name}.onnx")
            path.write_bytes(onnx_bytes(models.get(name, models[""])))
            runners[name] = cpu.runner_from_model(cpu.compile_engine(path, cpu.settings(PRECISIONS[name])))
        for turn in range(ROUNDS + 1):
            for name, run in runners.items():
                began = time.perf_counter()
                run(image)
                if turn:  # the first warms up
                    times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in times.items()}
