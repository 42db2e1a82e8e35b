"""Colour spaces: conversion to sRGB and back, and the profiles of the encoded files."""

import dataclasses
import io
import struct
import zlib

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from imaging import InvalidPhotograph, Options, core_from_file, decode, decode_small, encode, file_from_core
from imaging.arrays import to_unit
from imaging.colour import SRGB, Space
from imaging.naming import _PRIMARIES
from tests.photographs import (
    HDR_HEIC,
    HEIC,
    encode_16_bits,
    encode_image,
    open_image,
    pixels,
    pixels_16_bits,
    png_chunk,
    profile,
    with_chunks,
)

P3 = Space("RGB", profile("p3"))
#: The most saturated green of Display P3, which is outside sRGB.
GREEN = np.zeros((128, 128, 3), np.uint8) + np.array([0, 255, 0], np.uint8)


def converted_by_pillow(array, source, target):
    """Convert with Pillow's ImageCms, another binding of LittleCMS."""
    flags = ImageCms.Flags.BLACKPOINTCOMPENSATION
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
    profiles = [ImageCms.ImageCmsProfile(io.BytesIO(p)) for p in (source, target)]
    image = ImageCms.profileToProfile(Image.fromarray(array), *profiles, renderingIntent=intent, flags=flags)
    return np.asarray(image, int)


def test_conversions_agree_with_another_binding():
    srgb = profile("srgb")
    to = P3.to_srgb(pixels()) / 65535 * 255
    assert np.abs(to - converted_by_pillow(pixels(), profile("p3"), srgb)).max() < 1.5
    back = P3.from_srgb(pixels().astype(np.float32) / 255) * 255
    assert np.abs(back - converted_by_pillow(pixels(), srgb, profile("p3"))).max() < 1.5


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_conversion_and_its_inverse_cancel_out(seed):
    """For colours inside sRGB, with 16 bits in between."""
    array = np.random.default_rng(seed).random((16, 16, 3), np.float32) * 0.5 + 0.25
    there = (P3.from_srgb(array) * 65535).round().astype(np.uint16)
    assert np.abs(P3.to_srgb(there) / 65535 - array).max() < 0.002


@pytest.mark.parametrize(
    "found", [profile("srgb"), ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()], ids=["vips", "lcms"]
)
def test_every_srgb_profile_is_recognized(found):
    space = Space.of("RGB", found)
    assert space.profile == found
    assert space.to_srgb(array := pixels()) is array


def test_p3_is_converted():
    assert P3.to_srgb(array := pixels()) is not array


@pytest.mark.parametrize(
    ("model", "found"),
    [
        ("RGB", profile("grey")),
        ("GRAY", profile("srgb")),
        ("RGB", b"not a profile"),
        ("RGB", profile("p3")[:200]),
        ("RGB", profile("p3")[:128] + bytes(400)),
        ("RGB", None),
    ],
)
def test_a_damaged_profile_or_one_of_another_model_is_ignored(model, found):
    assert Space.of(model, found) == Space(model)


