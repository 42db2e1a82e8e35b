"""Where photographs come from and go to: a folder, or a URL that fsspec reaches (``s3://``, ``gs://``, ``abfs://`` …).

A file is there whole or not at all. On a disk it is written beside its place and renamed; an object store shows an
object only when its upload is complete; elsewhere it is written beside its place and moved.

Credentials and endpoints are the file systems' own affair: AWS_… and the like, or fsspec's configuration
(FSSPEC_S3_ENDPOINT_URL).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from uuid import uuid4

from fsspec.core import url_to_fs
from restormer_client import files

from bulk.errors import BulkError

#: Protocols whose uploads appear whole.
OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "oci"})
#: What a write that was killed leaves beside its place, here (`restormer_client.files.write`) and elsewhere.
_LEFTOVER = re.compile(r"\.(?P<name>.+\.[^.]+)\.([a-z0-9_]{8}|[0-9a-f]{32})")


@dataclass(frozen=True)
class Place:
    """A folder of a file system. Names in it are relative, with ``/``. Pickles."""

    fs: Any
    root: str

    @property
    def url(self) -> str:
        """Its full address: a plain path on this machine's disks."""
        return self.root if self.is_local else str(self.fs.unstrip_protocol(self.root))

    @property
    def is_local(self) -> bool:
        """Whether it is on a disk of the machine (or mounted there)."""
        return "file" in _protocols(self.fs)

    def path(self, name: str) -> str:
        """The path of a file in it, as the file system takes it."""
        return f"{self.root}/{name}"

    def below(self, name: str) -> Place:
        """A folder in it."""
        return Place(self.fs, self.path(name))

    def exists(self, name: str) -> bool:
        """Whether the file is there."""
        return bool(self.fs.exists(self.path(name)))

    def read(self, name: str) -> bytes:
        """The file. Raises `OSError`."""
        return bytes(self.fs.cat_file(self.path(name)))

    def write(self, name: str, data: bytes) -> None:
        """The file, whole or not at all; folders above are made. Raises `OSError`."""
        path = self.path(name)
        if self.is_local:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            files.write(Path(path), data)
            return
        if _protocols(self.fs) & OBJECT_STORES:
            self.fs.pipe_file(path, data)
            return
        folder, _, base = path.rpartition("/")
        self.fs.makedirs(folder, exist_ok=True)
        beside = f"{folder}/.{base}.{uuid4().hex}"
        try:
            self.fs.pipe_file(beside, data)
            self.fs.mv(beside, path)
        except BaseException:
            if self.fs.exists(beside):
                self.fs.rm_file(beside)
            raise

    def sizes(self) -> dict[str, int]:
        """Every file in it and in its folders, with its bytes; none where it is not there."""
        self.fs.invalidate_cache()  # others write, too
        found = self.fs.find(self.root, detail=True)
        return {self._name(path): int(info["size"] or 0) for path, info in found.items()}

    def names(self) -> Iterator[str]:
        """The same, without sizes."""
        self.fs.invalidate_cache()
        yield from (self._name(path) for path in self.fs.find(self.root))

    def remove(self, name: str) -> None:
        """Removes the file; one that is not there is fine."""
        path = self.path(name)
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(path)

    def _name(self, path: str) -> str:
        return str(path)[len(self.root) :].lstrip("/")


def place(url: str) -> Place:
    """The folder at a URL or path, which need not be there. Raises `BulkError` where nothing knows how to reach it."""
    fs, root = reached(url)
    root = root.rstrip("/")
    if not root:
        raise BulkError(f"{url!r} names no folder: give one, as photos or s3://bucket/photos")
    return Place(fs, root)


def reached(url: str) -> tuple[Any, str]:
    """The file system of a URL or path, and the path there. Raises `BulkError` where there is none."""
    try:
        fs, path = url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise BulkError(f"{url}: {' '.join(str(error).split())}") from error
    return fs, str(path)


def read(url: str) -> bytes:
    """A photograph, wherever it is. Raises `OSError`."""
    fs, path = url_to_fs(url)
    return bytes(fs.cat_file(path))


def is_photograph(name: str) -> bool:
    """Whether a file has a photograph's name, and no part of its path is hidden."""
    parts = PurePosixPath(name).parts
    return name.lower().endswith(files.SUFFIXES) and not any(part.startswith(".") for part in parts)


def is_leftover(name: str) -> bool:
    """Whether a write that was killed left this file."""
    return bool(_LEFTOVER.fullmatch(PurePosixPath(name).name))


def overlap(one: Place, other: Place) -> bool:
    """Whether they are one folder, or one is in the other."""
    if not _protocols(one.fs) & _protocols(other.fs):
        return False
    a, b = (Path(p.root).resolve() if p.is_local else PurePosixPath(p.root) for p in (one, other))
    return a == b or a in b.parents or b in a.parents


def _protocols(fs: Any) -> set[str]:
    return {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
