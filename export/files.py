"""Checksums, JSON, atomic writes and the path of a package's checkpoint, without PyTorch."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from export.errors import ExportError

#: File names of a checkpoint; the first that exists is read.
CHECKPOINTS = ("model_checkpoint.pt", "model_checkpoint.safetensors", "model.safetensors")


def sha256(path: Path) -> str:
    """Hash a file; hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(folder: Path) -> str:
    """Hash the names and contents of a folder's files; a folder that does not exist counts as empty."""
    return files_digest(sorted(path for path in folder.glob("*") if path.is_file()))


def files_digest(paths: Iterable[Path]) -> str:
    """Hash the names and contents of files, in their order."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.name} {sha256(path)}\n".encode())
    return digest.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty if the file is missing, damaged, or holds something else."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; create its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def checkpoint_path(folder: Path) -> Path:
    """Return the checkpoint of a package. Raises `ExportError` if there is none."""
    if not folder.is_dir():
        raise ExportError(f"--package {folder} is not a folder: give the folder of a model package")
    paths = [folder / name for name in CHECKPOINTS if (folder / name).is_file()]
    if not paths:
        raise ExportError(f"{folder} holds no {CHECKPOINTS[0]}: a model package needs at least its weights")
    return paths[0]
