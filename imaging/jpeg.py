"""JPEG pixels by libjpeg-turbo (simplejpeg), several times as fast as Pillow; the metadata's segments by us.

CMYK files go through Pillow, which knows the inverted inks of Adobe's.
"""

from __future__ import annotations

import re

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin

from imaging.errors import InvalidPhotograph

#: libjpeg's warnings that leave every pixel as the photographer saw it: a stray byte before the end, as some phones
#: write. Every other warning means that a part of the picture is missing or made up.
_HARMLESS = re.compile(r"extraneous bytes before marker 0xd9", re.IGNORECASE)
#: More scans than any encoder writes; a file of a thousand is made to keep a decoder busy.
MAX_SCANS = 100
#: Chroma subsampling by Pillow's number; what is rarer becomes 4:2:0 or, turned on its side, what keeps its detail.
_SAMPLINGS = {0: "444", 1: "422", 2: "420"}
_TURNED = {"422": "440"}
_SEGMENT = 65_533  # bytes a segment holds beside its own length
_ICC_CHUNK = _SEGMENT - 14


def decode(data: bytes, image: Image.Image, *, at_least: tuple[int, int] = (0, 0)) -> NDArray[np.uint8]:
    """HxWx3 or HxWx1 uint8 pixels of the file whose header Pillow has read into ``image``.

    ``at_least`` (height, width): the decoder may shrink while decoding, to no less. Raises `InvalidPhotograph`.
    """
    if image.info.get("progressive") and data.count(b"\xff\xda") > MAX_SCANS:
        raise InvalidPhotograph(f"the JPEG has more than {MAX_SCANS} scans; save it again as baseline or progressive")
    space = "GRAY" if image.mode == "L" else "RGB"
    options = {"colorspace": space, "min_height": at_least[0], "min_width": at_least[1]}
    try:
        pixels = simplejpeg.decode_jpeg(data, **options)
    except ValueError as error:
        if not _HARMLESS.search(str(error)):
            raise
        pixels = simplejpeg.decode_jpeg(data, strict=False, **options)
    if not any(at_least) and pixels.shape[1::-1] != image.size:
        raise InvalidPhotograph("the JPEG has two headers that contradict each other")
    found: NDArray[np.uint8] = pixels if pixels.ndim == 3 else pixels[..., None]
    return found


def sampling_of(image: Image.Image, *, turned: bool) -> str:
    """The chroma subsampling of the file, as it is to be in the new one: ``444``, ``422``, ``440`` or ``420``."""
    if image.mode == "CMYK":
        return "444"
    name = _SAMPLINGS.get(JpegImagePlugin.get_sampling(image), "420")
    return _TURNED.get(name, name) if turned else name


def encode(
    pixels: NDArray[np.uint8],
    *,
    quality: int,
    sampling: str,
    profile: bytes | None,
    exif: bytes | None,
    xmp: bytes | None,
) -> bytes:
    """HxWx3 or HxWx1 uint8 pixels as a baseline JPEG with its metadata."""
    grey = pixels.shape[2] == 1
    space, sampling = ("GRAY", "Gray") if grey else ("RGB", sampling)
    return with_segments(
        simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, space, sampling), profile, exif, xmp
    )


def with_segments(data: bytes, profile: bytes | None, exif: bytes | None, xmp: bytes | None) -> bytes:
    """The file with its metadata after JFIF's segment, in the order Exif asks for (CIPA DC-008, 4.5.4).

    What does not fit its one segment is left out.
    """
    segments = []
    if exif and len(exif) <= _SEGMENT:
        segments.append((0xE1, exif))
    if xmp and len(packet := b"http://ns.adobe.com/xap/1.0/\0" + xmp) <= _SEGMENT:
        segments.append((0xE1, packet))
    parts = [profile[i : i + _ICC_CHUNK] for i in range(0, len(profile), _ICC_CHUNK)] if profile else []
    for number, part in enumerate(parts[:255], 1):  # ICC.1:2022, B.4
        segments.append((0xE2, b"ICC_PROFILE\0" + bytes([number, len(parts)]) + part))
    head = 4 + int.from_bytes(data[4:6], "big") if data[2:4] == b"\xff\xe0" else 2
    written = [b"\xff" + bytes([marker]) + (len(body) + 2).to_bytes(2, "big") + body for marker, body in segments]
    return b"".join([data[:head], *written, data[head:]])
