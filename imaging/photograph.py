"""The decoded photograph, and the limits on its size."""

from dataclasses import dataclass

from imaging.arrays import Pixels
from imaging.colour import SRGB, Space
from imaging.metadata import NO_METADATA, Metadata


@dataclass(frozen=True)
class Limits:
    """The largest photograph to decode, in pixels and in bytes of its file; checked by the header first."""

    pixels: int = 100_000_000
    bytes: int = 200_000_000


LIMITS = Limits()


@dataclass(frozen=True)
class Photograph:
    """Upright pixels, HxWxC uint8 or uint16, with what is needed to encode them like the original file.

    C is 1 (grey), 2 (grey and alpha), 3 (RGB) or 4 (RGB and alpha). ``space`` is their colour space; the pixels of a
    CMYK file are sRGB, and ``ink`` is the file's space. ``metadata`` are those of the file. ``sampling`` is the chroma
    subsampling of JPEG and AVIF, ``lossless`` applies to WebP, and ``compression`` to TIFF.
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
