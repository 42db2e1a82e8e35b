"""Cut a photograph into overlapping tiles of the network's size, and blend the results (docs/photographs.md).

Two tiles may differ in tone, so each result is *anchored*: its coarse part (means over `COARSE` pixels) is replaced by
that of the transferred look. Only one band of tiles is in memory at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imaging.arrays import Core, Pixels, Unit, to_integers, to_unit
from imaging.frame import SIDE, core_from_pixels, pixels_from_core, resize
from imaging.photograph import Photograph
from imaging.transfer import Look

#: Minimum overlap of neighbouring tiles, in pixels.
OVERLAP = 64
#: Side of the squares whose means are anchored, in pixels.
COARSE = 32


def starts(length: int) -> list[int]:
    """Return where tiles start along ``length`` pixels: the fewest that keep the overlap, evenly spaced."""
    if length <= SIDE:
        return [0]
    count = -(-(length - OVERLAP) // (SIDE - OVERLAP))
    return [round(i * (length - SIDE) / (count - 1)) for i in range(count)]


def windows(length: int) -> list[NDArray[np.float32]]:
    """Return the weights of each tile along ``length``, rising and falling at its ends; they sum to one everywhere."""
    tile_starts, size = starts(length), min(SIDE, length)
    from_end = np.minimum(np.arange(size), np.arange(size)[::-1]) + 0.5
    raw = np.minimum(from_end / OVERLAP, 1)
    total = np.zeros(length)
    for start in tile_starts:
        total[start : start + size] += raw
    return [(raw / total[start : start + size]).astype(np.float32) for start in tile_starts]


@dataclass(frozen=True)
class Tile:
    """The place of a tile in the photograph, ``[top, left]``, and its weights along a column and along a row."""

    top: int
    left: int
    down: NDArray[np.float32]
    across: NDArray[np.float32]


class Canvas:
    """A photograph to which the results of tiles are added. ``look`` anchors them; without it they are not anchored."""

    def __init__(self, photograph: Photograph, look: Look | None, *, strength: float = 1.0) -> None:
        self.photograph, self.look, self.strength = photograph, look, np.float32(strength)
        height, width, channels = photograph.pixels.shape
        self.colours = channels - photograph.has_alpha
        self.sums = np.zeros((min(SIDE, height), width, self.colours), np.float32)

    def bands(self) -> Iterator[list[Tile]]:
        """Yield the bands, rows of tiles, from top to bottom. Add all results of one before taking the next: the pixel
        rows that no later tile overlaps are then written over the photograph's own."""
        height, width = self.photograph.pixels.shape[:2]
        tops, columns = starts(height), list(zip(starts(width), windows(width), strict=True))
        for top, following, down in zip(tops, [*tops[1:], height], windows(height), strict=True):
            yield [Tile(top, left, down, across) for left, across in columns]
            self._write(top, following - top)

    def core_of(self, tile: Tile) -> Core:
        """Return the core tensor of a tile, 3 MiB; a smaller photograph is continued by its mirror image."""
        srgb = to_unit(self.photograph.space.to_srgb(self._part(tile)))
        missing = [(0, SIDE - side) for side in srgb.shape[:2]]
        return core_from_pixels(np.pad(srgb, (*missing, (0, 0)), mode="symmetric"))

    def result_of(self, tile: Tile, core: Core, restored: Core) -> Unit:
        """Return the anchored result of a tile in the photograph's colour space, HxWxC float32."""
        part = self._part(tile)
        rows, columns = part.shape[:2]
        before, after = (
            self.photograph.space.from_srgb(pixels_from_core(tensor[:, :rows, :columns])) for tensor in (core, restored)
        )
        # The network's change is added to the pixels, so that colours outside sRGB are kept.
        result = to_unit(part) + self.strength * (after - before)
        if self.look is None:
            return result
        transferred = part.copy()
        self.look.apply(transferred, window=(tile.top, tile.left, *self.photograph.pixels.shape[:2]))
        return result + _coarse(to_unit(transferred) - result)

    def add(self, tile: Tile, result: Unit) -> None:
        """Blend in the `result_of` a tile. Not thread-safe."""
        rows, columns = result.shape[:2]
        self.sums[:rows, tile.left : tile.left + columns] += tile.down[:, None, None] * tile.across[:, None] * result

    def _write(self, top: int, rows: int) -> None:
        """Write rows of the sums into the photograph, rounded, and move the rest of the sums up."""
        pixels = self.photograph.pixels
        pixels[top : top + rows, :, : self.colours] = to_integers(self.sums[:rows], pixels.dtype)
        rest = self.sums.shape[0] - rows
        self.sums[:rest] = self.sums[rows:].copy()
        self.sums[rest:] = 0

    def _part(self, tile: Tile) -> Pixels:
        rows, columns = slice(tile.top, tile.top + SIDE), slice(tile.left, tile.left + SIDE)
        return np.ascontiguousarray(self.photograph.pixels[rows, columns, : self.colours])


def _coarse(difference: Unit) -> Unit:
    """Return the part that varies over more than `COARSE` pixels, HxWxC float32."""
    height, width, channels = difference.shape
    rows, columns = max(1, round(height / COARSE)), max(1, round(width / COARSE))
    means = resize(difference, (rows, columns))
    planes = [Image.fromarray(np.ascontiguousarray(means[..., c])) for c in range(channels)]
    return np.stack([np.asarray(p.resize((width, height), Image.Resampling.BICUBIC)) for p in planes], axis=2)
