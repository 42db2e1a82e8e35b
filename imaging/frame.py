"""Geometry: how a photograph of any shape fits the model's square, and back.

The photograph keeps its aspect ratio: its longer side becomes ``SIDE`` pixels, it is centred, and the rest of
the square is its own mirror image. (The network's attention is global over the square, so a black border would
change the tone of every pixel; a mirror leaves the statistics alone.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from imaging.arrays import Core, Pixels, Unit, unit

SIDE = 512  #: height and width of the core tensor, in pixels


@dataclass(frozen=True)
class Frame:
    """Where the photograph lies in the square: ``[top : top + height, left : left + width]``."""

    top: int
    left: int
    height: int
    width: int

    @classmethod
    def of(cls, height: int, width: int, *, side: int = SIDE) -> Frame:
        """The frame of a photograph of ``height`` x ``width`` pixels; every side at least one pixel."""
        scale = side / max(height, width)
        inner_height = min(side, max(1, round(height * scale)))
        inner_width = min(side, max(1, round(width * scale)))
        return cls((side - inner_height) // 2, (side - inner_width) // 2, inner_height, inner_width)


def framed(small: Pixels | Unit, *, side: int = SIDE) -> Core:
    """The core tensor of a small photograph.

    ``small`` is HxWx3, its longer side ``side``; the result is ``[3, side, side]`` float32 in [0, 1].
    """
    frame = Frame.of(*small.shape[:2], side=side)
    if (frame.height, frame.width) != small.shape[:2]:
        raise ValueError(f"the longer side of the small photograph must be {side} pixels, not {small.shape[:2]}")
    below, right = side - frame.top - frame.height, side - frame.left - frame.width
    square = np.pad(unit(small), ((frame.top, below), (frame.left, right), (0, 0)), mode="symmetric")
    return np.ascontiguousarray(square.transpose(2, 0, 1))


def unframed(tensor: Core, frame: Frame) -> Unit:
    """The photograph's part of a ``[3, side, side]`` tensor as HxWx3, clamped to [0, 1]."""
    inner = tensor[:, frame.top : frame.top + frame.height, frame.left : frame.left + frame.width]
    return np.ascontiguousarray(np.clip(inner, 0.0, 1.0).transpose(1, 2, 0), dtype=np.float32)
