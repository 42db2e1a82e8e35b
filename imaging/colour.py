"""What the numbers of a photograph mean, and the way to sRGB and back, by LittleCMS.

Only small pictures are converted: the look is fitted in the photograph's own space, so that full-size pixels never
leave it and colours outside sRGB survive. (CMYK is the exception: it is enhanced as sRGB and separated again.)

Relative colorimetric with black point compensation, 16 bits a channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import imagecodecs
import numpy as np

from imaging.arrays import Pixels, Unit, integers, unit

_MODELS = {b"RGB ": "RGB", b"GRAY": "GRAY", b"CMYK": "CMYK"}
_CHANNELS = {"GRAY": 1, "RGB": 3, "CMYK": 4}
_HOW: dict[str, Any] = {
    "intent": imagecodecs.CMS.INTENT.RELATIVE_COLORIMETRIC,
    "flags": imagecodecs.CMS.FLAGS.BLACKPOINTCOMPENSATION,
}
#: Rec. 709 weights: grey without a profile, from sRGB.
_LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)
#: A profile that differs from sRGB by no more than this on a lattice of colours *is* sRGB, and costs nothing.
_SAME = 1.5 / 255


@dataclass(frozen=True)
class Space:
    """A colour model (``RGB``, ``GRAY`` or ``CMYK``) and the ICC profile embedded in the file, if any.

    Without one, RGB is sRGB and grey has sRGB's curve; CMYK has no meaning without one.
    """

    model: str = "RGB"
    profile: bytes | None = None

    @classmethod
    def of(cls, model: str, profile: object) -> Space:
        """The space of a file; a profile that is damaged or describes another model is left behind."""
        if isinstance(profile, bytes) and _MODELS.get(profile[16:20]) == model and _is_usable(profile, model):
            return cls(model, profile)
        return cls(model)

    @property
    def channels(self) -> int:
        return _CHANNELS[self.model]

    def to_srgb(self, pixels: Pixels | Unit) -> Pixels | Unit:
        """HxWxC pixels of this space as HxWx3 in sRGB: as they are if they are sRGB already, else uint16."""
        if self.model == "RGB" and (self.profile is None or _is_srgb(self.profile)):
            return pixels
        if self.model == "GRAY" and self.profile is None:
            return np.repeat(pixels, 3, axis=2)
        assert self.profile is not None
        return _converted(pixels, self.profile, self.model, _srgb(), "RGB", np.uint16)

    def from_srgb(self, pixels: Unit) -> Unit:
        """HxWx3 float32 in [0, 1] in sRGB as HxWxC float32 in [0, 1] of this space."""
        if self.model == "RGB" and (self.profile is None or _is_srgb(self.profile)):
            return pixels
        if self.model == "GRAY" and self.profile is None:
            grey: Unit = pixels @ _LUMA
            return np.ascontiguousarray(grey[..., None])
        return unit(self.separated(pixels, np.uint16))

    def separated(self, pixels: Pixels | Unit, kind: Any) -> Pixels:
        """HxWx3 pixels in sRGB as HxWxC of this space by its profile, uint8 or uint16."""
        assert self.profile is not None
        return _converted(pixels, _srgb(), "RGB", self.profile, self.model, kind)


SRGB = Space()


def _converted(
    pixels: Pixels | Unit, profile: bytes, model: str, target: bytes, target_model: str, kind: Any
) -> Pixels:
    """HxWxC pixels from one profile to another."""
    given = np.ascontiguousarray(integers(pixels, np.uint16))
    given = given[..., 0] if model == "GRAY" else given
    spaces: dict[str, Any] = {"colorspace": model.lower(), "outcolorspace": target_model.lower()}
    found: Pixels = imagecodecs.cms_transform(given, profile, target, outdtype=kind, **spaces, **_HOW)
    return found[..., None] if target_model == "GRAY" else found


@lru_cache
def _srgb() -> bytes:
    return bytes(imagecodecs.cms_profile("srgb"))


@lru_cache(maxsize=64)
def _is_usable(profile: bytes, model: str) -> bool:
    """Whether the profile converts, both ways."""
    space = Space(model, profile)
    try:
        _converted(np.zeros((2, 2, space.channels), np.uint8), profile, model, _srgb(), "RGB", np.uint16)
        space.separated(np.zeros((2, 2, 3), np.uint8), np.uint16)
    except imagecodecs.CmsError:
        return False
    return True


@lru_cache(maxsize=64)
def _is_srgb(profile: bytes) -> bool:
    """Whether an RGB profile is sRGB by what it does; there are dozens of files of that name."""
    steps = np.linspace(0, 65535, 9).astype(np.uint16)
    lattice = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(27, 27, 3)
    found = _converted(lattice, profile, "RGB", _srgb(), "RGB", np.uint16)
    return bool(np.abs(unit(found) - unit(lattice)).max() < _SAME)
