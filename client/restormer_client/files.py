"""Files in and out: what a folder holds, where each photograph goes, and writing that is whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TypeVar

AnyPath = TypeVar("AnyPath", bound=PurePath)

#: Names that photographs have, as the server reads them.
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".avif", ".heic", ".heif")
_SUFFIX_OF = {"jpeg": ".jpg", "png": ".png", "webp": ".webp", "tiff": ".tif", "bmp": ".bmp", "avif": ".avif"}
_COMES_BACK_AS = {".heic": "jpeg", ".heif": "jpeg"}


@dataclass(frozen=True)
class Job:
    """A photograph, and the file its enhanced one becomes."""

    source: Path
    target: Path

    @property
    def is_done(self) -> bool:
        """Whether the target is there and no older than the source."""
        try:
            return self.target.stat().st_mtime >= self.source.stat().st_mtime
        except OSError:
            return False


def jobs(source: Path, target: Path, format: str | None) -> list[Job]:
    """A job for each photograph under ``source``, subfolders included, in the order of their names.

    Raises `ValueError` where two would become one file, or where the originals would be overwritten; `OSError` where
    ``source`` is no folder.
    """
    if not source.is_dir():
        raise NotADirectoryError(f"{source} is not a folder of photographs")
    if target.resolve() in (source.resolve(), *source.resolve().parents):
        raise ValueError(f"{target} is where the photographs are, or above: give another folder to write to")
    found = [Job(path, target / renamed(path.relative_to(source), format)) for path in _photographs(source, target)]
    taken: dict[Path, Path] = {}
    for job in found:
        if other := taken.get(job.target):
            raise ValueError(f"{other} and {job.source} would both become {job.target}: rename one of them")
        taken[job.target] = job.source
    return sorted(found, key=lambda job: job.source)


def _photographs(source: Path, target: Path) -> Iterator[Path]:
    inside = target.resolve()
    for folder, folders, names in os.walk(source, onerror=_raise):
        # What was written before is not enhanced again.
        folders[:] = [name for name in folders if (Path(folder) / name).resolve() != inside]
        named = (Path(folder, name) for name in names if name.lower().endswith(SUFFIXES) and not name.startswith("."))
        yield from (path for path in named if path.is_file())


def _raise(error: OSError) -> None:
    """A folder that cannot be read is not left out in silence."""
    raise error


def renamed(path: AnyPath, format: str | None) -> AnyPath:
    """The name an enhanced photograph has: its own, with the suffix of the format asked for (JPEG for HEIC)."""
    asked = format or _COMES_BACK_AS.get(path.suffix.lower())
    return path.with_suffix(_SUFFIX_OF[asked]) if asked else path


def write(path: Path, data: bytes) -> None:
    """Whole or not at all: into a file beside it, then renamed."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)  # mkstemp's 0600 is not what a new file is expected to have
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
