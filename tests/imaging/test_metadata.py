"""EXIF and XMP: what is kept byte by byte, and what changes."""

import dataclasses
import re
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, IptcImagePlugin

from imaging import decode, encode
from imaging.exif import Entry, Exif, parse
from imaging.metadata import Metadata, shorten_xmp
from tests.photographs import (
    XMP,
    encode_16_bits,
    encode_image,
    make_exif,
    open_image,
    pixels,
    pixels_16_bits,
    png_chunk,
    profile,
)

ARTIST, ORIENTATION, RESOLUTION_UNIT = 0x013B, 0x0112, 0x0128
MAKE, MAKER_NOTE, COMMENT, COPYRIGHT, TAKEN, SUBJECT_AREA = 0x010F, 0x927C, 0x9286, 0x8298, 0x9003, 0x9214


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


@given(BLOCKS, st.integers(0, 400))
def test_a_shortened_block_fits(exif, length):
    block = exif.shortened(length).to_block()
    assert len(block) <= max(length, len(Exif("<", {}, {}, {}).to_block()))
    assert exif.shortened(len(exif.to_block())) == exif


def private(length):
    return Entry(7, length, bytes(length))


@pytest.mark.parametrize(
    "others",
    [
        {},
        {COMMENT: private(70_000)},
        {COMMENT: private(40_000), 0xA430: private(50_000)},
        {COMMENT: private(40_000), MAKER_NOTE: private(30_000)},
    ],
)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_exif_too_long_for_a_jpeg_loses_the_makers_note_first(others, kind):
    exif = Exif(
        "<",
        {MAKE: Entry(2, 6, b"Canon\0"), COPYRIGHT: Entry(2, 9_000, b"c" * 9_000), ORIENTATION: Entry(3, 1, b"\1\0")},
        {TAKEN: Entry(2, 20, b"2026:11:28 10:15:00\0"), MAKER_NOTE: private(60_000), **others},
        {1: Entry(2, 2, b"N\0")},
    )
    source = dataclasses.replace(decode(encode_image(pixels(), kind)), metadata=Metadata(exif))
    source = decode(encode(source))
    assert source.metadata.exif.settings.keys() == exif.settings.keys()
    kept = decode(encode(source, format="jpeg")).metadata.exif
    assert kept.main == exif.main
    assert kept.position == exif.position
    assert kept.settings == {t: e for t, e in exif.settings.items() if t == TAKEN or e.count == 40_000}


def test_rights_are_dropped_after_shorter_values():
    exif = Exif("<", {COPYRIGHT: Entry(2, 9_000, b"c" * 9_000)}, {COMMENT: private(8_000)}, {})
    assert exif.shortened(10_000) == dataclasses.replace(exif, settings={})
    packet = described(f"<dc:rights>{'r' * 900}</dc:rights><dc:source>{'s' * 800}</dc:source>")
    shortened = shorten_xmp(packet, len(packet) - 500)
    assert (b"rrr" in shortened, b"sss" in shortened) == (True, False)


def raw_profile(name, block):
    """Return a block as ImageMagick writes it into a text chunk of a PNG."""
    digits = block.hex()
    lines = [digits[i : i + 72] for i in range(0, len(digits), 72)]
    return f"\n{name}\n{len(block):8}\n".encode() + "\n".join(lines).encode() + b"\n"


TURNED = make_exif(6)
TURNED_XMP = XMP.replace(b'Orientation="1"', b'Orientation="6"')
RAW_EXIF = raw_profile("exif", TURNED)
PNG_BLOCKS = {  # the chunk, and whether it turns the image if it precedes the pixels
    "eXIf": ((b"eXIf", TURNED[6:]), True),
    "EXIF as text": ((b"tEXt", b"Raw profile type exif\0" + RAW_EXIF), False),
    "EXIF as compressed text": ((b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(RAW_EXIF)), False),
    "EXIF as international text": ((b"iTXt", b"Raw profile type exif\0\0\0en\0\0" + RAW_EXIF), False),
    "EXIF without its prefix": ((b"tEXt", b"Raw profile type exif\0" + raw_profile("exif", TURNED[6:])), False),
    "EXIF of an old ImageMagick": ((b"tEXt", b"Raw profile type APP1\0" + raw_profile("generic", TURNED)), False),
    "XMP": ((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + TURNED_XMP), True),
    "XMP compressed": ((b"iTXt", b"XML:com.adobe.xmp\0\1\0\0x\0" + zlib.compress(TURNED_XMP)), True),
    "XMP as text": ((b"zTXt", b"Raw profile type xmp\0\0" + zlib.compress(raw_profile("xmp", TURNED_XMP))), False),
    "XMP with its prefix": (
        (b"tEXt", b"Raw profile type xmp\0" + raw_profile("xmp", b"http://ns.adobe.com/xap/1.0/\0" + TURNED_XMP)),
        False,
    ),
}
PNGS = {8: encode_image(pixels(), "PNG"), 16: encode_16_bits("PNG", pixels_16_bits())}


