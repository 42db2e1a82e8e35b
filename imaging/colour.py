"""Convert between a photograph's colour space and sRGB, with LittleCMS.

Conversions are relative colorimetric with black point compensation, in 16 bits a channel.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

import imagecodecs
import numpy as np

from imaging.arrays import Pixels, Unit, to_integers, to_unit

_CHANNELS = {"GRAY": 1, "RGB": 3, "CMYK": 4}
#: Rec. 709 weights, to make grey without a profile from sRGB.
_LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)
#: A profile that differs from sRGB by less than this on a lattice of colours is sRGB: no conversion is needed.
_SAME = 1.5 / 255


@dataclass(frozen=True)
class Space:
    """A colour model (``RGB``, ``GRAY`` or ``CMYK``) and the ICC profile of the file, if any.

    Without a profile RGB is sRGB, grey has the curve of sRGB, and CMYK is undefined. ``cicp`` is the body of the
    chunk cICP of an HDR PNG; its profile maps the pixels to SDR.
    """

    model: str = "RGB"
    profile: bytes | None = None
    cicp: bytes | None = None

    @classmethod
    def of(cls, model: str, profile: object) -> Self:
        """Return the space of a file; ignore a profile that is damaged or describes another model."""
        if isinstance(profile, bytes) and profile[16:20] == model.ljust(4).encode() and _is_usable(profile, model):
            return cls(model, profile)
        return cls(model)

    @property
    def channels(self) -> int:
        return _CHANNELS[self.model]

    @property
    def is_srgb(self) -> bool:
        return self.model == "RGB" and (self.profile is None or _is_srgb(self.profile))

    def to_srgb(self, pixels: Pixels | Unit) -> Pixels | Unit:
        """Convert HxWxC pixels to HxWx3 in sRGB: uint16 if a profile converts them, unchanged if they are sRGB."""
        if self.is_srgb:
            return pixels
        if self.model == "GRAY" and self.profile is None:
            return np.repeat(pixels, 3, axis=2)
        return _convert(pixels, self, SRGB, np.uint16)

    def from_srgb(self, pixels: Unit) -> Unit:
        """Convert HxWx3 pixels in sRGB, float32 in [0, 1], to HxWxC of this space, float32 in [0, 1]."""
        if self.is_srgb:
            return pixels
        if self.model == "GRAY" and self.profile is None:
            grey: Unit = pixels @ _LUMA
            return np.ascontiguousarray(grey[..., None])
        return to_unit(self.convert_from_srgb(pixels, np.uint16))

    def convert_from_srgb(self, pixels: Pixels | Unit, dtype: Any) -> Pixels:
        """Convert HxWx3 pixels in sRGB to HxWxC of this space by its profile, as uint8 or uint16."""
        return _convert(pixels, SRGB, self, dtype)


SRGB = Space()


def _convert(pixels: Pixels | Unit, source: Space, target: Space, dtype: Any) -> Pixels:
    """Convert HxWxC pixels from one space to another, by their profiles or that of sRGB."""
    values = np.ascontiguousarray(to_integers(pixels, np.uint16))
    # Compute every pixel of HDR, which takes three times as long: tables of 33 colours a side are too coarse for it.
    exact = imagecodecs.CMS.FLAGS.NOOPTIMIZE if source.cicp or target.cicp else 0
    result: Pixels = imagecodecs.cms_transform(
        values[..., 0] if source.model == "GRAY" else values,
        source.profile or _srgb(),
        target.profile or _srgb(),
        colorspace=source.model.lower(),
        outcolorspace=target.model.lower(),
        outdtype=dtype,
        intent=imagecodecs.CMS.INTENT.RELATIVE_COLORIMETRIC,
        flags=imagecodecs.CMS.FLAGS.BLACKPOINTCOMPENSATION | exact,
    )
    return result[..., None] if target.model == "GRAY" else result


@lru_cache
def _srgb() -> bytes:
    return bytes(imagecodecs.cms_profile("srgb"))


@lru_cache(maxsize=64)
def _is_usable(profile: bytes, model: str) -> bool:
    """Return whether LittleCMS converts with the profile in both directions."""
    space = Space(model, profile)
    try:
        _convert(np.zeros((2, 2, space.channels), np.uint8), space, SRGB, np.uint16)
        space.convert_from_srgb(np.zeros((2, 2, 3), np.uint8), np.uint16)
    except imagecodecs.CmsError:
        return False
    return True


@lru_cache(maxsize=64)
def _is_srgb(profile: bytes) -> bool:
    """Return whether an RGB profile converts as sRGB does; dozens of different files are called sRGB."""
    steps = np.linspace(0, 65535, 9).astype(np.uint16)
    lattice = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(27, 27, 3)
    result = _convert(lattice, Space("RGB", profile), SRGB, np.uint16)
    return bool(np.abs(to_unit(result) - to_unit(lattice)).max() < _SAME)
