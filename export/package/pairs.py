"""Read pairs of input and target from a file of JSON lines, in the frame that its authors measure in.

A line is an object such as ``{"input": "images/1_src.jpg", "target": "images/1_tar.jpg"}``.
"""

import json
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from export.errors import ExportError

INPUT_KEYS, TARGET_KEYS = ("input", "src", "source"), ("target", "tar", "gt")
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Pair:
    """An input and its target; ``name`` is the input's path as the file writes it."""

    name: str
    input: Path
    target: Path


def pairs_from_file(path: Path, data: Path | None = None) -> list[Pair]:
    """Read a file of pairs. Paths are relative to ``data``, or to the file's folder.

    Raises `ExportError` for a line that is not a pair, and for missing files (up to ten are listed).
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        raise ExportError(
            f"{path} cannot be read ({error}): --pairs is a text file with one JSON object per line"
        ) from error
    folder = path.parent if data is None else data
    pairs = [_pair(line, f"{path}, line {n}", folder) for n, line in enumerate(lines, 1) if line.strip()]
    if not pairs:
        raise ExportError(f"{path} holds no pairs: one JSON object per line, with {_keys(INPUT_KEYS, TARGET_KEYS)}")
    files = dict.fromkeys(file for pair in pairs for file in (pair.input, pair.target))
    if missing := [os.path.normpath(file) for file in files if not file.is_file()]:
        more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
        raise ExportError(
            f"{path} names {len(missing)} files that do not exist: {', '.join(missing[:10])}{more}; "
            "paths are relative to --data, or to the file's own folder"
        )
    return pairs


def _pair(line: str, where: str, folder: Path) -> Pair:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{where} is not JSON ({str(error)[:80]})") from error
    if not isinstance(entry, dict):
        raise ExportError(f"{where} is not a JSON object with {_keys(INPUT_KEYS, TARGET_KEYS)}")
    names = []
    for keys in (INPUT_KEYS, TARGET_KEYS):
        name = next((entry[key] for key in keys if key in entry), None)
        if not isinstance(name, str) or not name:
            raise ExportError(f"{where} has no path under {_keys(keys)}: it has {', '.join(entry)[:80] or 'no keys'}")
        names.append(name)
    return Pair(names[0], folder / names[0], folder / names[1])


def _keys(*alternatives: tuple[str, ...]) -> str:
    return " and ".join("/".join(keys) for keys in alternatives)


def open_image(path: Path | BinaryIO, *, upright: bool = False) -> Image.Image:
    """Open an image in RGB, as it is stored or rotated by its EXIF orientation. Raises `ExportError`."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            return (ImageOps.exif_transpose(image) if upright else image).convert("RGB")
    except Exception as error:  # Pillow raises many types for a damaged file
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise ExportError(f"{path} cannot be read as an image ({reason}): fix it or remove its pair") from error


def resize_to_square(image: Image.Image) -> Pixels:
    """Resize to the square without keeping the aspect ratio, on 8 bits, as the training code does; HxWx3."""
    from imaging import SIDE  # takes a second to import, and reading a file of pairs does not need it

    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def tensor_from_pixels(pixels: Pixels) -> NDArray[np.float32]:
    """Convert HxWx3 of 8 bits to the core tensor ``[1, 3, H, W]`` in [0, 1]."""
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], np.float32) / np.float32(255)


def core_tensor_as_trained(path: Path) -> NDArray[np.float32]:
    """Read an image as the training code does: as it is stored, resized on 8 bits to the core tensor."""
    return tensor_from_pixels(resize_to_square(open_image(path)))
