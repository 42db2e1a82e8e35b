"""Photographs to files: the format, depth, colours and metadata they came with, or as near as the format asked for can.

What fails here is ours and not the sender's: the pixels were decoded whole.
"""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
from PIL import Image, PngImagePlugin

from imaging import deep, jpeg
from imaging.arrays import Pixels, by_strips, integers, unit
from imaging.colour import SRGB
from imaging.exif import ORIENTATION
from imaging.metadata import NO_METADATA, Metadata
from imaging.options import OUTPUTS, QUALITY
from imaging.photograph import Photograph

#: AVIF encoding effort, 0 (slow) to 10; at 6, libavif's default, 12 megapixels take tens of seconds on one core.
AVIF_SPEED = 8
#: zlib's effort for PNG, 0 to 9; beyond it photographs take several times as long for one or two per cent.
PNG_EFFORT = 4
#: Pillow's names of the compressions a TIFF keeps; the first is for all others.
_LOSSLESS = ("tiff_adobe_deflate", "tiff_lzw", "raw")


def encode(photograph: Photograph, *, format: str = "", quality: int = QUALITY, gps: bool = True) -> bytes:
    """The photograph as a file, with its colours and metadata.

    ``format``: a key of `OUTPUTS`, or empty for its own. What a format cannot hold is reduced: alpha over white, 16
    bits to 8, grey and CMYK to RGB, for BMP any profile to sRGB.
    """
    kind = OUTPUTS.get(format, photograph.format)
    photograph = _fitting(photograph, kind)
    height, width = photograph.pixels.shape[:2]
    metadata = photograph.metadata.renewed(width=width, height=height, gps=gps)
    profile, pixels = photograph.space.profile, photograph.pixels
    if photograph.ink:
        return _separated(photograph, kind, quality, metadata)
    if pixels.dtype == np.uint16:
        return deep.encode(pixels, kind, profile=profile, compression=photograph.compression, metadata=metadata)
    if kind == "JPEG":
        sampling = photograph.sampling
        return jpeg.encode(pixels, quality=quality, sampling=sampling, profile=profile, metadata=metadata)
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    return _saved(image, kind, photograph, quality, profile, metadata)


def _fitting(photograph: Photograph, kind: str) -> Photograph:
    """The photograph with no more than the format can hold."""
    pixels, space = photograph.pixels, photograph.space
    if photograph.has_alpha and kind in ("JPEG", "BMP"):
        pixels = by_strips(pixels, pixels.shape[2] - 1, pixels.dtype, _over_white)
    only_rgb = kind in ("WEBP", "AVIF") or (kind == "TIFF" and pixels.dtype == np.uint16 and pixels.shape[2] == 2)
    if pixels.shape[2] <= 2 and only_rgb:
        grey, kept = space, pixels.dtype

        def in_colour(strip: Pixels) -> Pixels:
            return np.concatenate([integers(unit(grey.to_srgb(strip[..., :1])), kept), strip[..., 1:]], axis=2)

        pixels, space = by_strips(pixels, pixels.shape[2] + 2, kept, in_colour), SRGB
    if kind == "BMP" and space.profile:
        profiled = space
        in_srgb = by_strips(pixels, 3, np.uint8, lambda strip: integers(profiled.to_srgb(strip), np.uint8))
        pixels, space = in_srgb, SRGB
    if pixels.dtype == np.uint16 and kind not in ("PNG", "TIFF"):
        pixels = by_strips(pixels, pixels.shape[2], np.uint8, lambda strip: integers(unit(strip), np.uint8))
    ink = photograph.ink if kind in ("JPEG", "TIFF") else None
    return replace(photograph, pixels=pixels, space=space, ink=ink)


def _over_white(strip: Pixels) -> Pixels:
    values = unit(strip)
    part = values[..., -1:]
    return integers(values[..., :-1] * part + (1 - part), strip.dtype)


def _separated(photograph: Photograph, kind: str, quality: int, metadata: Metadata) -> bytes:
    """In inks again, for the press it came from."""
    ink = photograph.ink
    assert ink is not None
    inks = by_strips(photograph.pixels, 4, np.uint8, lambda strip: ink.separated(strip, np.uint8))
    image = Image.frombytes("CMYK", inks.shape[1::-1], inks.tobytes())
    if kind == "TIFF":
        return _saved(image, kind, photograph, quality, ink.profile, metadata)
    return jpeg.with_segments(_saved(image, kind, photograph, quality, None, NO_METADATA), ink.profile, metadata)


def _saved(
    image: Image.Image, kind: str, photograph: Photograph, quality: int, profile: bytes | None, metadata: Metadata
) -> bytes:
    """By Pillow, in the formats and colours that have no faster way."""
    options: dict[str, object] = {"icc_profile": profile} if profile else {}
    exif, xmp = metadata.exif, metadata.xmp
    match kind:
        case "JPEG":
            options |= {"quality": quality, "subsampling": 0}
        case "WEBP":
            options |= {"quality": quality, "lossless": photograph.lossless, "exact": True}
        case "AVIF":
            sampling = "4:2:0" if photograph.sampling == "440" else ":".join(photograph.sampling)
            options |= {"quality": quality, "speed": AVIF_SPEED, "max_threads": 1, "subsampling": sampling}
            if exif:  # with the tag, even as 1, Pillow would write the block anew in its own way
                exif = replace(exif, main={tag: e for tag, e in exif.main.items() if tag != ORIENTATION})
        case "TIFF":
            options["compression"] = photograph.compression if photograph.compression in _LOSSLESS else _LOSSLESS[0]
        case "PNG":
            options["compress_level"] = PNG_EFFORT
            if xmp:
                options["pnginfo"] = text = PngImagePlugin.PngInfo()
                text.add_itxt("XML:com.adobe.xmp", xmp.decode("utf-8", errors="replace"))
    if kind in ("WEBP", "AVIF") and xmp:
        options["xmp"] = xmp
    if kind in ("PNG", "WEBP", "AVIF") and exif:
        options["exif"] = exif.block()
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return deep.with_tiff_tags(buffer.getvalue(), metadata) if kind == "TIFF" else buffer.getvalue()
