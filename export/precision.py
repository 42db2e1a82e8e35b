"""The precisions an engine can be built in, and the requirements of each."""

from dataclasses import dataclass

from export.errors import ExportError


@dataclass(frozen=True)
class Precision:
    """A precision and what an engine has to reach in it.

    ``gate``: minimum PSNR (dB) of the engine against the float32 network on photographs; a user may set another, which
    the engine's JSON records. ``max_loss``: maximum PSNR loss (dB) against ground truth, where there is some.
    ``arithmetic``: the ONNX type that the work executes in. ``min_share``: minimum share of the convolutions'
    multiply-accumulates in that type (INT8: of the 1x1 convolutions in the blocks). It cannot be set: an engine below
    it would not do its work in the precision it is named after.
    """

    name: str
    gate: float
    max_loss: float
    arithmetic: str
    min_share: float


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
    """Return a precision. Raises `ExportError` listing the choices, with ``others``, which are not precisions."""
    if name not in PRECISIONS:
        raise ExportError(f"--precision {name} is unknown: choose one of {', '.join((*PRECISIONS, *others))}")
    return PRECISIONS[name]
