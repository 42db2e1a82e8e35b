"""EXIF and XMP: what is kept byte by byte, and what changes."""

import dataclasses
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from imaging import decode, encode
from imaging.exif import Entry, Exif, parse
from imaging.metadata import Metadata
from tests.photographs import XMP, encode_16_bits, encode_image, make_exif, open_image, pixels, pixels_16_bits, profile

ARTIST, ORIENTATION, RESOLUTION_UNIT = 0x013B, 0x0112, 0x0128


def entries(*tags):
    """Generate directories of these tags with values of every type and length."""
    value = st.tuples(st.sampled_from([1, 2, 3, 4, 5, 7, 10, 12]), st.integers(1, 9), st.integers(0, 255))
    sizes = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 7: 1, 10: 8, 12: 8}
    entry = value.map(lambda v: Entry(v[0], v[1], bytes((v[2] + i) % 256 for i in range(sizes[v[0]] * v[1]))))
    return st.dictionaries(st.sampled_from(tags), entry, max_size=len(tags))


BLOCKS = st.builds(
    Exif,
    st.sampled_from("<>"),
    entries(0x010E, 0x010F, 0x0131, ARTIST, 0x8298, RESOLUTION_UNIT).filter(bool),
    entries(0x829A, 0x9003, 0x927C, 0xA002, 0xA434),
    entries(0, 1, 2, 3, 4),
)


@given(BLOCKS)
def test_a_block_that_is_parsed_again_is_the_same(exif):
    assert parse(exif.to_block()) == exif


@pytest.mark.filterwarnings("ignore:Metadata Warning, tag 296")  # Pillow's, about a value that the test sets on purpose
@given(BLOCKS)
def test_exif_appended_to_a_tiff_can_be_parsed_and_pillow_reads_the_image(exif):
    data = exif.append_to(TIFF)
    assert np.array_equal(np.asarray(open_image(data)), pixels(48, 64))
    parsed = parse(data)
    as_numbers = exif if exif.order == "<" else parse(exif.append_to(TIFF))
    assert (parsed.settings, parsed.position) == (as_numbers.settings, as_numbers.position)
    assert {tag: e for tag, e in parsed.main.items() if tag in exif.main}.keys() == exif.main.keys()


TIFF = encode_image(pixels(48, 64), "TIFF")


@given(BLOCKS, st.data())
def test_the_valid_entries_of_damaged_blocks_are_parsed(exif, data):
    block = bytearray(exif.to_block())
    for _ in range(4):
        block[data.draw(st.integers(0, len(block) - 1))] = data.draw(st.integers(0, 255))
    parsed = parse(bytes(block[: data.draw(st.integers(0, len(block)))]))
    if parsed:
        assert parse(parsed.to_block()) is not None
        assert 1 <= parsed.orientation <= 8


def jpeg_with(main, order="<"):
    return encode_image(pixels(120, 200), exif=Exif(order, main, {}, {}).to_block())


def test_text_in_any_encoding_is_kept_byte_by_byte():
    name = "Jürgen Müller ©\0".encode()
    for kind in ("jpeg", "png", "webp", "avif", "tiff"):
        again = encode(decode(jpeg_with({ARTIST: Entry(2, len(name), name)})), format=kind)
        assert name in again


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tag_of_an_unusual_type_does_not_affect_the_others(order):
    """ResolutionUnit as a rational and Make as a number, which Pillow cannot write."""
    main = {
        ORIENTATION: Entry(3, 1, struct.pack(f"{order}H", 6)),
        RESOLUTION_UNIT: Entry(5, 1, struct.pack(f"{order}II", 2, 1)),
        0x010F: Entry(4, 1, struct.pack(f"{order}I", 7)),
    }
    photograph = decode(jpeg_with(main, order))
    assert photograph.pixels.shape == (200, 120, 3)
    again = decode(encode(photograph)).metadata.exif
    assert again.main[RESOLUTION_UNIT] == main[RESOLUTION_UNIT]
    assert again.orientation == 1


def test_tags_about_the_layout_of_the_old_file_are_dropped():
    """Some cameras write a width and a height into the main directory; in a TIFF they would be used."""
    main = {0x0100: Entry(4, 1, struct.pack("<I", 4000)), 0x0101: Entry(4, 1, struct.pack("<I", 3000))}
    main |= {0x0106: Entry(3, 1, struct.pack("<H", 6)), ORIENTATION: Entry(3, 1, struct.pack("<H", 6))}
    for kind in ("tiff", "png", "jpeg"):
        again = open_image(encode(decode(jpeg_with(main)), format=kind))
        assert (again.size, again.mode) == ((120, 200), "RGB")
        again.load()
        assert 0x0100 not in again.getexif() or again.getexif()[0x0100] == 120
    photograph = dataclasses.replace(decode(jpeg_with(main)), pixels=pixels_16_bits())
    again = open_image(encode(photograph, format="tiff"))
    assert again.size == (320, 240)


COMPRESSED = [
    (c, m) for c in ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits") for m in ("RGB", "L", "CMYK")
]
COMPRESSED.remove(("jpeg", "CMYK"))  # Pillow cannot write it


