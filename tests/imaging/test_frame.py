"""The frame: any photograph fits, and comes back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imaging import SIDE, Frame, framed, unframed

sides = st.integers(1, 40_000)


@given(sides, sides)
def test_lies_inside_the_square_centred_and_keeps_the_aspect(height, width):
    frame = Frame.of(height, width)
    assert max(frame.height, frame.width) == SIDE
    assert min(frame.height, frame.width) >= 1
    assert 0 <= frame.top <= frame.top + frame.height <= SIDE
    assert abs(frame.top - (SIDE - frame.top - frame.height)) <= 1
    assert abs(frame.left - (SIDE - frame.left - frame.width)) <= 1
    exact = SIDE * min(height, width) / max(height, width)
    assert abs(min(frame.height, frame.width) - max(exact, 1)) <= 0.5


@given(st.integers(1, 64), st.integers(1, 64), st.integers(0, 2**32 - 1))
def test_framed_and_back_is_the_same(height, width, seed):
    side = max(height, width)
    small = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    tensor = framed(small, side=side)
    assert tensor.shape == (3, side, side)
    assert tensor.dtype == np.float32
    assert 0 <= tensor.min() <= tensor.max() <= 1
    back = unframed(tensor, Frame.of(height, width, side=side))
    assert np.array_equal(np.rint(back * 255).astype(np.uint8), small)


def test_the_border_mirrors_the_photograph():
    small = np.arange(8 * 4 * 3, dtype=np.uint8).reshape(8, 4, 3)
    tensor = framed(small, side=8)
    assert np.array_equal(tensor[:, :, 1], tensor[:, :, 2])
    assert np.array_equal(tensor[:, :, 0], tensor[:, :, 3])


def test_a_photograph_of_the_wrong_size_is_a_programming_error():
    with pytest.raises(ValueError, match="longer side"):
        framed(np.zeros((100, 90, 3), np.uint8))
