"""Compare the ways to full resolution (``make benchmark-transfer``): the tables and crops of docs/photographs.md.

The full-size pairs of the demo answer two questions (sharp photographs, with their fused targets at full size). *What
does the transfer lose?* The look is the true target, shrunk to the model's size, so that the network plays no part.
*Which way is best with the network?* The look is the network's result, and tiles and the network at full size compete.

Each way has PSNR and SSIM at full size against the target, and the energy of fine detail (differences of neighbours) as
a part of the target's, where one is ideal; figures are means over the photographs. The ridge was chosen on these same
photographs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from benchmarks.report import tables
from export.fidelity import Runner, torch_runner
from export.metrics import distance
from export.package.model_package import network_from_package, package_from_folder
from imaging import SIDE, Look, Photograph, core_from_pixels, decode, pixels_from_core
from imaging.frame import resize
from imaging.tiles import Canvas
from operations.recording import add_record_option, finish_run, print_status

RIDGES = (3e-5, 1e-4, 3e-4, 1e-3)
#: Left and top of the crops at full size: edges against bright walls and sky, a window's frame, fine water.
CROPS = {"reading-corner": (1080, 180), "balcony": (980, 420), "valley-view": (1080, 100), "brook": (700, 420)}
CROP = 220
#: Rows of a photograph, cropped to its middle: the network at full size takes 2.3 GB a megapixel in PyTorch.
MOST_ROWS = 2560
Pixels = NDArray[Any]
Way = Callable[[Pixels, Pixels, Pixels], Pixels]
Rows = dict[str, dict[str, list[dict[str, float]]]]  #: figures of each photograph, by question and way


def shrunk(array: Pixels) -> Pixels:
    """Return the photograph at the model's size, hxwx3 float32 in [0, 1]."""
    return resize(array, (SIDE, SIDE))


def enlarge(full: Pixels, before: Pixels, after: Pixels) -> Pixels:
    """Enlarge the small result with a bicubic filter."""
    picture = Image.fromarray(np.rint(after * 255).astype(np.uint8))
    return np.asarray(picture.resize(full.shape[1::-1], Image.Resampling.BICUBIC))


def transfer_with(ridge: float | None = None) -> Way:
    """Return the transfer, with the shipped ridge or another."""

    def way(full: Pixels, before: Pixels, after: Pixels) -> Pixels:
        result = full.copy()
        Look.between(before, after, **({} if ridge is None else {"ridge": ridge})).apply(result)
        return result

    return way


def run_tiles(full: Pixels, look: Look | None, run: Runner) -> Pixels:
    """Run the network over tiles, anchored to the look or not."""
    canvas = Canvas(Photograph(full.copy(), "PNG"), look)
    for band in canvas.bands():
        for index in range(len(band)):
            tile = band.cut(index)
            band.add(tile, canvas.result_of(tile, run(tile.core[None])[0]))
        band.finish()
    return canvas.photograph.pixels


def run_whole(full: Pixels, run: Runner) -> Pixels:
    """Run the network over the whole photograph, mirrored up to a multiple of eight."""
    height, width = full.shape[:2]
    square = np.pad(full, ((0, -height % 8), (0, -width % 8), (0, 0)), mode="symmetric").transpose(2, 0, 1)
    output = run(np.ascontiguousarray(square, dtype=np.float32)[None] / np.float32(255))[0]
    result: Pixels = np.rint(np.clip(output[:, :height, :width].transpose(1, 2, 0), 0, 1) * 255).astype(np.uint8)
    return result


def detail(array: Pixels) -> float:
    """Return the mean squared difference of neighbours, along rows and columns."""
    values = array.astype(np.float32)
    return float(np.mean(np.diff(values, axis=1) ** 2) + np.mean(np.diff(values, axis=0) ** 2))


def figures(result: Pixels, target: Pixels) -> dict[str, float]:
    """Return the distance from the target, and the share of its detail."""
    found = distance(result.astype(np.float32) / 255, target.astype(np.float32) / 255)
    return {"psnr": found.psnr, "ssim": found.ssim, "detail": detail(result) / detail(target)}


