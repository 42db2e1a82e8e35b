"""The ``cpu`` target: the ONNX graph of ``export.network.cpu_form``, run by OpenVINO in Triton's Python backend.

OpenVINO was chosen by measurement (``make benchmark-core``). It takes floating-point types from a hint, not from the
graph, so the types that it executes are read from the compiled model.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from export import machine
from export.files import sha256
from export.names import ADAPTER, MODEL
from export.network.coverage import Convolution, convolutions, describe_shares, shares
from export.precision import PRECISIONS, Precision
from export.progress import say, step
from export.publish import EngineLocation
from export.request import Options, Request
from export.targets.base import Target, register
from imaging import SIDE

if TYPE_CHECKING:
    import onnx
    import openvino

    from export.context import BuildContext
    from export.fidelity import Stage

Tensor = NDArray[np.float32]

_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
#: OpenVINO's name of what a CPU needs for a precision, and a description of it.
_NEEDS = {
    "bf16": ("BF16", "bfloat16 arithmetic (AVX512_BF16 or AMX)"),
    "fp16": ("FP16", "float16 arithmetic (AVX512_FP16)"),
    "int8": ("INT8", "INT8 arithmetic (VNNI)"),
}
_ARITHMETIC = {"f32": "FLOAT", "bf16": "BFLOAT16", "f16": "FLOAT16", "i8": "INT8", "u8": "INT8"}


@register
class Cpu(Target):
    """An ONNX graph for OpenVINO."""

    name = "cpu"
    distributions = ("openvino",)
    automatic = False

    def why_not(self, precision: Precision) -> str:
        return why_not(precision)

    def location(self, request: Request) -> EngineLocation:
        return EngineLocation(request.repository / MODEL, request.version, "model.onnx")

    def floating_type(self, precision: Precision) -> str:
        return floating_type(precision)

    def int8_ranges(self, ranges: Mapping[str, float]) -> Mapping[str, float]:
        from export.network.cpu_form import cpu_ranges

        return cpu_ranges(ranges)

    def graph(self, context: BuildContext) -> onnx.ModelProto:
        """Export a float32 graph: OpenVINO takes floating-point types from a hint."""
        from export.network.cpu_form import cpu_graph

        ranges = context.int8_ranges
        if ranges is not None:
            say(f"    the CPU takes {len(self.int8_ranges(ranges))} of these: convolutions that follow a LayerNorm")
        with step("ONNX"):
            return cpu_graph(context.network, ranges)

    def build(self, context: BuildContext, model: onnx.ModelProto, path: Path) -> tuple[dict[str, Any], list[Stage]]:
        from export.network.graph import onnx_bytes

        path.write_bytes(onnx_bytes(model))
        shutil.copyfile(context.request.repository / MODEL / ADAPTER, path.with_name("model.py"))
        options = settings(context.precision)
        with step(f"compiling for this CPU ({context.precision.name})"):
            model_here = compile_engine(path, options)
        layers = executed_layers(model_here, convolutions(model))
        context.require_share(layers)
        types = describe_shares(shares(layers))
        with step("fidelity of the engine"):
            engine = context.reference.measure("engine, OpenVINO", types, runner_from_model(model_here))
        runtime = {"name": "openvino", "settings": options, "work_executed_in": shares(layers)}
        return {"runtime": runtime, "onnx_sha256": sha256(path)}, [engine]

    def profile(self, options: Options) -> dict[str, list[int]]:
        return {"compiled": [1, 3, SIDE, SIDE]}

    def why_not_run(self, document: Mapping[str, Any]) -> str:
        """Check the precision and the settings: an INT8 engine may run the rest in bfloat16."""
        hint = document["runtime"]["settings"]["INFERENCE_PRECISION_HINT"]
        floating = next(name for name, value in _HINTS.items() if value == hint)
        return why_not(PRECISIONS[document["precision"]]) or why_not(PRECISIONS[floating])


def settings(precision: Precision) -> dict[str, str]:
    """Return OpenVINO's settings; the server reads them from the engine's JSON."""
    return {"INFERENCE_PRECISION_HINT": _HINTS[floating_type(precision)], "PERFORMANCE_HINT": "LATENCY"}


def floating_type(precision: Precision) -> str:
    """Return the precision of everything that is not INT8; in INT8 that is bfloat16 if this CPU executes it."""
    if precision.name != "int8":
        return precision.name
    return "fp32" if why_not(PRECISIONS["bf16"]) else "bf16"


def why_not(precision: Precision) -> str:
    """Return why this CPU would only emulate a precision; empty if it executes it."""
    if precision.name == "tf32":
        return f"{precision.name} is a mode of NVIDIA's GPUs"
    wanted, description = _NEEDS.get(precision.name, ("", ""))
    if wanted == "INT8":  # OpenVINO reports it on every CPU
        is_missing = not machine.cpu_flags() & {"avx512_vnni", "avx_vnni", "amx_int8"}
    else:
        is_missing = bool(wanted) and wanted not in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return f"this CPU has no {description}" if is_missing else ""


def compile_engine(path: Path, options: Mapping[str, str]) -> openvino.CompiledModel:
    """Compile an engine file for one image at a time, as the server's adapter does."""
    core = _core()
    model = core.read_model(path)
    model.reshape([1, *list(model.input(0).partial_shape)[1:]])
    return core.compile_model(model, "CPU", dict(options))


def runner_from_model(model: openvino.CompiledModel) -> Callable[[Tensor], Tensor]:
    """Return a function from ``[1, C, H, W]`` float32 to the same."""
    return lambda image: np.asarray(model(image)[0], np.float32)


def executed_layers(model: openvino.CompiledModel, layers: Iterable[Convolution]) -> list[Convolution]:
    """Return the graph's convolutions with the types that OpenVINO reports to execute."""
    types = {}
    for node in model.get_runtime_model().get_ordered_ops():
        info = {key: str(value.astype(str)) for key, value in node.get_rt_info().items()}
        for original in info.get("originalLayersNames", "").split(","):
            if "Convolution" in info.get("layerType", ""):
                types[original] = _ARITHMETIC.get(info["runtimePrecision"], info["runtimePrecision"])
    return [replace(layer, arithmetic=types.get(layer.node, "unknown")) for layer in layers]


def _core() -> openvino.Core:
    import openvino

    return openvino.Core()