@pytest.mark.parametrize("name", ["p3", "srgb"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_the_profile_is_kept(kind, name):
    assert open_image(encode(decode(encode_image(pixels(), kind, icc_profile=profile(name))))).info[
        "icc_profile"
    ] == profile(name)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_the_profile_is_kept_with_sixteen_bits(kind):
    photograph = decode(encode_image(pixels(), "PNG", icc_profile=profile("p3")))
    deep_one = dataclasses.replace(photograph, pixels=pixels_16_bits())
    again = decode(encode(deep_one, format=kind.lower()))
    assert again.pixels.dtype == np.uint16
    assert again.space.profile == profile("p3")


def test_the_profile_of_grey_is_kept_and_used():
    image = Image.fromarray(pixels()).convert("L")
    plain, tagged = (decode(encode_image(image, "PNG", **o)) for o in ({}, {"icc_profile": profile("grey")}))
    assert open_image(encode(tagged)).info["icc_profile"] == profile("grey")
    assert np.abs(tagged.space.to_srgb(tagged.pixels)[..., 0] / 65535 - plain.pixels[..., 0] / 255).mean() > 0.02
    back = tagged.space.from_srgb(tagged.space.to_srgb(tagged.pixels).astype(np.float32) / 65535)
    assert np.abs(back * 255 - tagged.pixels).max() < 1


def test_cmyk_is_converted_back():
    inks = Space("CMYK", profile("cmyk")).convert_from_srgb(pixels(), np.uint8)
    data = encode_image(Image.frombytes("CMYK", (320, 240), inks.tobytes()), "TIFF", icc_profile=profile("cmyk"))
    again = open_image(encode(decode(data)))
    assert again.info["icc_profile"] == profile("cmyk")
    assert np.abs(np.asarray(again, int) - inks.astype(int)).mean() < 4
    assert np.abs(decode(data).pixels.astype(int) - decode(encode(decode(data))).pixels).mean() < 2


def test_cmyk_without_a_profile_becomes_rgb():
    """Its colours are undefined; keep what a viewer shows."""
    image = Image.fromarray(pixels()).convert("CMYK")
    again = open_image(encode(decode(encode_image(image, "TIFF"))))
    assert again.mode == "RGB"
    assert np.array_equal(np.asarray(again), np.asarray(image.convert("RGB")))


def test_colours_outside_srgb_stay_without_a_look():
    data = encode_image(GREEN, "PNG", icc_profile=profile("p3"))
    core = core_from_file(data)
    assert np.array_equal(decode(file_from_core(data, core, core, Options())).pixels, GREEN)
    assert P3.to_srgb(GREEN)[0, 0, 0] == 0  # clipped: sRGB has no such green


def test_a_look_is_the_same_in_every_space():
    """A scene in sRGB and in Display P3 yields the same result."""
    scene = pixels(480, 640) // 2 + 60
    in_p3 = np.rint(P3.from_srgb(scene.astype(np.float32) / 255) * 255).astype(np.uint8)
    results = []
    for array, tag in ((scene, {}), (in_p3, {"icc_profile": profile("p3")})):
        data = encode_image(array, "PNG", **tag)
        core = core_from_file(data)
        photograph = decode(file_from_core(data, core, core ** np.float32(0.7), Options()))
        results.append(
            photograph.space.to_srgb(photograph.pixels)
            / np.iinfo(photograph.space.to_srgb(photograph.pixels).dtype).max
        )
    assert np.abs(results[0] - results[1]).mean() < 0.004


def test_decode_small_keeps_16_bits():
    small = decode_small(encode_16_bits("PNG", pixels_16_bits()))
    assert len(np.unique(np.round(small * 65535))) > 256


def test_srgb_is_the_default():
    assert Space() == SRGB == Space.of("RGB", None)


def test_grey_with_a_profile_becomes_rgb_in_a_format_without_grey():
    data = encode_image(Image.fromarray(pixels()).convert("L"), "PNG", icc_profile=profile("grey"))
    photograph = decode(data)
    expected = to_unit(photograph.space.to_srgb(photograph.pixels))
    again = decode(encode(photograph, format="webp", quality=100))
    assert np.abs(to_unit(again.pixels) - expected).mean() < 0.01


def srgb(light):
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


D65 = (0.3127, 0.329)
REC709, ADOBE, P3_XY, BT2020 = (
    (*D65, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06), (*D65, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06),
    (*D65, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06), (*D65, 0.708, 0.292, 0.17, 0.797, 0.131, 0.046),
)  # fmt: skip


def to_xyz(chromaticities):
    """Return the matrix from linear RGB of these chromaticities to XYZ (SMPTE RP 177)."""
    white, *primaries = (np.array([x / y, 1, (1 - x - y) / y]) for x, y in np.reshape(chromaticities, (4, 2)))
    columns = np.stack(primaries, 1)
    return columns * np.linalg.solve(columns, white)


def pq(light):
    """SMPTE ST 2084, from light in cd/m²."""
    power = (light / 10_000) ** (2610 / 16384)
    return ((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32)


def hlg(light):
    """ITU-R BT.2100, from light in cd/m² on a display of 1,000."""
    scene = (light / 1000) ** (1 / 1.2)
    logarithm = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), logarithm)


#: A scene inside sRGB in linear light, so dim that mapping HDR to SDR does not change it.
LIGHT = np.random.default_rng(0).uniform(0.1, 0.7, (4, 4, 3)).repeat(16, 0).repeat(16, 1)


def scene(chromaticities, curve):
    """Return the scene in another space, HxWx3 uint16."""
    light = LIGHT @ (np.linalg.inv(to_xyz(chromaticities)) @ to_xyz(REC709)).T
    return np.rint(curve(light.clip(0)) * 65_535).astype(np.uint16)


def png_of(array, **chunks):
    return with_chunks(encode_16_bits("PNG", array), **chunks)


def power(gamma):
    return lambda light: light ** (1 / gamma)


def chromaticity_chunk(chromaticities):
    return np.rint(np.array(chromaticities) * 100_000).astype(">u4").tobytes()


def gamma_chunk(gamma):
    return round(100_000 / gamma).to_bytes(4, "big")


def adobe_rgb_exif(colour_space=0xFFFF, index="R03"):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA001] = colour_space
    if index:
        exif.get_ifd(0x8769)[0xA005] = {1: index}
    return exif.tobytes()


