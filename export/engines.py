"""List what is published, and roll a version back."""

import datetime
from pathlib import Path
from typing import Any

from tabulate import tabulate

from export.errors import ExportError
from export.files import sha256
from export.names import MODEL
from export.progress import say
from export.publish import documents, remove_version, versions
from export.targets import TARGETS


def engines_table(repository: Path, engines: Path) -> str:
    """Format every published engine in one line: version, age, fidelity, whether this machine can run it."""
    rows = [
        _row(folder / MODEL / str(version), document)
        for folder in (repository, engines)
        for version in versions(folder / MODEL)
        for document in documents(folder / MODEL / str(version))
    ]
    if not rows:
        return "no engine is published: make engine PRECISION=fp32"
    headers = ("engine", "precision", "target", "package", "fidelity", "age", "here")
    return str(tabulate(rows, headers, tablefmt="plain", disable_numparse=True))


def rollback(repository: Path, engines: Path, version: int) -> None:
    """Remove a version from both folders; print what is served then. Raises `ExportError` if there is none."""
    removed = [folder for folder in (repository, engines) if remove_version(folder / MODEL, version)]
    remaining = versions(repository / MODEL)
    if not removed:
        published = ", ".join(map(str, remaining)) or "none"
        raise ExportError(f"version {version} is not published in {repository / MODEL} (published: {published})")
    say(f"version {version} is removed from {', '.join(str(folder / MODEL) for folder in removed)}")
    served = f"Triton serves version {remaining[-1]} from its next start"
    say(served if remaining else "no version is left to serve: make engine")


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
        _describe_fit(folder, document),
    )


def _describe_fit(folder: Path, document: dict[str, Any]) -> str:
    """Say whether this machine can run it, with the reason if not."""
    if sha256(folder / document["engine"]) != document["sha256"]:
        return "no: the file is not the one its JSON describes"
    reason = TARGETS[document["target"]].why_not_run(document)
    return f"no: {reason}" if reason else "yes"
