"""Run a real Triton: for the last stage of the ladder, before an engine is published, and for measuring on pairs.

``python -m server`` of the server's environment starts it on free loopback ports; it is stopped at the end.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from export.errors import ExportError
from export.names import INPUT, MODEL, OUTPUT
from imaging import InvalidPhotograph

if TYPE_CHECKING:
    from tritonclient.grpc import InferenceServerClient

Runner = Callable[[NDArray[np.float32]], NDArray[np.float32]]
TIMEOUT = 600  #: seconds that a start and a call may take: a large network on a busy CPU is slow


@contextmanager
def serve_engine(python: Path, repository: Path, engine: Path) -> Iterator[Runner]:
    """Run a Triton that serves the version folder ``engine``; yield a function from core tensor to core tensor.

    It serves a copy of the model repository that holds only this engine. Raises `ExportError`.
    """
    with tempfile.TemporaryDirectory() as name:
        models = Path(name) / "models"
        shutil.copytree(repository, models, ignore=_without_versions)
        shutil.copytree(engine, models / MODEL / "1")
        with start_triton(python, models) as address, connect(address) as client:
            yield core_runner(client)


@contextmanager
def start_triton(python: Path, repository: Path, *flags: str) -> Iterator[str]:
    """Run a Triton on the published engines of a repository, which is only read; yield its address.

    ``python`` is the interpreter of the server's environment, ``flags`` are more flags of its command line. Raises
    `ExportError` with the last line that the server printed.
    """
    with tempfile.TemporaryDirectory() as state:
        if not python.is_file():
            raise ExportError(f"--server-python {python} not found: install the server (make setup)")
        grpc_port, metrics_port = _free_ports()
        command = [str(python.absolute()), "-m", "server", "--repository", str(repository), "--state", state]
        command += ["--grpc-port", str(grpc_port), "--metrics-port", str(metrics_port)]
        command += ["--wheel", str(python.absolute().parents[2] / "triton"), "--hardware", "cpu"]
        command += ["--start-timeout", str(TIMEOUT), *flags]
        try:
            start = subprocess.run([*command, "start"], capture_output=True, text=True, check=False)
            if start.returncode:
                last = (start.stderr.strip().splitlines() or ["no message"])[-1]
                raise ExportError(f"Triton does not serve the engine: {last.removeprefix('error: ')}")
            yield f"127.0.0.1:{grpc_port}"
        finally:
            subprocess.run([*command, "stop"], capture_output=True, check=False)


@contextmanager
def connect(address: str) -> Iterator[InferenceServerClient]:
    """Connect to a Triton; its errors become `ExportError`."""
    import tritonclient.grpc as grpc

    try:
        with grpc.InferenceServerClient(address) as client:
            client.is_server_live()  # fail now, not after minutes, if nothing listens there
            yield client
    except grpc.InferenceServerException as error:
        raise ExportError(f"Triton on {address} does not answer: {error.message()}") from error


def core_runner(client: InferenceServerClient, version: str = "") -> Runner:
    """Return a function from core tensor to core tensor that calls a version of the network, the highest by default.

    Raises `ExportError` if the version is not served.
    """
    import tritonclient.grpc as grpc

    if not client.is_model_ready(MODEL, version):
        raise ExportError(f"Triton does not serve {MODEL}, version {version}: start it with --versions")

    def run(image: NDArray[np.float32]) -> NDArray[np.float32]:
        tensor = grpc.InferInput(INPUT, list(image.shape), "FP32")
        tensor.set_data_from_numpy(image)
        answer = client.infer(MODEL, [tensor], model_version=version, client_timeout=TIMEOUT)
        output: NDArray[np.float32] = answer.as_numpy(OUTPUT)
        return output

    return run


def enhance(client: InferenceServerClient, photograph: bytes) -> bytes:
    """Send a photograph's file through ``enhance`` with its defaults. Raises `InvalidPhotograph` if it is rejected."""
    import tritonclient.grpc as grpc

    tensor = grpc.InferInput("IMAGE", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[photograph]], np.object_))
    try:
        answer = client.infer("enhance", [tensor], client_timeout=TIMEOUT)
    except grpc.InferenceServerException as error:
        if error.status() == "StatusCode.INVALID_ARGUMENT":
            raise InvalidPhotograph(error.message()) from error
        raise
    result: bytes = answer.as_numpy("ENHANCED").item()
    return result


def _without_versions(path: str, names: list[str]) -> list[str]:
    is_model = Path(path).name == MODEL
    return [n for n in names if n == "__pycache__" or n.startswith(".") or (is_model and n.isdigit())]


def _free_ports() -> tuple[int, int]:
    with socket.socket() as first, socket.socket() as second:
        for probe in (first, second):
            probe.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]
