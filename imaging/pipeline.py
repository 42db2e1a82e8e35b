"""The steps before and after the network, shared by the server, the reference path and the tiles."""

import dataclasses

import numpy as np

from imaging.arrays import Core, to_integers
from imaging.codec import decode, decode_small
from imaging.encoding import encode
from imaging.frame import SIDE, core_from_pixels, pixels_from_core, resize, small_shape
from imaging.options import SMALL, Options
from imaging.photograph import LIMITS, Limits, Photograph
from imaging.transfer import Look


def core_from_file(file: bytes, limits: Limits = LIMITS, *, side: int = SIDE) -> Core:
    """Make the core tensor ``[3, side, side]`` of an encoded photograph. Raises `InvalidPhotograph`."""
    return core_from_pixels(decode_small(file, limits, side=side))


def file_from_core(file: bytes, core: Core, restored: Core, options: Options, limits: Limits = LIMITS) -> bytes:
    """Apply the change from ``core`` to ``restored`` to the full-size photograph, and encode it by the options.

    ``core`` is the core tensor of ``file`` and ``restored`` the network's output for it, both ``[3, 512, 512]`` float32
    in [0, 1]. Raises `InvalidPhotograph`, and `ArithmeticError` if ``restored`` is not finite.
    """
    require_finite(restored)
    photograph = decode(file, limits)
    if options.size == SMALL:
        return encode_by_options(small_result(photograph, core, restored, options), options)
    look_between(photograph, core, restored, options).apply(photograph.pixels)
    return encode_by_options(photograph, options)


def require_finite(restored: Core) -> None:
    """Raise `ArithmeticError` if the output has a NaN or an infinity, which would become an arbitrary colour."""
    if not np.isfinite(restored).all():
        raise ArithmeticError("the network's output is not finite: this engine must not be served")


def look_between(photograph: Photograph, core: Core, restored: Core, options: Options) -> Look:
    """Fit the change from ``core`` to ``restored``, in the photograph's own colour space."""
    before, after = (photograph.space.from_srgb(pixels_from_core(tensor)) for tensor in (core, restored))
    return Look.between(before, after, strength=options.strength)


def small_result(photograph: Photograph, core: Core, restored: Core, options: Options) -> Photograph:
    """Return the network's result in the photograph's aspect ratio, space and depth, its longer side 512 pixels."""
    shape = small_shape(*photograph.pixels.shape[:2])
    before, after = (pixels_from_core(tensor) for tensor in (core, restored))
    blended = before + np.float32(options.strength) * (after - before)
    values = photograph.space.from_srgb(resize(blended, shape))
    if photograph.has_alpha:
        values = np.concatenate([values, resize(photograph.pixels[..., -1:], shape)], axis=2)
    return dataclasses.replace(photograph, pixels=to_integers(values, photograph.pixels.dtype))


def encode_by_options(photograph: Photograph, options: Options) -> bytes:
    """Encode the photograph by the options."""
    return encode(photograph, format=options.format, quality=options.quality, gps=options.gps == "keep")
