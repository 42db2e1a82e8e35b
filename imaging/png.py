"""Read the metadata in the chunks of a PNG, before and behind its pixels (PNG, third edition, 11.3)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

EXIF, XMP = b"eXIf", b"XML:com.adobe.xmp"
#: Texts in which ImageMagick keeps the blocks of other formats.
_RAW_PROFILES = {b"Raw profile type exif": EXIF, b"Raw profile type APP1": EXIF, b"Raw profile type xmp": XMP}
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_MAX_CHUNKS, _MAX_TEXT = 100_000, 8_000_000  # beyond those of real files

Blocks = dict[bytes, bytes]


def read_blocks(data: bytes) -> tuple[Blocks, Blocks]:
    """Return the EXIF and XMP blocks that browsers read, those before the pixels, and all blocks of the file."""
    found: Blocks = {}
    before_pixels: Blocks = {}
    for kind, body in _chunks(data):
        keyword, _, text = body.partition(b"\0")
        if kind == b"IDAT":
            before_pixels = dict(found)
        elif kind == EXIF:
            found.setdefault(EXIF, body)
        elif keyword in (XMP, *_RAW_PROFILES) and keyword not in found:
            found[keyword] = _decode_text(kind, text, keyword)
    raw = {name: found[keyword] for keyword, name in _RAW_PROFILES.items() if found.get(keyword)}
    return before_pixels, raw | found


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield kind and body of the valid chunks of metadata up to IEND, and once IDAT, without its body."""
    at, has_pixels = 8, False
    for _ in range(_MAX_CHUNKS):
        if at + 12 > len(data):
            return
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 8 + length
        if kind in (EXIF, *_TEXTS) and zlib.crc32(data[at + 4 : end]).to_bytes(4, "big") == data[end : end + 4]:
            yield kind, data[at + 8 : end]
        elif kind == b"IDAT" and not has_pixels:
            has_pixels = True
            yield kind, b""
        elif kind == b"IEND":
            return
        at = end + 4


def _decode_text(kind: bytes, text: bytes, keyword: bytes) -> bytes:
    """Return the block in a text behind its keyword; empty if it is damaged."""
    is_compressed = kind == b"zTXt" or (kind == b"iTXt" and text[:1] == b"\1")
    if kind == b"zTXt":
        text = text[1:]
    elif kind == b"iTXt":  # language and translated keyword precede the text
        text = text[2:].partition(b"\0")[2].partition(b"\0")[2]
    try:
        if is_compressed:
            decompressor = zlib.decompressobj()
            text = decompressor.decompress(text, _MAX_TEXT)
            if not decompressor.eof:
                return b""
        if keyword in _RAW_PROFILES:  # a name, a length, and hexadecimal digits
            text = bytes.fromhex(b"".join(text.split(None, 2)[2:]).decode("latin-1"))
    except (zlib.error, ValueError):
        return b""
    return text.removeprefix(b"http://ns.adobe.com/xap/1.0/\0")
