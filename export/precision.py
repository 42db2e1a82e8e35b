"""The precisions an engine can be built in, and the fidelity each has to keep."""

from __future__ import annotations

from dataclasses import dataclass

from export.errors import ExportError


@dataclass(frozen=True)
class Precision:
    """A precision and its gate: the least PSNR (dB) of the engine against the float32 network on photographs."""

    name: str
    gate: float


PRECISIONS = {p.name: p for p in (Precision("fp32", 90.0), Precision("bf16", 45.0))}


def precision_from_name(name: str) -> Precision:
    """The precision called ``name``; `ExportError` lists what there is."""
    if name not in PRECISIONS:
        raise ExportError(f"PRECISION={name} is not built here: choose one of {', '.join(PRECISIONS)}")
    return PRECISIONS[name]
