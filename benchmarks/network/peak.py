"""Measure what this machine's processor reaches at best, for comparison with the figures of the network."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

SIDE = 2048  #: of the matrices
#: The figure of the peak for a precision, by our names and by those of the runtimes' layers. Only GPUs have fp16.
PEAKS = {
    "fp32": "float32_gflops", "bf16": "bfloat16_gflops", "int8": "int8_gops",
    "fp16": "float16_gflops", "f32": "float32_gflops", "u8": "int8_gops", "i8": "int8_gops",
}  # fmt: skip


def peak_of(peak: Mapping[str, float | None], precision: str, *, on_gpu: bool = False) -> float | None:
    """Return the GFLOP/s of a matrix product in a precision, or None if that was not measured."""
    return peak.get(f"{'gpu_' if on_gpu else ''}{PEAKS.get(precision, '')}")


def measured_peaks() -> dict[str, float | None]:
    """Measure matrix products in GFLOP/s and copies in GB/s, the best of six calls each.

    A product is that of the fastest of PyTorch, ONNX Runtime and OpenVINO (in INT8 ONNX Runtime's), and None where the
    processor has no arithmetic for a precision. A GPU that PyTorch sees adds ``gpu_…`` (docs/gpu-checklist.md).
    """
    import torch

    from export.precision import PRECISIONS
    from export.targets import cpu

    wide = torch.rand(SIDE, SIDE)
    narrow, source = wide.bfloat16(), np.ones(64 * 2**20, np.float32)
    target = np.empty_like(source)
    products: dict[str, list[Callable[[], Any]]] = {
        "float32_gflops": [lambda: wide @ wide, _onnxruntime("MatMul"), _openvino("fp32")],
        "bfloat16_gflops": [] if cpu.why_not(PRECISIONS["bf16"]) else [lambda: narrow @ narrow, _openvino("bf16")],
        "int8_gops": [] if cpu.why_not(PRECISIONS["int8"]) else [_onnxruntime("MatMulInteger")],
    }
    operations = 2 * SIDE**3 / 1e9
    return {
        **{name: operations / min(map(best_seconds, ways)) if ways else None for name, ways in products.items()},
        "copy_gb_s": source.nbytes / 1e9 / best_seconds(lambda: np.copyto(target, source)),
        **(_gpu_peaks() if torch.cuda.is_available() else {}),
    }


def higher_of(one: Mapping[str, float | None], other: Mapping[str, float | None]) -> dict[str, float | None]:
    """Return the higher of two measurements of each figure, because the speed of a machine drifts."""
    return {name: value and max(value, other[name] or 0.0) for name, value in one.items()}


def best_seconds(function: Callable[[], Any]) -> float:
    """Return the seconds of the fastest of six calls."""
    seconds = []
    for _ in range(6):
        began = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def _gpu_peaks() -> dict[str, float | None]:
    """Measure products on the GPU; float32 without TF32."""
    from benchmarks.network import gpu

    rates = gpu.measure_rates(gpu.Device("cuda"))
    return {"gpu_float32_gflops": rates["fp32"] / 1e9, "gpu_float16_gflops": rates["fp16"] / 1e9}


def _product(operation: str) -> tuple[onnx.ModelProto, NDArray[Any]]:
    """Return a graph that multiplies by a square matrix, which it holds like weights, and the other matrix.

    INT8 uses seven bits: without VNNI more would saturate.
    """
    numbers = np.arange(SIDE * SIDE, dtype=np.int64).reshape(SIDE, SIDE) % 127
    if operation == "MatMulInteger":
        left, right, made = numbers.astype(np.uint8), (numbers - 63).astype(np.int8), TensorProto.INT32
    else:
        left = right = (numbers / 127).astype(np.float32)
        made = TensorProto.FLOAT
    node = helper.make_node(operation, ["left", "right"], ["product"])
    kinds = (("left", helper.np_dtype_to_tensor_dtype(left.dtype)), ("product", made))
    ends = [helper.make_tensor_value_info(name, kind, [SIDE, SIDE]) for name, kind in kinds]
    weights = [numpy_helper.from_array(right, "right")]
    graph = helper.make_graph([node], "product", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), left


def _onnxruntime(operation: str) -> Callable[[], Any]:
    """Return a call of a product in ONNX Runtime."""
    import onnxruntime

    model, left = _product(operation)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"left": left})


def _openvino(precision: str) -> Callable[[], Any]:
    """Return a call of a product in OpenVINO."""
    import openvino

    from export.precision import PRECISIONS
    from export.targets import cpu

    model, left = _product("MatMul")
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(model.SerializeToString()), "CPU", cpu.settings(PRECISIONS[precision])
    )
    request = compiled.create_infer_request()
    return lambda: request.infer([left], share_inputs=True, share_outputs=True)
