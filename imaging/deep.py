"""16-bit PNG and TIFF by libpng and libtiff (imagecodecs), because Pillow knows 16 bits only in grey."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

_BITS_PER_SAMPLE, _SAMPLE_FORMAT, _EXIF_BLOCK, _GPS_BLOCK = 258, 339, 0x8769, 0x8825
XMP_TAG = 700  # of TIFF (XMP part 3, 3.3.3)
_PNG_DEPTH = 24  # where IHDR has its bit depth
#: Pillow's names of the lossless TIFF compressions, and libtiff's.
_COMPRESSIONS = {"tiff_lzw": "lzw", "tiff_adobe_deflate": "deflate", "tiff_deflate": "deflate", "raw": "none"}


def is_deep(image: Image.Image, data: bytes) -> bool:
    """Whether the file that Pillow opened has 16 bits a channel, of integers."""
    if image.format == "PNG":
        return data[_PNG_DEPTH] == 16
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tags: Any = image.tag_v2
        return set(tags.get(_BITS_PER_SAMPLE, (1,))) == {16} and set(tags.get(_SAMPLE_FORMAT, (1,))) == {1}
    return False


def decode(data: bytes) -> NDArray[np.uint16]:
    """HxWxC uint16 pixels as they are stored. Raises if any are missing."""
    if data.startswith(b"\x89PNG"):
        pixels = imagecodecs.png_decode(data)
    else:
        pixels = imagecodecs.tiff_decode(data)
        if pixels.ndim == 3 and pixels.shape[0] < min(pixels.shape[1:]):  # stored plane by plane
            pixels = np.moveaxis(pixels, 0, 2)
    found: NDArray[np.uint16] = pixels if pixels.ndim == 3 else pixels[..., None]
    return found


def encode(
    pixels: NDArray[np.uint16], kind: str, *, profile: bytes | None, compression: str, exif: Image.Exif | None,
    xmp: bytes | None,
) -> bytes:  # fmt: skip
    """HxWxC uint16 pixels as a PNG or TIFF of 16 bits, with its metadata."""
    channels = pixels.shape[2]
    pixels = pixels[..., 0] if channels == 1 else pixels
    if kind == "PNG":
        return with_png_chunks(bytes(imagecodecs.png_encode(pixels, level=4)), profile, exif, xmp)
    name = _COMPRESSIONS.get(compression, "deflate")
    written = imagecodecs.tiff_encode(
        pixels,
        compression=name,
        predictor=None if name == "none" else 2,
        photometric="rgb" if channels > 2 else "minisblack",
        extrasample="unassalpha" if channels in (2, 4) else None,
        iccprofile=profile,
    )
    if xmp:
        exif = exif or Image.Exif()
        exif[XMP_TAG] = xmp
    return with_tiff_exif(bytes(written), exif) if exif else bytes(written)


def with_png_chunks(data: bytes, profile: bytes | None, exif: Image.Exif | None, xmp: bytes | None) -> bytes:
    """The PNG with its metadata's chunks after IHDR (PNG, third edition, 11.3)."""
    bodies = []
    if profile:
        bodies.append(b"iCCPprofile\0\0" + zlib.compress(profile))
    if exif:
        bodies.append(b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0"))
    if xmp:
        bodies.append(b"iTXtXML:com.adobe.xmp\0\0\0\0\0" + xmp)
    chunks = [struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)) for body in bodies]
    return b"".join([data[:33], *chunks, data[33:]])


def with_tiff_exif(data: bytes, exif: Image.Exif) -> bytes:
    """The little-endian TIFF with EXIF's tags added: a new directory at the end, where the header now points to.

    Nothing that was there moves, so the old entries stay as they are (TIFF 6.0, section 2).
    """
    start = len(data) + len(data) % 2  # directories begin on a word
    added = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in exif.items():
        added[tag] = exif.get_ifd(tag) if tag in (_EXIF_BLOCK, _GPS_BLOCK) else value
    block = added.tobytes(start)
    block += b"\0" * (len(block) % 2)
    old = _entries(data, int.from_bytes(data[4:8], "little"))
    entries = sorted({**old, **_entries(block, 0)}.items())
    directory = struct.pack("<H", len(entries)) + b"".join(entry for _, entry in entries) + bytes(4)
    header = data[:4] + struct.pack("<I", start + len(block))
    return header + data[8:] + b"\0" * (start - len(data)) + block + directory


def _entries(data: bytes, start: int) -> dict[int, bytes]:
    """The raw entries of the directory at ``start``, by tag."""
    count = int.from_bytes(data[start : start + 2], "little")
    raw = [data[i : i + 12] for i in range(start + 2, start + 2 + 12 * count, 12)]
    return {int.from_bytes(entry[:2], "little"): entry for entry in raw}
