"""The frame: how a photograph fills the network's square (docs/photographs.md).

The filter is Pillow's bilinear one, but in float32 instead of rounding to 8 bits after each direction.
"""

import numpy as np
from numpy.typing import NDArray

from imaging.arrays import Core, Pixels, Unit, to_unit
from imaging.compiled import resample

SIDE = 512  #: height and width of the core tensor, in pixels
#: The frame's name, recorded with each engine; the server rejects an engine of another frame.
FRAME = "stretch-512-bilinear"


def resize(pixels: Pixels | Unit, shape: tuple[int, int], extent: tuple[float, float] | None = None) -> Unit:
    """Resize HxWxC pixels to ``shape`` (height, width); return float32 in [0, 1].

    ``extent`` is the height and width that the photograph covers, in pixels, if it covers only a part of the last row
    or column.
    """
    height, width = extent or pixels.shape[:2]
    white = 1 if pixels.dtype == np.float32 else np.iinfo(pixels.dtype).max
    tops, down = _triangles(pixels.shape[0], shape[0], height)
    lefts, across = _triangles(pixels.shape[1], shape[1], width)
    result: Unit = resample(np.require(pixels, requirements=["C", "W"]), tops, down / np.float32(white), lefts, across)
    return result


def _triangles(length: int, size: int, extent: float) -> tuple[NDArray[np.int64], Unit]:
    """Return, for each of ``size`` samples along ``length`` pixels, its first pixel and the weights of its pixels."""
    scale = extent / size
    support = max(scale, 1.0)
    centres = (np.arange(size) + 0.5) * scale
    taps = min(int(np.ceil(2 * support)) + 1, length)
    first = np.clip(np.floor(centres - support + 0.5).astype(np.int64), 0, length - taps)
    distances = np.abs(first[:, None] + np.arange(taps) + 0.5 - centres[:, None])
    weights = np.maximum(1 - distances / support, 0)
    return first, (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def small_shape(height: int, width: int) -> tuple[int, int]:
    """Return the shape with the photograph's aspect ratio and its longer side at ``SIDE`` pixels."""
    scale = SIDE / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def core_from_pixels(small: Pixels | Unit) -> Core:
    """Turn square HxWx3 pixels into a core tensor ``[3, H, W]``, float32 in [0, 1]."""
    return np.ascontiguousarray(to_unit(small).transpose(2, 0, 1))


def pixels_from_core(core: Core) -> Unit:
    """Turn a core tensor ``[3, H, W]`` into HxWx3 pixels, clamped to [0, 1]."""
    return np.ascontiguousarray(np.clip(core, 0.0, 1.0).transpose(1, 2, 0), dtype=np.float32)