@pytest.mark.parametrize(("compression", "mode"), COMPRESSED)
def test_exif_and_xmp_are_kept_for_every_compression_of_a_tiff(compression, mode):
    image = Image.fromarray(pixels()).convert(mode)
    tagged = {"icc_profile": profile("cmyk")} if mode == "CMYK" else {}
    plain = encode_image(image, "TIFF", compression=compression, **tagged)
    data = encode(dataclasses.replace(decode(plain), metadata=Metadata(parse(make_exif(1, gps=True)), XMP)))
    again = open_image(encode(decode(data)))
    assert again.getexif()[0x010F] == "Camera maker"
    assert again.getexif().get_ifd(0x8769)[0x829A] == pytest.approx(0.01)
    assert again.getexif().get_ifd(0x8825)[1] == "N"
    assert b"dc:format" in again.info["xmp"]


def test_metadata_too_long_for_a_jpeg_are_dropped_from_a_cmyk_jpeg_too():
    image = Image.fromarray(pixels()).convert("CMYK")
    data = encode_image(image, "TIFF", icc_profile=profile("cmyk"))
    long = dataclasses.replace(decode(data), metadata=Metadata(None, b" " * 70_000))
    again = open_image(encode(long, format="jpeg"))
    assert (again.mode, again.info["icc_profile"]) == ("CMYK", profile("cmyk"))
    assert "xmp" not in again.info


def updated(packet, *, gps):
    return Metadata(None, packet).updated(width=1, height=1, gps=gps).xmp


SPACES = 'xmlns:r="r" xmlns:exif="http://ns.adobe.com/exif/1.0/"'
POSITIONS = {
    "attribute": f'<r:D {SPACES} exif:GPSLatitude="48,8N" exif:X="1"/>'.encode(),
    "spaces": f'<r:D {SPACES} exif:GPSLatitude  =  "48,8N" exif:X="1"/>'.encode(),
    "prefix": f'<r:D {SPACES.replace("exif=", "e=")} e:GPSLatitude="48,8N" e:X="1"/>'.encode(),
    "element": f'<r:D {SPACES} exif:X="1"><exif:GPSLatitude>48,8N</exif:GPSLatitude></r:D>'.encode(),
    "UTF-16": f'<r:D {SPACES} exif:GPSLatitude="48" exif:X="1"/>'.encode("utf-16"),
}


@pytest.mark.parametrize("packet", POSITIONS.values(), ids=POSITIONS)
def test_a_position_in_any_notation_is_removed(packet):
    stripped = updated(packet, gps=False)
    assert b"GPS" not in stripped
    assert b':X="1"' in stripped
    assert updated(packet, gps=True) == packet


def test_the_xpacket_wrapper_is_kept():
    wrapped = b'<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?>' + XMP + b'<?xpacket end="w"?>'
    stripped = updated(wrapped, gps=False)
    assert stripped.startswith(b"<?xpacket begin")
    assert stripped.endswith(b'<?xpacket end="w"?>')


@pytest.mark.parametrize(
    "packet",
    [b"<not xml", b"<a>" * 200_000, b'<!DOCTYPE a [<!ENTITY b "bbbb">]><a>&b;</a>' + b" " * 3_000_000],
    ids=["damaged", "deep", "long"],
)
def test_a_packet_that_cannot_be_parsed_is_dropped_if_the_position_is_stripped(packet):
    assert updated(packet, gps=False) is None
    assert updated(packet, gps=True) == packet


@pytest.mark.parametrize("filling", [b" " * 1_000_000, b"<exif:GPSa>" * 80_000], ids=["spaces", "open elements"])
def test_a_crafted_packet_is_processed_in_a_short_time(filling):
    """A regular expression that backtracks would take minutes, beyond the time limit of a test."""
    data = encode_image(pixels(48, 64), "WEBP", xmp=b"<x>" + filling + b"</x>")
    assert open_image(encode(decode(data), gps=False)).size == (64, 48)


def test_a_profile_for_printing_is_kept_in_a_png():
    large = profile("p3")[:128] + profile("p3")[128:] + bytes(1_500_000)
    photograph = decode(encode_image(pixels(), "TIFF", icc_profile=large))
    assert photograph.space.profile == large
    assert decode(encode(photograph, format="png")).space.profile == large


def test_a_profile_too_large_for_a_jpeg_is_dropped():
    large = profile("p3") + bytes(17_000_000)
    photograph = decode(encode_image(pixels(), "TIFF", icc_profile=large))
    assert "icc_profile" not in open_image(encode(photograph, format="jpeg")).info


def test_the_print_resolution_is_kept():
    exif = Image.Exif()
    exif[0x011A], exif[0x011B], exif[RESOLUTION_UNIT] = 300.0, 300.0, 2
    for kind in ("jpeg", "png", "tiff"):
        again = open_image(encode(decode(encode_image(pixels(), exif=exif.tobytes())), format=kind)).getexif()
        assert (again[0x011A], again[RESOLUTION_UNIT]) == (300.0, 2)


def test_the_orientation_of_a_16_bit_tiff_is_applied():
    """The tag is in the main directory of the file, not in an embedded block."""
    turned = Exif("<", {ORIENTATION: Entry(3, 1, struct.pack("<H", 6))}, {}, {}).append_to(
        encode_16_bits("TIFF", pixels_16_bits())
    )
    photograph = decode(turned)
    assert np.array_equal(photograph.pixels, np.rot90(pixels_16_bits(), -1))
    assert decode(encode(photograph)).pixels.shape == photograph.pixels.shape