NAMED = {
    "cICP: Display P3": png_of(scene(P3_XY, srgb), cICP=bytes([12, 13, 0, 1])),
    "cICP: BT.2020": png_of(scene(BT2020, srgb), cICP=bytes([9, 13, 0, 1])),
    "cICP: BT.470 M": png_of(scene(BT2020, power(2.2)), cICP=bytes([9, 4, 0, 1])),
    "cICP: linear": png_of(scene(REC709, power(1)), cICP=bytes([1, 8, 0, 1])),
    "cICP: PQ": png_of(scene(BT2020, lambda light: pq(light * 203)), cICP=bytes([9, 16, 0, 1])),
    "cICP: PQ, Display P3": png_of(scene(P3_XY, lambda light: pq(light * 203)), cICP=bytes([12, 16, 0, 1])),
    "cICP: PQ, unspecified primaries": png_of(scene(REC709, lambda light: pq(light * 203)), cICP=bytes([2, 16, 0, 1])),
    "cICP: HLG": png_of(scene(BT2020, lambda light: hlg(light * 203)), cICP=bytes([9, 18, 0, 1])),
    "cICP before iCCP": with_chunks(
        encode_image((scene(P3_XY, srgb) >> 8).astype(np.uint8), "PNG", icc_profile=profile("srgb")),
        cICP=bytes([12, 13, 0, 1]),
    ),
    "cICP before sRGB": png_of(scene(P3_XY, srgb), sRGB=b"\0", cICP=bytes([12, 13, 0, 1])),
    "cICP: unspecified": png_of(scene(REC709, srgb), cICP=bytes([2, 2, 0, 1])),
    "gAMA and cHRM": png_of(scene(ADOBE, power(2.2)), gAMA=gamma_chunk(2.2), cHRM=chromaticity_chunk(ADOBE)),
    "gAMA": png_of(scene(REC709, power(1.8)), gAMA=gamma_chunk(1.8)),
    "gAMA of sRGB": png_of(scene(REC709, srgb), gAMA=gamma_chunk(2.2)),
    "cHRM": png_of(scene(P3_XY, srgb), cHRM=chromaticity_chunk(P3_XY)),
    "sRGB before gAMA": png_of(scene(REC709, srgb), sRGB=b"\0", gAMA=gamma_chunk(1)),
    "gAMA beyond reason": png_of(scene(REC709, srgb), gAMA=bytes([0, 0, 0, 1])),
    "impossible gAMA and cHRM": png_of(scene(REC709, srgb), gAMA=bytes(4), cHRM=bytes(32)),
    "EXIF: R03": png_of(scene(ADOBE, power(563 / 256)), eXIf=adobe_rgb_exif()[6:]),
    "EXIF: ColorSpace 2": png_of(scene(ADOBE, power(563 / 256)), eXIf=adobe_rgb_exif(2, "")[6:]),
    "EXIF: R98": png_of(scene(REC709, srgb), eXIf=adobe_rgb_exif(index="R98")[6:]),
    "EXIF: ColorSpace 1": png_of(scene(REC709, srgb), eXIf=adobe_rgb_exif(1)[6:]),
}


