"""The compiled loops and their cache."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imaging.compiled import box_mean, copy_blocks
from tests.conftest import ROOT

REPORT = """
from imaging.compiled import box_mean
print(sum(box_mean.stats.cache_hits.values()) if box_mean.stats.cache_path else -1)
"""


def cache_hits(**environment):
    """Return how often a new process loaded `box_mean` from a cache, or -1 if it has none."""
    done = subprocess.run(
        [sys.executable, "-c", REPORT], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    return int(done.stdout)


def test_containers_read_the_code_that_their_image_was_built_with(tmp_path):
    """With the settings of docker/triton-cpu.Dockerfile; a second process writes nothing."""
    settings = {
        "NUMBA_CACHE_DIR": str(tmp_path / "numba"),
        "NUMBA_CACHE_LOCATOR_CLASSES": "imaging.compiled.BuiltCache",
        "NUMBA_CPU_NAME": "x86-64-v3",
    }
    assert cache_hits(**settings) == 0
    built = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nb?")}
    assert built
    assert cache_hits(**settings) == 1
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nb?")} == built


def test_the_image_is_built_with_these_settings():
    text = (ROOT / "docker/triton-cpu.Dockerfile").read_text(encoding="utf-8")
    assert "NUMBA_CACHE_LOCATOR_CLASSES=imaging.compiled.BuiltCache" in text
    assert '-c "import adapters, imaging"' in text


def test_the_loops_are_compiled_where_no_cache_can_be_written():
    assert cache_hits(NUMBA_CACHE_DIR="/proc/nowhere", NUMBA_CACHE_LOCATOR_CLASSES="UserProvidedCacheLocator") == -1


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_box_mean_averages_the_pixels_inside_the_image(height, width, channels, seed):
    image = np.random.default_rng(seed).random((height, width, channels), np.float32)
    means = box_mean(image.reshape(height, width * channels), channels).reshape(image.shape)
    for y in range(height):
        for x in range(width):
            inside = image[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3]
            assert np.allclose(means[y, x], inside.mean((0, 1)), atol=1e-5)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_copy_blocks_copies_any_view(kind):
    source = np.random.default_rng(0).integers(0, 256, (70, 90, 3)).astype(kind)
    view = source.swapaxes(0, 1)[::-1]
    target = np.empty(view.shape, kind)
    copy_blocks(target, view)
    assert np.array_equal(target, view)
