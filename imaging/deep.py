"""Decode and encode 16-bit PNG and TIFF with imagecodecs, because Pillow supports 16 bits in grey only.

HDR in AVIF and HEIC is decoded to 16 bits too, because its curves show bands in 8 bits.
"""

import mmap
import struct
import zlib
from dataclasses import replace
from itertools import product
from typing import Any

import imagecodecs
import numpy as np
import pi_heif
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from imaging import iptc, png
from imaging.arrays import Pixels
from imaging.colour import Space
from imaging.errors import InvalidPhotograph
from imaging.exif import BYTE, Entry, Exif
from imaging.metadata import Metadata

_BITS_PER_SAMPLE, _PHOTOMETRIC, _EXTRA_SAMPLES, _SAMPLE_FORMAT, XMP_TAG = 258, 262, 338, 339, 700
_WHITE_IS_ZERO = 0
_ASSOCIATED, _UNASSOCIATED = 1, 2
PNG_DEPTH = 24  # offset of the bit depth in IHDR; the colour type follows
_PNG_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}
#: Lossless TIFF compressions: Pillow's name, and libtiff's.
_COMPRESSIONS = {"tiff_lzw": "lzw", "tiff_adobe_deflate": "deflate", "tiff_deflate": "deflate", "raw": "none"}
# Pillow does not know 16-bit grey with alpha. With these entries it reads the header; the pixels are decoded here.
TiffImagePlugin.OPEN_INFO |= {
    (order, photometric, (1,), 1, (16, 16), (kind,)): ("LA", "LA;16")
    for order, photometric, kind in product((b"II", b"MM"), (_WHITE_IS_ZERO, 1), (0, _ASSOCIATED, _UNASSOCIATED))
}


def is_deep(image: Image.Image, data: bytes) -> bool:
    """Return whether the file that Pillow opened has integers of 16 bits a channel."""
    if image.format == "PNG":
        return data[PNG_DEPTH] == 16
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tags: Any = image.tag_v2
        return set(tags.get(_BITS_PER_SAMPLE, (1,))) == {16} and set(tags.get(_SAMPLE_FORMAT, (1,))) == {1}
    return False


