"""Check the published engines: fit for this machine, and the files that their JSON describes."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server import host
from server.errors import ServerError

#: Engines built with these options run on other GPUs than the one they were built on (export/targets/tensorrt.py).
PORTABLE = ("ampere_plus", "same_cc")
#: How preprocess fits a photograph to the square (imaging/frame.py); an engine must have been checked with the same.
FRAME = "stretch-512-bilinear"
BUILD_AGAIN = "build the engine again: python -m export engine (make engine)"


@dataclass(frozen=True)
class Engine:
    """The engine that Triton serves: the highest of the served versions, and the JSON beside it.

    ``sha256`` is that of the JSON: two precisions may share one graph, and then differ only in the JSON.
    """

    path: Path
    sha256: str
    document: dict[str, Any]


def check_engines(
    repository: Path, gpus: Sequence[tuple[str, str]] = (), wanted: Sequence[int] = (), tensorrt: str | None = None
) -> Engine:
    """Check that the versions to be served are published, fit this machine, and match their JSON; return the highest.

    ``gpus`` are the GPUs that serve, none on a CPU host. ``wanted`` are the versions, by default the highest alone.
    ``tensorrt`` is the version that must have built the plans, by default the one installed here; empty: not compared.
    """
    folders = published_versions(repository)
    if not folders:
        require_repository(repository)
    if missing := [str(version) for version in wanted if version not in folders]:
        published = ", ".join(map(str, sorted(folders))) or "none"
        raise ServerError(f"version {', '.join(missing)} is not published in {repository}; published: {published}")
    engines: list[Engine] = []
    for version in versions_to_serve(repository, wanted):
        folder = folders[version]
        engines = [_check_plan(version, folder, gpu, tensorrt) for gpu in dict.fromkeys(gpus)]
        engines = engines or [_check_graph(version, folder)]
    if not engines:
        raise ServerError(f"no engine in {repository / 'restormer'}: {_build_command('tensorrt' if gpus else 'cpu')}")
    return engines[0]


def require_repository(folder: Path) -> None:
    """Raise `ServerError` for a folder without the served models."""
    if not (folder / "restormer/config.pbtxt").is_file():
        raise ServerError(f"{folder} is not a restormer repository: restormer/config.pbtxt not found: set --repository")


def published_versions(repository: Path) -> dict[int, Path]:
    """Return the folders of the published versions."""
    return {int(path.name): path for path in (repository / "restormer").glob("*") if path.name.isdigit()}


def versions_to_serve(repository: Path, wanted: Sequence[int]) -> list[int]:
    """Return the versions that Triton will load, ascending."""
    return sorted(set(wanted)) or sorted(published_versions(repository))[-1:]


def plan_documents(repository: Path, gpus: Sequence[tuple[str, str]], wanted: Sequence[int]) -> list[dict[str, Any]]:
    """Return the JSON of every plan that these GPUs will serve and whose JSON is readable; nothing is checked."""
    folders, documents = published_versions(repository), []
    for version in versions_to_serve(repository, wanted):
        for gpu in dict.fromkeys(gpus):
            with contextlib.suppress(OSError, ValueError, KeyError):
                path = _plan_path(folders[version], gpu)
                documents.append(json.loads(path.with_name(f"{path.name}.json").read_bytes()))
    return documents


def _plan_path(folder: Path, gpu: tuple[str, str]) -> Path:
    return folder / f"model.sm{gpu[1].replace('.', '')}.plan"


def _build_command(target: str, version: int = 0) -> str:
    """Return how to build an engine for the target. A plan comes from the builder, which has the server's TensorRT."""
    version_flag, version_setting = (f" --version {version}", f" VERSION={version}") if version else ("", "")
    if target == "tensorrt":
        return f"docker compose run --rm builder make engine PRECISION=fp16 TARGET=tensorrt{version_setting}"
    flags = f"--precision fp32 --target cpu{version_flag}"
    return f"python -m export engine {flags} (make engine PRECISION=fp32 TARGET=cpu{version_setting})"


def _fixes(target: str, version: int) -> str:
    remove = f"python -m export rollback --version {version} (make rollback VERSION={version})"
    return f"build it for this machine: {_build_command(target, version)}; or remove it: {remove}"


def _check_graph(version: int, folder: Path) -> Engine:
    """Check the version's engine for a CPU."""
    plans = sorted(path.name for path in folder.glob("*.plan"))
    if plans and not (folder / "model.onnx").is_file():
        raise ServerError(
            f"version {version} holds only {', '.join(plans)}, which a CPU cannot serve: {_fixes('cpu', version)}"
        )
    return _read_engine(folder / "model.onnx")


def _check_plan(version: int, folder: Path, gpu: tuple[str, str], tensorrt: str | None) -> Engine:
    """Check the version's plan for a GPU: published, built for that GPU, and by the TensorRT that will load it."""
    name, capability = gpu
    path = _plan_path(folder, gpu)
    fixes = _fixes("tensorrt", version)
    if not path.is_file():
        raise ServerError(f"version {version} has no {path.name} for {name} (compute capability {capability}): {fixes}")
    engine = _read_engine(path)
    document = engine.document
    built_for = document.get("machine", {}).get("gpu_compute_capability")
    if built_for != capability and document.get("options", {}).get("compatibility") not in PORTABLE:
        raise ServerError(f"{path} was built for compute capability {built_for}, {name} has {capability}: {fixes}")
    built_by = str(document.get("runtime", {}).get("version"))
    installed = host.tensorrt_version() if tensorrt is None else tensorrt
    if installed and not _is_same_release(built_by, installed):
        raise ServerError(f"{path} was built by TensorRT {built_by}, which {installed} here does not load: {fixes}")
    return engine


def _is_same_release(built_by: str, installed: str) -> bool:
    """Compare the numbers that both versions have: a library's name has three, Python's version has four."""
    pairs = list(zip(built_by.split("."), installed.split("."), strict=False))
    return len(pairs) >= 3 and all(a == b for a, b in pairs)


def _read_engine(path: Path) -> Engine:
    """Return the engine and its JSON; raise `ServerError` if the JSON describes another file or frame."""
    try:
        text = path.with_name(f"{path.name}.json").read_bytes()
        document = json.loads(text)
        expected = document["sha256"]
        status = path.stat()
        digest = _sha256(path, status.st_mtime_ns, status.st_size)
    except (OSError, ValueError, KeyError, TypeError):
        raise ServerError(f"{path} or its JSON is missing or unreadable: {BUILD_AGAIN}") from None
    if digest != expected:
        raise ServerError(f"{path} is not the file its JSON describes: {BUILD_AGAIN}")
    if document.get("frame") != FRAME:
        frame = document.get("frame", "an unknown frame")
        command = document.get("command", "make engine")
        raise ServerError(f"{path} was built for {frame}, this server uses {FRAME}: build the engine again: {command}")
    return Engine(path, hashlib.sha256(text).hexdigest(), document)


@functools.cache
def _sha256(path: Path, modified: int, size: int) -> str:
    """Return the file's checksum; read it only once while the file stays the same."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
