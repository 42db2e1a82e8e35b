"""What this machine's processor reaches at best, measured: the roof that the network's figures are held against."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

#: Which figure of the peak is a precision's, by our names and by those of OpenVINO's layers. Nothing here multiplies
#: matrices in fp16 fast enough to be one.
PEAKS = {
    "fp32": "float32_gflops", "bf16": "bfloat16_gflops", "int8": "int8_gops",
    "f32": "float32_gflops", "u8": "int8_gops", "i8": "int8_gops",
}  # fmt: skip


def peak_of(peak: Mapping[str, float | None], precision: str) -> float | None:
    """GFLOP/s that a matrix product reached in a precision; None where that was not measured."""
    return peak.get(PEAKS.get(precision, ""))


def peaks() -> dict[str, float | None]:
    """What this machine reaches at best: matrix products in GFLOP/s (PyTorch's; in INT8 ONNX Runtime's, None where it
    has no arithmetic of its own), copies in GB/s; the best of some each."""
    import openvino
    import torch

    from export import cpu
    from export.precision import PRECISIONS

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
        "int8_gops": None if cpu.why_not(PRECISIONS["int8"]) else operations / best(_int8_product(side)),
        "copy_gb_s": source.nbytes / 1e9 / best(lambda: np.copyto(target, source)),
    }


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
