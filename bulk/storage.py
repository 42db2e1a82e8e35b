"""Storage of photographs: a folder, or a URL that fsspec supports (``s3://``, ``gs://``, ``abfs://`` …).

Writes are atomic. On a disk, a temporary file in the same folder is renamed; an object store shows an object only when
its upload is complete; on other file systems a temporary file is moved.

Credentials and endpoints come from each file system's own settings, such as AWS_… or fsspec's configuration
(FSSPEC_S3_ENDPOINT_URL).
"""

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

#: Protocols whose uploads are atomic.
OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "oci"})
#: Names of temporary files, of `restormer_client.files.write_atomically` and of `Folder.write`.
_LEFTOVER = re.compile(r"\.(?P<name>.+\.[^.]+)\.([a-z0-9_]{8}|[0-9a-f]{32})")


@dataclass(frozen=True)
class Folder:
    """A folder of a file system. Names in it are relative, with ``/``. Can be pickled."""

    fs: Any
    root: str

    @property
    def url(self) -> str:
        """Full address of the folder; a plain path if it is local."""
        return self.root if self.is_local else str(self.fs.unstrip_protocol(self.root))

    @property
    def is_local(self) -> bool:
        """Whether the folder is on a local or mounted disk."""
        return "file" in _protocols(self.fs)

    def path(self, name: str) -> str:
        """Return the path of a file in the form that the file system expects."""
        return f"{self.root}/{name}"

    def below(self, name: str) -> "Folder":
        """Return a subfolder."""
        return Folder(self.fs, self.path(name))

    def exists(self, name: str) -> bool:
        """Return whether a file exists."""
        return bool(self.fs.exists(self.path(name)))

    def read(self, name: str) -> bytes:
        """Return the content of a file. Raise `OSError`."""
        return bytes(self.fs.cat_file(self.path(name)))

    def write(self, name: str, data: bytes) -> None:
        """Write a file atomically and create its parent folders. Raise `OSError`."""
        path = self.path(name)
        if self.is_local:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            files.write_atomically(Path(path), data)
            return
        if _protocols(self.fs) & OBJECT_STORES:
            self.fs.pipe_file(path, data)
            return
        folder, _, base = path.rpartition("/")
        self.fs.makedirs(folder, exist_ok=True)
        temporary = f"{folder}/.{base}.{uuid4().hex}"
        try:
            self.fs.pipe_file(temporary, data)
            self.fs.mv(temporary, path)
        except BaseException:
            if self.fs.exists(temporary):
                self.fs.rm_file(temporary)
            raise

    def sizes(self) -> dict[str, int]:
        """Return the size in bytes of every file in the folder and its subfolders; empty if it does not exist."""
        self.fs.invalidate_cache()  # other processes write here too
        entries = self.fs.find(self.root, detail=True)
        return {self._name(path): int(info["size"] or 0) for path, info in entries.items()}

    def names(self) -> Iterator[str]:
        """Yield the names of the files in the folder and its subfolders."""
        self.fs.invalidate_cache()
        yield from (self._name(path) for path in self.fs.find(self.root))

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""
        path = self.path(name)
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(path)

    def _name(self, path: str) -> str:
        return str(path)[len(self.root) :].lstrip("/")


def open_folder(url: str) -> Folder:
    """Return the folder at a URL or path; it need not exist. Raise `BulkError` if fsspec does not support the URL."""
    fs, root = resolve(url)
    root = root.rstrip("/")
    if not root:
        raise BulkError(f"{url!r} does not name a folder: give for example photos or s3://bucket/photos")
    return Folder(fs, root)


def resolve(url: str) -> tuple[Any, str]:
    """Return the file system of a URL or path, and the path in it. Raise `BulkError` if fsspec does not support it."""
    try:
        fs, path = url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise BulkError(f"{url}: {' '.join(str(error).split())}") from error
    return fs, str(path)


def read_file(url: str) -> bytes:
    """Return the content of the file at a URL or path. Raise `OSError`."""
    fs, path = url_to_fs(url)
    return bytes(fs.cat_file(path))


def is_hidden(name: str) -> bool:
    """Return whether a part of the name begins with a dot."""
    return any(part.startswith(".") for part in PurePosixPath(name).parts)


def is_leftover(name: str) -> bool:
    """Return whether a file is the temporary file of a killed write."""
    return bool(_LEFTOVER.fullmatch(PurePosixPath(name).name))


def folders_overlap(one: Folder, other: Folder) -> bool:
    """Return whether two folders are the same, or one contains the other."""
    if not _protocols(one.fs) & _protocols(other.fs):
        return False
    a, b = (Path(p.root).resolve() if p.is_local else PurePosixPath(p.root) for p in (one, other))
    return a == b or a in b.parents or b in a.parents


def _protocols(fs: Any) -> set[str]:
    return {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
