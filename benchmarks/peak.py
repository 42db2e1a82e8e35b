"""What this machine's processor reaches at best, measured: the roof that the network's figures are held against."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

#: Which figure of the peak is a precision's, by our names and by those of the runtimes' layers. fp16 is a GPU's only.
PEAKS = {
    "fp32": "float32_gflops", "bf16": "bfloat16_gflops", "int8": "int8_gops",
    "fp16": "float16_gflops", "f32": "float32_gflops", "u8": "int8_gops", "i8": "int8_gops", "uint8": "int8_gops",
}  # fmt: skip


def peak_of(peak: Mapping[str, float | None], precision: str, *, on_gpu: bool = False) -> float | None:
    """GFLOP/s that a matrix product reached in a precision; None where that was not measured."""
    return peak.get(f"{'gpu_' if on_gpu else ''}{PEAKS.get(precision, '')}")


def peaks() -> dict[str, float | None]:
    """What this machine reaches at best: matrix products in GFLOP/s (PyTorch's; in INT8 ONNX Runtime's, None where it
    has no arithmetic of its own), copies in GB/s; the best of six each. Beside a GPU that PyTorch sees, its products
    too, as ``gpu_…`` (docs/gpu-checklist.md: not run yet)."""
    import openvino
    import torch

    from export import cpu
    from export.precision import PRECISIONS

    side, capabilities = 2048, openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    wide = torch.rand(side, side)
    narrow = wide.bfloat16()
    source = np.ones(64 * 2**20, np.float32)
    target = np.empty_like(source)
    operations = 2 * side**3 / 1e9
    return {
        "float32_gflops": operations / best(lambda: wide @ wide),
        "bfloat16_gflops": operations / best(lambda: narrow @ narrow) if "BF16" in capabilities else None,
        "int8_gops": None if cpu.why_not(PRECISIONS["int8"]) else operations / best(_int8_product(side)),
        "copy_gb_s": source.nbytes / 1e9 / best(lambda: np.copyto(target, source)),
        **(_gpu_peaks() if torch.cuda.is_available() else {}),
    }


def best(function: Callable[[], Any]) -> float:
    """Seconds of the fastest of six calls."""
    seconds = []
    for _ in range(6):
        began = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def _gpu_peaks() -> dict[str, float | None]:
    """Products on the GPU, float32 without TF32 (PyTorch's default for them)."""
    import torch

    found: dict[str, float | None] = {}
    for name, kind in (("float32", torch.float32), ("float16", torch.float16)):
        square = torch.rand(8192, 8192, device="cuda").to(kind)
        found[f"gpu_{name}_gflops"] = 2 * 8192**3 / 1e9 / best(partial(_finished, square))
    return found


def _finished(square: Any) -> None:
    """The matrix times itself, and done."""
    import torch

    square @ square
    torch.cuda.synchronize()


def _int8_product(side: int) -> Callable[[], Any]:
    """A product of two square matrices in INT8, to be called; the right one is known beforehand, as weights are."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node("MatMulInteger", ["left", "right"], ["product"])
    ends = [
        helper.make_tensor_value_info(name, kind, [side, side])
        for name, kind in (("left", TensorProto.UINT8), ("product", TensorProto.INT32))
    ]
    numbers = np.arange(side * side, dtype=np.int64).reshape(side, side) % 127  # seven bits: AVX2 saturates beyond
    weights = [numpy_helper.from_array((numbers - 63).astype(np.int8), "right")]
    model = helper.make_model(
        helper.make_graph([node], "product", ends[:1], ends[1:], weights), opset_imports=[helper.make_opsetid("", 20)]
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    left = numbers.astype(np.uint8)
    return lambda: session.run(None, {"left": left})
