"""Recognize raw files of cameras, whose first image is a thumbnail, and thumbnails among the images of a TIFF."""

from imaging.errors import InvalidPhotograph
from imaging.exif import Directory, next_directory, read_directory, read_main

#: Offset and bytes by which raw files are recognized: Canon CR2, CR3 and CRW, Fujifilm, Olympus, Panasonic, Sigma and
#: Minolta. Raw files of other makers are TIFFs.
_SIGNATURES = (
    (8, b"CR\x02"), (4, b"ftypcrx "), (6, b"HEAPCCDR"), (0, b"FUJIFILMCCD-RAW"), (0, b"IIRO"), (0, b"IIRS"),
    (0, b"MMOR"), (0, b"IIU\0"), (0, b"FOVb"), (0, b"\0MRM"),
)  # fmt: skip
_NEW_SUBFILE_TYPE, _SUBFILE_TYPE, _WIDTH, _HEIGHT, _COMPRESSION, _PHOTOMETRIC = 254, 255, 256, 257, 259, 262
_SUB_DIRECTORIES, _DNG_VERSION = 330, 0xC612
_THUMBNAIL = 513  # a tag of the thumbnail in the second directory of EXIF
_MAX_DIRECTORIES = 16  # pointed to or chained; more than real files have
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
    others = [read_directory(data, at, order) for at in pointers[:_MAX_DIRECTORIES] if at]

    def is_of_sensor(directory: Directory) -> bool:
        return _number(directory, _PHOTOMETRIC, order) in _SENSOR or _number(directory, _COMPRESSION, order) in _MAKERS

    def area(directory: Directory) -> int:
        return _number(directory, _WIDTH, order) * _number(directory, _HEIGHT, order)

    is_raw = _DNG_VERSION in main or any(map(is_of_sensor, [main, *others]))
    return is_raw or _is_reduced(main, order) or any(area(other) > area(main) for other in others)


def has_pages(data: bytes, second: int) -> bool:
    """Return whether a TIFF has more images that are not thumbnails; ``second``: offset of the second directory."""
    order, at = read_main(data)[0], second
    for _ in range(_MAX_DIRECTORIES):
        if not at:
            return False
        directory = read_directory(data, at, order)
        if not order or not (_is_reduced(directory, order) or _THUMBNAIL in directory):
            return True
        at = next_directory(data, at, order)
    return True


def _is_reduced(directory: Directory, order: str) -> bool:
    """Return whether a directory says that its image is a smaller version of another."""
    return _number(directory, _NEW_SUBFILE_TYPE, order) & 1 == 1 or _number(directory, _SUBFILE_TYPE, order) == _REDUCED


def _number(directory: Directory, tag: int, order: str) -> int:
    return directory[tag].numbers(order)[0] if tag in directory else 0
