"""The photograph in overlapping tiles of the model's size, and their results blended back.

The network sees every pixel at full resolution, which is for detail; but its attention is global over a tile, so two
tiles may differ in tone. Each result is therefore *anchored*: its coarse part (means over `COARSE` pixels) is replaced
by that of the transferred 512x512 look, which is one and the same all over the photograph, and only what is finer comes
from the tile. Windows rise and fall over the overlap and sum to one.

A band of tiles is in memory at a time, and a finished row is written over the photograph's own pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imaging.arrays import Core, Pixels, Unit, integers, unit
from imaging.frame import SIDE, resize
from imaging.photograph import Photograph
from imaging.transfer import Look

#: Least overlap of neighbours, in pixels.
OVERLAP = 64
#: Side of the squares whose mean is anchored, in pixels.
COARSE = 32


def starts(length: int, *, side: int = SIDE, overlap: int = OVERLAP) -> list[int]:
    """Where tiles begin along ``length`` pixels: as few as keep the overlap, evenly spaced, the last at the end."""
    if length <= side:
        return [0]
    count = -(-(length - overlap) // (side - overlap))
    return [round(i * (length - side) / (count - 1)) for i in range(count)]


def windows(length: int, *, side: int = SIDE, overlap: int = OVERLAP) -> list[NDArray[np.float32]]:
    """The weight of each tile along ``length``, rising and falling at its ends; over every pixel they sum to one."""
    begins, size = starts(length, side=side, overlap=overlap), min(side, length)
    from_end = np.minimum(np.arange(size), np.arange(size)[::-1]) + 0.5
    raw = np.minimum(from_end / overlap, 1)
    total = np.zeros(length)
    for begin in begins:
        total[begin : begin + size] += raw
    return [(raw / total[begin : begin + size]).astype(np.float32) for begin in begins]


@dataclass(frozen=True)
class Tile:
    """A part of the photograph at ``[top, left]``: its core tensor for the network, its weights along a row."""

    top: int
    left: int
    core: Core
    across: NDArray[np.float32]


@dataclass(frozen=True)
class Band:
    """Tiles side by side; once the results of all are added, `finish` writes what no later band touches."""

    canvas: Canvas
    top: int
    final: int
    down: NDArray[np.float32]

    def __len__(self) -> int:
        return len(starts(self.canvas.photograph.pixels.shape[1]))

    def cut(self, index: int) -> Tile:
        """The tile at that place from the left. Three MiB: cut it when its turn has come, not before."""
        width = self.canvas.photograph.pixels.shape[1]
        left = starts(width)[index]
        return Tile(self.top, left, self.canvas.core_at(self.top, left), windows(width)[index])

    def add(self, tile: Tile, result: Unit) -> None:
        """Blends in `Canvas.result_of` a tile. Not from two threads at a time."""
        rows, columns = result.shape[:2]
        weight = self.down[:, None, None] * tile.across[None, :, None]
        self.canvas.sums[:rows, tile.left : tile.left + columns] += weight * result

    def finish(self) -> None:
        """Writes the rows that are complete over the photograph's own."""
        self.canvas.write(self.top, self.final)


class Canvas:
    """A photograph while its tiles come back. ``look`` anchors them; without it they are blended as they are."""

    def __init__(self, photograph: Photograph, look: Look | None, *, strength: float = 1.0) -> None:
        self.photograph, self.look, self.strength = photograph, look, np.float32(strength)
        height, width, channels = photograph.pixels.shape
        self.colours = channels - photograph.has_alpha
        self.sums = np.zeros((min(SIDE, height), width, self.colours), np.float32)

    def bands(self) -> Iterator[Band]:
        """From top to bottom; each must be finished before the next is asked for."""
        height = self.photograph.pixels.shape[0]
        tops = starts(height)
        for top, following, down in zip(tops, [*tops[1:], height], windows(height), strict=True):
            yield Band(self, top, following - top, down)

    def core_at(self, top: int, left: int) -> Core:
        """The core tensor of the tile there; where the photograph is smaller than a tile, its mirror image goes on."""
        part = np.ascontiguousarray(self._part(top, left))
        srgb = unit(self.photograph.space.to_srgb(part))
        missing = [(0, SIDE - side) for side in srgb.shape[:2]]
        return np.ascontiguousarray(np.pad(srgb, (*missing, (0, 0)), mode="symmetric").transpose(2, 0, 1))

    def result_of(self, tile: Tile, restored: Core) -> Unit:
        """What the network made of a tile, in the photograph's colour space, anchored; HxWxC float32."""
        part = np.ascontiguousarray(self._part(tile.top, tile.left))
        rows, columns = part.shape[:2]
        before, after = (
            self.photograph.space.from_srgb(
                np.ascontiguousarray(np.clip(tensor[:, :rows, :columns], 0, 1).transpose(1, 2, 0))
            )
            for tensor in (tile.core, restored)
        )
        # The change and not the result: a colour outside sRGB stays outside.
        result = unit(part) + self.strength * (after - before)
        if self.look is None:
            return result
        carried = part.copy()
        self.look.apply(carried, window=(tile.top, tile.left, *self.photograph.pixels.shape[:2]))
        return result + _coarse(unit(carried) - result)

    def write(self, top: int, rows: int) -> None:
        """Rows of the sums, rounded, into the photograph; the rest moves up."""
        pixels = self.photograph.pixels
        pixels[top : top + rows, :, : self.colours] = integers(self.sums[:rows], pixels.dtype)
        left = self.sums.shape[0] - rows
        self.sums[:left] = self.sums[rows:].copy()
        self.sums[left:] = 0

    def _part(self, top: int, left: int) -> Pixels:
        return self.photograph.pixels[top : top + SIDE, left : left + SIDE, : self.colours]


def _coarse(difference: Unit) -> Unit:
    """Only what is wider than `COARSE` pixels, HxWxC float32."""
    height, width, channels = difference.shape
    rows, columns = max(1, round(height / COARSE)), max(1, round(width / COARSE))
    means = resize(difference, (rows, columns))
    planes = [Image.fromarray(np.ascontiguousarray(means[..., c])) for c in range(channels)]
    return np.stack([np.asarray(p.resize((width, height), Image.Resampling.BICUBIC)) for p in planes], axis=2)
