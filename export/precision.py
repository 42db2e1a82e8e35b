"""The precisions an engine can be built in, and what each has to keep to be called by its name."""

from __future__ import annotations

from dataclasses import dataclass

from export.errors import ExportError


@dataclass(frozen=True)
class Precision:
    """A precision and its terms.

    ``gate``: the least PSNR (dB) of the engine against the float32 network on photographs; a user may set another, and
    the engine's JSON says so. ``loss``: the most decibels that may be lost against ground truth, where there is some.
    ``arithmetic``: the ONNX type the work executes in. ``floor``: the least share of the convolutions'
    multiply-accumulates in that type (INT8: of the 1x1 convolutions in the blocks); nobody can set it, because below it
    the name would not be true.
    """

    name: str
    gate: float
    loss: float
    arithmetic: str
    floor: float


PRECISIONS = {
    p.name: p
    for p in (
        Precision("fp32", 90.0, 0.1, "FLOAT", 0.95),
        Precision("tf32", 60.0, 0.1, "FLOAT", 0.95),  # the float32 graph; TensorRT rounds the products' inputs
        Precision("bf16", 45.0, 0.1, "BFLOAT16", 0.95),
        Precision("fp16", 55.0, 0.1, "FLOAT16", 0.95),
        Precision("int8", 38.0, 0.3, "INT8", 0.50),
    )
}


def precision_from_name(name: str, *others: str) -> Precision:
    """The precision called ``name``; `ExportError` lists what there is, ``others`` too, which are no precisions."""
    if name not in PRECISIONS:
        raise ExportError(f"PRECISION={name} is unknown: choose one of {', '.join((*PRECISIONS, *others))}")
    return PRECISIONS[name]
