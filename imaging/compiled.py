"""Loops over every pixel, compiled by Numba: one pass where NumPy would take ten.

Each function is compiled for its types when this module is imported, not by a first request. Numba keeps the machine
code beside this file, or in ``NUMBA_CACHE_DIR``; where neither is writable, each process compiles it again, which takes
a few seconds. An image built with ``NUMBA_CPU_NAME=x86-64-v3`` and `BuiltCache` contains the code and needs neither.
"""

import contextlib
import os
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba.core.caching import UserProvidedCacheLocator

#: Half-width of `box_mean`'s window, in pixels; a constant, so that the compiler unrolls the sums.
RADIUS = 2


class BuiltCache(UserProvidedCacheLocator):
    """Read compiled code from ``NUMBA_CACHE_DIR``, where it was put when the image was built.

    Selected by ``NUMBA_CACHE_LOCATOR_CLASSES=imaging.compiled.BuiltCache``. All of Numba's own locators require a
    writable folder.
    """

    def ensure_cache_path(self) -> None:
        """Make the folder while the image is built; do nothing where it cannot be written."""
        with contextlib.suppress(OSError):
            os.makedirs(self._cache_path, exist_ok=True)


def compiled(*signatures: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile the function for these types now, with the cache if there is one."""
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "nsz", "reassoc"}}

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            return numba.njit(list(signatures), cache=True, **options)(function)
        except (OSError, RuntimeError):
            return numba.njit(list(signatures), **options)(function)

    return decorate


@compiled("f4(f4[::1], i8, i8)")
def _mean_at(column: Any, i: Any, channels: Any) -> Any:
    """Average the window around one value, as far as it is inside the row."""
    total, count = np.float32(0), np.float32(0)
    for k in range(-RADIUS, RADIUS + 1):
        if 0 <= i + k * channels < column.shape[0]:
            total += column[i + k * channels]
            count += np.float32(1)
    return total / count


@compiled("void(f4[::1], f4[::1], i8)")
def _mean_along(column: Any, out: Any, channels: Any) -> None:
    """Average 2·RADIUS+1 pixels along a row of interleaved channels; at the ends those inside the image."""
    width, reach = column.shape[0], RADIUS * channels
    # Slices, because an index that could be negative (it would wrap around) prevents vectorization of the loop.
    inside, a, b = out[reach:], column[channels:], column[2 * channels :]
    c, d = column[3 * channels :], column[4 * channels :]
    for i in range(width - 2 * reach):
        inside[i] = (column[i] + a[i] + b[i] + c[i] + d[i]) * np.float32(1 / (2 * RADIUS + 1))
    # Loops of their own: with a condition in a loop over the whole row, the ends took most of the time.
    for i in range(min(reach, width)):
        out[i] = _mean_at(column, i, channels)
    for i in range(max(reach, width - reach), width):
        out[i] = _mean_at(column, i, channels)


@compiled("f4[:,::1](f4[:,::1], i8)")
def box_mean(image: Any, channels: Any) -> Any:
    """Average the (2·RADIUS+1)² window around every pixel, as far as it is inside the image; ``[h, w·C]`` float32."""
    height, width = image.shape
    result, column = np.empty_like(image), np.empty(width, np.float32)
    for y in range(height):
        low, high = max(y - RADIUS, 0), min(y + RADIUS + 1, height)
        column[:] = 0
        for k in range(low, high):
            for i in range(width):
                column[i] += image[k, i]
        column /= np.float32(high - low)
        _mean_along(column, result[y], channels)
    return result


@compiled("void(f4[::1], f4[::1], f4, f4[::1], f4[::1], f4[::1], f4[::1])")
def _add_products(x: Any, z: Any, share: Any, sums_x: Any, sums_z: Any, sums_xx: Any, sums_xz: Any) -> None:
    for i in range(x.shape[0]):
        part = share * x[i]
        sums_x[i] += part
        sums_z[i] += share * z[i]
        sums_xx[i] += part * x[i]
        sums_xz[i] += part * z[i]


@compiled("void(f4[::1], f4[::1], f4[::1], f4[::1], f4, f4, f4[::1], f4[::1])")
def _solve(x: Any, z: Any, xx: Any, xz: Any, ridge: Any, black: Any, slope: Any, offset: Any) -> None:
    for i in range(x.shape[0]):
        variance = max(xx[i] - x[i] * x[i], np.float32(0))
        gain = (z[i] + black) / (x[i] + black)
        slope[i] = (xz[i] - x[i] * z[i] + ridge * gain) / (variance + ridge)
        offset[i] = z[i] - slope[i] * x[i]


@compiled("UniTuple(f4[:,::1], 2)(f4[:,::1], f4[:,::1], i8, f4, f4)")
def fit_affine(before: Any, after: Any, channels: Any, ridge: Any, black: Any) -> Any:
    """Fit ``after = slope·before + offset`` in the window around every pixel; all arrays are ``[h, w·C]`` float32.

    This is the ridge regression of ``imaging.transfer``, before the coefficients are averaged.
    """
    height, width = before.shape
    slope, offset = np.empty_like(before), np.empty_like(before)
    sums, means = np.empty((4, width), np.float32), np.empty((4, width), np.float32)  # of x, z, x·x and x·z
    for y in range(height):
        low, high = max(y - RADIUS, 0), min(y + RADIUS + 1, height)
        share = np.float32(1) / np.float32(high - low)
        sums[:] = 0
        for k in range(low, high):
            _add_products(before[k], after[k], share, sums[0], sums[1], sums[2], sums[3])
        for k in range(4):
            _mean_along(sums[k], means[k], channels)
        _solve(means[0], means[1], means[2], means[3], ridge, black, slope[y], offset[y])
    return slope, offset


@compiled(
    "void(u1[::1], u1[::1], f4, f4, f4[::1])",
    "void(u2[::1], u2[::1], f4, f4, f4[::1])",
    "void(f4[::1], f4[::1], f4, f4, f4[::1])",
)
def _add_rows(above: Any, below: Any, share: Any, share_below: Any, sums: Any) -> None:
    for i in range(sums.shape[0]):
        sums[i] += share * np.float32(above[i]) + share_below * np.float32(below[i])


@compiled("void(f4[::1], i8[::1], f4[:,::1], f4[:,::1])")
def _weighted_along(row: Any, lefts: Any, weights: Any, out: Any) -> None:
    """Sum weighted pixels along a row of interleaved channels; three channels have an unrolled loop of their own."""
    width, channels = out.shape
    for x in range(width):
        if channels == 3:
            i, a, b, c = lefts[x] * 3, np.float32(0), np.float32(0), np.float32(0)
            for k in range(weights.shape[1]):
                a += weights[x, k] * row[i]
                b += weights[x, k] * row[i + 1]
                c += weights[x, k] * row[i + 2]
                i += 3
            out[x, 0], out[x, 1], out[x, 2] = a, b, c
        else:
            for channel in range(channels):
                total = np.float32(0)
                for k in range(weights.shape[1]):
                    total += weights[x, k] * row[(lefts[x] + k) * channels + channel]
                out[x, channel] = total


@compiled(
    "f4[:,:,::1](u1[:,:,::1], i8[::1], f4[:,::1], i8[::1], f4[:,::1])",
    "f4[:,:,::1](u2[:,:,::1], i8[::1], f4[:,::1], i8[::1], f4[:,::1])",
    "f4[:,:,::1](f4[:,:,::1], i8[::1], f4[:,::1], i8[::1], f4[:,::1])",
)
def resample(pixels: Any, tops: Any, down: Any, lefts: Any, across: Any) -> Any:
    """Resample HxWxC pixels; the result at [y, x] is the weighted sum of the pixels from [tops[y], lefts[x]] on.

    ``down`` and ``across`` hold a row of weights for each row and each column of the result. Rows are summed two at a
    time, which halves the traffic of the sums.
    """
    columns, channels = pixels.shape[1] * pixels.shape[2], pixels.shape[2]
    result, sums = np.empty((len(tops), len(lefts), channels), np.float32), np.empty(columns, np.float32)
    for y in range(len(tops)):
        sums[:] = 0
        for k in range(0, down.shape[1], 2):
            following = min(k + 1, down.shape[1] - 1)
            share = down[y, following] if following > k else np.float32(0)
            above, below = pixels[tops[y] + k], pixels[tops[y] + following]
            _add_rows(above.reshape(columns), below.reshape(columns), down[y, k], share, sums)
        _weighted_along(sums, lefts, across, result[y])
    return result


@compiled("void(f4[::1], i4[::1], f4[::1], i4, f4[::1])")
def _widen(row: Any, left: Any, part: Any, step: Any, out: Any) -> None:
    for i in range(out.shape[0]):
        before, after = row[left[i]], row[left[i] + step]
        out[i] = before + part[i] * (after - before)


@compiled(
    "void(u1[::1], f4[::1], f4[::1], f4[::1], f4[::1], f4, f4)",
    "void(u2[::1], f4[::1], f4[::1], f4[::1], f4[::1], f4, f4)",
)
def _apply_row(pixels: Any, slope0: Any, slope1: Any, offset0: Any, offset1: Any, part: Any, top: Any) -> None:
    half = np.float32(0.5)
    for i in range(pixels.shape[0]):
        slope = slope0[i] + part * (slope1[i] - slope0[i])
        offset = offset0[i] + part * (offset1[i] - offset0[i])
        value = slope * np.float32(pixels[i]) + offset + half
        pixels[i] = np.int32(min(max(value, half), top + half))


@compiled(
    "void(u1[:,::1], f4[:,::1], f4[:,::1], i4[::1], f4[::1], i4[::1], f4[::1], i4, f4)",
    "void(u2[:,::1], f4[:,::1], f4[:,::1], i4[::1], f4[::1], i4[::1], f4[::1], i4, f4)",
)
def apply_affine(
    pixels: Any, slope: Any, offset: Any, above: Any, down: Any, left: Any, along: Any, channels: Any, top: Any
) -> None:
    """Set ``pixels = slope·pixels + offset`` in place; interpolate slope and offset bilinearly from a small grid.

    ``pixels``: rows of interleaved channels, ``[H, W·C]`` uint8 or uint16. ``slope`` and ``offset``: ``[h, w·C]``
    float32, the offset in units of the pixels. ``above`` and ``down``: for each row, the grid row above it and its
    position between that and the next (0 to 1). ``left`` and ``along``: the same for each of the W·C columns. ``top``:
    the value of white.

    Each grid row is widened once for all pixel rows around it, so that the inner loop needs no gathers.
    """
    width = pixels.shape[1]
    slope0, slope1 = np.empty(width, np.float32), np.empty(width, np.float32)
    offset0, offset1 = np.empty(width, np.float32), np.empty(width, np.float32)
    here = np.int32(-2)
    for y in range(pixels.shape[0]):
        row = above[y]
        if row != here:
            if row == here + 1:
                slope0, slope1, offset0, offset1 = slope1, slope0, offset1, offset0
            else:
                _widen(slope[row], left, along, channels, slope0)
                _widen(offset[row], left, along, channels, offset0)
            _widen(slope[row + 1], left, along, channels, slope1)
            _widen(offset[row + 1], left, along, channels, offset1)
            here = row
        _apply_row(pixels[y], slope0, slope1, offset0, offset1, down[y], top)


@compiled("void(u1[:,:,::1], u1[:,:,:])", "void(u2[:,:,::1], u2[:,:,:])")
def copy_blocks(target: Any, source: Any) -> None:
    """Copy HxWxC pixels of any strides block by block, so that turning an image stays within the CPU cache."""
    height, width, channels = target.shape
    for top in range(0, height, 32):
        for left in range(0, width, 32):
            for y in range(top, min(top + 32, height)):
                for x in range(left, min(left + 32, width)):
                    for c in range(channels):
                        target[y, x, c] = source[y, x, c]
