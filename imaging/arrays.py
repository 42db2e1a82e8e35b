"""Define the array types of this package and convert between them. All are HxWxC unless a docstring says otherwise."""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

#: Pixel values as encoded: uint8, or uint16 if the file has 16 bits a channel.
Pixels: TypeAlias = NDArray[Any]
#: Values in [0, 1].
Unit: TypeAlias = NDArray[np.float32]
#: A core tensor, ``[3, 512, 512]`` float32 in [0, 1]: sRGB, planes first.
Core: TypeAlias = NDArray[np.float32]
#: Number of rows that `map_strips` processes at a time.
STRIP = 256


def to_unit(values: Pixels | Unit) -> Unit:
    """Convert values of any type to float32 in [0, 1]."""
    if values.dtype == np.float32:
        return values
    result: Unit = values.astype(np.float32) / np.float32(np.iinfo(values.dtype).max)
    return result


def to_integers(values: Pixels | Unit, dtype: Any) -> Pixels:
    """Convert float32 values to uint8 or uint16 (clamped and rounded), and uint16 to uint8; return others unchanged."""
    if values.dtype == np.uint16 and dtype == np.uint8:
        values = to_unit(values)
    if values.dtype != np.float32:
        return values
    return np.rint(np.clip(values, 0, 1) * np.float32(np.iinfo(dtype).max)).astype(dtype)


def map_strips(pixels: Pixels, channels: int, dtype: Any, function: Callable[[Pixels], Pixels]) -> Pixels:
    """Apply ``function`` to HxWxC pixels, `STRIP` rows at a time, so that its intermediate arrays stay small."""
    result = np.empty((*pixels.shape[:2], channels), dtype)
    for top in range(0, len(pixels), STRIP):
        result[top : top + STRIP] = function(pixels[top : top + STRIP])
    return result
