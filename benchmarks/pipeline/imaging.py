"""Measure what a photograph costs around the network, on one core (``make benchmark-imaging``).

The photographs are mosaics of the demo's, so that they have the grain and the edges of a camera, as JPEG of quality 92,
4:2:0. Times are CPU times of one process on one core; within a process the ways take turns; figures are medians.

*floor*: libjpeg-turbo decodes the file and encodes it again (simplejpeg). *ours*: `core_from_file` and
`file_from_core`, as in preprocess and postprocess, with a brighter picture in the place of the network's. Memory is the
peak of a process of its own above that of a small photograph; decoded input and output are 3 bytes a pixel each.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from benchmarks.child import process_memory, run_part
from benchmarks.report import tables
from operations.recording import (
    add_record_option,
    describe_circumstances,
    exit_on_interrupt,
    finish_run,
    format_make_command,
)

SIZES = {3: (2000, 1500), 6: (2832, 2124), 12: (4000, 3000), 24: (5656, 4242), 50: (8160, 6120)}
REFERENCE = 12  #: megapixels of the main row
GPU_RATE = 60  #: photographs a second of a GPU to stand beside; a round figure, not a measurement
SOURCES = ("reading-corner", "balcony", "valley-view", "brook")


@cache
def mosaic(width: int, height: int) -> NDArray[np.uint8]:
    """Return four demo photographs at their own size, mirrored beyond their edges."""
    quarter = (-(-height // 2), -(-width // 2))
    parts = []
    for name in SOURCES:
        array = np.asarray(Image.open(f"demo/photos/{name}.jpg"))
        missing = [(0, max(0, want - have)) for want, have in zip(quarter, array.shape, strict=False)]
        parts.append(np.pad(array, (*missing, (0, 0)), mode="symmetric")[: quarter[0], : quarter[1]])
    rows = [np.concatenate(parts[i : i + 2], axis=1) for i in (0, 2)]
    return np.ascontiguousarray(np.concatenate(rows)[:height, :width])


def photograph(megapixels: int) -> bytes:
    """Return the mosaic as a JPEG."""
    return bytes(simplejpeg.encode_jpeg(mosaic(*SIZES[megapixels]), 92, colorsubsampling="420"))


def run_floor(data: bytes) -> bytes:
    """Decode and encode again."""
    return bytes(simplejpeg.encode_jpeg(simplejpeg.decode_jpeg(data), 92, colorsubsampling="420"))


def brighten(core: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a result in the place of the network's; no time includes it."""
    return core ** np.float32(0.7)


def median_times(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the CPU milliseconds of each way, taking turns, after a warm-up."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            started = time.process_time()
            way()
            if number:
                taken[name].append((time.process_time() - started) * 1e3)
    return {name: statistics.median(each) for name, each in taken.items()}


def measure_times(megapixels: str, rounds: str) -> dict[str, float]:
    """Measure the floor, and ours by stage."""
    from imaging import Options, core_from_file, decode, decode_small, encode, file_from_core
    from imaging.pipeline import look_between

    data = photograph(int(megapixels))
    core = core_from_file(data)
    restored, whole, options = brighten(core), decode(data), Options()
    look = look_between(whole, core, restored, options)
    ways: dict[str, Callable[[], object]] = {
        "floor": lambda: run_floor(data),
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
    found = {**median_times(ways, int(rounds)), **median_times(stages, max(3, int(rounds) // 2))}
    return {**found, "bytes": len(data), "ratio": (found["preprocess"] + found["postprocess"]) / found["floor"]}


def enhance(data: bytes) -> None:
    """Do the work around the network once."""
    from imaging import Options, core_from_file, file_from_core

    core = core_from_file(data)
    file_from_core(data, core, brighten(core), Options())


def measure_memory(megapixels: str, path: str) -> dict[str, float]:
    """Measure the peak bytes a pixel above those of a small photograph; the file is read before."""
    data = Path(path).read_bytes()
    enhance(bytes(simplejpeg.encode_jpeg(np.zeros((600, 800, 3), np.uint8))))
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = process_memory("VmHWM")
    enhance(data)
    width, height = SIZES[int(megapixels)]
    return {"bytes_a_pixel": (process_memory("VmHWM") - before) / (width * height)}


def measure_first() -> dict[str, float]:
    """Measure the wall milliseconds of importing `imaging`, and of the first and second photograph of a process."""
    data, started = photograph(REFERENCE), time.perf_counter()
    import imaging  # noqa: F401  what is measured

    moments = [started, time.perf_counter()]
    for _ in range(2):
        enhance(data)
        moments.append(time.perf_counter())
    return dict(zip(("import", "first", "second"), np.diff(moments) * 1e3, strict=True))


def measure_formats() -> dict[str, float]:
    """Measure preprocess and postprocess together, for other files of the reference size."""
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
        restored = brighten(core)
        started = time.process_time()
        core_from_file(data)
        file_from_core(data, core, restored, Options())
        found[name] = (time.process_time() - started) * 1e3
    return found


PARTS: dict[str, Callable[..., dict[str, float]]] = {
    "times": measure_times, "memory": measure_memory, "first": measure_first, "formats": measure_formats,
}  # fmt: skip


def measure(rounds: int) -> dict[str, Any]:
    """Measure everything, each part in a process of its own."""
    run = partial(run_part, "benchmarks.pipeline.imaging")
    rows = {size: run("times", size, max(3, rounds * REFERENCE // max(size, REFERENCE))) for size in SIZES}
    with tempfile.TemporaryDirectory() as folder:
        cold = run("first", NUMBA_CACHE_DIR=folder)
        for size in SIZES:
            path = Path(folder, f"{size}.jpg")
            path.write_bytes(photograph(size))
            rows[size] |= run("memory", size, path)
    ours = [rows[size]["preprocess"] + rows[size]["postprocess"] for size in SIZES]
    slope, intercept = np.polyfit(list(SIZES), ours, 1)
    main = rows[REFERENCE]
    seconds = (main["preprocess"] + main["postprocess"]) / 1e3
    return {
        "sizes": {str(size): row for size, row in rows.items()},
        "ratio": main["ratio"],
        "fit": {
            "ms_a_megapixel": slope,
            "ms_fixed": intercept,
            "r_squared": float(np.corrcoef(list(SIZES), ours)[0, 1] ** 2),
        },
        "photographs_a_second_a_core": 1 / seconds,
        f"cores_beside_{GPU_RATE}_a_second": GPU_RATE * seconds,
        "first_request": {"compiled before": run("first"), "compiled now": cold},
        "other_files": run("formats"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    add_record_option(parser)
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        print(json.dumps(PARTS[arguments.part[0]](*arguments.part[1:])))
        return
    about = describe_circumstances(format_make_command("benchmark-imaging", parser, arguments, "record"))
    usable = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(usable)})  # of the parts too, which inherit it
    found = {"circumstances": about, **measure(arguments.rounds)}
    for show in (tables.cost_table, tables.files_table, tables.imaging_figures_table):
        print(f"{show(found)}\n")
    os.sched_setaffinity(0, usable)  # the noise is probed on all cores, as before
    finish_run(found, arguments.record)


if __name__ == "__main__":
    exit_on_interrupt(main)
