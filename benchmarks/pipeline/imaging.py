"""What a photograph costs around the network, on one core (``make benchmark-imaging``).

The photographs are mosaics of the demo's, so that their grain and edges are a camera's, as JPEG of quality 92, 4:2:0.
Everything is CPU time of one process held on one core; within a process the ways take turns; the figures are medians.

*floor*: libjpeg-turbo decodes the file whole and encodes it again (simplejpeg), with nothing in between. *ours*:
`core_from_file` and `file_from_core`, which is what preprocess and postprocess do, with a brighter picture in the
network's place.
*naive*: the same steps with Pillow and NumPy as one would first write them. Memory is the peak of a process of its own
above what it held after a small photograph; decoded input and output are 3 bytes a pixel each.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image
from scipy.ndimage import uniform_filter

from operations.recording import (
    add_record_option,
    describe_circumstances,
    finish_run,
    format_make_command,
    print_status,
)

SIZES = {3: (2000, 1500), 6: (2832, 2124), 12: (4000, 3000), 24: (5656, 4242), 50: (8160, 6120)}
REFERENCE = 12  #: megapixels of the main row
GPU_RATE = 60  #: photographs a second of a GPU to stand beside; a round figure, not a measurement
LIMIT = 6  #: bytes a pixel above decoded input and output
SOURCES = ("reading-corner", "balcony", "valley-view", "brook")


@cache
def mosaic(width: int, height: int) -> np.ndarray:
    """Four demo photographs at their own size, mirrored on where they end."""
    quarter = (-(-height // 2), -(-width // 2))
    parts = []
    for name in SOURCES:
        array = np.asarray(Image.open(f"demo/photos/{name}.jpg"))
        missing = [(0, max(0, want - have)) for want, have in zip(quarter, array.shape, strict=False)]
        parts.append(np.pad(array, (*missing, (0, 0)), mode="symmetric")[: quarter[0], : quarter[1]])
    rows = [np.concatenate(parts[i : i + 2], axis=1) for i in (0, 2)]
    return np.ascontiguousarray(np.concatenate(rows)[:height, :width])


def photograph(megapixels: int) -> bytes:
    """The mosaic as a JPEG."""
    return bytes(simplejpeg.encode_jpeg(mosaic(*SIZES[megapixels]), 92, colorsubsampling="420"))


def floor(data: bytes) -> bytes:
    """Decoded and encoded again, nothing else."""
    return bytes(simplejpeg.encode_jpeg(simplejpeg.decode_jpeg(data), 92, colorsubsampling="420"))


def brightened(core: np.ndarray) -> np.ndarray:
    """Stands in for the network; not part of any time."""
    return core ** np.float32(0.7)


def naive(data: bytes) -> bytes:
    """The obvious way: Pillow decodes twice, NumPy and SciPy fit and apply, Pillow encodes."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    scale = 512 / max(image.size)
    small = np.asarray(image.resize([round(side * scale) for side in image.size], Image.Resampling.BOX)) / 255
    look = small**0.7

    def mean(array: np.ndarray) -> np.ndarray:
        return uniform_filter(array, (5, 5, 1))

    slope = (mean(small * look) - mean(small) * mean(look)) / (mean(small * small) - mean(small) ** 2 + 3e-4)
    maps = (mean(slope), mean(mean(look) - slope * mean(small)))
    full = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) / np.float32(255)
    wide = [
        [np.asarray(Image.fromarray(np.float32(m[..., c])).resize(full.shape[1::-1])) for c in range(3)] for m in maps
    ]
    result = np.stack(wide[0], -1) * full + np.stack(wide[1], -1)
    buffer = io.BytesIO()
    Image.fromarray(np.rint(np.clip(result, 0, 1) * 255).astype(np.uint8)).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def medians(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """CPU milliseconds of each way, taking turns; one round before counts for nothing."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            started = time.process_time()
            way()
            if number:
                taken[name].append((time.process_time() - started) * 1e3)
    return {name: statistics.median(each) for name, each in taken.items()}


def times(megapixels: int, rounds: int) -> dict[str, float]:
    """CPU milliseconds of the floor, ours by stage, and (at the reference size) the naive way."""
    from imaging import Options, core_from_file, decode, decode_small, encode, file_from_core
    from imaging.pipeline import look_between

    data = photograph(megapixels)
    core = core_from_file(data)
    restored, whole, options = brightened(core), decode(data), Options()
    look = look_between(whole, core, restored, options)
    ways: dict[str, Callable[[], object]] = {
        "floor": lambda: floor(data),
        "preprocess": lambda: core_from_file(data),
        "postprocess": lambda: file_from_core(data, core, restored, options),
    }
    stages: dict[str, Callable[[], object]] = {
        "decode small": lambda: decode_small(data),
        "decode": lambda: decode(data),
        "fit": lambda: look_between(whole, core, restored, options),
        "apply": lambda: look.apply(whole.pixels),
        "encode": lambda: encode(whole),
    }
    if megapixels == REFERENCE:
        ways["naive"] = lambda: naive(data)
    found = {**medians(ways, rounds), **medians(stages, max(3, rounds // 2))}
    return {**found, "bytes": len(data), "ratio": (found["preprocess"] + found["postprocess"]) / found["floor"]}


def memory(megapixels: int) -> dict[str, float]:
    """Peak bytes a pixel above what the process held after a small photograph; the file was read before."""
    from imaging import Options, core_from_file, file_from_core

    def enhance(data: bytes) -> None:
        core = core_from_file(data)
        file_from_core(data, core, brightened(core), Options())

    with tempfile.TemporaryFile() as file:
        subprocess.run(
            [sys.executable, "-m", "benchmarks.pipeline.imaging", "--file", str(megapixels)], stdout=file, check=True
        )
        file.seek(0)
        data = file.read()
    enhance(bytes(simplejpeg.encode_jpeg(np.zeros((600, 800, 3), np.uint8))))
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = _high_water()
    enhance(data)
    width, height = SIZES[megapixels]
    return {"bytes_a_pixel": (_high_water() - before) * 1024 / (width * height)}


def _high_water() -> int:
    return next(int(line.split()[1]) for line in Path("/proc/self/status").open() if line.startswith("VmHWM"))


def first_request() -> dict[str, float]:
    """Wall milliseconds of importing `imaging`, of the first photograph of a process, and of the second."""
    data, started = photograph(REFERENCE), time.perf_counter()
    from imaging import Options, core_from_file, file_from_core

    moments = [started, time.perf_counter()]
    for _ in range(2):
        core = core_from_file(data)
        file_from_core(data, core, brightened(core), Options())
        moments.append(time.perf_counter())
    return dict(zip(("import", "first", "second"), np.diff(moments) * 1e3, strict=True))


def formats() -> dict[str, float]:
    """CPU milliseconds of preprocess and postprocess together, for other files of the reference size."""
    from imagecodecs import cms_profile

    from imaging import Options, Photograph, core_from_file, encode, file_from_core
    from imaging.colour import Space

    pixels = mosaic(*SIZES[REFERENCE])
    p3 = cms_profile(
        "rgb", gamma=2.2, whitepoint=[0.3127, 0.329, 1], primaries=[0.68, 0.32, 1, 0.265, 0.69, 1, 0.15, 0.06, 1]
    )
    deep = pixels.astype(np.uint16) * 257
    files = {
        "JPEG, Display P3": encode(Photograph(pixels, "JPEG", Space("RGB", p3))),
        "JPEG, grey": encode(Photograph(pixels[..., :1].copy(), "JPEG", Space("GRAY"))),
        "PNG": encode(Photograph(pixels, "PNG")),
        "PNG, 16 bits": encode(Photograph(deep, "PNG")),
        "TIFF, 16 bits": encode(Photograph(deep, "TIFF")),
        "WebP": encode(Photograph(pixels, "WEBP")),
        "AVIF": encode(Photograph(pixels, "AVIF")),
    }
    found = {}
    for name, data in files.items():
        core = core_from_file(data)
        restored = brightened(core)
        started = time.process_time()
        core_from_file(data)
        file_from_core(data, core, restored, Options())
        found[name] = (time.process_time() - started) * 1e3
    return found


PARTS: dict[str, Callable[..., dict[str, float]]] = {
    "times": times, "memory": memory, "first": first_request, "formats": formats,
}  # fmt: skip


def measured(part: str, *arguments: int, **environment: str) -> dict[str, float]:
    """A part, in a process of its own."""
    print_status(f"{part} {' '.join(map(str, arguments))}")
    command = [sys.executable, "-m", "benchmarks.pipeline.imaging", "--part", part, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, env={**os.environ, **environment}, check=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def report(rounds: int) -> dict[str, object]:
    """Everything, as the JSON line has it."""
    rows = {size: measured("times", size, max(3, rounds * REFERENCE // max(size, REFERENCE))) for size in SIZES}
    for size in SIZES:
        rows[size] |= measured("memory", size)
    ours = [rows[size]["preprocess"] + rows[size]["postprocess"] for size in SIZES]
    slope, intercept = np.polyfit(list(SIZES), ours, 1)
    residual = np.array(ours) - (slope * np.array(list(SIZES)) + intercept)
    with tempfile.TemporaryDirectory() as empty:
        cold = measured("first", NUMBA_CACHE_DIR=empty)
    main = rows[REFERENCE]
    seconds = (main["preprocess"] + main["postprocess"]) / 1e3
    return {
        "sizes": rows,
        "ratio": main["ratio"],
        "naive_ratio": main["naive"] / main["floor"],
        "fit": {
            "ms_a_megapixel": slope,
            "ms_fixed": intercept,
            "r_squared": 1 - float(np.sum(residual**2) / np.sum((np.array(ours) - np.mean(ours)) ** 2)),
        },
        "photographs_a_second_a_core": 1 / seconds,
        f"cores_beside_{GPU_RATE}_a_second": GPU_RATE * seconds,
        "first_request": {"compiled before": measured("first"), "compiled now": cold},
        "other_files": measured("formats"),
    }


def lines(found: dict) -> list[str]:
    """The table."""
    made = [f"{'MP':>3} {'file MB':>8} {'floor':>7} {'pre':>7} {'post':>7} {'ratio':>6} {'bytes/px':>9} {'over':>5}"]
    for size, row in found["sizes"].items():
        over = row["bytes_a_pixel"] - 6
        made.append(
            f"{size:>3} {row['bytes'] / 1e6:8.1f} {row['floor']:7.1f} {row['preprocess']:7.1f} "
            f"{row['postprocess']:7.1f} {row['ratio']:6.2f} {row['bytes_a_pixel']:9.1f} {over:5.1f}"
        )
    main, fit, first = found["sizes"][REFERENCE], found["fit"], found["first_request"]
    stages = ("decode small", "decode", "fit", "apply", "encode")
    made += [
        "",
        f"{REFERENCE} MP, CPU ms by stage: " + ", ".join(f"{name} {main[name]:.1f}" for name in stages),
        f"against the floor: ours {found['ratio']:.2f}x (goal 2.0x), the naive way {found['naive_ratio']:.1f}x",
        f"growth: {fit['ms_a_megapixel']:.1f} ms a megapixel + {fit['ms_fixed']:.1f} ms, R² {fit['r_squared']:.4f}",
        f"memory: goal at most {LIMIT} bytes a pixel over decoded input and output (6)",
        f"{found['photographs_a_second_a_core']:.1f} photographs of {REFERENCE} MP a second a core; "
        f"{found[f'cores_beside_{GPU_RATE}_a_second']:.1f} cores beside {GPU_RATE} a second (calculated)",
        "first photograph of a process, wall ms: "
        + "; ".join(
            f"{name}: import {row['import']:.0f}, first {row['first']:.0f}, second {row['second']:.0f}"
            for name, row in first.items()
        ),
        f"other files of {REFERENCE} MP, CPU ms, pre and post: "
        + ", ".join(f"{name} {value:.0f}" for name, value in found["other_files"].items()),
    ]
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    add_record_option(parser)
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--file", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    is_whole = not (arguments.file or arguments.part)
    about = (
        describe_circumstances(format_make_command("benchmark-imaging", parser, arguments, "record"))
        if is_whole
        else {}
    )
    usable = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(usable)})
    if arguments.file:
        sys.stdout.buffer.write(photograph(arguments.file))
        return
    if arguments.part:
        print(json.dumps(PARTS[arguments.part[0]](*map(int, arguments.part[1:]))))
        return
    found = {"circumstances": about, **report(arguments.rounds)}
    print("\n".join(lines(found)))
    os.sched_setaffinity(0, usable)  # as when the machine was probed before
    finish_run(found, arguments.record)


if __name__ == "__main__":
    main()
