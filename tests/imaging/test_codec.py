"""Decode and encode files of every format, intact and damaged."""

import dataclasses
import io
import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from imaging import InvalidPhotograph, Limits, decode, decode_small, encode
from imaging.arrays import to_unit
from imaging.codec import FORMATS, shrink_factor
from imaging.exif import parse
from imaging.jpeg import add_segments
from imaging.metadata import NO_METADATA, Metadata
from tests.photographs import (
    HEIC,
    XMP,
    encode_16_bits,
    encode_image,
    make_exif,
    open_image,
    pixels,
    pixels_16_bits,
    profile,
    resize_bilinear,
    with_chunks,
)


def converted(mode, kind, **options):
    return encode_image(Image.fromarray(pixels()).convert(mode), kind, **options)


def multi_image():
    buffer = io.BytesIO()
    first, second = (Image.fromarray(pixels(seed=i)) for i in (0, 1))
    first.save(buffer, "MPO", save_all=True, append_images=[second], quality=95)
    return buffer.getvalue()


def with_alpha(kind, channels=4):
    array = np.dstack([pixels()[..., : channels - 1], np.arange(240 * 320).reshape(240, 320) % 256])
    return encode_image(array.astype(np.uint8), kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))


def palette_with_transparency():
    image = Image.fromarray(pixels()).quantize(64)
    image.info["transparency"] = 3
    return encode_image(image, "PNG", transparency=3)


def tiff(array, **tags):
    return imagecodecs.tiff_encode(array, **tags)


def deep_planes():
    """Return a TIFF of three separate planes (PlanarConfiguration 2)."""
    return imagecodecs.tiff_encode(pixels_16_bits().transpose(2, 0, 1), photometric="rgb", planarconfig="separate")


