"""Recognize raw files of cameras, whose first image is a thumbnail."""

from __future__ import annotations

from imaging.errors import InvalidPhotograph
from imaging.exif import Directory, read_directory, read_main

#: Offset and bytes by which raw files are recognized: Canon CR2, CR3 and CRW, Fujifilm, Olympus, Panasonic, Sigma and
#: Minolta. The other makers' are a TIFF.
_SIGNATURES = (
    (8, b"CR\x02"), (4, b"ftypcrx "), (6, b"HEAPCCDR"), (0, b"FUJIFILMCCD-RAW"), (0, b"IIRO"), (0, b"IIRS"),
    (0, b"MMOR"), (0, b"IIU\0"), (0, b"FOVb"), (0, b"\0MRM"),
)  # fmt: skip
_NEW_SUBFILE_TYPE, _SUBFILE_TYPE, _WIDTH, _HEIGHT, _COMPRESSION, _PHOTOMETRIC = 254, 255, 256, 257, 259, 262
_SUB_DIRECTORIES, _DNG_VERSION = 330, 0xC612
_MAX_SUB_DIRECTORIES = 16
_SENSOR = (32803, 34892)  # photometric interpretations: a filter array, and linear values of the sensor (DNG 1.7)
_MAKERS = (32767, 32770, 34713, 65535)  # compressions: Sony, Samsung, Nikon, Pentax
_REDUCED = 2  # the old SubfileType (TIFF 6.0, section 8); in the new one it is bit 0


def require_developed(data: bytes) -> None:
    """Raise `InvalidPhotograph` for a raw file, and for a TIFF whose first image is a thumbnail."""
    if any(data.startswith(signature, at) for at, signature in _SIGNATURES) or _is_raw_tiff(data):
        raise InvalidPhotograph(
            "the file is a camera's raw file (such as NEF, DNG, CR2, ARW), or a TIFF that begins with a thumbnail: "
            "develop it, and send JPEG, or TIFF with one image"
        )


def _is_raw_tiff(data: bytes) -> bool:
    order, main = read_main(data)
    pointers = main[_SUB_DIRECTORIES].numbers(order) if _SUB_DIRECTORIES in main else ()
    others = [read_directory(data, at, order) for at in pointers[:_MAX_SUB_DIRECTORIES] if at]

    def number(directory: Directory, tag: int) -> int:
        return directory[tag].numbers(order)[0] if tag in directory else 0

    def is_of_sensor(directory: Directory) -> bool:
        return number(directory, _PHOTOMETRIC) in _SENSOR or number(directory, _COMPRESSION) in _MAKERS

    def area(directory: Directory) -> int:
        return number(directory, _WIDTH) * number(directory, _HEIGHT)

    is_thumbnail = number(main, _NEW_SUBFILE_TYPE) & 1 or number(main, _SUBFILE_TYPE) == _REDUCED
    is_raw = _DNG_VERSION in main or any(map(is_of_sensor, [main, *others]))
    return bool(is_thumbnail or is_raw or any(area(other) > area(main) for other in others))
