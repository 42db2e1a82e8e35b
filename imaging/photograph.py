"""A decoded photograph, and how large one may be."""

from __future__ import annotations

from dataclasses import dataclass

from imaging.arrays import Pixels
from imaging.colour import SRGB, Space
from imaging.metadata import NO_METADATA, Metadata


@dataclass(frozen=True)
class Limits:
    """The largest photograph that is decoded, read off its header first: in pixels, and in bytes of its file."""

    pixels: int = 100_000_000
    bytes: int = 200_000_000


LIMITS = Limits()


@dataclass(frozen=True)
class Photograph:
    """Upright pixels, HxWxC uint8 or uint16, and what has to come back with them.

    C is 1 (grey), 2 (grey and alpha), 3 (RGB) or 4 (RGB and alpha). ``space`` says what the numbers mean; the pixels of
    a CMYK file (``ink``) have become sRGB. ``metadata`` are as they were in the file. ``sampling``, ``lossless`` and
    ``compression`` say how JPEG and AVIF, WebP, and TIFF held it.
    """

    pixels: Pixels
    format: str
    space: Space = SRGB
    ink: Space | None = None
    metadata: Metadata = NO_METADATA
    sampling: str = "420"
    lossless: bool = False
    compression: str = "raw"

    @property
    def has_alpha(self) -> bool:
        return self.pixels.shape[2] in (2, 4)
