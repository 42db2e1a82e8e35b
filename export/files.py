"""Checksums and the whereabouts of a package's checkpoint; kept apart from PyTorch, so that asking is quick."""

from __future__ import annotations

import hashlib
from pathlib import Path

from export.errors import ExportError

CHECKPOINT = "model_checkpoint.pt"


def sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checkpoint_path(folder: Path) -> Path:
    """The checkpoint of a package, which must exist."""
    path = folder / CHECKPOINT
    if not folder.is_dir():
        raise ExportError(f"no model package at {folder}: give its folder as PACKAGE=...")
    if not path.is_file():
        raise ExportError(f"{folder} holds no {CHECKPOINT}: a model package needs at least its weights")
    return path