def decode(image: Image.Image, data: bytes) -> NDArray[np.uint16]:
    """Decode to HxWxC uint16 pixels as stored, with straight alpha. Raises if any pixels are missing.

    ``image`` is the same file as opened by Pillow. Raises `InvalidPhotograph` for an unsupported layout.
    """
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return _decode_png(image, data)
    tags: Any = image.tag_v2
    photometric, extra = tags.get(_PHOTOMETRIC), tags.get(_EXTRA_SAMPLES, ())
    pixels = imagecodecs.tiff_decode(data)
    if pixels.ndim == 3 and pixels.shape[0] < min(pixels.shape[1:]):  # stored plane by plane
        pixels = np.moveaxis(pixels, 0, 2)
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    if sorted(pixels.shape[:2]) != sorted(image.size) or pixels.dtype != np.uint16:
        raise InvalidPhotograph(
            "the layout of the 16-bit TIFF is not supported: send grey or RGB, with or without alpha"
        )
    colours = pixels.shape[2] - len(extra)
    kind = extra[0] if extra else None
    pixels = pixels[..., : colours + (kind in (_ASSOCIATED, _UNASSOCIATED))]
    if photometric == _WHITE_IS_ZERO:
        pixels = np.concatenate([65535 - pixels[..., :colours], pixels[..., colours:]], axis=2)
    if kind == _ASSOCIATED:
        alpha = np.maximum(pixels[..., -1:], 1).astype(np.uint32)
        divided = np.minimum(pixels[..., :-1] * np.uint32(65535) // alpha, 65535).astype(np.uint16)
        pixels = np.concatenate([divided, pixels[..., -1:]], axis=2)
    result: NDArray[np.uint16] = pixels
    return result


def _decode_png(image: Image.Image, data: bytes) -> NDArray[np.uint16]:
    """Decode into memory that can be released: imagecodecs 2026.1.14 leaks the array of a damaged PNG."""
    channels = _PNG_CHANNELS[data[PNG_DEPTH + 1]] + ("transparency" in image.info)
    memory = mmap.mmap(-1, max(1, image.width * image.height * channels * 2), flags=mmap.MAP_PRIVATE)
    pixels = np.frombuffer(memory, np.uint16).reshape(image.height, image.width, channels)
    try:
        imagecodecs.png_decode(data, out=pixels if channels > 1 else pixels[..., 0])
    except BaseException:
        memory.madvise(mmap.MADV_DONTNEED)
        raise
    return pixels


def decode_hdr(image: Image.Image, data: bytes) -> Pixels:
    """Decode an HDR AVIF or HEIC to HxWxC uint16 pixels, or uint8 if it has 8 bits; C is 1 to 4."""
    if image.format == "HEIF":
        file = pi_heif.open_heif(data, convert_hdr_to_8bit=False)
        pixels: Pixels = np.array(file)  # a copy, because the file frees its own memory
    else:
        pixels = imagecodecs.avif_decode(data)
    if image.format == "AVIF" and pixels.dtype == np.uint16:  # 10 or 12 bits; AV1-ISOBMFF, 2.3.3
        white = 4095 if data[data.find(b"av1C") + 6] & 0x20 else 1023
        pixels = (pixels * np.uint32(65535) // white).astype(np.uint16)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def encode(pixels: NDArray[np.uint16], kind: str, *, space: Space, compression: str, metadata: Metadata) -> bytes:
    """Encode HxWxC uint16 pixels as a PNG (any C) or TIFF (C of 1, 3 or 4) of 16 bits, with metadata."""
    channels = pixels.shape[2]
    pixels = pixels[..., 0] if channels == 1 else pixels
    if kind == "PNG":
        return add_png_chunks(bytes(imagecodecs.png_encode(pixels, level=4)), space, metadata)
    name = _COMPRESSIONS.get(compression, "deflate")
    tiff = imagecodecs.tiff_encode(
        pixels,
        compression=name,
        predictor=None if name == "none" else 2,
        photometric="rgb" if channels > 1 else "minisblack",
        extrasample="unassalpha" if channels == 4 else None,
        iccprofile=space.profile,
    )
    return add_tiff_tags(bytes(tiff), metadata)


def add_png_chunks(data: bytes, space: Space, metadata: Metadata) -> bytes:
    """Return the PNG with chunks for colours and metadata after IHDR (PNG, third edition, 11.3)."""
    bodies = []
    if space.cicp:
        bodies.append(b"cICP" + space.cicp)
    if space.profile:
        bodies.append(b"iCCPprofile\0\0" + zlib.compress(space.profile))
    if metadata.exif:
        bodies.append(b"eXIf" + metadata.exif.to_block().removeprefix(b"Exif\0\0"))
    if metadata.xmp:
        bodies.append(b"iTXtXML:com.adobe.xmp\0\0\0\0\0" + metadata.xmp)
    if metadata.iptc:
        bodies.append(png.raw_profile(png.IPTC, iptc.to_photoshop(metadata.iptc)))
    chunks = [struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)) for body in bodies]
    return b"".join([data[:33], *chunks, data[33:]])


def add_tiff_tags(data: bytes, metadata: Metadata) -> bytes:
    """Return the little-endian TIFF with the metadata added."""
    exif = metadata.exif or Exif("<", {}, {}, {})
    for tag, block in ((XMP_TAG, metadata.xmp), (iptc.TIFF_TAG, metadata.iptc)):
        if block:
            exif = replace(exif, main={**exif.main, tag: Entry(BYTE, len(block), block)})
    return exif.append_to(data) if exif.main or exif.settings or exif.position else data
