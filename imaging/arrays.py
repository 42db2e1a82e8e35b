"""The kinds of arrays in this room. All are HxWxC unless a docstring says otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

#: Encoded values: uint8, or uint16 of a 16-bit file.
Pixels: TypeAlias = NDArray[Any]
#: Values in [0, 1].
Unit: TypeAlias = NDArray[np.float32]
#: A core tensor, ``[3, 512, 512]`` float32 in [0, 1]: sRGB, planes first.
Core: TypeAlias = NDArray[np.float32]
#: Rows that `by_strips` takes at a time.
STRIP = 256


def unit(values: Pixels | Unit) -> Unit:
    """Values of any kind as float32 in [0, 1]."""
    if values.dtype == np.float32:
        return values
    found: Unit = values.astype(np.float32) / np.float32(np.iinfo(values.dtype).max)
    return found


def integers(values: Pixels | Unit, kind: Any) -> Pixels:
    """float32 values, clamped to [0, 1] and rounded, as uint8 or uint16; uint16 made uint8; others as they are."""
    if values.dtype == np.uint16 and kind == np.uint8:
        values = unit(values)
    if values.dtype != np.float32:
        return values
    return np.rint(np.clip(values, 0, 1) * np.float32(np.iinfo(kind).max)).astype(kind)


def by_strips(pixels: Pixels, channels: int, kind: Any, function: Callable[[Pixels], Pixels]) -> Pixels:
    """``function`` of HxWxC pixels, some rows at a time, so that what it needs in between stays small."""
    result = np.empty((*pixels.shape[:2], channels), kind)
    for top in range(0, len(pixels), STRIP):
        result[top : top + STRIP] = function(pixels[top : top + STRIP])
    return result
