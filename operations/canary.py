"""Compare two versions of the network on the same photographs through one server (``make canary``).

    make canary BASELINE=1 VERSION=2

One Triton serves both versions and receives their requests in turns, so that changes of the machine affect both. The
server's own code prepares and finishes the photographs. Decibels are between the full-size results of the two
versions, and between each result and the ground truth where there is one; milliseconds are those of the network's
call. Prints a table, and one JSON object as the last line. ``--at-least`` makes it a gate.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export.errors import ExportError
from export.markdown import table
from export.metrics import psnr
from export.request import photographs
from export.triton import Runner, connect, core_runner
from imaging import InvalidRequest, Options, core_from_file, file_from_core
from operations.recording import add_record_option, exit_on_interrupt, finish_run
from traffic.server import run_server


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m operations.canary", description=str(__doc__).splitlines()[0])
    parser.add_argument("--baseline", default="1", help="version in service (default %(default)s)")
    parser.add_argument("--candidate", default="2", help="version to compare with it (default %(default)s)")
    parser.add_argument("--photos", type=Path, default=Path("demo/photos"), help="folder (default %(default)s)")
    parser.add_argument("--truth", type=Path, default=Path("demo/targets"), help="ground truth of the same names")
    parser.add_argument("--repeat", type=int, default=5, help="calls per photograph and version (default %(default)s)")
    parser.add_argument("--at-least", type=float, help="fail if a photograph has fewer dB between the versions")
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--url", help="running server that serves both versions (default: start one)")
    add_record_option(parser)
    options = parser.parse_args()
    if options.repeat < 1:
        parser.error("--repeat must be 1 or more")
    versions = (options.baseline, options.candidate)
    if len(set(versions)) < 2:
        sys.exit(f"error: --baseline and --candidate are both {versions[0]}: give two versions")
    try:
        paths = photographs(options.photos, "--photos")
        with ExitStack() as stack:
            flags = ("--versions", ",".join(versions))
            url = options.url or stack.enter_context(run_server(options.repository, *flags)).url
            client = stack.enter_context(connect(url))
            runners = {version: core_runner(client, version) for version in versions}
            rows = [compare(runners, path, options.truth, options.repeat) for path in paths]
    except (ExportError, InvalidRequest) as error:
        sys.exit(f"error: {error}")
    print(format_table(rows, versions))
    figures = {
        "versions": versions,
        "photographs": rows,
        "ms": {version: float(np.median([row["ms"][version] for row in rows])) for version in versions},
    }
    finish_run(figures, options.record)
    worst = min(rows, key=lambda row: row["between"])
    if options.at_least is not None and worst["between"] < options.at_least:
        print(f"error: {worst['name']}: {worst['between']:.1f} dB, --at-least {options.at_least:g}", file=sys.stderr)
        return 1
    return 0


def compare(runners: Mapping[str, Runner], path: Path, truth: Path, repeat: int) -> dict[str, Any]:
    """Return the full-size decibels of a photograph and the median milliseconds of each version, called in turns."""
    file = path.read_bytes()
    core = core_from_file(file)
    times: dict[str, list[float]] = {version: [] for version in runners}
    restored: dict[str, NDArray[np.float32]] = {}
    for _ in range(repeat):
        for version, run in runners.items():
            started = time.perf_counter()
            restored[version] = run(core[None])[0]
            times[version].append((time.perf_counter() - started) * 1000)
    results = {v: _pixels_from_file(file_from_core(file, core, restored[v], Options())) for v in runners}
    target = next((_pixels_from_file(each.read_bytes()) for each in truth.glob(f"{path.stem}.*")), None)
    truth_psnr = {
        version: psnr(result, target) if target is not None and target.shape == result.shape else None
        for version, result in results.items()
    }
    return {
        "name": path.stem,
        "between": min(psnr(*results.values()), 200.0),  # JSON has no infinity
        "truth": truth_psnr,
        "ms": {version: float(np.median(each)) for version, each in times.items()},
    }


def format_table(rows: Sequence[dict[str, Any]], versions: Sequence[str]) -> str:
    """Return a table with a row per photograph."""
    titles = ["photograph", "between (dB)", *(f"truth, {v} (dB)" for v in versions), *(f"{v} (ms)" for v in versions)]
    cells = []
    for row in rows:
        decibels = [row["truth"][version] for version in versions]
        against = [None if each is None else f"{each:.2f}" for each in decibels]
        cells.append([row["name"], f"{row['between']:.1f}", *against, *(f"{row['ms'][v]:.0f}" for v in versions)])
    return table(titles, cells)


def _pixels_from_file(file: bytes) -> NDArray[np.float64]:
    with Image.open(io.BytesIO(file)) as image:
        return np.asarray(image.convert("RGB"), np.float64) / 255


if __name__ == "__main__":
    exit_on_interrupt(main)
