"""Compare the network that a running server serves with PyTorch float32, in decibels.

    python -m operations.served_fidelity --url 127.0.0.1:8001 --at-least 55

Each photograph is sent alone, then all of them in one batch, for which TensorRT may use other kernels. Prints a table,
and one JSON object as the last line. Fails if a photograph has fewer decibels than ``--at-least``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.errors import ExportError
from export.fidelity import core_tensors, torch_runner
from export.markdown import table
from export.metrics import psnr
from export.package.model_package import network_from_package, package_from_folder
from export.triton import Runner, connect, core_runner
from operations.recording import add_record_option, exit_on_interrupt, finish_run


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m operations.served_fidelity", description=str(__doc__).splitlines()[0]
    )
    parser.add_argument("--package", type=Path, default=Path("demo/package"), help="default %(default)s")
    parser.add_argument("--photos", type=Path, default=Path("demo/calibration"), help="folder (default %(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="photographs in the batch (default %(default)s)")
    parser.add_argument("--url", default="127.0.0.1:8001", help="running server (default %(default)s)")
    parser.add_argument("--at-least", type=float, default=55.0, help="minimum dB (default %(default)s, as for fp16)")
    add_record_option(parser)
    options = parser.parse_args()
    try:
        images = core_tensors(options.photos, options.batch)
        if len(images) < options.batch:
            raise ExportError(f"{options.photos} has {len(images)} photographs, --batch is {options.batch}")
        network = network_from_package(package_from_folder(options.package))
        with connect(options.url) as client:
            rows = compare(images, torch_runner(network), core_runner(client))
    except ExportError as error:
        sys.exit(f"error: {error}")
    titles = ["photograph", "alone (dB)", "in the batch (dB)", "batch against alone (dB)"]
    print(table(titles, [list(row.values()) for row in rows]))
    finish_run({"at_least": options.at_least, "photographs": rows}, options.record)
    worst = min(rows, key=decibels)
    if decibels(worst) < options.at_least:
        print(f"error: {worst['name']}: {decibels(worst):.1f} dB < --at-least {options.at_least:g}", file=sys.stderr)
        return 1
    return 0


def compare(images: Mapping[str, NDArray[np.float32]], reference: Runner, served: Runner) -> list[dict[str, Any]]:
    """Return the decibels of each photograph, alone and in one batch, against the reference, and between the two."""
    batch = served(np.concatenate(list(images.values()))).clip(0, 1)
    rows = []
    for (name, image), together in zip(images.items(), batch, strict=True):
        expected, alone = reference(image)[0].clip(0, 1), served(image)[0].clip(0, 1)
        pairs = {"alone": (alone, expected), "batch": (together, expected), "between": (together, alone)}
        rows.append({"name": name, **{key: min(psnr(*pair), 200.0) for key, pair in pairs.items()}})
    return rows


def decibels(row: Mapping[str, Any]) -> float:
    """Return the lowest decibels of a row."""
    return float(min(value for key, value in row.items() if key != "name"))


if __name__ == "__main__":
    exit_on_interrupt(main)
