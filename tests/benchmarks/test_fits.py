"""Lines through points whose line is known."""

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
