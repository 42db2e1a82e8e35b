"""Decode and encode JPEG with libjpeg-turbo (simplejpeg), several times as fast as Pillow, and add metadata segments.

CMYK files go through Pillow, which handles the inverted values of Adobe's.
"""

import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from imaging.errors import InvalidPhotograph
from imaging.iptc import to_photoshop
from imaging.metadata import Metadata, shorten_xmp

#: Warnings of libjpeg that affect no pixel: a few stray bytes between two markers, and unusual headers, which some
#: cameras write. libjpeg reports only the first warning, so a file with an unusual header is decoded by Pillow, which
#: rejects truncated files. All other warnings count as damage.
_STRAY = re.compile(r"\b(\d+) extraneous bytes before marker 0x(\w\w)")
_MAX_STRAY = 16
_NO_END, _END = "Premature end of JPEG file", b"\xff\xd9"
_ODD_HEADER = re.compile(r"SOS parameters|JFIF revision|Adobe color transform")
#: Part of the error of libjpeg-turbo's fast interface for a sampling that only libjpeg itself, in Pillow, decodes.
_RARE_SAMPLING = "subsampling"
#: More scans than any encoder writes; a crafted file of a thousand would keep a decoder busy.
MAX_SCANS = 100
#: The first byte of a marker, and one that is neither stuffing nor a restart (ITU-T T.81, B.1.1).
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
#: Starts of frames whose decoder notices missing bits: baseline, extended, progressive (the arithmetic ones do not).
_PROGRESSIVE = 0xC2
_HUFFMAN_FRAMES = (0xC0, 0xC1, _PROGRESSIVE)
#: Chroma subsampling by whether luma has at least twice as many samples across and down.
_SAMPLINGS = {(False, False): "444", (True, False): "422", (False, True): "440", (True, True): "420"}
_TURNED = {"422": "440", "440": "422"}
_SEGMENT = 65_533  # bytes that fit a segment, without those of its length
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_ICC_CHUNK = _SEGMENT - 14


def decode(data: bytes, image: Image.Image, *, at_least: tuple[int, int] = (0, 0)) -> NDArray[np.uint8]:
    """Decode to HxWx3 or HxWx1 uint8 pixels; ``image`` is the same file as opened by Pillow.

    With ``at_least`` (height, width) the decoder may shrink the image, to no less than that. Raises
    `InvalidPhotograph`.
    """
    require_few_scans(data)
    space = "GRAY" if image.mode == "L" else "RGB"
    options: dict[str, Any] = {"colorspace": space, "min_height": at_least[0], "min_width": at_least[1]}
    try:
        pixels = simplejpeg.decode_jpeg(data, **options)
    except ValueError as error:
        if "ICC" in str(error) and len(plain := without_profile(data)) < len(data):
            return decode(plain, image, at_least=at_least)
        pixels = _decode_again(data, image, str(error), options)
        if pixels is None:
            raise
    if not any(at_least) and pixels.shape[1::-1] != image.size:
        raise InvalidPhotograph("the JPEG has two headers that contradict each other")
    result: NDArray[np.uint8] = pixels if pixels.ndim == 3 else pixels[..., None]
    return result


def _decode_again(data: bytes, image: Image.Image, warning: str, options: dict[str, Any]) -> NDArray[np.uint8] | None:
    """Return the pixels if libjpeg's warning affects none of them, else None."""
    if _NO_END in warning and _has_all_scans(data):
        whole: NDArray[np.uint8] = simplejpeg.decode_jpeg(data + _END, **options)  # raises if the last scan is cut
        return whole
    stray = _STRAY.search(warning)
    if stray and int(stray[1]) > _MAX_STRAY:
        return None
    if stray and stray[2].lower() == "d9":  # the end: nothing can follow
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, strict=False, **options)
        return pixels
    if stray or _RARE_SAMPLING in warning or _ODD_HEADER.search(warning):
        return np.array(image)  # raises if the file ends too early
    return None


def without_profile(data: bytes) -> bytes:
    """Return the JPEG without the segments of its ICC profile."""
    kept, at = [], 0
    for marker, start, end in segments(data):
        if marker == 0xE2 and data[start + 4 : start + 16] == b"ICC_PROFILE\0":
            kept.append(data[at:start])
            at = end
    return b"".join([*kept, data[at:]])


