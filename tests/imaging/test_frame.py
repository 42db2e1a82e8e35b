"""The frame: every photograph fills the square, nearly as with the resize that the network was trained on."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from export.metrics import psnr
from imaging import SIDE, core_from_file, core_from_pixels, decode, pixels_from_core
from imaging.frame import resize, small_shape
from tests.conftest import ROOT
from tests.photographs import encode_image, resize_bilinear

lengths = st.integers(1, 90)
seeds = st.integers(0, 2**32 - 1)


def trained_core(data):
    """Return the core tensor as in training: decoded in full, RGB, 8 bits, Pillow's bilinear."""
    small = Image.open(io.BytesIO(data)).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return np.asarray(small, np.float32).transpose(2, 0, 1) / 255


@settings(deadline=None)
@given(lengths, lengths, lengths, lengths, st.integers(1, 4), st.sampled_from(["u1", "u2", "f4"]), seeds)
def test_resize_equals_pillows_for_every_layout(height, width, rows, columns, channels, kind, seed):
    rng = np.random.default_rng(seed)
    white = 1 if kind == "f4" else np.iinfo(kind).max
    given_pixels = (rng.random((height, width, channels)) * white).astype(kind)
    result = resize(given_pixels, (rows, columns))
    assert result.dtype == np.float32
    assert np.allclose(result, resize_bilinear(given_pixels, (rows, columns)) / white, atol=2e-5)


@settings(deadline=None)
@given(st.integers(20, 200), st.integers(8, 16))
def test_a_half_covered_last_row_does_not_shift_the_rest(half, size):
    """A ramp of odd length, and the same ramp halved as by a decoder, differ by less than a quarter pixel."""
    length = 2 * half + 1
    ramp = np.arange(length + 1, dtype=np.float32)[:, None, None]
    whole, small = resize(ramp[:-1], (size, 1)), resize((ramp[::2] + ramp[1::2]) / 2, (size, 1), (length / 2, 1))
    assert np.abs(whole - small)[1:-1].max() < 0.25


@given(lengths, seeds)
def test_pixels_to_core_and_back_are_the_same(side, seed):
    small = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    core = core_from_pixels(small)
    assert (core.shape, core.dtype) == ((3, side, side), np.float32)
    assert 0 <= core.min() <= core.max() <= 1
    assert np.array_equal(np.rint(pixels_from_core(core) * 255).astype(np.uint8), small)


def test_pixels_from_core_are_clamped():
    assert pixels_from_core(np.full((3, 4, 4), 1.5, np.float32)).max() == 1


@given(st.integers(1, 40_000), st.integers(1, 40_000))
def test_small_shape_keeps_the_aspect_ratio(height, width):
    rows, columns = small_shape(height, width)
    assert max(rows, columns) == SIDE
    assert abs(min(rows, columns) - max(1, SIDE * min(height, width) / max(height, width))) <= 0.5


def test_the_whole_photograph_fills_the_square():
    """The four quarters of a wide image are the quarters of the core tensor."""
    quarters = np.zeros((600, 1800, 3), np.uint8)
    quarters[300:, :900, 0] = quarters[:300, 900:, 1] = quarters[300:, 900:, 2] = 255
    core = core_from_file(encode_image(quarters, "PNG"))
    half = SIDE // 2
    for channel, (top, left) in enumerate([(half, 0), (0, half), (half, half)]):
        expected = np.zeros((SIDE, SIDE))
        expected[top : top + half, left : left + half] = 1
        inside = np.abs(np.arange(SIDE) - half + 0.5) > 2
        assert np.allclose(core[channel][inside][:, inside], expected[inside][:, inside], atol=1e-6)


@pytest.mark.parametrize("name", ["balcony", "reading-corner"])
@pytest.mark.parametrize("cut", [0, 3], ids=["original", "odd sides"])
def test_a_jpeg_decoded_small_is_near_the_resize_of_the_training(name, cut):
    """The goal is 45 dB for every photograph (docs/photographs.md); these two have little grain and are closer."""
    data = (ROOT / f"demo/photos/{name}.jpg").read_bytes()
    if cut:
        data = encode_image(decode(data).pixels[: -cut or None, : -cut or None], quality=92)
    decibels = psnr(core_from_file(data), trained_core(data))
    print(f"{name}: {decibels:.1f} dB")
    assert decibels >= 55


def test_a_full_decode_differs_by_one_step_of_eight_bits_at_most():
    data = encode_image(decode((ROOT / "demo/photos/coffee-table.jpg").read_bytes()).pixels, "PNG")
    assert np.abs(core_from_file(data) - trained_core(data)).max() <= 1.01 / 255
