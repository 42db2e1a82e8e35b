"""Encoded photographs in, pixels out, and back."""

import io
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from imaging import InvalidPhotograph, decode, decode_small, encode
from tests.photographs import encoded, exif_with, opened, pixels


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_comes_back_in_its_own_format(kind):
    photograph = decode(encoded(pixels(), kind))
    again = opened(encode(photograph))
    assert again.format == kind
    assert again.size == (320, 240)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_and_its_tag_reset(orientation):
    data = encoded(pixels(120, 200), exif=exif_with(orientation))
    upright = np.asarray(decode(data).pixels, int)
    expected = np.asarray(Image.fromarray(decode(encoded(pixels(120, 200))).pixels), int)
    turns = {
        1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2), 6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a, -1)[:, ::-1][::-1, ::-1], 8: lambda a: np.rot90(a),
    }  # fmt: skip
    assert np.array_equal(upright, turns[orientation](expected))
    again = opened(encode(decode(data)))
    assert again.getexif()[0x0112] == 1
    assert again.getexif()[0x010F] == "Camera maker"
    small = decode_small(data, side=64)
    assert small.shape[:2] == ((38, 64) if orientation < 5 else (64, 38))


def test_icc_profile_travels():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    again = opened(encode(decode(encoded(pixels(), icc_profile=profile))))
    assert again.info["icc_profile"] == profile


@pytest.mark.parametrize("size", [(3000, 2000), (512, 512), (90, 60), (1, 1), (1, 2000), (2000, 1)])
def test_small_has_its_longer_side_at_512(size):
    small = decode_small(encoded(pixels(*size), "PNG"))
    assert max(small.shape[:2]) == 512
    assert small.dtype == np.uint8


def test_small_by_shrinking_while_decoding_is_what_a_full_decode_gives():
    data = encoded(pixels(2400, 3200))
    quick = decode_small(data).astype(int)
    thorough = np.asarray(Image.fromarray(decode(data).pixels).resize((512, 384), Image.Resampling.BOX), int)
    assert np.abs(quick - thorough).mean() < 1


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1"])
def test_other_colour_modes_become_rgb(mode):
    kind = "JPEG" if mode == "CMYK" else "PNG"
    buffer = io.BytesIO()
    Image.fromarray(pixels()).convert(mode).save(buffer, kind)
    assert decode(buffer.getvalue()).pixels.shape == (240, 320, 3)


def bad_files():
    whole = encoded(pixels())
    return {
        "empty": b"",
        "text": b"this is a letter, not a photograph",
        "truncated": whole[: len(whole) // 2],
        "header only": whole[:200],
        "gif": encoded(pixels(), "GIF"),
    }


@pytest.mark.parametrize("decoder", [decode, decode_small])
@pytest.mark.parametrize("data", bad_files().values(), ids=bad_files())
def test_bad_files_are_refused_in_a_sentence(decoder, data):
    with pytest.raises(InvalidPhotograph, match="photograph"):
        decoder(data)


def test_too_many_pixels_are_refused_from_the_header():
    bomb = encoded(np.zeros((1, 1, 3), np.uint8), "PNG")
    # The same file with 20,000 x 20,000 in its header: nothing of that size is ever allocated.
    size = (20_000).to_bytes(4, "big") * 2
    header = b"IHDR" + size + bomb[24:29]
    forged = bomb[:12] + header + zlib.crc32(header).to_bytes(4, "big") + bomb[33:]
    with pytest.raises(InvalidPhotograph, match="20000x20000|too large"):
        decode(forged)


@settings(max_examples=200, deadline=None)
@given(position=st.floats(0, 1), replacement=st.binary(min_size=1, max_size=8), kind=st.sampled_from(("JPEG", "PNG")))
def test_damaged_files_are_decoded_or_refused(position, replacement, kind):
    whole = encoded(pixels(24, 32), kind)
    start = int(position * len(whole))
    damaged = whole[:start] + replacement + whole[start + len(replacement) :]
    try:
        result = decode(damaged).pixels.shape[2]
    except InvalidPhotograph as error:
        result = str(error)
    assert result == 3 or "\n" not in result