def require_few_scans(data: bytes) -> None:
    """Raise `InvalidPhotograph` if the (first) image has more than `MAX_SCANS` scans."""
    scans = (marker for marker, *_ in segments(data) if marker == 0xDA)
    if next(islice(scans, MAX_SCANS, None), None):
        raise InvalidPhotograph(f"the JPEG has more than {MAX_SCANS} scans; save it as baseline or progressive")


def segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield the marker of each segment of the (first) image, its start and its end."""
    at = 2
    while found := _MARKER.search(data, at):
        marker = data[found.end() - 1]
        at = found.end()
        if marker == 0xD9:
            return
        if marker not in (0x01, 0xD8):  # a segment with its length
            at += int.from_bytes(data[at : at + 2], "big")
        yield marker, found.start(), at


def _has_all_scans(data: bytes) -> bool:
    """Return whether the headers of the scans cover all bits of all coefficients (ITU-T T.81, B.2.3 and G.1.1.1).

    A file that is cut between two scans can be decoded, but is blurred or grey.
    """
    missing: dict[int, set[int]] = {}
    is_progressive = False
    for marker, start, end in segments(data):
        body = data[start + 4 : end]
        if marker in _HUFFMAN_FRAMES:
            is_progressive = marker == _PROGRESSIVE
            missing = {component: set(range(64)) for component in body[6::3]}
        elif marker == 0xDA:
            first, last, bits = body[-3:].rjust(3, b"\xff") if is_progressive else (0, 63, 0)
            for component in body[1:-3:2] if bits & 15 == 0 else b"":
                missing.get(component, set()).difference_update(range(first, last + 1))
    return bool(missing) and not any(missing.values())


def sampling_of(image: Image.Image, *, turned: bool) -> str:
    """Return the chroma subsampling for the new file: ``444``, ``422``, ``440`` or ``420``.

    Rarer ones become the one of these that keeps all samples.
    """
    if image.mode == "CMYK":
        return "444"
    # Each layer: its number, its factors across and down, and its table.
    luma, *chroma = getattr(image, "layer", None) or [(0, 1, 1, 0)]
    across, down = (all(luma[axis] >= 2 * plane[axis] for plane in chroma) for axis in (1, 2))
    name = _SAMPLINGS[across, down]
    return _TURNED.get(name, name) if turned else name


def encode(pixels: NDArray[np.uint8], *, quality: int, sampling: str) -> bytes:
    """Encode HxWx3 or HxWx1 uint8 pixels as a baseline JPEG without metadata."""
    space, sampling = ("GRAY", "Gray") if pixels.shape[2] == 1 else ("RGB", sampling)
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, space, sampling))


def add_segments(data: bytes, profile: bytes | None, metadata: Metadata) -> bytes:
    """Return the file with metadata after the JFIF segment, in the order that Exif requires (CIPA DC-008, 4.5.4).

    EXIF and XMP longer than a segment are shortened; longer IPTC, and a profile of more than 255 segments, are dropped.
    """
    segments = []
    if metadata.exif:
        segments.append((0xE1, metadata.exif.shortened(_SEGMENT).to_block()))
    if metadata.xmp and (packet := shorten_xmp(metadata.xmp, _SEGMENT - len(_XMP))):
        segments.append((0xE1, _XMP + packet))
    if metadata.iptc and len(block := b"Photoshop 3.0\0" + to_photoshop(metadata.iptc)) <= _SEGMENT:
        segments.append((0xED, block))
    parts = [profile[i : i + _ICC_CHUNK] for i in range(0, len(profile), _ICC_CHUNK)] if profile else []
    for number, part in enumerate(parts if len(parts) < 256 else [], 1):  # ICC.1:2022, B.4
        segments.append((0xE2, b"ICC_PROFILE\0" + bytes([number, len(parts)]) + part))
    head = 4 + int.from_bytes(data[4:6], "big") if data[2:4] == b"\xff\xe0" else 2
    encoded = [b"\xff" + bytes([marker]) + (len(body) + 2).to_bytes(2, "big") + body for marker, body in segments]
    return b"".join([data[:head], *encoded, data[head:]])
