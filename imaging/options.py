"""The options of a request. Each has a default; requests with different options can share a batch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from imaging.errors import InvalidOption

#: Values of the option ``format``, and the format's name.
OUTPUTS = {"jpeg": "JPEG", "png": "PNG", "webp": "WEBP", "tiff": "TIFF", "bmp": "BMP", "avif": "AVIF"}
#: File name extensions of these formats, in lower case.
WRITTEN = {
    ".jpg": "jpeg", ".jpeg": "jpeg", ".jpe": "jpeg", ".jfif": "jpeg", ".png": "png", ".webp": "webp", ".tif": "tiff",
    ".tiff": "tiff", ".bmp": "bmp", ".avif": "avif",
}  # fmt: skip
NATIVE, SMALL = "native", "512"
QUALITY = 92

Value = str | int | float | bool


@dataclass(frozen=True)
class Options:
    """How to encode the enhanced photograph.

    ``format``: ``jpeg``, ``png``, ``webp``, ``tiff``, ``bmp`` or ``avif``; empty means the photograph's own format
    (JPEG for HEIC). ``quality``: 1 to 100, for lossy formats. ``size``: ``native``, or ``512`` for 512 pixels on the
    longer side. ``strength``: 0 (unchanged) to 1 (full effect). ``gps``: ``keep`` or ``strip`` the position in EXIF and
    XMP.
    """

    format: str = ""
    quality: int = QUALITY
    size: str = NATIVE
    strength: float = 1.0
    gps: str = "keep"

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Value]) -> Self:
        """Parse request parameters, which may be numbers or their text. Raises `InvalidOption`."""
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


def _number(parameters: Mapping[str, Value], name: str, default: float, low: float, high: float) -> float:
    try:
        value = float(parameters.get(name, default))
    except (TypeError, ValueError, OverflowError):
        value = float("nan")
    if not low <= value <= high:
        raise InvalidOption(f"{name} is {parameters[name]!r}: it has to be a number from {low} to {high}")
    return value
