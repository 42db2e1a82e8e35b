"""Checksums and the whereabouts of a package's checkpoint; kept apart from PyTorch, so that asking is quick."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from export.errors import ExportError

#: Names a checkpoint may have, the first that is there counts.
CHECKPOINTS = ("model_checkpoint.pt", "model_checkpoint.safetensors", "model.safetensors")


def sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all, its folder too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def checkpoint_path(folder: Path) -> Path:
    """The checkpoint of a package, which must exist."""
    if not folder.is_dir():
        raise ExportError(f"no model package at {folder}: give its folder as PACKAGE=...")
    found = [folder / name for name in CHECKPOINTS if (folder / name).is_file()]
    if not found:
        raise ExportError(f"{folder} holds no {CHECKPOINTS[0]}: a model package needs at least its weights")
    return found[0]