@pytest.mark.parametrize("data", NAMED.values(), ids=NAMED)
def test_colours_without_a_profile_are_read_and_written_as_one(data):
    core = core_from_file(data)
    assert np.abs(middles(core_of_scene()) - middles(core)).max() < 0.004
    for name in ("png", "tiff", "jpeg", "bmp"):
        again = core_from_file(encode(decode(data), format=name, quality=100))
        assert np.abs(again - core).mean() < 0.004, name


def middles(core):
    """Return the colours in the middle of the scene's squares, away from edges, which each space blends differently."""
    return core[:, 64::128, 64::128]


def core_of_scene():
    return core_from_file(png_of(scene(REC709, srgb)))


def test_hdr_in_a_png_stays_hdr_and_becomes_sdr_elsewhere():
    photograph = decode(NAMED["cICP: PQ"])
    assert b"cICP\x09\x10\0\x01" in encode(photograph)
    assert "icc_profile" not in open_image(encode(photograph, format="jpeg")).info


@pytest.mark.parametrize("name", ["cICP: PQ", "cICP: HLG"])
def test_highlights_of_hdr_are_compressed_and_keep_their_order(name):
    ramp = np.linspace(0, 65_535, 512).astype(np.uint16)
    data = png_of(np.tile(ramp[None, :, None], (16, 1, 3)), cICP=NAMED[name][41:45])
    seen = core_from_file(data)[:, 256]
    assert np.abs(seen - seen[0]).max() < 0.01  # grey stays grey
    assert (np.diff(seen[0]) > -1e-4).all()
    assert (seen[0, 0], seen[0, -1]) == pytest.approx((0, 1), abs=0.002)
    assert seen[0, 440] < 0.9995  # not clipped


@pytest.mark.parametrize("points", [(12, 13), (9, 16), (9, 18)])
def test_nclx_in_avif(points):
    curve = {13: srgb, 16: lambda light: pq(light * 203), 18: lambda light: hlg(light * 203)}[points[1]]
    array = np.rint(scene(_PRIMARIES[points[0]], curve) / 65_535 * 1023).astype(np.uint16)
    data = imagecodecs.avif_encode(array, 100, bitspersample=10, primaries=points[0], transfer=points[1], matrix=0)
    core = core_from_file(data)
    assert (decode(data).pixels.dtype == np.uint16) == (points[1] != 13)  # 8 bits of HDR would show bands
    assert np.abs(middles(core_of_scene()) - middles(core)).max() < 0.01
    assert np.abs(core_from_file(encode(decode(data), format="png")) - core).mean() < 0.004


def test_the_profile_of_an_avif_takes_precedence_over_nclx():
    avif = encode_image(pixels(), "AVIF", icc_profile=P3.profile)
    assert decode(avif.replace(b"colrnclx\0\2\0\2", b"colrnclx\0\x09\0\x10")).space == P3


@pytest.mark.parametrize("points", [(12, 13), (9, 16), (9, 18)])
def test_nclx_in_heic_means_the_same_as_cicp_in_png(points):
    at = (heic := HEIC.read_bytes()).index(b"colrprof") + 4
    nclx = b"nclx" + struct.pack(">HHHB", *points, 1, 0x80)
    photograph = decode(heic[:at] + nclx + heic[at + len(nclx) :])
    png = with_chunks(encode_image(photograph.pixels, "PNG"), cICP=bytes([*points, 0, 1]))
    assert photograph.space == decode(png).space != Space()
    assert np.abs(core_from_file(encode(photograph, format="tiff")) - core_from_file(png)).mean() < 0.01


def test_hdr_in_heic_keeps_its_ten_bits():
    y, x = np.mgrid[:50, :70]
    photograph = decode(HDR_HEIC.read_bytes())
    assert photograph.space == decode(NAMED["cICP: PQ"]).space
    expected = np.stack([200 + 8 * x, 150 + 8 * y, 300 + 4 * (x + y)], 2)
    assert np.abs(photograph.pixels / 65_535 * 1023 - expected).max() < 8
    assert len(np.unique(photograph.pixels)) > 256


def test_narrow_range_is_rejected():
    with pytest.raises(InvalidPhotograph, match="narrow range"):
        decode(png_of(pixels_16_bits(), cICP=bytes([1, 1, 0, 0])))


