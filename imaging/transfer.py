"""Transfer a look from the small image to the full-size photograph.

Around every pixel of the small input I and the small output O, a local affine model O = a·I + b is fitted in each
channel: the guided filter of He, Sun and Tang (2013), in the fast form of He and Sun (2015). The coefficients vary
slowly, so they are enlarged instead of the image, and applied to the full-size pixels. Detail finer than the small grid
is kept, because it comes from the photograph itself.

Unlike in the guided filter, the ridge pulls the slope towards the local gain (mean of O over mean of I) and not towards
zero. A flat window does not determine the slope, and zero would wash out the texture of, say, a wall; the gain
brightens the texture as much as the wall, as another exposure would. docs/decisions/full-resolution.md compares the
method with tiles, with enlarging and with the network at full size, and varies the ridge.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from imaging.arrays import Pixels, Unit
from imaging.compiled import apply_affine, box_mean, fit_affine

#: The ridge: the variance below which a window counts as flat, and the slope follows the local gain.
EPSILON = 1e-4
#: Added to both means, so that the gain stays finite in black.
BLACK = 0.02


@dataclass(frozen=True)
class Look:
    """The change of the small image: around each pixel, ``output = slope·input + offset``.

    ``slope`` and ``offset`` are hxwxC float32, for values in [0, 1].
    """

    slope: Unit
    offset: Unit

    @classmethod
    def between(cls, before: Unit, after: Unit, *, strength: float = 1.0) -> Self:
        """Fit the look between two small images, hxwxC float32 in [0, 1]; ``strength`` is 0 (no change) to 1 (full)."""
        height, width, channels = before.shape
        flat = (height, width * channels)
        rows_before, rows_after = (np.ascontiguousarray(image).reshape(flat) for image in (before, after))
        fitted = fit_affine(rows_before, rows_after, channels, EPSILON, BLACK)
        slope, offset = (box_mean(part, channels).reshape(before.shape) for part in fitted)
        return cls(slope * np.float32(strength) + np.float32(1 - strength), offset * np.float32(strength))

    def apply(self, pixels: Pixels, *, window: tuple[int, int, int, int] | None = None) -> None:
        """Apply the look in place to the full-size ``pixels`` (HxWxC, or HxWx(C+1) with alpha, C-contiguous).

        Alpha does not change. If ``pixels`` are a part of a photograph of ``height`` x ``width``, ``window`` is
        ``(top, left, height, width)``.
        """
        top, first, height, width = window or (0, 0, *pixels.shape[:2])
        rows, columns, channels = pixels.shape
        slope, offset = _at_least_two(self.slope), _at_least_two(self.offset)
        if channels > slope.shape[2]:  # alpha
            slope = np.concatenate([slope, np.ones_like(slope[..., :1])], axis=2)
            offset = np.concatenate([offset, np.zeros_like(offset[..., :1])], axis=2)
        white = np.float32(np.iinfo(pixels.dtype).max)
        above, down = _between_grid(height, slope.shape[0], top, rows)
        before, along = _between_grid(width, slope.shape[1], first, columns)
        flat = (slope.shape[0], slope.shape[1] * channels)
        slope, offset = slope.reshape(flat), (offset * white).reshape(flat)
        left = (before[:, None] * channels + np.arange(channels, dtype=np.int32)).ravel()
        along = np.repeat(along, channels)
        apply_affine(pixels.reshape(rows, -1), slope, offset, above, down, left, along, channels, white)


def _at_least_two(grid: Unit) -> Unit:
    """Repeat a row or column of a grid that has only one: interpolation needs two."""
    rows, columns = (2 if side == 1 else 1 for side in grid.shape[:2])
    return np.ascontiguousarray(np.tile(grid, (rows, columns, 1)), dtype=np.float32)


def _between_grid(length: int, small: int, start: int, count: int) -> tuple[NDArray[np.int32], Unit]:
    """Return, for ``count`` pixels from ``start`` of ``length``, the grid point before and the distance from it."""
    position = np.clip((np.arange(start, start + count) + 0.5) * small / length - 0.5, 0, small - 1)
    before = np.minimum(position.astype(np.int32), max(small - 2, 0))
    return before, (position - before).astype(np.float32)
