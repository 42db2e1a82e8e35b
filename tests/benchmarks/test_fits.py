"""Lines and their bends, of points whose line is known."""

import numpy as np
import pytest

from benchmarks import fits

XS = (1, 2, 3, 6, 12, 24, 36, 50)


def test_a_line_through_points_of_a_line():
    found = fits.line(XS, [0.5 + 0.02 * x for x in XS])
    assert (found.constant, found.slope, found.r2) == pytest.approx((0.5, 0.02, 1.0))


def test_r_squared_is_the_share_of_the_variance_explained():
    ys = [1.0, 3.0, 2.0]
    found = fits.line([0, 1, 2], ys)
    left = sum((found.constant + found.slope * x - y) ** 2 for x, y in enumerate(ys))
    assert found.r2 == pytest.approx(1 - left / 2.0)
    assert found.r2 == pytest.approx(np.corrcoef([0, 1, 2], ys)[0, 1] ** 2)


def test_points_of_one_height_are_explained_by_any_line():
    assert fits.line(XS, [3.0] * len(XS)).r2 == 1


def test_a_bend_is_found_where_it_is():
    found = fits.bend(XS, [x * 0.1 + max(0, x - 12) * 0.3 for x in XS])
    assert (found.at, found.before, found.after) == pytest.approx((12, 0.1, 0.4))


def test_a_line_does_not_bend_nor_does_noise():
    noise = np.random.default_rng(0).normal(0, 0.05, len(XS))
    assert fits.bend(XS, [0.5 + 0.02 * x for x in XS]) is None
    assert fits.bend(XS, [0.5 + 0.02 * x + each for x, each in zip(XS, noise, strict=True)]) is None
    assert fits.bend(XS, noise) is None


def test_four_points_are_too_few_to_speak_of_a_bend():
    assert fits.bend([1, 2, 4, 8], [1, 2, 4, 20]) is None
