"""Which way to full resolution (``make benchmark-transfer``): the table and the crops of docs/photographs.md.

Two questions, on the full-size pairs of the demo (sharp photographs, their fused targets at full size). *What does the
transfer lose?* There the look is the true target, shrunk to the model's size, so that the network plays no part. *Which
way is best with the network?* There the look is what the network makes of the photograph, and tiles and the network run
at full size compete too.

For each: PSNR and SSIM at full size against the full-size target, and the energy of fine detail (differences of
neighbours) as a part of the target's, where one is ideal; means over the photographs. The ridge was chosen on these
same photographs.

A third question, on the middle of each photograph at several aspect ratios: *which frame?* The letterbox (aspect ratio
kept, the rest of the square mirrored), the stretch that is served, whose fitting windows take on the photograph's
aspect ratio, and the stretch with the look shrunk to the aspect ratio before it is fitted, so that windows are square.
``--frames`` measures this question alone.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from export.fidelity import Runner, torch_runner
from export.metrics import distance
from export.package.model_package import network_from_package, package_from_folder
from imaging import SIDE, Look, Photograph, core_from_pixels, decode, pixels_from_core
from imaging.frame import resize, small_shape
from imaging.tiles import Canvas
from operations.recording import add_record_option, finish_run, print_status, read_record

RIDGES = (3e-5, 1e-4, 3e-4, 1e-3)
#: Where to look, left and top at full size: edges against bright walls and sky, a window's frame, fine water.
CROPS = {"reading-corner": (1080, 180), "balcony": (980, 420), "valley-view": (1080, 100), "brook": (700, 420)}
CROP = 220
#: The network at full size in PyTorch takes 2.3 GB a megapixel: the middle of the one photograph that is larger.
MOST_ROWS = 2560
ASPECTS = {"1:1": 1.0, "3:2": 3 / 2, "2:3": 2 / 3, "2:1": 2.0, "4:1": 4.0}
Way = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
Rows = dict[str, dict[str, list[dict[str, float]]]]  #: figures of each photograph, by question and way


def shrunk(array: np.ndarray) -> np.ndarray:
    """The photograph at the model's size, hxwx3 float32 in [0, 1]."""
    return resize(array, (SIDE, SIDE))