def test_letters_in_other_chunks_of_a_png_are_not_colours():
    plain, cicp = pixels_16_bits(), bytes([12, 13, 0, 1])
    assert decode(png_of(plain, tEXt=b"a\0\0\0\0\x04cICP" + cicp)).space == Space()
    assert decode(png_of(plain, tEXt=b"a\0IDAT", cICP=cicp)).space == decode(NAMED["cICP: Display P3"]).space


def test_a_grey_png_with_gamma():
    light = LIGHT[..., :1]
    data = png_of(np.rint(light * 65_535).astype(np.uint16), gAMA=gamma_chunk(1))
    core = core_from_file(data)
    expected = core_from_file(png_of(np.rint(srgb(light) * 65_535).astype(np.uint16)))
    assert np.abs(middles(core) - middles(expected)).max() < 0.004
    assert np.abs(core_from_file(encode(decode(data))) - core).max() < 0.004


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_a_doubled_profile_of_grey_and_cmyk_is_ignored(mode, caplog):
    plain = encode_image(Image.fromarray(pixels()).convert(mode))
    at = 4 + int.from_bytes(plain[4:6], "big")
    segments = with_icc_segments((1, 1, FIRST), (1, 1, FIRST))[20 : 20 + 2 * (18 + len(FIRST))]
    assert np.array_equal(decode(plain[:at] + segments + plain[at:]).pixels, decode(plain).pixels)
    assert "ignored an ICC profile" in caplog.text


@pytest.mark.parametrize("whole", [encode_image(pixels(), "PNG"), encode_16_bits("PNG", pixels_16_bits())])
@pytest.mark.parametrize(
    "chunk",
    [
        png_chunk(b"iCCP", b"p\0\5" + zlib.compress(P3.profile)),
        png_chunk(b"iCCP", b"p\0\0" + zlib.compress(P3.profile))[:-1] + b"?",
        png_chunk(b"iCCP", b"p\0\0" + zlib.compress(P3.profile)[:-99]),
        png_chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(5_000_000))),
        png_chunk(b"iCCP", b"p"),
    ],
    ids=["unknown compression", "wrong checksum", "cut", "too long", "only a name"],
)
def test_a_damaged_profile_of_a_png_costs_only_the_profile(chunk, whole, caplog):
    photograph = decode(whole[:33] + chunk + whole[33:])
    assert np.array_equal(photograph.pixels, decode(whole).pixels)
    assert photograph.space == Space()
    assert "ignored an ICC profile" in caplog.text


def with_icc_segments(*segments):
    """Return a JPEG with these ICC segments: number, count and a part of a profile."""
    bodies = (b"ICC_PROFILE\0" + bytes(numbers) + part for *numbers, part in segments)
    head = b"".join(b"\xff\xe2" + (len(body) + 2).to_bytes(2, "big") + body for body in bodies)
    plain = encode_image(pixels())
    return plain[:20] + head + plain[20:]


FIRST, SECOND = P3.profile[:300], P3.profile[300:]


@pytest.mark.parametrize(
    "segments",
    [
        [(1, 2, FIRST), (2, 2, SECOND), (1, 2, FIRST), (2, 2, SECOND)],
        [(1, 2, FIRST), (1, 2, FIRST), (2, 2, SECOND)],
        [(1, 3, FIRST), (2, 3, SECOND)],
        [(2, 2, SECOND)],
        [(0, 2, FIRST), (1, 2, SECOND)],
        [(1, 1, FIRST), (2, 2, SECOND)],
        [(1, 0, P3.profile)],
        [(3, 2, P3.profile)],
        [(1, 1, b"")],
        [(1, 1, FIRST)],
        [(1, 2, FIRST), (2, 2, SECOND), (3, 3, b"")],
        [(1, b"")],  # without the count
    ],
    ids=lambda segments: " ".join("/".join(map(str, numbers)) for *numbers, _ in segments),
)
def test_invalid_icc_segments_lose_only_the_profile(segments, caplog):
    data = with_icc_segments(*segments)
    photograph = decode(data)
    assert np.array_equal(photograph.pixels, decode(encode_image(pixels())).pixels)
    assert photograph.space in (Space(), P3)
    assert ("ignored an ICC profile" in caplog.text) == (photograph.space == Space())
    assert core_from_file(data).shape == (3, 512, 512)
    with pytest.raises(InvalidPhotograph):
        decode(data[:-600])
