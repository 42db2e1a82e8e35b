"""Locate a published engine, and publish a finished one into the model repository, whole or not at all.

The version is prepared in a folder of its own and moved into place by rename; a failed build never touches the one in
service. If the machine dies between the two renames, the next build finds the old version set aside and restores it.
"""

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.errors import ExportError
from export.files import read_json, sha256


@dataclass(frozen=True)
class EngineLocation:
    """The engine file ``model/<version>/engine``, and the other names that Triton finds it under."""

    model: Path
    version: int
    engine: str
    aliases: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """The engine file."""
        return self.model / str(self.version) / self.engine


@contextlib.contextmanager
def replace_version(model: Path, version: int) -> Iterator[Path]:
    """Yield an empty folder that becomes ``model/<version>`` if the block succeeds, and is removed if it fails.

    The caller holds the lock of ``model``.
    """
    folder = model / str(version)
    aside, staging, partial = (model / f".{version}.{name}" for name in ("aside", "staging", "partial"))

    def clean_up() -> None:
        if aside.exists() and (staging.exists() or not folder.exists()):  # an error or Ctrl-C between the two renames
            shutil.rmtree(folder, ignore_errors=True)
            shutil.move(aside, folder)
        for leftover in (aside, staging, partial):
            shutil.rmtree(leftover, ignore_errors=True)

    with _explain_failure(folder):
        clean_up()  # after a build that was killed: the lock excludes a running one
        staging.mkdir()
        try:
            yield staging
            if folder.exists() and not _rename(folder, aside):
                shutil.copytree(folder, partial)
                partial.rename(aside)
                shutil.rmtree(folder)
            staging.rename(folder)
        finally:
            clean_up()


@contextlib.contextmanager
def _explain_failure(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = error.filename or target
        raise ExportError(f"cannot publish into {target}: {where}: {error.strerror or error}") from error


def keep_siblings(model: Path, version: int, engine: str, checkpoint: str, folder: Path) -> list[str]:
    """Link the version's other engines into the folder that will replace it; return the names of those dropped.

    A version is one network: an engine for another target stays if it was made from the same checkpoint.
    """
    dropped = []
    for document in documents(model / str(version)):
        name = str(document["engine"])
        if name == engine:
            continue
        package = document.get("package")
        if not isinstance(package, dict) or package.get("checkpoint_sha256") != checkpoint:
            dropped.append(name)
            continue
        for file in document.get("files", [name, f"{name}.json"]):
            if not (folder / file).exists():
                _link(model / str(version) / file, folder / file)
    return dropped


def link_aliases(location: EngineLocation, folder: Path) -> None:
    """Link engine and JSON under the engine's other names, except where an engine was built for that name."""
    for alias in location.aliases:
        if read_json(folder / f"{alias}.json").get("engine") != alias:
            for suffix in ("", ".json"):
                (folder / f"{alias}{suffix}").unlink(missing_ok=True)
                _link(folder / f"{location.engine}{suffix}", folder / f"{alias}{suffix}")


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links, or another user's file
        shutil.copy2(source, target)


def remove_version(model: Path, version: int) -> bool:
    """Remove a version: hide it by one rename, then delete it. Return False if there is none."""
    folder, aside = model / str(version), model / f".{version}.removed"
    if not folder.is_dir():
        return False
    with lock_models([model]):
        shutil.rmtree(aside, ignore_errors=True)  # of a rollback that was killed
        shutil.rmtree(aside if _rename(folder, aside) else folder)
    return True


def _rename(source: Path, target: Path) -> bool:
    """Rename a folder; return False if that is impossible, as in a lower layer of an overlay."""
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        return False
    return True


@contextlib.contextmanager
def lock_models(models: Iterable[Path]) -> Iterator[None]:
    """Hold the locks of model folders. Raises `ExportError` if another build or rollback holds one."""
    with contextlib.ExitStack() as stack:
        for model in models:
            with _explain_failure(model):
                model.mkdir(parents=True, exist_ok=True)
                lock = stack.enter_context((model / ".lock").open("w"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ExportError(f"another build or rollback uses {model}: wait until it has finished") from None
        yield


def versions(model: Path) -> list[int]:
    """List the published versions, the highest (which Triton serves) last."""
    return sorted(int(path.name) for path in model.glob("*") if path.name.isdigit())


def documents(folder: Path) -> list[dict[str, Any]]:
    """Read the JSON of every engine in a version folder whose engine file exists."""
    read = {path.name: read_json(path) for path in sorted(folder.glob("*.json"))}
    described = [document for name, document in read.items() if name == f"{document.get('engine')}.json"]
    return [document for document in described if (folder / str(document.get("engine"))).is_file()]


def provenance(path: Path) -> dict[str, Any]:
    """Read the JSON beside a published engine; empty if there is none, or it describes another or incomplete engine."""
    document = read_json(path.with_name(f"{path.name}.json"))
    is_whole = path.is_file() and all((path.parent / name).is_file() for name in document.get("files", []))
    return document if is_whole and document.get("sha256") == sha256(path) else {}


def write_json(path: Path, document: object) -> None:
    """Write indented JSON with a final newline; it is on disk when this returns."""
    with path.open("w", encoding="utf-8") as file:
        json.dump(document, file, indent=2, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
