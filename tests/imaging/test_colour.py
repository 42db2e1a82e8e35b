"""Colour spaces: conversion to sRGB and back, and the profiles of the encoded files."""

import dataclasses
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from imaging import Options, core_from_file, decode, decode_small, encode, file_from_core
from imaging.arrays import to_unit
from imaging.colour import SRGB, Space
from tests.photographs import encode_16_bits, encode_image, open_image, pixels, pixels_16_bits, profile

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
