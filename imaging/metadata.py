"""EXIF and XMP: kept, but for what is no longer true of the new file.

The picture is upright now, so its orientation is 1 in both; its width and height are those of the new file; the
embedded thumbnail, which shows the old picture, is left behind. All else stays, the place (GPS) unless stripped.
"""

from __future__ import annotations

import re

from PIL import Image

ORIENTATION = 0x0112
_EXIF_BLOCK, _GPS_BLOCK = 0x8769, 0x8825
_WIDTH, _HEIGHT = 0xA002, 0xA003
#: EXIF tags that tell about the photograph (description, camera, date, author, rights, Exif and GPS blocks). The
#: others of a TIFF tell how its bytes lie, and would corrupt the new file.
_DESCRIPTIVE = {0x010E, 0x010F, 0x0110, ORIENTATION, 0x0131, 0x0132, 0x013B, 0x8298, _EXIF_BLOCK, _GPS_BLOCK}

#: `tiff:Orientation` and the `exif:GPS…` properties, as attributes and as elements (XMP part 1, 7.9.2.2).
_XMP_ORIENTATION = re.compile(rb"(tiff:Orientation(?:=[\"']|>)\s*)[2-8]")
_XMP_GPS = re.compile(
    rb"\s+exif:GPS\w+=(?:\"[^\"]*\"|'[^']*')|<exif:GPS(\w+)\b[^>]*?(?:/>|>.*?</exif:GPS\1>)", re.DOTALL
)


def exif_of(image: Image.Image) -> Image.Exif:
    """What EXIF tells about the photograph (for a TIFF, its descriptive tags); nothing if it is damaged."""
    try:
        exif = image.getexif()
        if image.format == "TIFF":
            for tag in set(exif) - _DESCRIPTIVE:
                del exif[tag]
        exif.tobytes()
        return exif
    except Exception:  # noqa: BLE001  a damaged block makes the parser raise anything; the pixels are still good
        return Image.Exif()


def xmp_of(image: Image.Image) -> bytes | None:
    """The XMP packet."""
    packet = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp")
    return packet.encode() if isinstance(packet, str) else packet if isinstance(packet, bytes) else None


def renewed_exif(old: bytes | None, *, width: int, height: int, gps: bool) -> Image.Exif | None:
    """EXIF for the new file of this size, with the place if ``gps``."""
    if not old:
        return None
    exif = Image.Exif()
    exif.load(old)
    if ORIENTATION in exif:
        exif[ORIENTATION] = 1
    if not gps:
        exif.pop(_GPS_BLOCK, None)
    block = exif.get_ifd(_EXIF_BLOCK)
    if _WIDTH in block:
        block[_WIDTH], block[_HEIGHT] = width, height
    return exif if len(exif) else None


def renewed_xmp(old: bytes | None, *, gps: bool) -> bytes | None:
    """XMP for the new file, with the place if ``gps``."""
    if not old:
        return None
    upright = _XMP_ORIENTATION.sub(rb"\g<1>1", old)
    return upright if gps else _XMP_GPS.sub(b"", upright)
