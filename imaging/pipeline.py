"""The two halves of an enhancement around the network, for the server, the reference path and the tiles alike."""

from __future__ import annotations

import dataclasses

import numpy as np

from imaging.arrays import Core, integers
from imaging.codec import decode, decode_small
from imaging.encoding import encode
from imaging.frame import SIDE, core_from_pixels, pixels_from_core, resize, small_shape
from imaging.options import SMALL, Options
from imaging.photograph import LIMITS, Limits, Photograph
from imaging.transfer import Look


def prepared(file: bytes, limits: Limits = LIMITS, *, side: int = SIDE) -> Core:
    """Make the core tensor ``[3, side, side]`` of an encoded photograph. Raises `InvalidPhotograph`."""
    return core_from_pixels(decode_small(file, limits, side=side))


def finished(file: bytes, core: Core, restored: Core, options: Options, limits: Limits = LIMITS) -> bytes:
    """The encoded photograph with what the network did to its core tensor, as the options ask for it.

    ``core`` and ``restored`` are ``[3, 512, 512]`` float32 in [0, 1]. Raises `InvalidPhotograph`, and `ArithmeticError`
    if ``restored`` is not finite.
    """
    require_finite(restored)
    photograph = decode(file, limits)
    if options.size == SMALL:
        return encoded(small(photograph, core, restored, options), options)
    look_of(photograph, core, restored, options).apply(photograph.pixels)
    return encoded(photograph, options)


def require_finite(restored: Core) -> None:
    """A NaN would become an arbitrary colour."""
    if not np.isfinite(restored).all():
        raise ArithmeticError("the network's output is not finite: this engine must not be served")


def look_of(photograph: Photograph, core: Core, restored: Core, options: Options) -> Look:
    """What the network did, in the photograph's own colour space."""
    before, after = (photograph.space.from_srgb(pixels_from_core(tensor)) for tensor in (core, restored))
    return Look.between(before, after, strength=options.strength)


def small(photograph: Photograph, core: Core, restored: Core, options: Options) -> Photograph:
    """The network's own result, the longer side at 512 pixels, in the photograph's aspect ratio, space and depth."""
    shape = small_shape(*photograph.pixels.shape[:2])
    before, after = (pixels_from_core(tensor) for tensor in (core, restored))
    blended = before + np.float32(options.strength) * (after - before)
    values = photograph.space.from_srgb(resize(blended, shape))
    if photograph.has_alpha:
        values = np.concatenate([values, resize(photograph.pixels[..., -1:], shape)], axis=2)
    return dataclasses.replace(photograph, pixels=integers(values, photograph.pixels.dtype))


def encoded(photograph: Photograph, options: Options) -> bytes:
    """The photograph as the options ask for it."""
    return encode(photograph, format=options.format, quality=options.quality, gps=options.gps == "keep")
