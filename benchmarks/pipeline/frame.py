"""Compare preprocess with the resize the network was trained with: ``python -m benchmarks.pipeline.frame FOLDER``.

The owner's path decodes the whole photograph, converts it to RGB and resizes it to 512x512 with Pillow on 8 bits; ours,
`core_from_file`, shrinks a JPEG while decoding it. The photographs of the folder are cropped to each aspect ratio and
shrunk to each size, never enlarged, and saved as JPEG of quality 92, 4:2:0. A row has the lowest PSNR and the largest
difference of its core tensors, and those of the network's output for the photograph with the lowest PSNR.

The published table is of the photographs of Debian's package ``lomiri-wallpapers-16.04``.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps

from benchmarks.report import tables
from export.fidelity import Runner, torch_runner
from export.metrics import psnr
from export.package.model_package import network_from_package, package_from_folder
from imaging import SIDE, core_from_file
from imaging.codec import shrink_factor
from operations.recording import add_record_option, find_jpegs, finish_run, show_progress

ASPECTS = {"3:2": 3 / 2, "4:3": 4 / 3, "16:9": 16 / 9, "2:3": 2 / 3}
MEGAPIXELS = (3, 5, 7, 12)


def owner_core(data: bytes) -> NDArray[np.float32]:
    """Return the core tensor as the owner's training code makes it."""
    small = Image.open(io.BytesIO(data)).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(small, np.float32).transpose(2, 0, 1) / np.float32(255))


def shrunk(path: Path, aspect: float, megapixels: int) -> bytes | None:
    """Return the middle in this aspect ratio and size as a JPEG, or None if the photograph is smaller."""
    size = round((megapixels * 1e6 * aspect) ** 0.5), round((megapixels * 1e6 / aspect) ** 0.5)
    with Image.open(path) as image:
        if min(image.width / size[0], image.height / size[1]) < 1:
            return None
        buffer = io.BytesIO()
        ImageOps.fit(image.convert("RGB"), size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def compare(files: list[bytes], run: Runner) -> dict[str, float]:
    """Return PSNR in dB and the largest difference in 8-bit steps, of core tensors and of the worst one's output."""
    cores = [(core_from_file(data), owner_core(data)) for data in files]
    worst = min(cores, key=lambda pair: psnr(*pair))
    outputs = [run(core[None])[0].clip(0, 1) for core in worst]
    return {
        "core_psnr": psnr(*worst),
        "core_difference": max(float(np.abs(ours - theirs).max()) for ours, theirs in cores) * 255,
        "output_psnr": psnr(*outputs),
        "output_difference": float(np.abs(outputs[0] - outputs[1]).max()) * 255,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, metavar="FOLDER")
    parser.add_argument("--package", type=Path, default=Path("demo/package"))
    add_record_option(parser)
    arguments = parser.parse_args()
    run = torch_runner(network_from_package(package_from_folder(arguments.package)))
    paths = find_jpegs(arguments.photos)
    rows: list[dict[str, Any]] = []
    for aspect, ratio in ASPECTS.items():
        for megapixels in MEGAPIXELS:
            show_progress(f"{aspect}, {megapixels} megapixels")
            if files := [data for path in paths if (data := shrunk(path, ratio, megapixels))]:
                shrink = shrink_factor(*simplejpeg.decode_jpeg_header(files[0])[:2])
                row = {"aspect": aspect, "megapixels": megapixels, "photographs": len(files), "shrink": shrink}
                rows.append({**row, **compare(files, run)})
    show_progress()
    print(tables.nearness_table({"rows": rows}))
    finish_run({"rows": rows}, arguments.record)


if __name__ == "__main__":
    main()
