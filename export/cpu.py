"""The ``cpu`` target: the ONNX graph with the CPU's rewrites, run by OpenVINO.

OpenVINO was chosen by measurement: it is the CPU runtime that executes bfloat16, and that is the fastest of what
``make benchmark-runtimes`` sets side by side (in float32 ONNX Runtime can be faster; it depends on the processor).
It decides types by a hint and not by the graph, so after compiling we ask what it really executes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import openvino
from numpy.typing import NDArray

from export.errors import ExportError
from export.network import Restormer
from export.precision import Precision
from export.rewrites import fold_norms, pad_feed_forward, split_projections

Tensor = NDArray[np.float32]

_HINTS = {"fp32": "f32", "bf16": "bf16"}


def rewritten(network: Restormer) -> Restormer:
    """The network as the CPU likes it: norms folded, padded feed-forward, projections split by weight."""
    return split_projections(pad_feed_forward(fold_norms(network)))


def settings(precision: Precision) -> dict[str, str]:
    """OpenVINO's settings; written into the engine's JSON, from which the server takes them."""
    return {"INFERENCE_PRECISION_HINT": _HINTS[precision.name], "PERFORMANCE_HINT": "LATENCY"}


def require_precision(precision: Precision) -> None:
    """Refuses a precision this processor would only pretend to run."""
    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision.name == "bf16" and "BF16" not in capabilities:
        raise ExportError("this CPU has no bfloat16 arithmetic (AVX512_BF16 or AMX): build with PRECISION=fp32")


def compiled(path: Path, options: Mapping[str, str]) -> openvino.CompiledModel:
    """The engine file compiled for one image at a time, as the server's adapter does."""
    core = openvino.Core()
    model = core.read_model(path)
    model.reshape([1, *list(model.input(0).partial_shape)[1:]])
    return core.compile_model(model, "CPU", dict(options))


def runner(model: openvino.CompiledModel) -> Callable[[Tensor], Tensor]:
    """A function from ``[1, C, H, W]`` float32 to the same."""
    return lambda image: np.asarray(model(image)[0], np.float32)


def executed_types(model: openvino.CompiledModel) -> dict[str, float]:
    """Share of the convolutions executed in each type, for example ``{"bf16": 1.0}``, as OpenVINO reports it."""
    counts: Counter[str] = Counter()
    for node in model.get_runtime_model().get_ordered_ops():
        info = node.get_rt_info()
        if "Convolution" in str(info["layerType"].astype(str)):
            counts[str(info["runtimePrecision"].astype(str))] += 1
    total = sum(counts.values())
    return {name: count / total for name, count in sorted(counts.items())}
