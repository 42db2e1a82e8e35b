"""Encode photographs with their depth, colours and metadata, as far as the requested format can hold them.

An error here is the server's, not the client's: the photograph was decoded completely.
"""

import io
from dataclasses import replace

import numpy as np
from PIL import Image

from imaging import deep, jpeg
from imaging.arrays import Pixels, map_strips, to_integers, to_unit
from imaging.colour import SRGB, Space
from imaging.exif import ORIENTATION
from imaging.metadata import Metadata
from imaging.options import OUTPUTS, QUALITY
from imaging.photograph import Photograph

#: AVIF encoding effort, 0 (slow) to 10; at 6, libavif's default, 12 megapixels take tens of seconds on one core.
AVIF_SPEED = 8
#: zlib's effort for PNG, 0 to 9; higher ones take several times as long and save one or two per cent.
PNG_EFFORT = 4
#: Pillow's names of the compressions that a TIFF keeps; the first replaces all others.
_LOSSLESS = ("tiff_adobe_deflate", "tiff_lzw", "raw")


def encode(photograph: Photograph, *, format: str = "", quality: int = QUALITY, gps: bool = True) -> bytes:
    """Encode the photograph with its colours and metadata.

    ``format`` is a key of `OUTPUTS`, or empty for the photograph's own. What the format cannot hold is reduced: alpha
    is blended over white, 16 bits become 8, grey and CMYK become RGB, and for BMP any profile becomes sRGB.
    """
    kind = OUTPUTS.get(format, photograph.format)
    photograph = _reduce(photograph, kind)
    height, width = photograph.pixels.shape[:2]
    metadata = photograph.metadata.updated(width=width, height=height, gps=gps)
    pixels = photograph.pixels
    if ink := photograph.ink:
        pixels = map_strips(pixels, 4, np.uint8, lambda strip: ink.convert_from_srgb(strip, np.uint8))
        image = Image.frombytes("CMYK", (width, height), pixels.tobytes())
        return _encode_with_pillow(image, kind, replace(photograph, space=ink), quality, metadata)
    if pixels.dtype == np.uint16:
        return deep.encode(pixels, kind, space=photograph.space, compression=photograph.compression, metadata=metadata)
    if kind == "JPEG":
        data = jpeg.encode(pixels, quality=quality, sampling=photograph.sampling)
        return jpeg.add_segments(data, photograph.space.profile, metadata)
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    return _encode_with_pillow(image, kind, photograph, quality, metadata)


def _reduce(photograph: Photograph, kind: str) -> Photograph:
    """Reduce the photograph to what the format can hold."""
    pixels, space = photograph.pixels, photograph.space
    if photograph.has_alpha and kind in ("JPEG", "BMP"):
        pixels = map_strips(pixels, pixels.shape[2] - 1, pixels.dtype, _blend_over_white)
    only_rgb = kind in ("WEBP", "AVIF") or (kind == "TIFF" and pixels.dtype == np.uint16 and pixels.shape[2] == 2)
    only_srgb = kind == "BMP" or (kind != "PNG" and space.cicp)
    if (pixels.shape[2] <= 2 and only_rgb) or (space.profile and only_srgb):
        pixels, space = _convert_to_srgb(pixels, space), SRGB
    if pixels.dtype == np.uint16 and kind not in ("PNG", "TIFF"):
        pixels = map_strips(pixels, pixels.shape[2], np.uint8, lambda strip: to_integers(strip, np.uint8))
    ink = photograph.ink if kind in ("JPEG", "TIFF") else None
    return replace(photograph, pixels=pixels, space=space, ink=ink)


def _convert_to_srgb(pixels: Pixels, space: Space) -> Pixels:
    def convert(strip: Pixels) -> Pixels:
        rgb = to_integers(to_unit(space.to_srgb(strip[..., : space.channels])), strip.dtype)
        return np.concatenate([rgb, strip[..., space.channels :]], axis=2)

    return map_strips(pixels, pixels.shape[2] - space.channels + 3, pixels.dtype, convert)


def _blend_over_white(strip: Pixels) -> Pixels:
    values = to_unit(strip)
    alpha = values[..., -1:]
    return to_integers(values[..., :-1] * alpha + (1 - alpha), strip.dtype)


def _encode_with_pillow(
    image: Image.Image, kind: str, photograph: Photograph, quality: int, metadata: Metadata
) -> bytes:
    """Encode with Pillow the formats and colours for which there is no faster codec."""
    sampling = "4:2:0" if photograph.sampling == "440" else ":".join(photograph.sampling)
    by_format: dict[str, dict[str, object]] = {
        "JPEG": {"quality": quality, "subsampling": 0},
        "WEBP": {"quality": quality, "lossless": photograph.lossless, "exact": True},
        "AVIF": {"quality": quality, "speed": AVIF_SPEED, "max_threads": 1, "subsampling": sampling},
        "TIFF": {"compression": photograph.compression if photograph.compression in _LOSSLESS else _LOSSLESS[0]},
        "PNG": {"compress_level": PNG_EFFORT},
    }
    options = by_format.get(kind, {})
    profile = photograph.space.profile
    if profile and kind in ("WEBP", "AVIF", "TIFF"):
        options["icc_profile"] = profile
    if kind in ("WEBP", "AVIF") and metadata.xmp:
        options["xmp"] = metadata.xmp
    if kind in ("WEBP", "AVIF") and (exif := metadata.exif):
        if kind == "AVIF":  # Pillow rewrites the whole block if it has this tag, even with the value 1
            exif = replace(exif, main={tag: e for tag, e in exif.main.items() if tag != ORIENTATION})
        options["exif"] = exif.to_block()
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    data = buffer.getvalue()
    if kind == "JPEG":
        return jpeg.add_segments(data, profile, metadata)
    if kind == "PNG":
        return deep.add_png_chunks(data, photograph.space, metadata)
    return deep.add_tiff_tags(data, metadata) if kind == "TIFF" else data
