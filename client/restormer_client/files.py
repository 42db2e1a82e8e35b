"""Input and output files: find photographs, name their outputs, and write atomically."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TypeVar

AnyPath = TypeVar("AnyPath", bound=PurePath)

#: File name extensions of the formats that the server writes, the usual one first.
_SUFFIXES_OF = {
    "jpeg": (".jpg", ".jpeg", ".jpe", ".jfif"), "png": (".png",), "webp": (".webp",), "tiff": (".tif", ".tiff"),
    "bmp": (".bmp",), "avif": (".avif",),
}  # fmt: skip
_FORMAT_OF = {suffix: format for format, suffixes in _SUFFIXES_OF.items() for suffix in suffixes}
_CONVERTED_TO = {".heic": "jpeg", ".heif": "jpeg", ".hif": "jpeg"}  #: read but not written
SUFFIXES = (*_FORMAT_OF, *_CONVERTED_TO)  #: of the formats that the server reads


@dataclass(frozen=True)
class Job:
    """A photograph and its output file."""

    source: Path
    target: Path

    @property
    def is_done(self) -> bool:
        """Whether the target exists and is not older than the source."""
        try:
            return self.target.stat().st_mtime >= self.source.stat().st_mtime
        except OSError:
            return False


def find_jobs(source: Path, target: Path, format: str | None) -> tuple[list[Job], list[Path]]:
    """Return a job for each photograph under ``source``, subfolders included, and the other files, sorted by name.

    Raise `ValueError` if two photographs would have the same output, or if an output would overwrite an original, and
    `OSError` if ``source`` is not a folder.
    """
    if not source.is_dir():
        raise NotADirectoryError(f"{source} is not a folder of photographs")
    if target.resolve() in (source.resolve(), *source.resolve().parents):
        raise ValueError(f"{target} is the folder of the photographs, or above it: choose another output folder")
    paths = sorted(_find_files(source, target))
    photographs = [path for path in paths if is_photograph(path.name)]
    jobs = [Job(path, target / output_path(path.relative_to(source), format)) for path in photographs]
    source_of: dict[Path, Path] = {}
    for job in jobs:
        if other := source_of.get(job.target):
            raise ValueError(f"{other} and {job.source} would both be written to {job.target}: rename one of them")
        source_of[job.target] = job.source
    return jobs, [path for path in paths if not is_photograph(path.name)]


def is_photograph(name: str) -> bool:
    """Return whether a file has the extension of a photograph."""
    return name.lower().endswith(SUFFIXES)


def _find_files(source: Path, target: Path) -> Iterator[Path]:
    """Yield the files that are not hidden, broken links, and links to folders, which are not followed."""
    excluded = target.resolve()  # an output folder inside the input folder
    for folder, folders, names in os.walk(source, onerror=_raise):
        visible = [[name for name in each if not name.startswith(".")] for each in (folders, names)]
        folders[:] = [name for name in visible[0] if (Path(folder) / name).resolve() != excluded]
        paths = [Path(folder, name) for name in (*folders, *visible[1])]
        links = {path for path in paths if path.is_symlink() and (path.is_dir() or not path.exists())}
        yield from (path for path in paths if path.is_file() or path in links)


def _raise(error: OSError) -> None:
    """Raise the errors that `os.walk` ignores by default, such as an unreadable folder."""
    raise error


def output_path(path: AnyPath, format: str | None) -> AnyPath:
    """Return the output name: the input's, with the extension of the requested format (JPEG for HEIC)."""
    new_format = format or _CONVERTED_TO.get(path.suffix.lower())
    return path.with_suffix(_SUFFIXES_OF[new_format][0]) if new_format else path


def format_from_name(path: Path, format: str | None) -> str:
    """Return the format of an output's extension. Raise `ValueError` if it is unknown, or not that of ``format``."""
    named = _FORMAT_OF.get(path.suffix.lower())
    if named is None or format not in (None, named):
        suffixes = _SUFFIXES_OF[format] if format else _FORMAT_OF
        wanted = f"--format {format}" if format else "a format that the server writes"
        raise ValueError(f"{path} is not the name of {wanted}: end it in {', '.join(suffixes)}")
    return named


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file completely or not at all, by renaming a temporary file in the same folder."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # otherwise a power loss may leave the new name with no data
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)  # the default mode of a new file; mkstemp uses 0600
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