def bitmap(kind):
    """Return a BMP that Pillow does not write: with an alpha mask, 16 bits a pixel, or run-length encoded."""
    height, width = 240, 320
    if kind == "alpha":
        bits, compression, masks = 32, 3, (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
        body = np.dstack([pixels()[::-1, :, ::-1], np.full((height, width), 128, np.uint8)]).tobytes()
    elif kind == "16 bits":
        bits, compression, masks = 16, 3, (0xF800, 0x7E0, 0x1F, 0)
        red, green, blue = np.moveaxis(pixels()[::-1].astype(np.uint16), 2, 0)
        body = (red >> 3 << 11 | green >> 2 << 5 | blue >> 3).tobytes()
    else:
        bits, compression, masks = 8, 1, (0, 0, 0, 0)
        body = (bytes([160, 7]) * 2 + b"\0\0") * height + b"\0\1"
    palette = bytes(4 * 256 if bits == 8 else 0)
    offset = 14 + 108 + len(palette)
    header = struct.pack("<2sIHHI", b"BM", offset + len(body), 0, 0, offset)
    header += struct.pack("<IiiHHIIiiII", 108, width, height, 1, bits, compression, len(body), 2835, 2835, 0, 0)
    return header + struct.pack("<4I", *masks) + bytes(52) + palette + body


#: Files, and the result of encoding them again: format, Pillow's mode, bits a channel.
FILES = {
    "JPEG": (encode_image(pixels()), "JPEG", "RGB", 8),
    "JPEG progressive": (encode_image(pixels(), progressive=True), "JPEG", "RGB", 8),
    "JPEG grey": (converted("L", "JPEG"), "JPEG", "L", 8),
    "JPEG CMYK without a profile": (converted("CMYK", "JPEG"), "JPEG", "RGB", 8),
    "JPEG CMYK with a profile": (converted("CMYK", "JPEG", icc_profile=profile("cmyk")), "JPEG", "CMYK", 8),
    "JPEG in RGB": (encode_image(pixels(), keep_rgb=True), "JPEG", "RGB", 8),
    "MPO": (multi_image(), "JPEG", "RGB", 8),
    "PNG": (encode_image(pixels(), "PNG"), "PNG", "RGB", 8),
    "PNG palette": (encode_image(Image.fromarray(pixels()).quantize(64), "PNG"), "PNG", "RGB", 8),
    "PNG palette with transparency": (palette_with_transparency(), "PNG", "RGBA", 8),
    "PNG one bit": (converted("1", "PNG"), "PNG", "L", 8),
    "PNG grey": (converted("L", "PNG"), "PNG", "L", 8),
    "PNG grey and alpha": (with_alpha("PNG", 2), "PNG", "LA", 8),
    "PNG alpha": (with_alpha("PNG"), "PNG", "RGBA", 8),
    "PNG 16 bits": (encode_16_bits("PNG", pixels_16_bits()), "PNG", "RGB", 16),
    "PNG 16 bits grey": (encode_16_bits("PNG", pixels_16_bits(1)), "PNG", "I;16", 16),
    "PNG 16 bits grey and alpha": (imagecodecs.png_encode(pixels_16_bits(2)), "PNG", "RGBA", 16),
    "PNG 16 bits alpha": (encode_16_bits("PNG", pixels_16_bits(4)), "PNG", "RGBA", 16),
    "WebP": (encode_image(pixels(), "WEBP"), "WEBP", "RGB", 8),
    "WebP lossless": (encode_image(pixels(), "WEBP", lossless=True), "WEBP", "RGB", 8),
    "WebP alpha": (with_alpha("WEBP"), "WEBP", "RGBA", 8),
    "TIFF": (encode_image(pixels(), "TIFF"), "TIFF", "RGB", 8),
    "TIFF grey": (converted("L", "TIFF"), "TIFF", "L", 8),
    "TIFF alpha": (with_alpha("TIFF"), "TIFF", "RGBA", 8),
    "TIFF CMYK": (converted("CMYK", "TIFF", icc_profile=profile("cmyk")), "TIFF", "CMYK", 8),
    "TIFF 16 bits": (encode_16_bits("TIFF", pixels_16_bits()), "TIFF", "RGB", 16),
    "TIFF 16 bits grey": (encode_16_bits("TIFF", pixels_16_bits(1)), "TIFF", "I;16", 16),
    "TIFF 16 bits by planes": (deep_planes(), "TIFF", "RGB", 16),
    "TIFF 16 bits compressed": (encode_16_bits("TIFF", pixels_16_bits(), compressed=True), "TIFF", "RGB", 16),
    "BMP": (encode_image(pixels(), "BMP"), "BMP", "RGB", 8),
    "BMP palette": (encode_image(Image.fromarray(pixels()).quantize(64), "BMP"), "BMP", "RGB", 8),
    "BMP grey": (converted("L", "BMP"), "BMP", "L", 8),
    "BMP of 16 bits a pixel": (bitmap("16 bits"), "BMP", "RGB", 8),
    "AVIF": (encode_image(pixels(), "AVIF"), "AVIF", "RGB", 8),
    "AVIF alpha": (with_alpha("AVIF"), "AVIF", "RGBA", 8),
    "HEIC": (HEIC.read_bytes(), "JPEG", "RGB", 8),
}


def bits(data):
    if data[:4] == b"\x89PNG":
        return data[24]
    image = open_image(data)
    return max(image.tag_v2[258]) if image.format == "TIFF" else 8


@pytest.mark.parametrize(("data", "kind", "mode", "depth"), FILES.values(), ids=FILES)
def test_a_file_keeps_its_format_mode_and_depth(data, kind, mode, depth):
    photograph = decode(data)
    result = encode(photograph)
    again = open_image(result)
    assert (again.format, again.mode, bits(result)) == (kind, mode, depth)
    assert again.size == photograph.pixels.shape[1::-1]
    twice = decode(result).pixels
    tolerance = {"JPEG": 0.02, "WEBP": 0.02, "AVIF": 0.02}.get(kind, 0)
    tolerance = 0.02 if mode == "CMYK" else tolerance
    assert np.abs(twice.astype(float) - photograph.pixels).mean() <= tolerance * np.iinfo(twice.dtype).max


def test_every_format_has_a_file():
    assert {open_image(data).format for data, *_ in FILES.values()} == {*FORMATS, "MPO"}


@pytest.mark.parametrize("data", [v[0] for v in FILES.values()], ids=FILES)
def test_decode_small_matches_a_full_decode_that_is_resized(data):
    photograph = decode(data)
    small = decode_small(data, side=64)
    srgb = photograph.space.to_srgb(photograph.pixels[..., : photograph.space.channels])
    whole = srgb.astype(np.float64) / (np.iinfo(srgb.dtype).max if srgb.dtype.kind == "u" else 1)
    assert small.shape == (64, 64, 3)
    assert np.abs(to_unit(small) - resize_bilinear(whole, (64, 64))).mean() < 0.01


def test_sixteen_bits_are_exact():
    for kind, channels in (("PNG", 1), ("PNG", 3), ("PNG", 4), ("TIFF", 1), ("TIFF", 3)):
        photograph = decode(encode_16_bits(kind, pixels_16_bits(channels)))
        assert np.array_equal(photograph.pixels, pixels_16_bits(channels))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_kept_to_the_bit(kind):
    data = with_alpha(kind)
    assert np.array_equal(decode(encode(decode(data))).pixels[..., 3], np.asarray(open_image(data))[..., 3])


def sampled(data):
    """Return the sampling factors of luma; those of chroma are one."""
    return open_image(data).layer[0][1:3]


@pytest.mark.parametrize("sampling", ["444", "422", "440", "420"])
def test_chroma_subsampling_is_kept(sampling):
    data = simplejpeg.encode_jpeg(pixels(), 95, colorsubsampling=sampling)
    assert sampled(encode(decode(data))) == sampled(data)


def flat_jpeg(*factors, frame=0xC0, bits=8, height=64, width=96):
    """Return a grey JPEG whose planes have these sampling factors; each block is two bits: no DC difference, no AC."""

    def segment(marker, body):
        return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body

    across, down = (max(axis) for axis in zip(*factors, strict=True))
    units = -(-width // (8 * across)) * -(-height // (8 * down))
    blocks = units * sum(x * y for x, y in factors)
    planes = b"".join(bytes([number, x << 4 | y, 0]) for number, (x, y) in enumerate(factors, 1))
    size = struct.pack(">BHHB", bits, height, width, len(factors))
    table = bytes([1] + [0] * 15) + b"\0"  # one code of one bit, for the symbol 0
    scan = b"".join(bytes([number, 0]) for number in range(1, len(factors) + 1))
    return b"".join([
        b"\xff\xd8",
        segment(0xDB, b"\0" + b"\1" * 64),
        segment(frame, size + planes),
        segment(0xC4, b"\0" + table + b"\x10" + table),
        segment(0xDA, bytes([len(factors)]) + scan + b"\0\x3f\0"),
        bytes(2 * blocks // 8) + bytes([0xFF >> 2 * blocks % 8] * (blocks % 4 > 0)),
        b"\xff\xd9",
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("factors", "kept"),
    [
        ([(4, 1), (1, 1), (1, 1)], "422"),
        ([(4, 2), (1, 1), (1, 1)], "420"),
        ([(1, 4), (1, 1), (1, 1)], "440"),
        ([(3, 1), (1, 1), (1, 1)], "422"),
        ([(1, 3), (1, 1), (1, 1)], "440"),
        ([(2, 2), (1, 2), (2, 1)], "444"),
        ([(2, 2), (2, 1), (1, 2)], "444"),
        ([(2, 2), (1, 2), (1, 1)], "422"),
        ([(2, 2), (2, 1), (2, 1)], "440"),
        ([(1, 1), (2, 2), (2, 2)], "444"),
        ([(1, 1), (2, 1), (1, 2)], "444"),
        ([(2, 1), (2, 1), (2, 1)], "444"),
        ([(1, 2), (1, 2), (1, 2)], "444"),
        ([(3, 1), (3, 1), (3, 1)], "444"),
        ([(4, 1), (2, 1), (2, 1)], "422"),
    ],
    ids=str,
)
def test_every_sampling_is_decoded_and_the_nearest_that_keeps_all_samples_is_written(factors, kept):
    data = flat_jpeg(*factors)
    photograph = decode(data)
    assert (photograph.pixels == 128).all()
    assert np.allclose(to_unit(decode_small(data)), 128 / 255)
    assert photograph.sampling == kept


def test_a_truncated_jpeg_of_rare_sampling_is_rejected():
    with pytest.raises(InvalidPhotograph):
        decode(flat_jpeg((3, 1), (1, 1), (1, 1), height=640, width=960)[:-600])


@pytest.mark.parametrize("sampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_an_avif_keeps_its_subsampling(sampling):
    """Also at the highest quality, of colour noise."""
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    once = decode(encode_image(noise, "AVIF", subsampling=sampling, quality=100))
    assert once.sampling == sampling.replace(":", "")
    assert decode(encode(once)).sampling == once.sampling
    assert decode(encode(decode(encode_image(noise, "PNG")), format="avif")).sampling == "444"


def test_lossless_webp_stays_lossless():
    data = encode_image(pixels(), "WEBP", lossless=True)
    assert np.array_equal(decode(encode(decode(data))).pixels, pixels())


@pytest.mark.parametrize("lossless", [True, False])
@pytest.mark.parametrize("alpha", [True, False])
def test_letters_in_other_chunks_do_not_make_a_webp_lossless_or_lossy(lossless, alpha):
    array = np.dstack([pixels(), np.full((240, 320), 128, np.uint8)]) if alpha else pixels()
    blocks = {"icc_profile": profile("p3") + b"VP8 VP8L", "xmp": b"<x>VP8 VP8L</x>", "exif": make_exif(1) + b"VP8 "}
    assert decode(encode_image(array, "WEBP", lossless=lossless, **blocks)).lossless == lossless


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate"])
def test_a_tiff_keeps_its_lossless_compression(compression):
    again = open_image(encode(decode(encode_image(pixels(), "TIFF", compression=compression))))
    assert again.info["compression"] == compression


def test_a_tiff_compressed_as_jpeg_becomes_lossless():
    again = open_image(encode(decode(encode_image(pixels(), "TIFF", compression="jpeg"))))
    assert again.info["compression"] == "tiff_adobe_deflate"


OUT = {"jpeg": "JPEG", "png": "PNG", "webp": "WEBP", "tiff": "TIFF", "bmp": "BMP", "avif": "AVIF"}


@pytest.mark.parametrize("name", OUT)
@pytest.mark.parametrize("data", [v[0] for v in FILES.values()], ids=FILES)
def test_every_file_can_be_encoded_in_every_format(data, name):
    photograph = decode(data)
    again = open_image(encode(photograph, format=name))
    again.load()
    assert (again.format, again.size) == (OUT[name], photograph.pixels.shape[1::-1])


@pytest.mark.parametrize("name", ["jpeg", "bmp"])
def test_alpha_becomes_white_where_a_format_has_none(name):
    clear = np.zeros((64, 64, 4), np.uint8)
    assert decode(encode(decode(encode_image(clear, "PNG")), format=name)).pixels.min() > 250


def test_the_alpha_of_a_bmp_is_read_and_blended_over_white():
    photograph = decode(bitmap("alpha"))
    assert np.array_equal(photograph.pixels, np.dstack([pixels(), np.full((240, 320), 128, np.uint8)]))
    half = pixels() * (128 / 255) + 127
    assert np.abs(decode(encode(photograph)).pixels - half).max() <= 1


@pytest.mark.parametrize(("mode", "kind"), [("RGB", "p3"), ("L", "grey")])
def test_a_bmp_is_written_in_srgb_because_it_has_no_profile(mode, kind):
    photograph = decode(converted(mode, "PNG", icc_profile=profile(kind)))
    srgb = photograph.space.to_srgb(photograph.pixels) / 65535
    assert np.abs(srgb - photograph.pixels / 255).max() > 0.02
    assert np.abs(decode(encode(photograph, format="bmp")).pixels / 255 - srgb).max() < 0.003


def test_quality_makes_a_smaller_file():
    photograph = decode(encode_image(pixels()))
    assert len(encode(photograph, quality=40)) < 0.6 * len(encode(photograph, quality=92))


TURNS = {
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2), 6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, -1)[:, ::-1][::-1, ::-1], 8: lambda a: np.rot90(a),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "PNG 16 bits"])
@pytest.mark.parametrize("orientation", TURNS)
def test_orientation_is_applied_and_its_tag_reset(orientation, kind):
    if kind == "PNG 16 bits":
        stored = pixels_16_bits(3, 120, 200)
        plain = encode_16_bits("PNG", stored)
        data = with_chunks(plain, eXIf=make_exif(orientation)[6:])
    else:
        plain, data = (encode_image(pixels(120, 200), kind, exif=exif) for exif in (b"", make_exif(orientation)))
    assert np.array_equal(decode(data).pixels, TURNS[orientation](decode(plain).pixels))
    again = open_image(encode(decode(data)))
    assert again.getexif().get(0x0112, 1) == 1
    assert again.getexif()[0x010F] == "Camera maker"
    small, upright = (to_unit(decode_small(file, side=64)) for file in (data, plain))
    assert np.allclose(small, TURNS[orientation](upright), atol=1e-5)


def test_a_turned_422_becomes_440_and_keeps_its_detail():
    data = encode_image(pixels(120, 200), subsampling="4:2:2", exif=make_exif(6))
    again = open_image(encode(decode(data)))
    assert again.layer[0][1:3] == (1, 2)  # 4:4:0
    back = encoded_turned_back(encode(decode(data)))
    assert open_image(encode(decode(back))).layer[0][1:3] == (2, 1)


def encoded_turned_back(data):
    """Return the JPEG with an orientation that turns it back."""
    return add_segments(data[:2] + data[20:], None, Metadata(parse(make_exif(8)), None))


def test_orientation_in_xmp_alone_is_applied_and_reset():
    data = encode_image(pixels(120, 200), xmp=XMP.replace(b'tiff:Orientation="1"', b'tiff:Orientation="6"'))
    photograph = decode(data)
    assert photograph.pixels.shape == (200, 120, 3)
    assert b'tiff:Orientation="1"' in open_image(encode(photograph)).info["xmp"]


def xmp_of(image):
    packet = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp")
    return packet if isinstance(packet, bytes) else packet.encode()


def files_with_metadata():
    exif = make_exif(1, gps=True)
    for name in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF"):
        yield name, encode(decode(encode_image(pixels(), exif=exif, xmp=XMP)), format=name.lower())
    for name in ("PNG", "TIFF"):
        yield f"{name} 16 bits", deep_with_metadata(name, exif)


def deep_with_metadata(name, exif):
    metadata = Metadata(parse(exif), XMP)
    return encode(dataclasses.replace(decode(encode_16_bits(name, pixels_16_bits())), metadata=metadata))


TAGGED = dict(files_with_metadata())


@pytest.mark.parametrize("data", TAGGED.values(), ids=TAGGED)
def test_exif_and_xmp_are_kept_and_the_position_is_stripped_on_request(data):
    kept, stripped = (open_image(encode(decode(data), gps=gps)) for gps in (True, False))
    for image in (kept, stripped):
        assert image.getexif()[0x010F] == "Camera maker"
        assert image.getexif().get_ifd(0x8769)[0x829A] == pytest.approx(0.01)
        assert image.getexif().get_ifd(0x8769)[0xA002] == 320
        assert b'dc:format="house"' in xmp_of(image)
    assert kept.getexif().get_ifd(0x8825)[1] == "N"
    assert b"GPSLatitude" in xmp_of(kept)
    assert not stripped.getexif().get_ifd(0x8825)
    assert b"GPS" not in xmp_of(stripped)


def test_metadata_longer_than_a_jpeg_segment_are_dropped_and_the_profile_is_kept():
    photograph = decode(encode_image(pixels(), "PNG", icc_profile=profile("p3")))
    large = dataclasses.replace(photograph, metadata=Metadata(None, b" " * 70_000))
    again = open_image(encode(large, format="jpeg"))
    assert "xmp" not in again.info
    assert again.info["icc_profile"] == profile("p3")


def test_a_long_profile_is_split_into_segments():
    body = bytes(range(256)) * 700
    again = open_image(add_segments(encode_image(pixels()), body, NO_METADATA))
    assert again.info["icc_profile"] == body


@pytest.mark.parametrize("size", [(3000, 2000), (512, 512), (90, 60), (16, 16), (16, 512), (2000, 100)])
def test_decode_small_returns_a_square_for_every_shape(size):
    assert decode_small(encode_image(pixels(*size), "PNG")).shape == (512, 512, 3)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_damaged_exif_is_dropped_and_the_photograph_accepted(kind):
    whole = encode_image(pixels(), kind, exif=make_exif(6))
    start = whole.index(b"Exif\0\0") if kind == "JPEG" else whole.index(b"EXIF")
    damaged = bytearray(whole)
    damaged[start + 14 : start + 30] = b"\xff" * 16
    assert decode(bytes(damaged)).pixels.size == 240 * 320 * 3
    assert decode_small(bytes(damaged)).size
    assert open_image(encode(decode(bytes(damaged)))).size == (320, 240)


def forged(height, width):
    """Return a small PNG whose header claims another size, for which no memory may be allocated."""
    small = encode_image(np.zeros((1, 1, 3), np.uint8), "PNG")
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + small[24:29]
    return small[:12] + header + zlib.crc32(header).to_bytes(4, "big") + small[33:]


def animated(kind):
    frames = [Image.fromarray(pixels(seed=i)) for i in range(2)]
    buffer = io.BytesIO()
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def with_tag(data, tag, value):
    """Return the little-endian TIFF with another value of a tag that is one SHORT."""
    at = data.index(struct.pack("<HHI", tag, 3, 1)) + 8
    return data[:at] + struct.pack("<H", value) + data[at + 2 :]


def bad_files():
    whole = encode_image(pixels())
    inks = np.full((64, 96, 5), 100, np.uint8)
    return {
        "empty": (b"", "0 bytes"),
        "text": (b"this is a letter, not a photograph", "not a photograph"),
        "truncated": (whole[: len(whole) // 2], "complete"),
        "truncated by a few bytes": (whole[:-20], "complete"),
        "truncated progressive": (FILES["JPEG progressive"][0][:-400], "complete"),
        **{
            f"truncated {k}": (FILES[k][0][: len(FILES[k][0]) * 2 // 3], "complete|cut off")
            for k in FILES
            if " " not in k and k != "MPO"
        },
        **{
            f"truncated {k}": (FILES[k][0][: len(FILES[k][0]) * 2 // 3], "complete|cut off") for k in FILES if "16" in k
        },
        "header only": (whole[:200], "complete"),
        "gif": (encode_image(pixels(), "GIF"), "not a photograph"),
        "wrong magic": (b"\x89PNG\r\n\x1a\n" + whole, "complete|not a photograph"),
        "polyglot: a photograph after a PDF": (b"%PDF-1.7\n" + whole, "not a photograph"),
        "1x1": (encode_image(pixels(1, 1), "PNG"), "at least 16"),
        "1x20000": (encode_image(pixels(1, 20_000), "PNG"), "at least 16"),
        "20x20000": (encode_image(pixels(20, 20_000), "PNG"), "32 times"),
        "decompression bomb": (forged(50_000, 50_000), "50000x50000 pixels; at most 100,000,000|too large"),
        "just too large": (forged(10_001, 10_000), "10000x10001 pixels; at most 100,000,000"),
        "animated WebP": (animated("WEBP"), "more than one image"),
        "animated PNG": (animated("PNG"), "more than one image"),
        "animated AVIF": (animated("AVIF"), "more than one image"),
        "TIFF of two pages": (animated("TIFF"), "more than one image"),
        "floating point": (encode_image(np.zeros((32, 32), np.float32), "TIFF"), "8 or 16 bits"),
        "Lab": (encode_image(Image.fromarray(pixels()).convert("LAB"), "TIFF"), "8 or 16 bits"),
        "run-length encoded BMP": (bitmap("run lengths"), "run-length encoded"),
        "too many scans": (scan_bomb(), "scans"),
        "HEIC whose item is not named in UTF-8": (HEIC.read_bytes().replace(b"Exif", b"\x8exif", 1), "UTF-8"),
        "JPEG of fractional sampling": (flat_jpeg((3, 1), (2, 1), (2, 1)), r"\(3x1, 2x1, 2x1\)"),
        "CMYK JPEG of fractional sampling": (flat_jpeg((3, 1), (2, 1), (1, 1), (3, 1)), "3x1, 2x1, 1x1, 3x1"),
        "JPEG of 12 bits": (flat_jpeg((1, 1), frame=0xC1, bits=12), "12 bits a channel"),
        "JPEG of 12 bits, progressive": (flat_jpeg(*[(1, 1)] * 3, frame=0xC2, bits=12), "12 bits a channel"),
        "lossless JPEG": (flat_jpeg(*[(1, 1)] * 3, frame=0xC3), "lossless"),
        "lossless JPEG of 16 bits": (flat_jpeg((1, 1), frame=0xC3, bits=16), "lossless"),
        "JPEG-LS": (flat_jpeg((1, 1), frame=0xF7), "JPEG-LS"),
        "hierarchical JPEG": (flat_jpeg((1, 1), frame=0xC5), "hierarchical"),
        "CMYK JPEG without its end marker": (converted("CMYK", "JPEG")[:-2], "complete"),
        "JPEG of two channels": (flat_jpeg((1, 1), (1, 1)), "2 channels"),
        "TIFF of CMYK with alpha": (tiff(inks, photometric="separated", extrasample="unassalpha"), "CMYK with alpha"),
        "TIFF of CMYK, premultiplied": (tiff(inks, photometric="separated", extrasample="assocalpha"), "with alpha"),
        "TIFF of floating point": (tiff(pixels().astype(np.float32), photometric="rgb"), "floating point"),
        "TIFF of half floats": (tiff(pixels().astype(np.float16), photometric="rgb"), "floating point"),
        "TIFF of doubles": (tiff(pixels()[..., 0].astype(np.float64)), "floating point"),
        "TIFF of signed integers": (tiff(pixels_16_bits().astype(np.int16), photometric="rgb"), "signed"),
        "TIFF of 32 bits": (tiff(pixels().astype(np.uint32), photometric="rgb"), "32 bits"),
        "TIFF of 16-bit Lab": (with_tag(tiff(pixels_16_bits(), photometric="rgb"), 262, 8), "colour model 8"),
        "TIFF of four extra channels": (
            tiff(np.full((32, 32, 7), 100, np.uint8), photometric="rgb", planarconfig="contig"),
            "4 extra channels",
        ),
        "TIFF of 12 bits": (with_tag(encode_16_bits("TIFF", pixels_16_bits(1)), 258, 12), "12 bits"),
        "TIFF of 16-bit CMYK and more": (tiff(pixels_16_bits(5), photometric="separated"), "more than 8 bits"),
        "TIFF of premultiplied planes": (
            tiff(
                inks[:, :, :4].transpose(2, 0, 1).copy(),
                photometric="rgb",
                extrasample="assocalpha",
                planarconfig="separate",
            ),
            "separate planes",
        ),
        "TIFF of an unknown compression": (with_tag(encode_image(pixels(), "TIFF"), 259, 34712), "compression 34712"),
    }


def scan_bomb(mode="RGB"):
    """Return a progressive JPEG that repeats its last scan two hundred times."""
    whole = converted(mode, "JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    return whole[:-2] + whole[last:-2] * 200 + whole[-2:]


BAD = bad_files()


@pytest.mark.parametrize("decoder", [decode, decode_small])
@pytest.mark.parametrize(("data", "reason"), BAD.values(), ids=BAD)
def test_invalid_files_are_rejected_in_one_line(decoder, data, reason):
    with pytest.raises(InvalidPhotograph, match=reason) as caught:
        decoder(data)
    assert "\n" not in str(caught.value)


def test_limits_are_exact():
    data = encode_image(pixels())
    with pytest.raises(InvalidPhotograph, match="320x240 pixels; at most 76,799"):
        decode(data, Limits(pixels=76_799))
    with pytest.raises(InvalidPhotograph, match=f"{len(data):,} bytes; at most"):
        decode(data, Limits(bytes=len(data) - 1))
    assert decode(data, Limits(pixels=76_800, bytes=len(data))).pixels.size


def test_data_after_a_photograph_is_not_returned():
    """A JPEG followed by an archive is decoded as a JPEG."""
    payload = b"PK\x03\x04 payload of the archive"
    assert payload not in encode(decode(encode_image(pixels()) + payload))


def with_odd_header(kind):
    """Return a JPEG as some cameras write it: libjpeg warns, but every pixel can be decoded."""
    whole = encode_image(pixels())
    start = whole.index(b"\xff\xda")
    scan = start + 2 + int.from_bytes(whole[start + 2 : start + 4], "big")
    return {
        "a stray byte before the end": whole[:-2] + b"\x00" + whole[-2:],
        "stray bytes before a header": whole[:20] + bytes(5) + whole[20:],
        "JFIF of another revision": whole[:11] + b"\x02" + whole[12:],
        "Se of zero in a baseline scan": whole[: scan - 2] + b"\x00" + whole[scan - 1 :],
    }[kind]


ODD = ["a stray byte before the end", "stray bytes before a header", "JFIF of another revision",
       "Se of zero in a baseline scan"]  # fmt: skip


@pytest.mark.parametrize("kind", ODD)
def test_unusual_headers_do_not_count_as_damage(kind):
    assert np.array_equal(decode(with_odd_header(kind)).pixels, decode(encode_image(pixels())).pixels)


@pytest.mark.parametrize("kind", ODD[1:])
def test_a_truncated_file_with_an_unusual_header_is_rejected(kind):
    with pytest.raises(InvalidPhotograph):
        decode(with_odd_header(kind)[:-600])


def cut_after_scans(number, **options):
    """Return a JPEG that ends after this many scans."""
    whole = encode_image(pixels(), **options)
    starts = [at for at in range(len(whole)) if whole[at : at + 2] == b"\xff\xda"]
    return whole[: starts[number]]


WHOLE = {
    "baseline": encode_image(pixels()), "grey": converted("L", "JPEG"), "4:4:4": encode_image(pixels(), subsampling=0),
    "progressive": encode_image(pixels(), progressive=True), "restarts": encode_image(pixels(), restart_marker_rows=1),
    "with metadata": encode_image(pixels(), exif=make_exif(1), xmp=XMP),
}  # fmt: skip


@pytest.mark.parametrize("missing", [1, 2])
@pytest.mark.parametrize("data", WHOLE.values(), ids=WHOLE)
def test_a_jpeg_that_lacks_only_its_end_marker_is_accepted(data, missing):
    """As in browsers; no pixel is missing."""
    assert np.array_equal(decode(data[:-missing]).pixels, decode(data).pixels)
    assert np.array_equal(decode_small(data[:-missing]), decode_small(data))


@pytest.mark.parametrize("decoder", [decode, decode_small])
@pytest.mark.parametrize(
    "data",
    [*(data[:-3 - extra] for data in WHOLE.values() for extra in (1, 40)),
     *(cut_after_scans(number, progressive=True) for number in (1, 4, 9))],
)  # fmt: skip
def test_a_jpeg_that_lacks_more_is_rejected(decoder, data):
    with pytest.raises(InvalidPhotograph, match="complete"):
        decoder(data)


@pytest.mark.parametrize("seed", range(10))
def test_bytes_inserted_into_the_scan_count_as_damage(seed):
    whole = encode_image(pixels(600, 800))
    dice = np.random.default_rng(seed)
    at = int(dice.integers(len(whole) // 4, len(whole) // 2))
    with pytest.raises(InvalidPhotograph):
        decode(whole[:at] + dice.bytes(4096).replace(b"\xff", b"\xfe") + whole[at:])


def test_contradictory_headers_are_rejected():
    """Pillow reads one size of a crafted file, libjpeg another."""
    whole = bytearray(encode_image(pixels()))
    start = whole.index(b"\xff\xc0")
    fake = bytes(whole[start : start + 19]).replace((240).to_bytes(2, "big"), (16).to_bytes(2, "big"))
    with pytest.raises(InvalidPhotograph):
        decode(bytes(whole[:start]) + fake + bytes(whole[start:]))


def test_data_after_a_jpeg_is_not_counted_as_scans():
    """In a motion photograph megabytes of video follow."""
    video = np.random.default_rng(0).bytes(12_000_000)
    assert decode(FILES["JPEG progressive"][0] + video).pixels.size


def test_too_many_scans_are_rejected_in_cmyk_too():
    with pytest.raises(InvalidPhotograph, match="scans"):
        decode(scan_bomb("CMYK"))


def test_a_tiff_of_many_pages_is_rejected_without_counting_them():
    """Reading a chain of a hundred thousand directories would take minutes, beyond the time limit of a test."""
    tiff = bytearray(encode_image(pixels(32, 32), "TIFF"))
    link = int.from_bytes(tiff[4:8], "little")
    at = link + 2 + 12 * int.from_bytes(tiff[link : link + 2], "little")
    start = len(tiff) + len(tiff) % 2
    tiff += bytes(start - len(tiff))
    tiff[at : at + 4] = start.to_bytes(4, "little")
    page = b"\x01\x00" + struct.pack("<HHII", 256, 4, 1, 32)
    for number in range(1, 100_001):
        tiff += page + (start + number * 18).to_bytes(4, "little")
    with pytest.raises(InvalidPhotograph, match="more than one image"):
        decode(bytes(tiff))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(("channels", "photometric"), [(2, "minisblack"), (4, "rgb")])
def test_premultiplied_alpha_and_straight_alpha_are_the_same_photograph(dtype, channels, photometric):
    white = np.iinfo(dtype).max
    straight = np.full((32, 32, channels), white // 3, dtype)
    straight[..., -1] = white // 2
    premultiplied = straight.copy()
    premultiplied[..., :-1] = straight[..., :-1].astype(float) * straight[..., -1:] / white
    options = {"photometric": photometric}
    plain = decode(tiff(straight, extrasample="unassalpha", **options)).pixels
    found = decode(tiff(premultiplied, extrasample="assocalpha", **options)).pixels
    assert np.array_equal(plain, straight)
    assert np.abs(found.astype(int) - straight).max() <= 2


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_grey_with_alpha_of_sixteen_bits(byteorder, photometric):
    array = pixels_16_bits(2)
    data = tiff(array.copy(), photometric=photometric, extrasample="unassalpha", byteorder=byteorder)
    expected = array if photometric == "minisblack" else np.dstack([65_535 - array[..., 0], array[..., 1]])
    assert np.array_equal(decode(data).pixels, expected)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("spill", [0, 0x300])
def test_the_transparent_grey_of_a_png_has_the_depth_of_its_pixels(bits, spill):
    """Bits above those of the pixels do not count (PNG, third edition, 11.3.1.1)."""
    values = np.arange(32 * 32).reshape(32, 32) % (1 << bits)
    packed = np.packbits((values[..., None] >> np.arange(bits)[::-1] & 1).reshape(32, -1).astype(np.uint8), axis=1)
    rows = zlib.compress(np.hstack([np.zeros((32, 1), np.uint8), packed]).tobytes())
    png = b"\x89PNG\r\n\x1a\n" + bytes(25) + struct.pack(">I", 0) + b"IEND\xaeB`\x82"
    header = struct.pack(">IIBBBBB", 32, 32, bits, 0, 0, 0, 0)
    chunks = with_chunks(png, IHDR=header, tRNS=struct.pack(">H", spill + 1), IDAT=rows)
    photograph = decode(chunks[:8] + chunks[33:])
    assert np.array_equal(photograph.pixels[..., 1] == 0, values == 1)
    assert np.array_equal(photograph.pixels[..., 0], values * 255 // ((1 << bits) - 1))


def test_the_transparent_colour_of_a_png_has_the_depth_of_its_pixels():
    array = pixels()
    colour = array[10, 10].astype(">u2") + 0x300
    decoded = decode(with_chunks(encode_image(array, "PNG"), tRNS=colour.astype(">u2").tobytes())).pixels
    assert (decoded[10, 10, 3], decoded[..., 3].max()) == (0, 255)


def test_colours_are_divided_by_associated_alpha():
    colours = np.full((32, 32, 3), 30_000, np.uint16)
    data = tiff(
        np.dstack([colours, np.full((32, 32), 32_768)]).astype(np.uint16), photometric="rgb", extrasample="assocalpha"
    )
    assert np.abs(decode(data).pixels[0, 0, :3].astype(int) - 30_000 * 65_535 // 32_768).max() <= 1


def test_an_extra_channel_of_unspecified_meaning_is_dropped():
    array = np.dstack([pixels_16_bits(3), np.zeros((240, 320))]).astype(np.uint16)
    photograph = decode(tiff(array, photometric="rgb", extrasample="unspecified"))
    assert np.array_equal(photograph.pixels, pixels_16_bits(3))


def test_white_is_zero_is_inverted():
    data = tiff(65_535 - pixels_16_bits(1)[..., 0], photometric="miniswhite")
    assert np.array_equal(decode(data).pixels, pixels_16_bits(1))


def test_cmyk_of_sixteen_bits_is_rejected():
    data = tiff(np.full((32, 32, 4), 1000, np.uint16), photometric="separated")
    with pytest.raises(InvalidPhotograph, match="CMYK of more than 8 bits"):
        decode(data)


def test_deep_grey_with_alpha_can_become_a_tiff():
    again = decode(encode(decode(imagecodecs.png_encode(pixels_16_bits(2))), format="tiff"))
    assert (again.pixels.shape[2], again.pixels.dtype) == (4, np.uint16)


def test_damaged_16_bit_pngs_leak_no_memory():
    """Each would leak 12 MB."""
    dice = np.random.default_rng(0)
    whole = imagecodecs.png_encode(dice.integers(0, 65_536, (1000, 2000, 3), np.uint16), level=1)

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    for number in range(25):
        if number == 5:
            before = resident()
        with pytest.raises(InvalidPhotograph):
            decode(whole[: len(whole) * 9 // 10])
    assert resident() - before < 60_000_000


def test_sixteen_bits_with_a_transparent_colour():
    array = pixels_16_bits(3)
    decoded = decode(with_chunks(imagecodecs.png_encode(array), tRNS=array[10, 10].astype(">u2").tobytes())).pixels
    assert np.array_equal(decoded[..., :3], array)
    assert (decoded[10, 10, 3], decoded[0, 0, 3]) == (0, 65_535)


def test_an_error_while_encoding_does_not_make_the_photograph_invalid(monkeypatch):
    photograph = decode(encode_image(pixels()))
    monkeypatch.setattr("simplejpeg.encode_jpeg", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        encode(photograph)


@pytest.mark.parametrize(
    "step", ["imaging.codec.resize", "imaging.codec.read_metadata", "imaging.colour.Space.to_srgb"]
)
@pytest.mark.parametrize("error", [MemoryError, AssertionError, TypeError])
def test_an_error_of_the_server_does_not_make_the_photograph_invalid(step, error, monkeypatch):
    def fail(*_):
        raise error("simulated")

    monkeypatch.setattr(step, fail)
    with pytest.raises(error):
        decode_small(encode_image(pixels()))


@pytest.mark.parametrize("decoder", [decode, decode_small])
def test_a_lack_of_memory_in_a_codec_does_not_make_the_photograph_invalid(decoder, monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr("simplejpeg.decode_jpeg", fail)
    with pytest.raises(MemoryError):
        decoder(encode_image(pixels()))


def test_damaged_files_of_every_format_are_decoded_and_encoded_or_rejected():
    """A short form of `make fuzz`, which also goes through the server."""

    @settings(max_examples=600, deadline=None, database=None)
    @given(st.sampled_from(SEEDS), st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=6)), min_size=1))
    def run(whole, damages):
        damaged = bytearray(whole)
        for position, replacement in damages:
            start = int(position * len(whole))
            damaged[start : start + len(replacement)] = replacement
        try:
            decode_small(bytes(damaged))
            photograph = decode(bytes(damaged))
        except InvalidPhotograph:
            return
        assert open_image(encode(photograph)).size == photograph.pixels.shape[1::-1]

    run()


SEEDS = [
    encode_image(pixels(24, 32), kind, **({"exif": make_exif(6)} if tagged else {}))
    for kind in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")
    for tagged in (False, True)
] + [encode_16_bits("PNG", pixels_16_bits(3, 24, 32)), encode_16_bits("TIFF", pixels_16_bits(3, 24, 32))]


@pytest.mark.parametrize(("shorter", "factor"), [(768, 1), (1791, 1), (1792, 2), (3583, 2), (3584, 4), (7168, 8)])
def test_a_jpeg_is_shrunk_if_896_pixels_remain_on_the_shorter_side(shorter, factor):
    assert shrink_factor(shorter, 2 * shorter) == shrink_factor(2 * shorter, shorter) == factor
