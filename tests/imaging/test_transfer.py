"""The transfer: exact where it must be, close to the truth elsewhere, and it keeps the photograph's own detail."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from export.metrics import psnr
from imaging import transfer
from tests.photographs import pixels


def shrunk(array, factor=4):
    """The small version, [0, 1] float32."""
    height, width = array.shape[:2]
    image = Image.fromarray(array).resize((width // factor, height // factor), Image.Resampling.BOX)
    return np.asarray(image, np.float32) / 255


def detail(array):
    """Energy of what is finer than four pixels, along rows."""
    values = array.astype(np.float64)
    return float(np.mean((values[:, 1:] - values[:, :-1]) ** 2))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 4))
def test_keeps_the_size_whatever_it_is(height, width, factor):
    full = pixels(height * factor, width * factor)
    small = shrunk(full, factor)
    assert transfer(full, small, small).shape == full.shape


def test_no_change_stays_no_change():
    full = pixels(480, 640)
    small = shrunk(full)
    assert np.abs(transfer(full, small, small).astype(int) - full).max() <= 1


@pytest.mark.parametrize(("slope", "offset"), [(0.5, 0.25), (0.8, 0.0), (1.2, -0.1)])
def test_an_affine_look_is_reproduced_where_the_picture_has_contrast(slope, offset):
    coarse = np.random.default_rng(0).integers(20, 200, (60, 80, 3), np.uint8)
    full = np.asarray(Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC))
    small = shrunk(full)
    expected = np.clip(full / 255 * slope + offset, 0, 1)
    found = transfer(full, small, small * np.float32(slope) + np.float32(offset)) / 255
    assert psnr(found, expected) > 38


def test_full_resolution_detail_survives_where_enlarging_loses_it():
    full = pixels(480, 640) // 2
    small = shrunk(full)
    # Another exposure, growing from left to right: a gain in the rendered picture, nearly.
    look = small * np.linspace(1, 2, small.shape[1], dtype=np.float32)[:, None]
    expected = full / 255 * np.linspace(1, 2, full.shape[1])[:, None]
    enlarged = np.asarray(Image.fromarray((look * 255).astype(np.uint8)).resize((640, 480), Image.Resampling.BICUBIC))
    carried = transfer(full, small, look)
    assert detail(enlarged) < 0.1 * detail(expected * 255)
    assert 0.9 < detail(carried) / detail(expected * 255) < 1.1
    assert psnr(carried / 255, expected) > psnr(enlarged / 255, expected) + 3


@pytest.mark.parametrize("name", ["balcony.jpg", "valley-view.jpg"])
def test_a_real_look_is_carried_better_than_enlarging_it(name):
    """With the true fused target, shrunk, as the look: what comes out at full size is near the full-size target."""
    photo, target = (np.asarray(Image.open(f"demo/{kind}/{name}")) for kind in ("photos", "targets"))
    small_photo, look = shrunk(photo), shrunk(target)
    enlarged = Image.fromarray(np.rint(look * 255).astype(np.uint8)).resize(
        target.shape[1::-1], Image.Resampling.BICUBIC
    )
    by_transfer = psnr(transfer(photo, small_photo, look) / 255, target / 255)
    by_enlarging = psnr(np.asarray(enlarged) / 255, target / 255)
    print(f"{name}: transfer {by_transfer:.1f} dB, enlarging {by_enlarging:.1f} dB")
    assert by_transfer > by_enlarging + 0.5


def test_strips_leave_no_seam():
    """One tall photograph, cut into strips inside: rows at the cuts are like all others."""
    full = np.broadcast_to(np.linspace(40, 200, 1100)[:, None, None], (1100, 64, 3)).astype(np.uint8)
    small = np.asarray(Image.fromarray(full).resize((16, 275), Image.Resampling.BOX), np.float32) / 255
    result = transfer(full, small, small**0.7).astype(int)
    steps = np.abs(np.diff(result, axis=0)).max(axis=(1, 2))
    assert steps.max() <= 2
