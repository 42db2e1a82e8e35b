"""Read the chunks of a PNG: metadata before and after its pixels, and what a decoder needs (PNG, third edition)."""

import struct
import zlib
from collections.abc import Iterator

EXIF, XMP, IPTC = b"eXIf", b"XML:com.adobe.xmp", b"Raw profile type iptc"
#: Text chunks in which ImageMagick keeps the blocks of other formats.
_RAW_PROFILES = {
    b"Raw profile type exif": EXIF, b"Raw profile type APP1": EXIF, b"Raw profile type xmp": XMP,
    b"Raw profile type 8bim": IPTC, IPTC: IPTC,
}  # fmt: skip
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_PIXELS = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
#: Chunks that say how pixels and colours are to be shown, with their minimum length; they count only before the pixels
#: (5.6).
_DISPLAY = {b"tRNS": 1, b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"cICP": 4, b"acTL": 8}
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MAX_CHUNKS, _MAX_TEXT = 100_000, 8_000_000  # more than real files have

Blocks = dict[bytes, bytes]


def read_blocks(data: bytes) -> tuple[Blocks, Blocks]:
    """Return the blocks of EXIF, XMP and IPTC before the pixels, which browsers read, and those of the whole file."""
    found: Blocks = {}
    before_pixels: Blocks | None = None
    for kind, start, end in _chunks(data):
        body = data[start + 8 : end - 4] if kind in (EXIF, *_TEXTS) and _is_intact(data, start, end) else b""
        keyword, _, text = body.partition(b"\0")
        if kind == b"IDAT" and before_pixels is None:
            before_pixels = dict(found)
        elif kind == EXIF and body:
            found.setdefault(EXIF, body)
        elif keyword in (XMP, *_RAW_PROFILES) and keyword not in found:
            found[keyword] = _decode_text(kind, text, keyword)
    raw = {name: found[keyword] for keyword, name in _RAW_PROFILES.items() if found.get(keyword)}
    return before_pixels or {}, raw | found


def read_cicp(data: bytes) -> bytes:
    """Return the body of the chunk cICP before the pixels; empty without one."""
    for kind, start, end in _chunks(data):
        if kind in (b"cICP", b"IDAT"):
            return data[start + 8 : end - 4] if kind == b"cICP" and _is_intact(data, start, end) else b""
    return b""


def raw_profile(name: bytes, block: bytes) -> bytes:
    """Return the kind and the body of a chunk that holds a block of another format, as ImageMagick writes it."""
    text = b"\n%s\n%8d\n%s\n" % (name.rpartition(b" ")[2], len(block), block.hex("\n", 36).encode())
    return b"zTXt" + name + b"\0\0" + zlib.compress(text)


def without_extras(data: bytes, *, has_profile: bool = True) -> bytes:
    """Return the file without chunks that change no pixel, because Pillow rejects the whole PNG if one is damaged.

    A profile is kept, damaged or not, if ``has_profile``. Other formats are returned unchanged.
    """
    if not data.startswith(_SIGNATURE):
        return data
    kept, at, has_pixels = [(0, 8)], 8, False
    for kind, start, end in _chunks(data):
        has_pixels |= kind == b"IDAT"
        is_valid = end - start - 12 >= _DISPLAY.get(kind, len(data)) and _is_intact(data, start, end)
        is_valid |= has_profile and kind == b"iCCP"
        if kind in _PIXELS or (is_valid and not has_pixels):
            kept.append((start, end))
        at = end
    length = sum(end - start for start, end in kept)
    return data if length == at else b"".join(data[start:end] for start, end in [*kept, (at, len(data))])


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, start and end of the complete chunks up to IEND."""
    kind, start = b"", 8
    for _ in range(_MAX_CHUNKS):
        if kind == b"IEND" or start + 12 > len(data):
            return
        length, kind = struct.unpack_from(">I4s", data, start)
        end = start + 12 + length
        if end > len(data):
            return
        yield kind, start, end
        start = end


def _is_intact(data: bytes, start: int, end: int) -> bool:
    return zlib.crc32(data[start + 4 : end - 4]).to_bytes(4, "big") == data[end - 4 : end]


def _decode_text(kind: bytes, text: bytes, keyword: bytes) -> bytes:
    """Return the block in a text chunk after its keyword; empty if it is damaged."""
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