def load_pixels(path: Path) -> Pixels:
    """Return the photograph, or its middle if it has more than `MOST_ROWS` rows."""
    pixels = decode(path.read_bytes()).pixels
    top = max(0, (len(pixels) - MOST_ROWS) // 2)
    return np.ascontiguousarray(pixels[top : top + MOST_ROWS])


def ways(full: Pixels, target: Pixels, run: Runner) -> dict[str, dict[str, Pixels]]:
    """Return every result for one photograph, by question and way."""
    before, true_look = shrunk(full), shrunk(target)
    after = run_square(before, run)
    sweep = {f"transfer, ridge {ridge:g}": transfer_with(ridge) for ridge in RIDGES}
    true: dict[str, Way] = {"enlarging": enlarge, **sweep}
    learned: dict[str, Way] = {"enlarging": enlarge, "transfer (enhance)": transfer_with()}
    return {
        "true look": {name: way(full, before, true_look) for name, way in true.items()},
        "network": {
            "the photograph as it came": full,
            **{name: way(full, before, after) for name, way in learned.items()},
            "tiles, not anchored": run_tiles(full, None, run),
            "tiles (enhance_tiled)": run_tiles(full, Look.between(before, after), run),
            "network at full size": run_whole(full, run),
        },
    }


def run_square(small: Pixels, run: Runner) -> Pixels:
    """Run the network on square pixels."""
    return pixels_from_core(run(core_from_pixels(small)[None])[0])


def means(rows: Rows) -> dict[str, dict[str, dict[str, float]]]:
    """Return each figure's mean over the photographs."""
    return {
        question: {
            way: {name: float(np.mean([f[name] for f in each])) for name in ("psnr", "ssim", "detail")}
            for way, each in results.items()
        }
        for question, results in rows.items()
    }


def draw_crops(shown: dict[str, dict[str, Pixels]]) -> Image.Image:
    """Draw crops at full size side by side, one photograph a row."""
    columns = list(next(iter(shown.values())))
    picture = Image.new("RGB", (len(columns) * (CROP + 4), len(shown) * (CROP + 4) + 16), "white")
    draw = ImageDraw.Draw(picture)
    for column, title in enumerate(columns):
        draw.text((column * (CROP + 4) + 2, 2), title, fill="black")
        for row, (name, results) in enumerate(shown.items()):
            left, top = CROPS[name]
            piece = Image.fromarray(results[title]).crop((left, top, left + CROP, top + CROP))
            picture.paste(piece, (column * (CROP + 4), row * (CROP + 4) + 16))
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path, default=Path("demo/package"))
    add_record_option(parser)
    parser.add_argument("--crops", type=Path, help="picture of the crops side by side")
    arguments = parser.parse_args()
    run = torch_runner(network_from_package(package_from_folder(arguments.package)))
    paths = sorted(Path("demo/targets").glob("*.jpg"))
    document = compare_ways(paths, run, arguments.crops)
    print(tables.ways_table(document))
    finish_run(document, arguments.record)


def compare_ways(paths: list[Path], run: Runner, picture: Path | None) -> dict[str, Any]:
    """Compare the ways to full resolution; save their crops as a picture."""
    rows: Rows = {"true look": {}, "network": {}}
    shown = {}
    for path in paths:
        started = time.monotonic()
        full, target = (load_pixels(Path("demo") / kind / path.name) for kind in ("photos", "targets"))
        outputs = ways(full, target, run)
        for question, results in outputs.items():
            for way, result in results.items():
                rows[question].setdefault(way, []).append(figures(result, target))
        if path.stem in CROPS:
            shown[path.stem] = {**outputs["network"], "target": target}
        print_status(f"{path.name}: {time.monotonic() - started:.0f} s")
    if picture:
        draw_crops(shown).save(picture, quality=90)
    return {"photographs": [path.name for path in paths], **means(rows)}


if __name__ == "__main__":
    main()
