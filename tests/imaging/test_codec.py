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


MODES = {
    "JPEG": ("L", "CMYK"),
    "PNG": ("1", "L", "LA", "P", "RGBA"),
    "TIFF": ("1", "L", "LA", "P", "RGBA", "CMYK"),
    "WEBP": ("RGBA",),
}


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind, modes in MODES.items() for mode in modes])
def test_other_colour_modes_come_back_as_rgb(kind, mode):
    buffer = io.BytesIO()
    Image.fromarray(pixels()).convert(mode).save(buffer, kind)
    again = opened(encode(decode(buffer.getvalue())))
    assert (again.format, again.mode, again.size) == (kind, "RGB", (320, 240))
    again.load()


def test_a_tiff_keeps_what_tells_about_the_photograph_and_not_how_its_bytes_lay():
    exif = Image.Exif()
    exif[0x010F] = "Camera maker"
    exif[0x8298] = "Somebody"
    again = opened(encode(decode(encoded(pixels(), "TIFF", exif=exif.tobytes(), compression="tiff_lzw"))))
    assert again.getexif()[0x010F] == "Camera maker"
    assert again.getexif()[0x8298] == "Somebody"
    assert again.info["compression"] == "raw"


def test_multi_picture_jpegs_come_back_as_jpeg_at_our_quality():
    buffer = io.BytesIO()
    first, second = (Image.fromarray(pixels(seed=i)) for i in (0, 1))
    first.save(buffer, "MPO", save_all=True, append_images=[second], quality=95)
    photograph = decode(buffer.getvalue())
    plain = decode(encoded(pixels()))
    assert photograph.format == "JPEG"
    assert len(encode(photograph)) == len(encode(plain))


def test_sixteen_bit_grey_is_scaled_not_clipped():
    ramp = np.tile(np.linspace(0, 65535, 320).astype(np.uint16), (240, 1))
    found = decode(encoded(ramp, "PNG")).pixels[..., 0]
    assert np.abs(found.astype(int) - np.rint(ramp / 257)).max() <= 1


def test_floating_point_pixels_are_refused():
    with pytest.raises(InvalidPhotograph, match="8 or 16 bits"):
        decode(encoded(np.zeros((8, 8), np.float32), "TIFF"))


def test_a_profile_that_is_not_rgb_is_left_behind():
    grey = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    grey[16:20] = b"GRAY"
    assert decode(encoded(pixels(), icc_profile=bytes(grey))).icc_profile is None


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_damaged_exif_is_left_behind_and_the_photograph_is_not_refused(kind):
    whole = encoded(pixels(), kind, exif=exif_with(6))
    start = whole.index(b"Exif\0\0") if kind == "JPEG" else whole.index(b"EXIF")
    damaged = bytearray(whole)
    damaged[start + 14 : start + 30] = b"\xff" * 16
    assert decode(bytes(damaged)).pixels.size == 240 * 320 * 3
    assert decode_small(bytes(damaged)).size


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
    # The same file with 11,000 x 11,000 in its header: nothing of that size is ever allocated.
    size = (11_000).to_bytes(4, "big") * 2
    header = b"IHDR" + size + bomb[24:29]
    forged = bomb[:12] + header + zlib.crc32(header).to_bytes(4, "big") + bomb[33:]
    with pytest.raises(InvalidPhotograph, match="11000x11000 pixels; at most 108,000,000"):
        decode(forged)


SEEDS = [
    encoded(pixels(24, 32), kind, **({"exif": exif_with(6)} if tagged else {}))
    for kind in ("JPEG", "PNG", "WEBP", "TIFF")
    for tagged in (False, True)
]


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=6)), min_size=1))
def test_damaged_files_are_decoded_and_encoded_or_refused(whole, damages):
    damaged = bytearray(whole)
    for position, replacement in damages:
        start = int(position * len(whole))
        damaged[start : start + len(replacement)] = replacement
    for attempt in (lambda data: encode(decode(data)), decode_small):
        try:
            result = attempt(bytes(damaged))
        except InvalidPhotograph as error:
            result = str(error)
        assert isinstance(result, bytes | np.ndarray) or "\n" not in result
