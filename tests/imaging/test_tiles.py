"""Tiles cover the photograph, their weights sum to one, and their results have no seams and one tone."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imaging import Look, decode
from imaging.arrays import to_unit
from imaging.frame import resize
from imaging.tiles import OVERLAP, SIDE, Canvas, starts, windows
from tests.photographs import encode_16_bits, encode_image, pixels, pixels_16_bits, profile


@given(st.integers(1, 20_000))
def test_the_fewest_tiles_with_the_overlap_cover_a_side(length):
    begins = starts(length)
    assert begins[0] == 0
    assert begins[-1] == max(length - SIDE, 0)
    assert all(SIDE - (b - a) >= OVERLAP for a, b in pairwise(begins))
    assert len(begins) == 1 or (len(begins) - 1) * (SIDE - OVERLAP) + OVERLAP < length


@given(st.integers(1, 20_000))
def test_weights_sum_to_one_at_every_pixel(length):
    total = np.zeros(length)
    for start, window in zip(starts(length), windows(length), strict=True):
        assert window.min() > 0
        total[start : start + len(window)] += window
    assert np.abs(total - 1).max() < 1e-6


def run(canvas, network):
    """Run ``network`` over all tiles, one band after the other."""
    for band in canvas.bands():
        for tile in band:
            core = canvas.core_of(tile)
            assert core.shape == (3, SIDE, SIDE)
            assert core.dtype == np.float32
            canvas.add(tile, canvas.result_of(tile, core, network(tile, core)))
    return canvas.photograph.pixels


@settings(max_examples=12, deadline=None)
@given(st.integers(16, 1500), st.integers(16, 1500))
def test_a_network_that_changes_nothing_returns_the_photograph(height, width):
    photograph = decode(encode_image(pixels(max(height, -(-width // 32)), max(width, -(-height // 32))), "PNG"))
    before = photograph.pixels.copy()
    assert np.array_equal(run(Canvas(photograph, None), lambda _, core: core), before)


@pytest.mark.parametrize(
    "data",
    [
        encode_image(np.dstack([pixels(700, 900), pixels(700, 900)[..., 0]]), "PNG"),
        encode_16_bits("PNG", pixels_16_bits(3, 600, 700)),
        encode_image(pixels(600, 700)[..., 0], "PNG"),
        encode_image(
            np.zeros((600, 700, 3), np.uint8) + np.array([0, 255, 0], np.uint8), "PNG", icc_profile=profile("p3")
        ),
    ],
    ids=["alpha", "16 bits", "grey", "green outside sRGB"],
)
def test_depth_alpha_and_colours_outside_srgb_are_kept(data):
    photograph = decode(data)
    before = photograph.pixels.copy()
    assert np.array_equal(run(Canvas(photograph, None), lambda _, core: core), before)


def uneven(tile, core):
    """Act as a network whose tone depends on the tile, as with global attention: 1.0 to 1.3 times as bright."""
    number = tile.top // 400 + tile.left // 400
    return np.clip(core * np.float32(1 + 0.1 * (number % 4)), 0, 1)


def seam(result, begins):
    """Return the ratio of the mean gradient where tiles overlap to that elsewhere."""
    steps = np.abs(np.diff(result.astype(float), axis=1)).mean(axis=(0, 2))
    borders = np.zeros(len(steps), bool)
    for start in begins[1:]:
        borders[start : start + OVERLAP] = True
    return steps[borders].mean() / steps[~borders].mean()


def test_anchored_tiles_have_no_seams_and_the_tone_of_the_look():
    """On a smooth scene, where a seam is visible; the tiles differ by up to 30 %."""
    y, x = np.mgrid[0:1200, 0:1600]
    scene = np.clip(np.stack([60 + x / 40, 90 + y / 30, 120 - x / 60], 2), 0, 255).astype(np.uint8)
    data = encode_image(scene, "PNG")
    small = resize(scene, (512, 512))
    look = Look.between(small, small * np.float32(1.15))
    expected = decode(data)
    look.apply(expected.pixels)
    loose, anchored = (run(Canvas(decode(data), given), uneven) for given in (None, look))
    begins = starts(1600)
    assert seam(loose, begins) > 1.3  # the measure detects a seam
    assert seam(anchored, begins) < 1.05
    error = {
        name: np.abs(to_unit(r) - to_unit(expected.pixels)).mean()
        for name, r in (("loose", loose), ("anchored", anchored))
    }
    assert error["anchored"] < 0.1 * error["loose"]


def test_detail_comes_from_the_tiles():
    """The anchor replaces the coarse part; the network's fine detail stays."""
    grain = np.random.default_rng(1).normal(0, 0.05, (3, SIDE, SIDE)).astype(np.float32)
    scene = np.full((700, 900, 3), 128, np.uint8)
    small = resize(scene, (512, 512))
    photograph = decode(encode_image(scene, "PNG"))
    result = run(Canvas(photograph, Look.between(small, small)), lambda _, core: core + grain)
    assert 0.03 < to_unit(result)[100:400, 100:400].std() < 0.06


def test_strength_blends():
    scene = pixels(600, 900) // 2
    none, half, whole = (
        run(
            Canvas(decode(encode_image(scene, "PNG")), None, strength=s), lambda _, core: core * np.float32(1.5)
        ).astype(int)
        for s in (0, 0.5, 1)
    )
    assert np.array_equal(none, scene)
    assert np.abs(half - (none + whole) / 2).max() <= 1


def test_memory_does_not_grow_with_the_height():
    canvas = Canvas(decode(encode_image(pixels(1600, 600), "PNG")), None)
    assert canvas.sums.shape == (SIDE, 600, 3)