def enlarged(full: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Plain bicubic enlarging of the small result."""
    picture = Image.fromarray(np.rint(after * 255).astype(np.uint8))
    return np.asarray(picture.resize(full.shape[1::-1], Image.Resampling.BICUBIC))


def transferred(ridge: float | None = None) -> Way:
    """Our transfer, with the shipped ridge or another."""

    def way(full: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        result = full.copy()
        Look.between(before, after, **({} if ridge is None else {"ridge": ridge})).apply(result)
        return result

    return way


def tiled(full: np.ndarray, look: Look | None, run: Runner) -> np.ndarray:
    """The network over tiles, anchored to the look or not."""
    canvas = Canvas(Photograph(full.copy(), "PNG"), look)
    for band in canvas.bands():
        for index in range(len(band)):
            tile = band.cut(index)
            band.add(tile, canvas.result_of(tile, run(tile.core[None])[0]))
        band.finish()
    return canvas.photograph.pixels


def whole(full: np.ndarray, run: Runner) -> np.ndarray:
    """The network over the whole photograph at once, mirrored up to a multiple of eight."""
    height, width = full.shape[:2]
    square = np.pad(full, ((0, -height % 8), (0, -width % 8), (0, 0)), mode="symmetric").transpose(2, 0, 1)
    output = run(np.ascontiguousarray(square, dtype=np.float32)[None] / np.float32(255))[0]
    return np.rint(np.clip(output[:, :height, :width].transpose(1, 2, 0), 0, 1) * 255).astype(np.uint8)


def detail(array: np.ndarray) -> float:
    """Mean squared difference of neighbours, along rows and columns."""
    values = array.astype(np.float32)
    return float(np.mean(np.diff(values, axis=1) ** 2) + np.mean(np.diff(values, axis=0) ** 2))


def figures(result: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """How near to the target, and how much of its detail."""
    found = distance(np.float32(result) / 255, np.float32(target) / 255)
    return {"psnr": found.psnr, "ssim": found.ssim, "detail": detail(result) / detail(target)}


def opened(path: Path) -> np.ndarray:
    """The photograph, its middle if it is larger than `MOST_ROWS` rows."""
    pixels = decode(path.read_bytes()).pixels
    top = max(0, (len(pixels) - MOST_ROWS) // 2)
    return np.ascontiguousarray(pixels[top : top + MOST_ROWS])


def ways(full: np.ndarray, target: np.ndarray, run: Runner) -> dict[str, dict[str, np.ndarray]]:
    """Every result for one photograph, by question and way."""
    before, true_look = shrunk(full), shrunk(target)
    after = restored(before, run)
    sweep = {f"transfer, ridge {ridge:g}": transferred(ridge) for ridge in RIDGES}
    true: dict[str, Way] = {"enlarging": enlarged, **sweep}
    learned: dict[str, Way] = {"enlarging": enlarged, "transfer (enhance)": transferred()}
    return {
        "true look": {name: way(full, before, true_look) for name, way in true.items()},
        "network": {
            "the photograph as it came": full,
            **{name: way(full, before, after) for name, way in learned.items()},
            "tiles, not anchored": tiled(full, None, run),
            "tiles (enhance_tiled)": tiled(full, Look.between(before, after), run),
            "network at full size": whole(full, run),
        },
    }


def restored(small: np.ndarray, run: Runner) -> np.ndarray:
    """What the network makes of square pixels."""
    return pixels_from_core(run(core_from_pixels(small)[None])[0])


def frames(full: np.ndarray, target: np.ndarray, run: Runner) -> dict[str, dict[str, np.ndarray]]:
    """The transfer's result by question and frame."""
    shape = small_shape(*full.shape[:2])
    kept, true_kept = resize(full, shape), resize(target, shape)
    square, true_square = shrunk(full), shrunk(target)
    margins = [((SIDE - side) // 2, SIDE - side - (SIDE - side) // 2) for side in shape]
    boxed = restored(np.pad(kept, (*margins, (0, 0)), mode="symmetric"), run)
    boxed = boxed[margins[0][0] : margins[0][0] + shape[0], margins[1][0] : margins[1][0] + shape[1]]
    after = restored(square, run)
    pairs = {
        "true look": {"letterbox": (kept, true_kept), "stretch": (square, true_square)},
        "network": {"letterbox": (kept, boxed), "stretch": (square, after)},
    }
    for each in pairs.values():
        before, look = each["stretch"]
        each["stretch, square windows"] = resize(before, shape), resize(look, shape)
    way = transferred()
    return {question: {name: way(full, *pair) for name, pair in each.items()} for question, each in pairs.items()}


def middle(pixels: np.ndarray, aspect: float) -> np.ndarray:
    """The largest middle part with this aspect ratio."""
    height, width = pixels.shape[:2]
    rows, columns = min(height, round(width / aspect)), min(width, round(height * aspect))
    top, left = (height - rows) // 2, (width - columns) // 2
    return np.ascontiguousarray(pixels[top : top + rows, left : left + columns])


def means(rows: Rows) -> dict[str, dict[str, dict[str, float]]]:
    """Each figure's mean over the photographs."""
    return {
        question: {
            way: {name: float(np.mean([f[name] for f in each])) for name in ("psnr", "ssim", "detail")}
            for way, each in results.items()
        }
        for question, results in rows.items()
    }


def compared(paths: list[Path], run: Runner) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """The frames at each aspect ratio."""
    found = {}
    for aspect, ratio in ASPECTS.items():
        rows: Rows = {"true look": {}, "network": {}}
        for path in paths:
            full, target = (middle(opened(Path("demo") / kind / path.name), ratio) for kind in ("photos", "targets"))
            for question, results in frames(full, target, run).items():
                for way, result in results.items():
                    rows[question].setdefault(way, []).append(figures(result, target))
        found[aspect] = means(rows)
        print_status(f"frames at {aspect}")
    return found


def crops(shown: dict[str, dict[str, np.ndarray]]) -> Image.Image:
    """Pieces at full size side by side, one photograph a row."""
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
    parser.add_argument("--crops", type=Path, help="picture of the pieces side by side")
    parser.add_argument("--frames", action="store_true", help="only the frames; the rest of the record stays")
    arguments = parser.parse_args()
    run = torch_runner(network_from_package(package_from_folder(arguments.package)))
    paths = sorted(Path("demo/targets").glob("*.jpg"))
    document = read_record(arguments.record) if arguments.frames else compared_ways(paths, run, arguments.crops)
    document["frames"] = compared(paths, run)
    for aspect, questions in document["frames"].items():
        printed(f"{aspect}, ", questions)
    finish_run(document, arguments.record)


def compared_ways(paths: list[Path], run: Runner, picture: Path | None) -> dict[str, Any]:
    """The ways to full resolution, and their crops side by side."""
    rows: Rows = {"true look": {}, "network": {}}
    shown = {}
    for path in paths:
        started = time.monotonic()
        full, target = (opened(Path("demo") / kind / path.name) for kind in ("photos", "targets"))
        found = ways(full, target, run)
        for question, results in found.items():
            for way, result in results.items():
                rows[question].setdefault(way, []).append(figures(result, target))
        if path.stem in CROPS:
            shown[path.stem] = {**found["network"], "target": target}
        print_status(f"{path.name}: {time.monotonic() - started:.0f} s")
    found = means(rows)
    printed("", found)
    if picture:
        crops(shown).save(picture, quality=90)
    return {"photographs": [path.name for path in paths], **found}


def printed(title: str, questions: dict[str, dict[str, dict[str, float]]]) -> None:
    """The figures as a table."""
    for question, results in questions.items():
        print(f"\n{title + question:<36} {'PSNR dB':>8} {'SSIM':>7} {'detail':>7}")
        for way, row in results.items():
            print(f"{way:<36} {row['psnr']:8.2f} {row['ssim']:7.3f} {row['detail']:7.2f}")


if __name__ == "__main__":
    main()
