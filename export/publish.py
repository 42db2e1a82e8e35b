"""Puts a finished engine into the model repository, whole or not at all.

The version is prepared in a folder beside its place and moved there by rename; a failed build never touches the one in
service. If the machine dies between the two renames, the next build finds the old version set aside and puts it back.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from export.errors import ExportError
from export.files import sha256

MODEL = "restormer"


@contextlib.contextmanager
def staged(repository: Path, version: int) -> Iterator[Path]:
    """An empty folder that becomes ``restormer/<version>`` if the block ends well, and vanishes if it does not."""
    model = repository / MODEL
    if not (model / "config.pbtxt").is_file():
        raise ExportError(f"{repository} is no model repository of ours: {model / 'config.pbtxt'} is missing")
    place, aside = model / str(version), model / f".{version}.aside"
    if aside.exists() and not place.exists():
        aside.rename(place)
    staging = Path(tempfile.mkdtemp(prefix=f".{version}.", dir=model))
    staging.chmod(0o755)  # mkdtemp makes it private; the server may be another user
    try:
        yield staging
        shutil.rmtree(aside, ignore_errors=True)
        if place.exists():
            place.rename(aside)
        staging.rename(place)
        shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise ExportError(f"cannot publish into {place}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def provenance(repository: Path, version: int, engine: str) -> dict[str, object]:
    """The JSON beside a published engine; empty if there is none or the engine is not the file it describes."""
    path = repository / MODEL / str(version) / engine
    try:
        document: dict[str, object] = json.loads(path.with_name(f"{engine}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if path.is_file() and document.get("sha256") == sha256(path) else {}


def write_json(path: Path, document: object) -> None:
    """Indented JSON with a final newline, on disk before we return."""
    with path.open("w", encoding="utf-8") as file:
        json.dump(document, file, indent=2, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
