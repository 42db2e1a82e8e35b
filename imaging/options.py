"""What a request may ask for, beside its photograph. Every option has a default; none splits a batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from imaging.errors import InvalidOption

#: What ``format`` may say, and the format it means.
OUTPUTS = {"jpeg": "JPEG", "png": "PNG", "webp": "WEBP", "tiff": "TIFF", "bmp": "BMP", "avif": "AVIF"}
#: What files in these formats are called, in lower case.
WRITTEN = {
    ".jpg": "jpeg", ".jpeg": "jpeg", ".png": "png", ".webp": "webp", ".tif": "tiff", ".tiff": "tiff", ".bmp": "bmp",
    ".avif": "avif",
}  # fmt: skip
NATIVE, SMALL = "native", "512"
QUALITY = 92

Value = str | int | float | bool


@dataclass(frozen=True)
class Options:
    """How the enhanced photograph is to come back.

    ``format``: ``jpeg``, ``png``, ``webp``, ``tiff``, ``bmp`` or ``avif``; empty is the photograph's own (HEIC comes
    back as JPEG). ``quality``: 1 to 100, of the formats that lose something. ``size``: ``native``, or ``512`` for the
    longer side at 512 pixels. ``strength``: 0 (the photograph as it was) to 1 (the whole effect). ``gps``: ``keep`` or
    ``strip`` the place in EXIF and XMP.
    """

    format: str = ""
    quality: int = QUALITY
    size: str = NATIVE
    strength: float = 1.0
    gps: str = "keep"

    @classmethod
    def parsed(cls, parameters: Mapping[str, Value]) -> Options:
        """From request parameters, which may be numbers or their text. Raises `InvalidOption`."""
        known = cls.__dataclass_fields__
        unknown = [name for name in parameters if name not in known and not name.startswith(("triton_", "binary_data"))]
        if unknown:
            raise InvalidOption(f"unknown parameter {unknown[0]!r}: the parameters are {', '.join(known)}")
        return cls(
            format=_one_of(parameters, "format", ("", *OUTPUTS)),
            quality=round(_number(parameters, "quality", QUALITY, 1, 100)),
            size=_one_of(parameters, "size", (NATIVE, SMALL)),
            strength=_number(parameters, "strength", 1.0, 0, 1),
            gps=_one_of(parameters, "gps", ("keep", "strip")),
        )


def _one_of(parameters: Mapping[str, Value], name: str, allowed: tuple[str, ...]) -> str:
    value = str(parameters.get(name, allowed[0])).lower()
    value = "jpeg" if name == "format" and value == "jpg" else value
    if value not in allowed:
        raise InvalidOption(f"{name} is {value!r}: it has to be one of {', '.join(filter(None, allowed))}")
    return value


def _number(parameters: Mapping[str, Value], name: str, usual: float, low: float, high: float) -> float:
    try:
        value = float(parameters.get(name, usual))
    except (TypeError, ValueError, OverflowError):
        value = float("nan")
    if not low <= value <= high:
        raise InvalidOption(f"{name} is {parameters[name]!r}: it has to be a number from {low} to {high}")
    return value
