"""The transfer reproduces a look at full size and keeps the photograph's own detail."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from export.metrics import psnr
from imaging import Look
from imaging.compiled import fit_affine
from imaging.frame import resize
from tests.photographs import pixels


def transfer(full, small_in, small_out):
    result = full.copy()
    Look.between(small_in, small_out).apply(result)
    return result


def shrunk(array, factor=4):
    """Return the image at reduced size, float32 in [0, 1]."""
    height, width = array.shape[:2]
    image = Image.fromarray(array).resize((width // factor, height // factor), Image.Resampling.BOX)
    return np.asarray(image, np.float32) / 255


def detail(array):
    """Return the energy of the differences between neighbours along rows."""
    values = array.astype(np.float64)
    return float(np.mean((values[:, 1:] - values[:, :-1]) ** 2))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 4))
def test_every_size_is_kept(height, width, factor):
    full = pixels(height * factor, width * factor)
    small = shrunk(full, factor)
    assert transfer(full, small, small).shape == full.shape


def test_an_identical_output_changes_nothing():
    full = pixels(480, 640)
    small = shrunk(full)
    assert np.abs(transfer(full, small, small).astype(int) - full).max() <= 1


@pytest.mark.parametrize(("slope", "offset"), [(0.5, 0.25), (0.8, 0.0), (1.2, -0.1)])
def test_an_affine_look_is_reproduced_where_there_is_contrast(slope, offset):
    coarse = np.random.default_rng(0).integers(20, 200, (60, 80, 3), np.uint8)
    full = np.asarray(Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC))
    small = shrunk(full)
    expected = np.clip(full / 255 * slope + offset, 0, 1)
    result = transfer(full, small, small * np.float32(slope) + np.float32(offset)) / 255
    assert psnr(result, expected) > 38


def test_full_resolution_detail_is_kept():
    full = pixels(480, 640) // 2
    small = shrunk(full)
    # An exposure that grows from left to right: nearly a gain in the rendered image.
    look = small * np.linspace(1, 2, small.shape[1], dtype=np.float32)[:, None]
    expected = full / 255 * np.linspace(1, 2, full.shape[1])[:, None]
    enlarged = np.asarray(Image.fromarray((look * 255).astype(np.uint8)).resize((640, 480), Image.Resampling.BICUBIC))
    transferred = transfer(full, small, look)
    assert detail(enlarged) < 0.1 * detail(expected * 255)
    assert 0.9 < detail(transferred) / detail(expected * 255) < 1.1
    assert psnr(transferred / 255, expected) > psnr(enlarged / 255, expected) + 3


@pytest.mark.parametrize("name", ["balcony.jpg", "valley-view.jpg"])
def test_the_transfer_of_a_real_look_is_better_than_enlarging(name):
    """The look is the fused target at reduced size; compare the result with the target at full size."""
    photo, target = (np.asarray(Image.open(f"demo/{kind}/{name}")) for kind in ("photos", "targets"))
    small_photo, look = shrunk(photo), shrunk(target)
    enlarged = Image.fromarray(np.rint(look * 255).astype(np.uint8)).resize(
        target.shape[1::-1], Image.Resampling.BICUBIC
    )
    by_transfer = psnr(transfer(photo, small_photo, look) / 255, target / 255)
    by_enlarging = psnr(np.asarray(enlarged) / 255, target / 255)
    print(f"{name}: transfer {by_transfer:.1f} dB, enlarging {by_enlarging:.1f} dB")
    assert by_transfer > by_enlarging + 0.5


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_the_look_is_applied_to_every_layout(channels, kind):
    """Compare the compiled loop with Pillow's interpolation, for grey, alpha and 16 bits."""
    rng = np.random.default_rng(0)
    white = np.iinfo(kind).max
    full = rng.integers(0, white, (90, 120, channels), kind, endpoint=True)
    colours = channels - (channels in (2, 4))
    look = Look(*(rng.random((30, 40, colours), np.float32) * s for s in (2, 0.2)))
    expected = full.astype(np.float64)
    for c in range(colours):
        slope, offset = (
            np.asarray(Image.fromarray(m[..., c]).resize((120, 90), Image.Resampling.BILINEAR), np.float64)
            for m in (look.slope, look.offset)
        )
        expected[..., c] = np.clip(np.rint(slope * full[..., c] + offset * white), 0, white)
    result = full.copy()
    look.apply(result)
    assert np.abs(result - expected).max() <= (1 if kind == np.uint8 else 2)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_a_window_gets_the_same_look_as_the_whole(data):
    full = pixels(150, 210)
    small = shrunk(full, 5)
    look = Look.between(small, small**0.7)
    whole = full.copy()
    look.apply(whole)
    top, left = data.draw(st.integers(0, 149)), data.draw(st.integers(0, 209))
    part = full[top : top + 64, left : left + 64].copy()
    look.apply(part, window=(top, left, 150, 210))
    assert np.array_equal(part, whole[top : top + 64, left : left + 64])


def test_the_fit_is_the_documented_ridge_regression():
    """Compare the compiled fit with the formula in NumPy, for one window."""
    rng = np.random.default_rng(3)
    before, after = rng.random((2, 20, 24, 3), np.float32)
    x, z = before[8:13, 9:14, 1].astype(float), after[8:13, 9:14, 1].astype(float)
    gain = (z.mean() + 0.02) / (x.mean() + 0.02)
    slope = ((x * z).mean() - x.mean() * z.mean() + 1e-4 * gain) / (x.var() + 1e-4)
    raw_slope, raw_offset = fit_affine(before.reshape(20, 72), after.reshape(20, 72), 3, 1e-4, 0.02)
    assert raw_slope.reshape(20, 24, 3)[10, 11, 1] == pytest.approx(slope, rel=1e-3)
    assert raw_offset.reshape(20, 24, 3)[10, 11, 1] == pytest.approx(z.mean() - slope * x.mean(), abs=1e-3)


def test_strength_scales_the_look():
    full = pixels(150, 210)
    small = shrunk(full, 5)
    none, half, whole = (full.copy() for _ in range(3))
    for strength, result in ((0, none), (0.5, half), (1, whole)):
        Look.between(small, small**0.7, strength=strength).apply(result)
    assert np.array_equal(none, full)
    assert np.abs(half.astype(int) - (none.astype(int) + whole) / 2).max() <= 1


def test_a_smooth_ramp_stays_smooth():
    """No blocks or bands: an even gradient gets no larger steps."""
    ramp = np.broadcast_to(np.linspace(6_000, 56_000, 1100)[:, None, None], (1100, 64, 3)).astype(np.uint16)
    small = resize(ramp, (275, 16))
    result = ramp.copy()
    Look.between(small, small ** np.float32(0.7)).apply(result)
    steps = np.diff(result[..., 0].astype(int), axis=0)[8:-8]
    assert steps.min() > 0
    assert np.abs(np.diff(steps, axis=0)).max() < 0.5 * np.median(steps)
