"""Two engine versions beside each other, on the same photographs, through the server: decibels and latency.

    make canary BASELINE=1 VERSION=2

serves both versions from one Triton and asks them in turn, so that whatever else the machine does befalls both. The
photographs are prepared and finished by the code the server uses. Decibels are between the two versions' full-size
results, and of each to the truth where there is one by the photograph's name; milliseconds are of the network's call
alone. Prints a table, and one JSON object as the last line. ``--at-least`` makes it a gate.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as grpc
from numpy.typing import NDArray
from PIL import Image
from tritonclient.utils import InferenceServerException

from export.metrics import psnr
from export.names import INPUT, OUTPUT
from imaging import InvalidRequest, Options, core_from_file, file_from_core
from operations.recording import add_record_option, finish_run
from traffic.server import run_server

Core = NDArray[np.float32]


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m operations.canary", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--baseline", default="1", help="version in service (default %(default)s)")
    parser.add_argument("--candidate", default="2", help="version to be judged (default %(default)s)")
    parser.add_argument("--photos", type=Path, default=Path("demo/photos"))
    parser.add_argument("--truth", type=Path, default=Path("demo/targets"))
    parser.add_argument(
        "--repeat", type=int, default=5, help="calls of each version a photograph (default %(default)s)"
    )
    parser.add_argument("--at-least", type=float, help="fail if a photograph differs by less than so many dB")
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument(
        "--url", help="a running server that serves both (--versions); usually one of its own is started"
    )
    add_record_option(parser)
    options = parser.parse_args()
    photographs = sorted(path for path in options.photos.glob("*") if path.suffix.lower() in (".jpg", ".png", ".tif"))
    versions = (options.baseline, options.candidate)
    if not photographs:
        sys.exit(f"error: no photograph in {options.photos}: name a folder with --photos")
    if len(set(versions)) < 2:
        sys.exit(f"error: {versions[0]} is both: name two versions, make canary BASELINE=1 VERSION=2")
    try:
        with _server(options.url, options.repository, versions) as url, grpc.InferenceServerClient(url) as client:
            rows = [compared(client, path, options.truth, versions, options.repeat) for path in photographs]
    except InferenceServerException as error:
        sys.exit(f"error: {error.message()}")
    except InvalidRequest as error:
        sys.exit(f"error: {error}")
    print(table(rows, versions))
    figures = {
        "versions": versions,
        "photographs": rows,
        "ms": {v: _median(r["ms"][v] for r in rows) for v in versions},
    }
    finish_run(figures, options.record)
    worst = min(rows, key=lambda row: row["between"])
    if options.at_least is not None and worst["between"] < options.at_least:
        print(f"error: {worst['name']}: {worst['between']:.1f} dB, wanted {options.at_least:g}", file=sys.stderr)
        return 1
    return 0


def compared(
    client: grpc.InferenceServerClient, path: Path, truth: Path, versions: Sequence[str], repeat: int
) -> dict[str, Any]:
    """One photograph by every version, in turn: full-size decibels, and the medians of the network's milliseconds."""
    file = path.read_bytes()
    core = core_from_file(file)
    took: dict[str, list[float]] = {version: [] for version in versions}
    restored: dict[str, Core] = {}
    for _ in range(repeat):
        for version in versions:
            began = time.perf_counter()
            restored[version] = _restored(client, core, version)
            took[version].append((time.perf_counter() - began) * 1000)
    made = {version: _pixels(file_from_core(file, core, restored[version], Options())) for version in versions}
    aim = next((_pixels(found.read_bytes()) for found in truth.glob(f"{path.stem}.*")), None)
    return {
        "name": path.stem,
        "between": min(psnr(*made.values()), 200.0),  # equal results are infinitely alike, which JSON cannot say
        "truth": {v: psnr(made[v], aim) if aim is not None and aim.shape == made[v].shape else None for v in versions},
        "ms": {version: float(np.median(times)) for version, times in took.items()},
    }


def table(rows: Sequence[dict[str, Any]], versions: Sequence[str]) -> str:
    """For people and for Markdown."""
    titles = ["photograph", "between (dB)", *(f"truth, {v} (dB)" for v in versions), *(f"{v} (ms)" for v in versions)]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for row in rows:
        decibels = [f"{row['truth'][v]:.2f}" if row["truth"][v] is not None else "–" for v in versions]
        cells = [row["name"], f"{row['between']:.1f}", *decibels, *(f"{row['ms'][v]:.0f}" for v in versions)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


@contextlib.contextmanager
def _server(url: str | None, repository: Path, versions: Sequence[str]) -> Iterator[str]:
    if url:
        yield url
        return
    with run_server(repository, "--versions", ",".join(versions)) as server:
        yield server.url


def _restored(client: grpc.InferenceServerClient, core: Core, version: str) -> Core:
    tensor = grpc.InferInput(INPUT, [1, *core.shape], "FP32")
    tensor.set_data_from_numpy(core[None])
    output: Core = client.infer("restormer", [tensor], model_version=version, client_timeout=120).as_numpy(OUTPUT)[0]
    return output


def _pixels(file: bytes) -> NDArray[np.float64]:
    with Image.open(io.BytesIO(file)) as image:
        return np.asarray(image.convert("RGB"), np.float64) / 255


def _median(values: Iterator[float]) -> float:
    return float(np.median(list(values)))


if __name__ == "__main__":
    sys.exit(main())
