"""Make colour spaces for files that specify their colours without an ICC profile.

They specify them by the numbers of ITU-T H.273 (the chunk cICP of a PNG, nclx in HEIC and AVIF), by gAMA and cHRM of a
PNG, or as Adobe RGB in EXIF. Each becomes an ICC profile, which the encoded file then has. HDR is mapped to SDR.
"""

import logging
import re
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imaging import png
from imaging.arrays import to_integers
from imaging.colour import Space
from imaging.errors import InvalidPhotograph
from imaging.exif import Exif

_LOG = logging.getLogger(__name__)

Values = NDArray[np.float64]
#: From values in [0, 1] as encoded to linear light in [0, 1].
Curve = Callable[[Values], Values]
#: Coordinates x and y of white, red, green and blue.
Chromaticities = tuple[float, ...]

_D65, _C = (0.3127, 0.329), (0.31, 0.316)
_SRGB = (*_D65, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
_ADOBE_RGB = (*_D65, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
#: ColourPrimaries (ITU-T H.273, table 2).
_PRIMARIES: dict[int, Chromaticities] = {
    1: _SRGB,
    4: (*_C, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08),
    5: (*_D65, 0.64, 0.33, 0.29, 0.6, 0.15, 0.06),
    6: (*_D65, 0.63, 0.34, 0.31, 0.595, 0.155, 0.07),
    7: (*_D65, 0.63, 0.34, 0.31, 0.595, 0.155, 0.07),
    8: (*_C, 0.681, 0.319, 0.243, 0.692, 0.145, 0.049),
    9: (*_D65, 0.708, 0.292, 0.17, 0.797, 0.131, 0.046),
    10: (1 / 3, 1 / 3, 1, 0, 0, 1, 0, 0),
    11: (0.314, 0.351, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),
    12: (*_D65, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),
    22: (*_D65, 0.63, 0.34, 0.295, 0.605, 0.155, 0.077),
}
_UNSPECIFIED = 2
_REFERENCE_WHITE, _KNEE = 203.0, 0.8  # in cd/m², of text and paper (ITU-R BT.2408); and where compression begins
#: The box colr with primaries and transfer; the first is that of the photograph (ISO/IEC 14496-12, 12.1.5).
_NCLX = re.compile(rb"colrnclx(..)(..)", re.DOTALL)


def _srgb(values: Values) -> Values:
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _pq(values: Values) -> Values:
    """SMPTE ST 2084: absolute light up to 10,000 cd/m²."""
    root = values ** (1 / 78.84375)
    light = np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)
    return _roll_off(light ** (1 / 0.1593017578125), 10_000)


def _hlg(values: Values) -> Values:
    """ITU-R BT.2100, on a display of 1,000 cd/m², whose system gamma is 1.2."""
    scene = np.where(values <= 0.5, values**2 / 3, (np.exp((values - 0.55991073) / 0.17883277) + 0.28466892) / 12)
    return _roll_off(scene**1.2, 1000)


def _roll_off(light: Values, peak: float) -> Values:
    """Compress light, relative to ``peak`` in cd/m², to [0, 1] (extended Reinhard)."""
    above, top = ((value * peak / _REFERENCE_WHITE - _KNEE) / (1 - _KNEE) for value in (light, 1.0))
    rolled = above * (1 + above / top**2) / (1 + np.maximum(above, 0))
    return _KNEE + (1 - _KNEE) * np.where(above > 0, rolled, above)


_HDR: dict[int, Curve] = {16: _pq, 18: _hlg}
#: TransferCharacteristics (ITU-T H.273, table 3). The others are unspecified or curves of video cameras: their files
#: are made for displays, and are read as sRGB.
_CURVES: dict[int, Curve | float] = {4: 2.2, 5: 2.8, 8: 1.0, 17: 2.6, **_HDR}


def space_of(model: str, image: Image.Image, data: bytes, exif: Exif | None) -> Space:
    """Return the space of a file that Pillow has opened, from the source that takes precedence in its format.

    Raises `InvalidPhotograph` for a PNG of narrow range.
    """
    points = code_points(image, data)
    if points:
        return _space_from_code_points(model, *points)
    space = Space.of(model, image.info.get("icc_profile"))
    if "icc_profile" in image.info and not space.profile:
        _LOG.warning("ignored an ICC profile that is damaged or not for %s", model)
    if model == "CMYK" or space.profile:
        return space
    gamma, chromaticities = (image.info.get(name) for name in ("gamma", "chromaticity"))
    if image.format == "PNG" and ("srgb" in image.info or gamma or chromaticities):
        return space if "srgb" in image.info else _png_space(model, gamma, chromaticities or _SRGB)
    return _space(model, _ADOBE_RGB, 563 / 256) if exif and exif.is_adobe_rgb else space


def is_hdr(image: Image.Image, data: bytes) -> bool:
    """Return whether the colours of an AVIF or HEIC are HDR."""
    points = code_points(image, data) if image.format in ("AVIF", "HEIF") else None
    return points is not None and points[1] in _HDR


def code_points(image: Image.Image, data: bytes) -> tuple[int, int] | None:
    """Return the primaries and the transfer that apply to the file; None if it has none, or has a profile instead."""
    if image.format == "PNG":
        cicp = png.read_cicp(data)  # primaries, transfer, matrix, full range (PNG, third edition, 11.3.2.6)
        if cicp[3:] == b"\0":
            raise InvalidPhotograph("the PNG has colours of narrow range (cICP): send it in full range")
        points = (cicp[0], cicp[1]) if len(cicp) == 4 else None
    elif image.format == "AVIF" and not image.info.get("icc_profile"):
        # Pillow reads the numbers but does not return them. libheif would, but it crashes on damaged files.
        nclx = _NCLX.search(data)
        points = (int.from_bytes(nclx[1], "big"), int.from_bytes(nclx[2], "big")) if nclx else None
    elif image.format == "HEIF" and (numbers := image.info.get("nclx_profile")):
        points = (numbers["color_primaries"], numbers["transfer_characteristics"])
    else:
        points = None
    return points if points != (_UNSPECIFIED, _UNSPECIFIED) else None


def _space_from_code_points(model: str, primaries: int, transfer: int) -> Space:
    primaries = primaries if primaries in _PRIMARIES else 1
    space = _space(model, _PRIMARIES[primaries], _CURVES.get(transfer, _srgb))
    return replace(space, cicp=bytes([primaries, transfer, 0, 1])) if transfer in _HDR else space


def _png_space(model: str, gamma: float | None, chromaticities: Chromaticities) -> Space:
    """Return the space of gAMA and cHRM; files in sRGB have the gamma 1/2.2, rounded (PNG, third edition, 11.3.2.5)."""
    gamma = gamma if gamma and 0.1 < gamma < 10 else None  # other numbers are damaged
    is_srgb = not gamma or (_is_srgb(chromaticities) and abs(gamma - 1 / 2.2) < 1e-3)
    return _space(model, chromaticities, 1 / gamma if gamma and not is_srgb else _srgb)


def _space(model: str, chromaticities: Chromaticities, curve: Curve | float) -> Space:
    """Return the space, without a profile if it is sRGB or its numbers are impossible."""
    if curve is _srgb and (model == "GRAY" or _is_srgb(chromaticities)):
        return Space(model)
    return Space.of(model, _profile(model, tuple(chromaticities), curve))


def _is_srgb(chromaticities: Chromaticities) -> bool:
    return bool(np.allclose(chromaticities, _SRGB, atol=0.002))


@lru_cache(maxsize=64)
def _profile(model: str, chromaticities: Chromaticities, curve: Curve | float) -> bytes | None:
    """Make an ICC profile; return None if LittleCMS cannot."""
    if not chromaticities[1] or not all(0 <= value <= 1 for value in chromaticities):
        return None
    options: dict[str, Any] = {"gamma": curve}
    if callable(curve):
        options = {"transferfunction": to_integers(curve(np.linspace(0, 1, 1024)).astype(np.float32), np.uint16)}
    make = partial(imagecodecs.cms_profile, whitepoint=chromaticities[:2], **options)
    try:
        return bytes(make("gray") if model == "GRAY" else make("rgb", primaries=chromaticities[2:]))
    except imagecodecs.CmsError:
        return None
