"""Cut a photograph into overlapping tiles of the network's size, and blend the results.

The network processes every pixel at full resolution, which keeps detail. But its attention is global over a tile, so
two tiles may differ in tone. Each result is therefore *anchored*: its coarse part (means over `COARSE` pixels) is
replaced by that of the transferred 512x512 look, which is the same for the whole photograph, and only finer detail
comes from the tile. The weights of neighbouring tiles rise and fall over the overlap and sum to one.

Only one band of tiles is in memory at a time, and finished rows overwrite the photograph's own pixels.
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


def starts(length: int, *, side: int = SIDE, overlap: int = OVERLAP) -> list[int]:
    """Return where tiles start along ``length`` pixels: the fewest that keep the overlap, evenly spaced."""
    if length <= side:
        return [0]
    count = -(-(length - overlap) // (side - overlap))
    return [round(i * (length - side) / (count - 1)) for i in range(count)]


def windows(length: int, *, side: int = SIDE, overlap: int = OVERLAP) -> list[NDArray[np.float32]]:
    """Return the weights of each tile along ``length``, rising and falling at its ends; they sum to one everywhere."""
    tile_starts, size = starts(length, side=side, overlap=overlap), min(side, length)
    from_end = np.minimum(np.arange(size), np.arange(size)[::-1]) + 0.5
    raw = np.minimum(from_end / overlap, 1)
    total = np.zeros(length)
    for start in tile_starts:
        total[start : start + size] += raw
    return [(raw / total[start : start + size]).astype(np.float32) for start in tile_starts]


@dataclass(frozen=True)
class Tile:
    """A part of the photograph at ``[top, left]``: its core tensor, and its weights along a row (``across``)."""

    top: int
    left: int
    core: Core
    across: NDArray[np.float32]


@dataclass(frozen=True)
class Band:
    """A row of tiles. After all results are added, `finish` writes the pixel rows that no later band overlaps."""

    canvas: "Canvas"
    top: int
    final: int
    down: NDArray[np.float32]

    def __len__(self) -> int:
        return len(starts(self.canvas.photograph.pixels.shape[1]))

    def cut(self, index: int) -> Tile:
        """Return a tile, counted from the left. It takes 3 MiB, so cut it only when it is needed."""
        width = self.canvas.photograph.pixels.shape[1]
        left = starts(width)[index]
        return Tile(self.top, left, self.canvas.core_at(self.top, left), windows(width)[index])

    def add(self, tile: Tile, result: Unit) -> None:
        """Blend in the `Canvas.result_of` a tile. Not thread-safe."""
        rows, columns = result.shape[:2]
        weight = self.down[:, None, None] * tile.across[None, :, None]
        self.canvas.sums[:rows, tile.left : tile.left + columns] += weight * result

    def finish(self) -> None:
        """Write the complete rows over the photograph's own."""
        self.canvas.write(self.top, self.final)


class Canvas:
    """A photograph to which the results of tiles are added. ``look`` anchors them; without it they are not anchored."""

    def __init__(self, photograph: Photograph, look: Look | None, *, strength: float = 1.0) -> None:
        self.photograph, self.look, self.strength = photograph, look, np.float32(strength)
        height, width, channels = photograph.pixels.shape
        self.colours = channels - photograph.has_alpha
        self.sums = np.zeros((min(SIDE, height), width, self.colours), np.float32)

    def bands(self) -> Iterator[Band]:
        """Yield the bands from top to bottom; finish each before taking the next."""
        height = self.photograph.pixels.shape[0]
        tops = starts(height)
        for top, following, down in zip(tops, [*tops[1:], height], windows(height), strict=True):
            yield Band(self, top, following - top, down)

    def core_at(self, top: int, left: int) -> Core:
        """Return the core tensor of a tile; a photograph smaller than a tile is continued by its mirror image."""
        part = np.ascontiguousarray(self._part(top, left))
        srgb = to_unit(self.photograph.space.to_srgb(part))
        missing = [(0, SIDE - side) for side in srgb.shape[:2]]
        return core_from_pixels(np.pad(srgb, (*missing, (0, 0)), mode="symmetric"))

    def result_of(self, tile: Tile, restored: Core) -> Unit:
        """Return the anchored result of a tile in the photograph's colour space, HxWxC float32."""
        part = np.ascontiguousarray(self._part(tile.top, tile.left))
        rows, columns = part.shape[:2]
        before, after = (
            self.photograph.space.from_srgb(pixels_from_core(tensor[:, :rows, :columns]))
            for tensor in (tile.core, restored)
        )
        # The network's change is added to the pixels, so that colours outside sRGB are kept.
        result = to_unit(part) + self.strength * (after - before)
        if self.look is None:
            return result
        transferred = part.copy()
        self.look.apply(transferred, window=(tile.top, tile.left, *self.photograph.pixels.shape[:2]))
        return result + _coarse(to_unit(transferred) - result)

    def write(self, top: int, rows: int) -> None:
        """Write rows of the sums into the photograph, rounded, and move the rest of the sums up."""
        pixels = self.photograph.pixels
        pixels[top : top + rows, :, : self.colours] = to_integers(self.sums[:rows], pixels.dtype)
        rest = self.sums.shape[0] - rows
        self.sums[:rest] = self.sums[rows:].copy()
        self.sums[rest:] = 0

    def _part(self, top: int, left: int) -> Pixels:
        return self.photograph.pixels[top : top + SIDE, left : left + SIDE, : self.colours]


def _coarse(difference: Unit) -> Unit:
    """Return the part that varies over more than `COARSE` pixels, HxWxC float32."""
    height, width, channels = difference.shape
    rows, columns = max(1, round(height / COARSE)), max(1, round(width / COARSE))
    means = resize(difference, (rows, columns))
    planes = [Image.fromarray(np.ascontiguousarray(means[..., c])) for c in range(channels)]
    return np.stack([np.asarray(p.resize((width, height), Image.Resampling.BICUBIC)) for p in planes], axis=2)
