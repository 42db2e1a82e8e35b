"""The kinds of arrays in this room. All are HxWxC unless a docstring says otherwise."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

#: Encoded values: uint8, or uint16 of a 16-bit file.
Pixels: TypeAlias = NDArray[Any]
#: Values in [0, 1].
Unit: TypeAlias = NDArray[np.float32]
#: A core tensor, ``[3, 512, 512]`` float32 in [0, 1]: sRGB, planes first.
Core: TypeAlias = NDArray[np.float32]


def unit(values: Pixels | Unit) -> Unit:
    """Values of any kind as float32 in [0, 1]."""
    if values.dtype == np.float32:
        return values
    found: Unit = values.astype(np.float32) / np.float32(np.iinfo(values.dtype).max)
    return found


def integers(values: Pixels | Unit, kind: Any) -> Pixels:
    """float32 values, clamped to [0, 1] and rounded, as uint8 or uint16; those that are one already, as they are."""
    if values.dtype != np.float32:
        return values
    return np.rint(np.clip(values, 0, 1) * np.float32(np.iinfo(kind).max)).astype(kind)
