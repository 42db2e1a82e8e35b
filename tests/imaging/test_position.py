"""gps=strip removes the position from all metadata; gps=keep keeps every byte."""

import dataclasses
import struct
import zlib

import pytest

from imaging import decode, encode
from imaging.exif import Entry, Exif, parse
from imaging.metadata import Metadata
from imaging.position import is_named_position, may_hold_position
from tests.photographs import encode_16_bits, encode_image, open_image, pixels, pixels_16_bits, png_chunk

MAKER_NOTE, COMMENT, PRIVATE, EXPOSURE, DESCRIPTION, WINDOWS_COMMENT = 0x927C, 0x9286, 0x9AAA, 0x829A, 0x010E, 0x9C9C
LATITUDE, LONGITUDE = "48.1371540", "11.5761240"
NAMED = [  # properties of drones, telephones and applications
    "GPSLatitude", "GPSXYAccuracy", "GpsLatitude", "GpsLongtitude", "gps_lon", "Latitude", "longtitude",
    "HomeLongitude", "AbsoluteAltitude", "RelativeAltitude", "LRFTargetLon", "LRFTargetLat", "LRFTargetAlt", "lat",
    "long", "LatLng", "Coordinates", "CameraPosition", "geotag", "GeoHash", "UTMNorthing", "location.ISO6709",
    "latE7", "lon_deg", "HomeLatDegrees", "CameraPositionNED", "MGRS", "what3words", "plus_code", "TargetLonRef",
]  # fmt: skip
OTHERS = [  # properties that must stay
    "Orientation", "YCbCrPositioning", "Composition", "relation", "AltTextAccessibility", "LongExposureNoiseReduction",
    "AutoLateralCA", "PoseHeadingDegrees", "FullPanoWidthPixels", "GeometricDistortion", "City", "Flat", "Alternates",
]  # fmt: skip
POSITIONS = [
    f"{LATITUDE}, {LONGITUDE}", "+48.13715+011.57612/", "geo:48.1,11.5", "48,8.2N", "48,8,13N", "48° 8' 13\" N",
    "48.1371° N", "48°8′13″, 11°34′34″", "N48.137 E11.576", "48.137N", "48.137;-11.576",
    '{"latitude": 48.1, "longitude": 11.5}', '{"lat":-33.8}', "GPSLatitude=48.1", "A" * 80,
    "48 deg 8' 13.00\" N", "N 48° 08.229 E 011° 34.569", "48,13715; 11,57612", "q=48.13715%2C11.57612", "48.1371540",
    "8FWH4HX8+QR", "///filled.count.soap", "32UPU9165236345", "32U PU 91652 36345",
]  # fmt: skip
TEXTS = [
    "", "Canon EOS R5", "2026-11-28T10:15:00+01:00", "20 °C in the shade", "f/2.8, 1/250 s", "24.0 70.0 2.8 2.8",
    "Salon 2.0", "xmp.did:6F9619FF-8B86-1234-4567-00C04FC964FF", "https://example.com/license/4.0", "360° Nord",
    "9f" * 32, "0.333333", "1/250", "1,000, 2,000 lumens", "10 deg tilt", "SN 32U12345", "3666.666504",
    "24.123456789 mm",
]  # fmt: skip


@pytest.mark.parametrize(("names", "expected"), [(NAMED, True), (OTHERS, False)])
def test_names_of_positions_are_recognized(names, expected):
    assert {name: is_named_position(name) for name in names} == dict.fromkeys(names, expected)


@pytest.mark.parametrize(("texts", "expected"), [(POSITIONS, True), (TEXTS, False)])
def test_texts_that_hold_positions_are_recognized(texts, expected):
    assert {text: may_hold_position(text) for text in texts} == dict.fromkeys(texts, expected)


