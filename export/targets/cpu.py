"""The ``cpu`` target: the ONNX graph of ``export.network.cpu_form``, run by OpenVINO.

OpenVINO was chosen by measurement (``make benchmark-core``): it is the CPU runtime that executes bfloat16, and on that
graph, which is made for it, the fastest of what is set side by side. On the plain graph ONNX Runtime can be faster.
It decides floating-point types by a hint and not by the graph, so after compiling we ask what it really executes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import openvino
from numpy.typing import NDArray

from export import machine
from export.errors import ExportError
from export.network.coverage import Convolution
from export.precision import PRECISIONS, Precision

Tensor = NDArray[np.float32]

_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
#: What a processor must have for a precision, and what that is called in processors.
_NEEDS = {
    "bf16": ("BF16", "bfloat16 arithmetic (AVX512_BF16 or AMX)"),
    "fp16": ("FP16", "float16 arithmetic (AVX512_FP16)"),
    "int8": ("INT8", "INT8 arithmetic (VNNI)"),
}
_ARITHMETIC = {"f32": "FLOAT", "bf16": "BFLOAT16", "f16": "FLOAT16", "i8": "INT8", "u8": "INT8"}


def settings(precision: Precision) -> dict[str, str]:
    """OpenVINO's settings; written into the engine's JSON, from which the server takes them."""
    return {"INFERENCE_PRECISION_HINT": _HINTS[floating(precision)], "PERFORMANCE_HINT": "LATENCY"}


def floating(precision: Precision) -> str:
    """The precision of whatever is not INT8: of INT8's rest bfloat16, where this processor executes it."""
    if precision.name != "int8":
        return precision.name
    return "fp32" if why_not(PRECISIONS["bf16"]) else "bf16"


def why_not(precision: Precision) -> str:
    """Why this processor would only pretend to run a precision; empty if it executes it."""
    if precision.name == "tf32":
        return f"{precision.name} is a mode of NVIDIA's GPUs"
    wanted, words = _NEEDS.get(precision.name, ("", ""))
    if wanted == "INT8":  # OpenVINO reports it on every CPU
        lacks = not machine.cpu_flags() & {"avx512_vnni", "avx_vnni", "amx_int8"}
    else:
        lacks = bool(wanted) and wanted not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return f"this CPU has no {words}" if lacks else ""


def why_not_these(options: Mapping[str, str]) -> str:
    """The same of an engine's settings: an INT8 engine may want bfloat16 for its rest."""
    name = next(name for name, hint in _HINTS.items() if hint == options["INFERENCE_PRECISION_HINT"])
    return why_not(PRECISIONS[name])


def require_precision(precision: Precision) -> None:
    """Refuses a precision this processor would only pretend to run."""
    if reason := why_not(precision):
        raise ExportError(f"{reason}: build with PRECISION=fp32 TARGET=cpu, or PRECISION={precision.name} TARGET=rtx")


def compiled(path: Path, options: Mapping[str, str], *, batch: int = 1) -> openvino.CompiledModel:
    """The engine file compiled for one image at a time, as the server's adapter does, or for so many."""
    core = openvino.Core()
    model = core.read_model(path)
    model.reshape([batch, *list(model.input(0).partial_shape)[1:]])
    return core.compile_model(model, "CPU", dict(options))


def runner(model: openvino.CompiledModel) -> Callable[[Tensor], Tensor]:
    """A function from ``[N, C, H, W]`` float32 to the same, N as it was compiled for."""
    return lambda image: np.asarray(model(image)[0], np.float32)


def executed(model: openvino.CompiledModel, layers: Iterable[Convolution]) -> list[Convolution]:
    """The graph's convolutions with the type each really executes in, as OpenVINO reports it."""
    types = {}
    for node in model.get_runtime_model().get_ordered_ops():
        info = {key: str(value.astype(str)) for key, value in node.get_rt_info().items()}
        for original in info.get("originalLayersNames", "").split(","):
            if "Convolution" in info.get("layerType", ""):
                types[original] = _ARITHMETIC.get(info["runtimePrecision"], info["runtimePrecision"])
    return [replace(layer, arithmetic=types.get(layer.node, "unknown")) for layer in layers]
