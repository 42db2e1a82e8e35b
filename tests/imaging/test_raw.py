"""Test that raw files of cameras are rejected as such, and that their thumbnails are never enhanced."""

import io
import struct

import pytest
from PIL import Image, TiffImagePlugin

from imaging import InvalidPhotograph, decode, decode_small
from imaging.exif import Entry, Exif
from tests.photographs import encode_image, pixels

#: TIFF tags: the kind of image, its size, compression and colours, pointers to further directories, DNG's version.
NEW_SUBFILE, SUBFILE, WIDTH, HEIGHT, COMPRESSION, PHOTOMETRIC, SUB, DNG = 254, 255, 256, 257, 259, 262, 330, 0xC612
JPEG_AT = 513
LONG, POINTER = 4, 13
CFA, LINEAR_RAW = 32803, 34892


def long(*values, kind=LONG):
    return Entry(kind, len(values), struct.pack(f"<{len(values)}I", *values))


def tiff_with(main, *others, kind=LONG):
    """Return a TIFF of 120x160 pixels with further tags in its first directory, and with subdirectories."""
    data = encode_image(pixels(120, 160), "TIFF")
    pointers = []
    for other in others:
        pointers.append(len(data))
        entries = b"".join(struct.pack("<HHII", tag, LONG, 1, value) for tag, value in sorted(other.items()))
        data += struct.pack("<H", len(other)) + entries + bytes(4)
    main = {tag: long(value) for tag, value in main.items()}
    return Exif("<", {**main, **({SUB: long(*pointers, kind=kind)} if pointers else {})}, {}, {}).append_to(data)


SENSOR = {WIDTH: 6000, HEIGHT: 4000, COMPRESSION: 1, PHOTOMETRIC: CFA}
REDUCED = {NEW_SUBFILE: 1, WIDTH: 80, HEIGHT: 60, PHOTOMETRIC: 2}
MAKERS = {"ARW": 32767, "SRW": 32770, "NEF, compressed": 34713, "PEF": 65535}
RAW = {
    "NEF": tiff_with({NEW_SUBFILE: 1}, SENSOR),
    "NEF with the other type of pointers": tiff_with({}, SENSOR, kind=POINTER),
    "thumbnail alone": tiff_with({NEW_SUBFILE: 1}),
    "thumbnail by the old tag": tiff_with({SUBFILE: 2}),
    "preview before the sensor's image": tiff_with({}, REDUCED, SENSOR),
    "sensor's image no larger": tiff_with({}, {**SENSOR, WIDTH: 160, HEIGHT: 120}),
    "DNG": tiff_with({DNG: 0x00000701}),
    "DNG with linear values": tiff_with({}, {**REDUCED, PHOTOMETRIC: LINEAR_RAW}),
    **{name: tiff_with({}, {**REDUCED, COMPRESSION: number}) for name, number in MAKERS.items()},
    "a larger image in colour": tiff_with({}, {WIDTH: 6000, HEIGHT: 4000, PHOTOMETRIC: 2}),
    "CR2": b"II*\0\x10\0\0\0CR\x02\0" + bytes(400),
    "CR3": struct.pack(">I", 24) + b"ftypcrx " + bytes(400),
    "RAF": b"FUJIFILMCCD-RAW 0201" + bytes(400),
    "ORF": b"IIRO\x08\0\0\0" + bytes(400),
    "RW2": b"IIU\0\x08\0\0\0" + bytes(400),
    "CRW": b"II\x1a\0\0\0HEAPCCDR" + bytes(400),
    **{start.decode(): start + bytes(400) for start in (b"IIRS", b"MMOR", b"FOVb", b"\0MRM")},
}


@pytest.mark.parametrize("decoder", [decode, decode_small])
@pytest.mark.parametrize("data", RAW.values(), ids=RAW)
def test_raw_files_are_rejected_as_raw_files(decoder, data):
    with pytest.raises(InvalidPhotograph, match="raw file"):
        decoder(data)


def pages(*others):
    """Return a TIFF whose first image is followed by others, each with further tags."""
    images = [Image.fromarray(pixels(120, 160)), *(Image.fromarray(pixels(60, 80)) for _ in others)]
    buffer = io.BytesIO()
    with TiffImagePlugin.AppendingTiffWriter(buffer) as writer:
        for image, tags in zip(images, [{}, *others], strict=True):
            image.save(writer, "TIFF", tiffinfo=tags)
            writer.newFrame()
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("others", "is_accepted"),
    [([{NEW_SUBFILE: 1}], True), ([{SUBFILE: 2}], True), ([{JPEG_AT: 8}], True),
     ([{NEW_SUBFILE: 1}, {NEW_SUBFILE: 5}], True),
     ([{}], False), ([{NEW_SUBFILE: 2}], False), ([{NEW_SUBFILE: 1}, {}], False), ([{NEW_SUBFILE: 1}] * 20, False)],
)  # fmt: skip
def test_thumbnails_after_the_first_image_are_not_pages(others, is_accepted):
    if is_accepted:
        assert decode(pages(*others)).pixels.shape == (120, 160, 3)
    else:
        with pytest.raises(InvalidPhotograph, match="more than one image"):
            decode(pages(*others))


TIFFS = {
    "a full image": tiff_with({NEW_SUBFILE: 0}),
    "with smaller images": tiff_with({}, REDUCED, {**REDUCED, WIDTH: 40, HEIGHT: 30}),
    "pointers to nowhere": tiff_with({SUB: 0xFFFFFFF0}),
    "pointer of zero": tiff_with({SUB: 0}),
    "the tags of old JPEGs": tiff_with({JPEG_AT: 8}),
}


@pytest.mark.parametrize("data", TIFFS.values(), ids=TIFFS)
def test_other_tiffs_are_not_raw(data):
    assert decode(data).pixels.shape == (120, 160, 3)