@pytest.mark.parametrize("unit", ["1", "+1.1", "48.13715 ", "A", "lat ", "4° 8", "1,", "gps_", " "])
def test_every_text_is_searched_in_a_short_time(unit):
    """A regular expression that backtracks would take minutes, beyond the time limit of a test."""
    is_named_position(unit * (200_000 // len(unit)))
    may_hold_position(unit * (10_000 // len(unit)))
    assert may_hold_position(unit * 20_000)


def described(content, attributes="", spaces=""):
    return (
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:drone="http://www.dji.com/drone-dji/1.0/"'
        f' xmlns:exif="http://ns.adobe.com/exif/1.0/" {spaces} dc:format="house" {attributes}><dc:title><rdf:Alt>'
        f'<rdf:li xml:lang="x-default">A title</rdf:li></rdf:Alt></dc:title>{content}'
        "</rdf:Description></rdf:RDF></x:xmpmeta>"
    )


PACKETS = {
    "attribute": described("", f'drone:GpsLatitude="+{LATITUDE}" drone:GpsLongtitude="+{LONGITUDE}"'),
    "element": described(
        f"<drone:Latitude>{LATITUDE}</drone:Latitude><drone:Longtitude> {LONGITUDE}</drone:Longtitude>"
    ),
    "structure": described(f'<drone:Home rdf:parseType="Resource"><drone:Lat>{LATITUDE}</drone:Lat></drone:Home>'),
    "list": described(f"<drone:Coordinates><rdf:Seq><rdf:li>{LATITUDE}</rdf:li></rdf:Seq></drone:Coordinates>"),
    "namespace": described(f"<g:point>{LATITUDE}</g:point>", spaces='xmlns:g="http://www.georss.org/georss"'),
    "another name": described(f"<dc:coverage>{LATITUDE}, {LONGITUDE}</dc:coverage>"),
    "another attribute": described("", f'drone:Where="{LATITUDE},{LONGITUDE}"'),
    "character data": described(f"<drone:Where><![CDATA[{LATITUDE},]]>{LONGITUDE}</drone:Where>"),
    "comment": described(f"<!-- {LATITUDE} -->"),
    "instruction": described(f"<?drone {LATITUDE}?>"),
    "after the packet": described("") + f"<!-- {LATITUDE} --><?drone {LATITUDE}?>",
    "entity": f'<!DOCTYPE x [<!ENTITY where "{LATITUDE}">]>' + described("<drone:Latitude>&where;</drone:Latitude>"),
}


@pytest.mark.parametrize("packet", PACKETS.values(), ids=PACKETS)
def test_xmp_keeps_all_but_the_position(packet):
    metadata = Metadata(None, packet.encode())
    stripped = metadata.updated(width=1, height=1, gps=False).xmp
    assert LATITUDE[:6].encode() not in stripped
    assert LONGITUDE[:6].encode() not in stripped
    assert b'dc:format="house"' in stripped
    assert b'<rdf:Alt><rdf:li xml:lang="x-default">A title</rdf:li></rdf:Alt>' in stripped
    assert metadata.updated(width=1, height=1, gps=True).xmp == packet.encode()


@pytest.mark.parametrize(("space", "name"), [("urn:drone", "GpsLongtitude"), ("http://www.georss.org/georss", "point")])
def test_the_name_or_the_namespace_of_a_property_is_enough(space, name):
    packet = described(f"<any:{name}>48</any:{name}>", spaces=f'xmlns:any="{space}"')
    assert b">48<" not in Metadata(None, packet.encode()).updated(width=1, height=1, gps=False).xmp


def marked(text):
    return Entry(7, len(text), text)


BLOCK = Exif(
    "<",
    {0x010F: Entry(2, 4, b"DJI\0"), DESCRIPTION: Entry(2, 22, f"{LATITUDE},{LONGITUDE}\0".encode()),
     WINDOWS_COMMENT: Entry(1, 34, "lat: 48.1371540 ;".encode("utf-16-le"))},
    {EXPOSURE: Entry(5, 1, struct.pack("<II", 1, 250)),
     MAKER_NOTE: marked(b"DJI\0" + struct.pack("<dd", 48.137, 11.576)),
     COMMENT: marked(b"ASCII\0\0\0" + f"GPS: {LATITUDE}".encode()), PRIVATE: marked(b"<place 48.1371540>")},
    {2: Entry(5, 3, struct.pack("<6I", 48, 1, 8, 1, 13, 1))},
)  # fmt: skip
TRACES = [LATITUDE.encode(), LATITUDE.encode("utf-16-le"), LONGITUDE.encode(), struct.pack("<d", 48.137)]
TRACES += [BLOCK.position[2].value]


def photograph(kind):
    """Return a photograph from a file of this kind, with a position in every block."""
    depth = "16 bits" in kind
    data = encode_16_bits(kind.split()[0], pixels_16_bits()) if depth else encode_image(pixels(), kind)
    metadata = Metadata(BLOCK, PACKETS["attribute"].encode())
    return decode(encode(dataclasses.replace(decode(data), metadata=metadata)))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "PNG 16 bits", "TIFF 16 bits"])
def test_the_position_is_stripped_from_every_format_and_the_rest_kept(kind):
    kept, stripped = (encode(photograph(kind), gps=gps) for gps in (True, False))
    assert all(text in kept for text in TRACES)
    assert not [text for text in TRACES if text in stripped]
    exif = open_image(stripped).getexif()
    assert exif[0x010F] == "DJI"
    assert exif.get_ifd(0x8769)[EXPOSURE] == pytest.approx(1 / 250)
    assert not exif.get_ifd(0x8825)
    assert b"A title" in stripped


def jpeg_segment(marker, body):
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def files_with_other_blocks():
    """Yield files with positions in other blocks than EXIF and XMP."""
    position = LATITUDE.encode()
    plain = encode_image(pixels())
    segments = {
        "IPTC": (0xED, b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0" + struct.pack(">I", len(position)) + position + b"\0"),
        "comment": (0xFE, b"GPS: " + position),
        "extended XMP": (0xE1, b"http://ns.adobe.com/xmp/extension/\0" + b"A" * 32 + bytes(8) + position),
        "a maker's segment": (0xE4, b"drone\0" + position),
    }
    for name, (marker, body) in segments.items():
        yield name, plain[:2] + jpeg_segment(marker, body) + plain[2:]
    yield "after the end", plain + position
    exif = struct.pack("<d", 48.137) + position
    texts = {
        "text": (b"tEXt", b"GPSLatitude\0" + position),
        "EXIF as text": (b"tEXt", b"Raw profile type exif\0\nexif\n%8d\n" % len(exif) + exif.hex().encode()),
        "XMP as text": (b"zTXt", b"Raw profile type xmp\0\0" + zlib.compress(position)),
        "a private chunk": (b"drNe", position),
    }
    for name, (kind, body) in texts.items():
        png = encode_image(pixels(), "PNG")
        yield name, png[:33] + png_chunk(kind, body) + png[33:]
    private = {33550: (0.1, 0.1, 0.0), 33922: (0.0, 0.0, 0.0, 48.137, 11.576, 0.0), 34737: LATITUDE, 42112: LATITUDE}
    yield "GeoTIFF", encode_image(pixels(), "TIFF", tiffinfo=private)


OTHER_BLOCKS = dict(files_with_other_blocks())


@pytest.mark.parametrize("data", OTHER_BLOCKS.values(), ids=OTHER_BLOCKS)
def test_a_position_in_another_block_is_not_kept(data):
    stripped = encode(decode(data), gps=False)
    forms = (LATITUDE.encode(), LATITUDE.encode().hex().encode(), struct.pack("<d", 48.137))
    assert any(form in data for form in forms) or b"zTXt" in data
    assert not [form for form in forms if form in stripped]
    assert b"TXt" not in stripped


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("tag", [DESCRIPTION, WINDOWS_COMMENT])
def test_a_position_in_exif_is_found_in_every_encoding(tag, encoding):
    value = "48° 8' 13\" N".encode(encoding)
    block = Exif("<", {0x010F: Entry(2, 4, b"DJI\0"), tag: Entry(1, len(value), value)}, {}, {})
    assert Metadata(block).updated(width=1, height=1, gps=False).exif.main.keys() == {0x010F}


def test_a_position_among_the_settings_is_stripped_too():
    """In some files both pointers lead to one directory, so the position is parsed as settings."""
    shared = Exif("<", {}, {**BLOCK.settings, **BLOCK.position}, BLOCK.position)
    stripped = parse(Metadata(shared).updated(width=1, height=1, gps=False).exif.to_block())
    assert stripped.settings.keys() == {EXPOSURE}
    assert not stripped.position
