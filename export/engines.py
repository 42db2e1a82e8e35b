"""What is published: the list, and taking a version back."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

from export.errors import ExportError
from export.files import sha256
from export.names import MODEL
from export.progress import say
from export.publish import documents, removed, versions
from export.targets import TARGETS


def table(repository: Path, engines: Path) -> str:
    """Every published engine, a line each: version, age, fidelity, whether it fits this machine."""
    rows = [
        _row(folder / MODEL / str(version), document)
        for folder in (repository, engines)
        for version in versions(folder / MODEL)
        for document in documents(folder / MODEL / str(version))
    ]
    if not rows:
        return "no engine is published: make engine PRECISION=fp32"
    head = ("engine", "precision", "target", "package", "fidelity", "age", "here")
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    )


def rollback(repository: Path, engines: Path, version: int) -> None:
    """Removes a version everywhere. Raises `ExportError` if there is none; says what is served then."""
    gone = [folder for folder in (repository, engines) if removed(folder / MODEL, version)]
    if not gone:
        found = ", ".join(map(str, versions(repository / MODEL))) or "none"
        raise ExportError(f"version {version} is not published in {repository / MODEL} (published: {found})")
    left = versions(repository / MODEL)
    say(f"version {version} is removed from {', '.join(str(folder / MODEL) for folder in gone)}")
    say(f"Triton serves version {left[-1]} from its next start" if left else "no version is left to serve: make engine")


def _row(folder: Path, document: dict[str, Any]) -> tuple[str, ...]:
    if "decided_by" not in document.get("fidelity", {}):
        return (str(folder / document["engine"]), *["?"] * 5, "built by an older version: build it again")
    figures = document["fidelity"]
    decisive = next(rung for rung in figures["ladder"] if rung["rung"] == figures["decided_by"])
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(document["time"])
    hours = age.total_seconds() / 3600
    emulated = " emulated" if TARGETS[document["target"]].is_emulated else ""
    return (
        str(folder / document["engine"]),
        document["precision"],
        document["target"],
        document["package"]["folder"],
        f"{decisive['psnr']:.1f} dB{emulated}",
        f"{hours / 24:.0f} days" if hours >= 48 else f"{hours:.1f} hours",
        _fits(folder, document),
    )


def _fits(folder: Path, document: dict[str, Any]) -> str:
    """Whether this machine can run it, in a word or with the reason."""
    if sha256(folder / document["engine"]) != document["sha256"]:
        return "no: not the file its JSON describes"
    reason = TARGETS[document["target"]].why_not_run(document)
    return f"no: {reason}" if reason else "yes"
