"""Puts a finished engine into the model repository, whole or not at all.

The version is prepared in a folder beside its place and moved there by rename; a failed build never touches the one in
service. If the machine dies between the two renames, the next build finds the old version set aside and puts it back.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from export.errors import ExportError
from export.files import sha256

MODEL = "restormer"


@contextlib.contextmanager
def staged(repository: Path, version: int) -> Iterator[Path]:
    """An empty folder that becomes ``restormer/<version>`` if the block ends well, and vanishes if it does not.

    One build at a time: a second one is refused while the first holds the lock.
    """
    model = repository / MODEL
    if not (model / "config.pbtxt").is_file():
        raise ExportError(f"{repository} is no model repository of ours: {model / 'config.pbtxt'} is missing")
    try:
        with _locked(model), _staging(model, version) as folder:
            yield folder
    except OSError as error:
        raise ExportError(f"cannot publish into {model / str(version)}: {error.strerror or error}") from error


@contextlib.contextmanager
def _staging(model: Path, version: int) -> Iterator[Path]:
    place, aside, staging = model / str(version), model / f".{version}.aside", model / f".{version}.staging"
    if aside.exists() and not place.exists():
        aside.rename(place)
    for leftover in (aside, staging):  # of a build that was killed: the lock says nobody is at work
        shutil.rmtree(leftover, ignore_errors=True)
    staging.mkdir()
    try:
        yield staging
        if place.exists():
            place.rename(aside)
        try:
            staging.rename(place)
        except OSError:
            if aside.exists():
                aside.rename(place)
            raise
    finally:
        for leftover in (aside, staging):
            shutil.rmtree(leftover, ignore_errors=True)


@contextlib.contextmanager
def _locked(model: Path) -> Iterator[None]:
    with (model / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ExportError(f"another build is publishing into {model}: wait for it to end") from None
        yield


def provenance(repository: Path, version: int, engine: str) -> dict[str, object]:
    """The JSON beside a published engine; empty if there is none or the engine is not the file it describes."""
    path = repository / MODEL / str(version) / engine
    try:
        document = json.loads(path.with_name(f"{engine}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    is_its_own = isinstance(document, dict) and path.is_file() and document.get("sha256") == sha256(path)
    return document if is_its_own else {}


def write_json(path: Path, document: object) -> None:
    """Indented JSON with a final newline, on disk before we return."""
    with path.open("w", encoding="utf-8") as file:
        json.dump(document, file, indent=2, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
