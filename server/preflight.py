"""Everything that can be known to fail before Triton is started, each with the command that mends it."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from server.errors import ServerError
from server.settings import Settings, libpython_folder

PYTHONS = ((3, 11), (3, 12))


@dataclass(frozen=True)
class Engine:
    """The engine Triton will serve: the highest published version.

    ``sha256`` is that of its JSON: two precisions may share one graph, and then differ only there.
    """

    path: Path
    sha256: str


def check(settings: Settings) -> Engine:
    """Raises `ServerError` with the first thing that stands in the way; returns the engine to be served."""
    check_python()
    check_numpy()
    libpython_folder()
    if not settings.binary.is_file():
        raise ServerError(f"Triton is not installed ({settings.binary} is missing): make setup")
    if shutil.which("restormer-client", path=str(Path(sys.executable).parent)) is None:
        raise ServerError(f"restormer-client is not installed beside {sys.executable}: make setup")
    engine = check_engines(settings.repository)
    if settings.grpc_port == settings.metrics_port:
        raise ServerError(f"GRPC_PORT and METRICS_PORT are both {settings.grpc_port}: choose two different ports")
    for port, what in ((settings.grpc_port, "GRPC_PORT"), (settings.metrics_port, "METRICS_PORT")):
        check_port(settings.address, port, what)
    return engine


def check_python() -> None:
    """The local server's Python: numpy 1.26 has wheels up to 3.12, and the project needs 3.11."""
    version = sys.version_info[:2]
    if version not in PYTHONS:
        raise ServerError(f"Python {version[0]}.{version[1]} cannot run the local server: use Python 3.11 or 3.12")


def check_numpy() -> None:
    """Triton's Python stub predates NumPy 2: under it float tensors arrive as zeros, without an error."""
    try:
        version = metadata.version("numpy")
    except metadata.PackageNotFoundError:
        raise ServerError("the server's environment has no numpy: make setup") from None
    if int(version.split(".")[0]) >= 2:
        raise ServerError(
            f"numpy {version} in {sys.prefix}: Triton's Python stub reads zeros under numpy 2; "
            f"mend it with: {sys.executable} -m pip install numpy==1.26.4"
        )


def check_engines(repository: Path) -> Engine:
    """At least one published engine, and the bytes of each as its JSON says. Returns the highest version."""
    versions = sorted((int(p.name), p) for p in (repository / "restormer").glob("*") if p.name.isdigit())
    for version, folder in versions:
        plans = sorted(path.name for path in folder.glob("*.plan"))
        if plans and not (folder / "model.onnx").is_file():
            raise ServerError(
                f"version {version} holds {', '.join(plans)} only, which the CPU cannot serve: "
                f"make engine PRECISION=fp32 TARGET=cpu VERSION={version}, or make rollback VERSION={version}"
            )
    engines = [_checked(folder / "model.onnx") for _, folder in versions]
    if not engines:
        raise ServerError(f"no engine in {repository / 'restormer'}: make engine PRECISION=fp32")
    return engines[-1]


def _checked(path: Path) -> Engine:
    try:
        document = path.with_name(f"{path.name}.json").read_bytes()
        expected = json.loads(document)["sha256"]
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError, KeyError, TypeError):
        raise ServerError(f"{path} or its JSON is missing or unreadable: build the engine again: make engine") from None
    if found != expected:
        raise ServerError(f"{path} is not the file its JSON describes: build the engine again: make engine")
    return Engine(path, hashlib.sha256(document).hexdigest())


def check_port(address: str, port: int, variable: str) -> None:
    """Nobody else listens there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            raise ServerError(
                f"port {port} on {address} cannot be used ({error.strerror}): "
                f"stop what listens there, or choose another with {variable}=..."
            ) from None