def png_with(chunk, *, late, bits=8):
    at = -12 if late else 33
    return PNGS[bits][:at] + chunk + PNGS[bits][at:]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("bits", PNGS)
@pytest.mark.parametrize("name", PNG_BLOCKS)
def test_the_chunks_of_a_png_are_read_to_its_end(name, bits, late):
    """Browsers ignore the orientation in a chunk after the pixels and in ImageMagick's text chunks."""
    (kind, body), turns = PNG_BLOCKS[name]
    photograph = decode(png_with(png_chunk(kind, body), late=late, bits=bits))
    assert photograph.pixels.shape[:2] == ((320, 240) if turns and not late else (240, 320))
    again = decode(encode(photograph))
    assert again.pixels.shape == photograph.pixels.shape
    assert again.metadata.orientation == 1
    if "XMP" in name:
        assert b'dc:format="house"' in again.metadata.xmp
    else:
        assert again.metadata.exif.main[MAKE].value == b"Camera maker\0"


DAMAGED_CHUNKS = {
    "wrong checksum": png_chunk(b"eXIf", TURNED[6:])[:-1] + b"?",
    "no digits": png_chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 4\nhexa"),
    "an odd number of digits": png_chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 4\n123"),
    "no text": png_chunk(b"tEXt", b"Raw profile type exif"),
    "cut compressed text": png_chunk(b"zTXt", b"XML:com.adobe.xmp\0\0" + zlib.compress(XMP)[:-9]),
    "no language": png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0"),
    "behind the end": png_chunk(b"IEND", b"") + png_chunk(b"eXIf", TURNED[6:]),
    "another keyword": png_chunk(b"tEXt", b"eXIf\0" + TURNED[6:]),
}


@pytest.mark.parametrize("chunk", DAMAGED_CHUNKS.values(), ids=DAMAGED_CHUNKS)
def test_damaged_chunks_after_the_pixels_are_ignored(chunk):
    photograph = decode(png_with(chunk, late=True))
    assert photograph.pixels.shape == (240, 320, 3)
    assert not photograph.metadata.exif
    assert not photograph.metadata.xmp


def dataset(record, number, value):
    return struct.pack(">BBBH", 0x1C, record, number, len(value)) + value


RIGHTS = dataset(1, 90, b"\x1b%G") + dataset(2, 80, "Jürgen Müller".encode()) + dataset(2, 116, b"(c) 2026")
PLACE, PREVIEW, TRANSPORT = dataset(2, 120, b"48.13715, 11.57612"), dataset(2, 202, b"old"), dataset(8, 10, b"old")
RESOURCE = b"8BIM\x04\x04\0\0" + struct.pack(">I", len(RIGHTS + PLACE + PREVIEW + TRANSPORT))
RESOURCE += RIGHTS + PLACE + PREVIEW + TRANSPORT + b"\0" * (len(RIGHTS + PLACE) % 2)
RESOLUTION = b"8BIM\x03\xed\0\0" + struct.pack(">I", 16) + bytes(16)


