"""Say why an undamaged file is not supported, as far as its header shows."""

from PIL import TiffImagePlugin

from imaging import jpeg
from imaging.exif import read_main

#: Start of frame (ITU-T T.81, table B.1; T.87), except baseline, extended and progressive.
_JPEG_KINDS = {
    0xF7: "JPEG-LS",
    **dict.fromkeys((0xC3, 0xCB), "lossless"),
    **dict.fromkeys((0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF), "hierarchical"),
}
_FRAMES = {0xF7, *range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_BITS, _COLOURS, _CMYK = {1, 2, 4, 8, 16}, (0, 1, 2, 3, 5, 6), 5


def reason(data: bytes) -> str | None:
    """Return what a JPEG or TIFF has that is not supported, and what to send instead; None if nothing is known."""
    return _jpeg_reason(data) if data[:2] == b"\xff\xd8" else _tiff_reason(data)


def _jpeg_reason(data: bytes) -> str | None:
    marker, start, end = next((segment for segment in jpeg.segments(data) if segment[0] in _FRAMES), (0, 0, 0))
    if end - start < 10:
        return None
    bits, components = data[start + 4], data[start + 9]
    if marker in _JPEG_KINDS:
        return f"the JPEG is {_JPEG_KINDS[marker]}: send a baseline or progressive one, or a PNG"
    if bits != 8:
        return f"the JPEG has {bits} bits a channel: send one of 8 bits, or a PNG or TIFF of 16 bits"
    if components not in (1, 3, 4):
        return f"the JPEG has {components} channels: send grey, RGB or CMYK"
    factors = [(byte >> 4, byte & 15) for byte in data[start + 11 : end : 3]]
    if any(not factor or max(axis) % factor for axis in zip(*factors, strict=True) for factor in axis):
        names = ", ".join(f"{across}x{down}" for across, down in factors)
        return f"the sampling of the JPEG ({names}) has no whole-number ratios: save it with 4:4:4 or 4:2:0"
    return None


def _tiff_reason(data: bytes) -> str | None:
    order, main = read_main(data)
    if not main:
        return None
    bits, (compression, *_), (photometric, *_), (planes, *_), extra, formats = (
        main[tag].numbers(order) if tag in main else default
        for tag, default in ((258, (1,)), (259, (1,)), (262, (0,)), (284, (1,)), (338, ()), (339, (1,)))
    )
    unusual = {
        "floating point or signed pixels": set(formats) != {1},
        f"{max(bits)} bits a channel": not _BITS.issuperset(bits),
        f"the compression {compression}": compression not in TiffImagePlugin.COMPRESSION_INFO,
        f"the colour model {photometric}": photometric not in _COLOURS,
        "CMYK with alpha": photometric == _CMYK and any(extra),
        "CMYK of more than 8 bits": photometric == _CMYK and max(bits) > 8,
        "channels in separate planes": planes == 2,
        f"{len(extra)} extra channels": len(extra) > 1,
    }
    names = " and ".join(name for name, is_so in unusual.items() if is_so)
    instead = "send grey or RGB of 8 or 16 bits a channel, with or without alpha, or CMYK of 8 bits without"
    return f"the TIFF has {names}: {instead}" if names else None