def files_with_iptc():
    """Yield files with IPTC as different programs write it."""
    jpeg, tiff = encode_image(pixels()), TIFF
    block = b"Photoshop 3.0\0" + RESOLUTION + RESOURCE
    yield "JPEG", jpeg[:2] + b"\xff\xed" + struct.pack(">H", len(block) + 2) + block + jpeg[2:]
    bare = RIGHTS + PLACE + PREVIEW
    yield "TIFF", Exif("<", {33723: Entry(7, len(bare), bare)}, {}, {}).append_to(tiff)
    padded = bare + bytes(-len(bare) % 4)
    yield "TIFF, as long numbers", Exif("<", {33723: Entry(4, len(padded) // 4, padded)}, {}, {}).append_to(tiff)
    for name, content in {"iptc": block, "8bim": RESOURCE, "IPTC": bare}.items():
        text = b"Raw profile type %s\0\0" % name.lower().encode() + zlib.compress(raw_profile(name, content))
        for late in (False, True):
            yield f"PNG, {name}, {late}", png_with(png_chunk(b"zTXt", text), late=late)
    yield "PNG of 16 bits", png_with(png_chunk(b"zTXt", text), late=False, bits=16)


WITH_IPTC = dict(files_with_iptc())


@pytest.mark.parametrize("kind", ["jpeg", "png", "tiff"])
@pytest.mark.parametrize("data", WITH_IPTC.values(), ids=WITH_IPTC)
def test_iptc_is_kept_without_previews(data, kind):
    photograph = decode(data)
    kept = encode(photograph, format=kind)
    assert decode(kept).metadata.iptc == RIGHTS + PLACE
    assert kind == "png" or IptcImagePlugin.getiptcinfo(open_image(kept))[2, 116] == b"(c) 2026"
    assert decode(encode(photograph, format=kind, gps=False)).metadata.iptc == RIGHTS


@pytest.mark.parametrize("block", [b"", b"\x1c", b"\x1c\x02\x50\x80\x04\0\0\0\x09", b"text", RESOURCE[:16], PREVIEW])
def test_damaged_iptc_is_dropped(block):
    text = b"Raw profile type iptc\0\0" + zlib.compress(raw_profile("iptc", block))
    again = decode(encode(decode(png_with(png_chunk(b"zTXt", text), late=True))))
    assert again.metadata.iptc is None


WHOLE = encode_image(pixels(), "PNG")
IGNORED_CHUNKS = {
    "wrong checksum": png_chunk(b"tEXt", b"a\0b")[:-1] + b"?",
    "no colours": png_chunk(b"gAMA", b"ab"),
    "no resolution": png_chunk(b"pHYs", b"abc"),
    "unknown compression": png_chunk(b"zTXt", b"a\0\5bcd"),
    "a long text": png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(9_000_000))),
    "one of Pillow's words": png_chunk(b"tEXt", b"transparency\0 0.5"),
    "EXIF": png_chunk(b"eXIf", make_exif(1)[6:]),
}


@pytest.mark.parametrize("at", [33, WHOLE.index(b"IDAT") + 4 + 500, -12], ids=["before", "between", "behind"])
@pytest.mark.parametrize("chunk", IGNORED_CHUNKS.values(), ids=IGNORED_CHUNKS)
def test_chunks_that_change_no_pixel_do_not_make_a_png_invalid(chunk, at):
    start = WHOLE.index(b"IDAT")
    end = start + 4 + int.from_bytes(WHOLE[start - 4 : start], "big")
    inserted = WHOLE[:at] + chunk + WHOLE[at:]
    if at > 33:
        first, second = (png_chunk(b"IDAT", part) for part in (WHOLE[start + 4 : at], WHOLE[at:end]))
        inserted = WHOLE[: start - 4] + first + chunk + second + WHOLE[end + 4 :]
    assert np.array_equal(decode(inserted).pixels, pixels())


def test_colours_after_the_pixels_are_ignored():
    late = png_chunk(b"iCCP", b"p\0\0" + zlib.compress(profile("p3"))) + png_chunk(b"tRNS", bytes(6))
    late += png_chunk(b"cICP", bytes([12, 13, 0, 1])) + png_chunk(b"gAMA", (100_000).to_bytes(4, "big"))
    photograph = decode(WHOLE[:-12] + late + WHOLE[-12:])
    assert photograph.space.profile is None
    assert photograph.pixels.shape == (240, 320, 3)


def described(content, attributes="", spaces=""):
    return (
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:exif="http://ns.adobe.com/exif/1.0/"'
        f' xmlns:tiff="http://ns.adobe.com/tiff/1.0/" {spaces} dc:format="house" {attributes}>{content}'
        "</rdf:Description></rdf:RDF></x:xmpmeta>"
    ).encode()


GOOGLE = "http://ns.google.com/photos"
CLAIMS = [  # namespace and name
    (f"{GOOGLE}/1.0/camera/", "MotionPhoto"),
    (f"{GOOGLE}/1.0/camera/", "MotionPhotoPresentationTimestampUs"),
    (f"{GOOGLE}/1.0/camera/", "MicroVideo"),
    (f"{GOOGLE}/1.0/camera/", "MicroVideoOffset"),
    (f"{GOOGLE}/1.0/container/", "Version"),
    (f"{GOOGLE}/1.0/depthmap/", "Mime"),
    (f"{GOOGLE}/1.0/image/", "Mime"),
    (f"{GOOGLE}/1.0/audio/", "Mime"),
    (f"{GOOGLE}/dd/1.0/device/", "Revision"),
    ("http://ns.oplus.com/photos/1.0/camera/", "VideoLength"),
    ("http://ns.xiaomi.com/photos/1.0/camera/", "XMPMeta"),
    ("http://ns.adobe.com/hdr-gain-map/1.0/", "Version"),
    ("http://ns.adobe.com/hdr-gain-map/1.0/", "GainMapMax"),
    ("http://ns.apple.com/HDRGainMap/1.0/", "HDRGainMapVersion"),
    ("http://ns.adobe.com/xmp/note/", "HasExtendedXMP"),
]


@pytest.mark.parametrize("gps", [True, False])
@pytest.mark.parametrize("is_element", [True, False])
@pytest.mark.parametrize(("space", "name"), CLAIMS)
def test_xmp_does_not_describe_what_is_dropped(space, name, is_element, gps):
    claim = f"<any:{name}>claimed</any:{name}>" if is_element else f'any:{name}="claimed"'
    packet = described(claim, spaces=f'xmlns:any="{space}"') if is_element else described(
        "", claim, f'xmlns:any="{space}"'
    )  # fmt: skip
    kept = updated(packet, gps=gps)
    assert b"claimed" not in kept
    assert b'dc:format="house"' in kept


STRUCTURES = {
    "items": f'<C:Directory xmlns:C="{GOOGLE}/1.0/container/" xmlns:I="{GOOGLE}/1.0/container/item/"><rdf:Seq>'
    '<rdf:li rdf:parseType="Resource"><C:Item I:Mime="image/jpeg" I:Semantic="Primary"/></rdf:li>'
    '<rdf:li rdf:parseType="Resource"><C:Item I:Semantic="claimed" I:Length="9"/></rdf:li></rdf:Seq></C:Directory>',
    "gain per channel": '<h:Gamma xmlns:h="http://ns.adobe.com/hdr-gain-map/1.0/"><rdf:Seq><rdf:li>claimed</rdf:li>'
    "</rdf:Seq></h:Gamma>",
    "thumbnail": '<xmp:Thumbnails xmlns:xmp="http://ns.adobe.com/xap/1.0/"><rdf:Alt><rdf:li rdf:parseType="Resource">'
    '<g:image xmlns:g="http://ns.adobe.com/xap/1.0/g/img/">claimed</g:image></rdf:li></rdf:Alt></xmp:Thumbnails>',
}


@pytest.mark.parametrize("content", STRUCTURES.values(), ids=STRUCTURES)
def test_structures_that_describe_what_is_dropped_are_removed_as_a_whole(content):
    kept = updated(described(content), gps=True)
    assert not [word for word in (b"claimed", b"Primary", b"<rdf:Seq") if word in kept]
    assert b'dc:format="house"' in kept


PANORAMA = (
    f'xmlns:GPano="{GOOGLE}/1.0/panorama/" GPano:ProjectionType="equirectangular" GPano:PoseHeadingDegrees="350.0" '
    'GPano:CroppedAreaImageWidthPixels="4000" GPano:CroppedAreaImageHeightPixels="2000" '
    'GPano:FullPanoWidthPixels="8000" GPano:FullPanoHeightPixels="4000" GPano:CroppedAreaLeftPixels="2000" '
    'GPano:CroppedAreaTopPixels="-1000" GPano:LargestValidInteriorRectWidth="3000.0"'
)
SIZES = 'exif:PixelXDimension="4000" tiff:ImageLength="2000"'


@pytest.mark.parametrize("gps", [True, False])
def test_sizes_in_xmp_follow_the_new_file(gps):
    packet = described("<tiff:ImageWidth>4000</tiff:ImageWidth>", f"{PANORAMA} {SIZES}")
    metadata = Metadata(None, packet)
    assert metadata.updated(width=4000, height=2000, gps=True).xmp == packet
    small = metadata.updated(width=512, height=256, gps=gps).xmp.decode()
    assert dict(re.findall(r':(\w+)(?:="|>)([\d.-]+)["<]', small)) == {
        "CroppedAreaImageWidthPixels": "512", "CroppedAreaImageHeightPixels": "256", "FullPanoWidthPixels": "1024",
        "FullPanoHeightPixels": "512", "CroppedAreaLeftPixels": "256", "CroppedAreaTopPixels": "-128",
        "LargestValidInteriorRectWidth": "384", "PoseHeadingDegrees": "350.0", "PixelXDimension": "512",
        "ImageLength": "256", "ImageWidth": "512",
    }  # fmt: skip


def test_a_whole_panorama_without_a_cropped_area_is_scaled():
    packet = described(
        "", f'xmlns:p="{GOOGLE}/1.0/panorama/" p:FullPanoWidthPixels="6000" p:FullPanoHeightPixels="3000"'
    )
    small = Metadata(None, packet).updated(width=512, height=256, gps=True).xmp
    assert b'FullPanoWidthPixels="512" p:FullPanoHeightPixels="256"' in small


REGIONS = (
    '<m:Regions xmlns:m="http://www.metadataworkinggroup.com/schemas/regions/"><m:AppliedToDimensions/></m:Regions>'
    "<exif:SubjectArea><rdf:Seq><rdf:li>100</rdf:li></rdf:Seq></exif:SubjectArea>"
)


@pytest.mark.parametrize(
    ("orientation", "size", "regions", "area"),
    [(1, (400, 200), True, True), (6, (200, 400), False, False), (3, (400, 200), False, False),
     (1, (512, 256), True, False)],
)  # fmt: skip
def test_places_in_the_pixels_are_kept_if_no_pixel_moves(orientation, size, regions, area):
    sides = {0xA002: Entry(4, 1, struct.pack("<I", 400)), 0xA003: Entry(4, 1, struct.pack("<I", 200))}
    exif = Exif("<", {}, {**sides, SUBJECT_AREA: Entry(3, 2, struct.pack("<HH", 100, 50))}, {})
    packet = described(REGIONS, 'exif:PixelXDimension="400" exif:PixelYDimension="200"')
    kept = Metadata(exif, packet, orientation).updated(width=size[0], height=size[1], gps=True)
    assert (b"Regions" in kept.xmp) == regions
    assert (b"SubjectArea" in kept.xmp) == area
    assert (SUBJECT_AREA in kept.exif.settings) == area


LONG = "+12 " * 10_000


@pytest.mark.parametrize(
    ("attributes", "content"),
    [
        (f'crs:Masks="{LONG}{LONG}"', ""),
        (f'crs:Masks="{LONG}" crs:Curve="{LONG[:-4000]}"', ""),
        ("", f"<crs:Masks><rdf:Seq><rdf:li>{LONG}{LONG}</rdf:li></rdf:Seq></crs:Masks>"),
        ("", f"<crs:Masks>{LONG * 10}</crs:Masks><crs:Curve>{LONG * 9}</crs:Curve>"),
    ],
)
def test_xmp_too_long_for_a_jpeg_loses_its_longest_properties(attributes, content):
    rights = "<dc:rights><rdf:Alt><rdf:li>(c) 2026 " + "r" * 9_000 + "</rdf:li></rdf:Alt></dc:rights>"
    packet = described(rights + content, attributes, 'xmlns:crs="http://ns.adobe.com/camera-raw-settings/1.0/"')
    source = dataclasses.replace(decode(encode_image(pixels(), "PNG")), metadata=Metadata(None, packet))
    assert decode(encode(source)).metadata.xmp == packet
    kept = decode(encode(source, format="jpeg")).metadata.xmp
    assert b"(c) 2026" in kept
    assert b'dc:format="house"' in kept
    assert b"<crs:Masks" not in kept
    assert (b"Curve=" in kept) == ("Curve=" in attributes)


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
