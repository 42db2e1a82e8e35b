"""Run a real Triton and call it: for the last stage of the ladder, for measuring on pairs, and for traffic.

``python -m server`` of the server's environment starts it on free loopback ports; it is stopped at the end.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from export.errors import ExportError
from export.names import INPUT, MODEL, OUTPUT
from export.termination import exit_on_sigterm
from imaging import InvalidPhotograph

if TYPE_CHECKING:
    from tritonclient.grpc import InferenceServerClient

Runner = Callable[[NDArray[np.float32]], NDArray[np.float32]]
TIMEOUT = 600  #: seconds that a start and a call may take: a large network on a busy CPU is slow
#: The server's variables that describe this machine. Others, such as RESTORMER_VERSIONS, are not for this server.
INSTALLATION = ("RESTORMER_TRITON", "RESTORMER_WHEEL", "RESTORMER_HARDWARE")
#: No limit on message sizes, and no proxy: gRPC uses http_proxy even for loopback.
CHANNEL_ARGS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),
]


class RunningServer(NamedTuple):
    """A server that was started here. ``command`` controls it, with a verb appended."""

    command: list[str]
    state: Path
    grpc_port: int
    metrics_port: int


@contextmanager
def serve_engine(python: Path, repository: Path, engine: Path, *flags: str) -> Iterator[Runner]:
    """Run a Triton that serves the version folder ``engine``; yield a function from core tensor to core tensor.

    It serves a copy of the model repository that holds only this engine, on the CPU unless ``flags`` say otherwise.
    Raises `ExportError`.
    """
    with tempfile.TemporaryDirectory() as name:
        models = Path(name) / "models"
        shutil.copytree(repository, models, ignore=_without_versions)
        shutil.copytree(engine, models / MODEL / "1")
        with start_triton(python, models, *flags) as address, connect(address) as client:
            yield core_runner(client)


@contextmanager
def start_triton(python: Path, repository: Path, *flags: str) -> Iterator[str]:
    """Run a Triton on the published engines of a repository; yield its address. Raises `ExportError`.

    It is the wheel's, on the CPU, unless ``flags`` name another.
    """
    wheel = python.absolute().parents[2] / "triton"
    own = ("--triton", "", "--wheel", str(wheel), "--hardware", "cpu", "--start-timeout", str(TIMEOUT))
    with run_server(python, repository, *own, *flags) as server:
        yield f"127.0.0.1:{server.grpc_port}"


@contextmanager
def run_server(python: Path, repository: Path, *flags: str, wrapper: Sequence[str] = ()) -> Iterator[RunningServer]:
    """Run a Triton on a repository, which is only read, and stop it at the end, also after SIGTERM.

    ``python`` is the interpreter of the server's environment, ``flags`` are more flags of its command line, and
    ``wrapper`` is a command that starts it. Of the server's variables only those of `INSTALLATION` are used, and none
    of Python's (PYTHONPATH), because its interpreter is another one. Raises `ExportError` with the last line that the
    server printed.
    """
    if not python.is_file():
        raise ExportError(f"--server-python {python} not found: install the server (make setup)")
    environment = {
        name: value
        for name, value in os.environ.items()
        if name in INSTALLATION or not name.startswith(("RESTORMER_", "PYTHON"))
    }
    with exit_on_sigterm(), tempfile.TemporaryDirectory() as state:
        grpc_port, metrics_port = free_ports(2)
        command = [str(python.absolute()), "-m", "server", "--repository", str(repository), "--state", state]
        command += ["--grpc-port", str(grpc_port), "--metrics-port", str(metrics_port), *flags]
        try:
            start = subprocess.run(
                [*wrapper, *command, "start"], env=environment, capture_output=True, text=True, check=False
            )
            if start.returncode:
                last = (start.stderr.strip().splitlines() or ["no message"])[-1]
                raise ExportError(f"Triton does not start: {last.removeprefix('error: ')}")
            yield RunningServer(command, Path(state), grpc_port, metrics_port)
        finally:
            subprocess.run([*command, "stop"], env=environment, capture_output=True, check=False)


@contextmanager
def connect(address: str) -> Iterator[InferenceServerClient]:
    """Connect to a Triton; its errors become `ExportError`."""
    import tritonclient.grpc as grpc

    try:
        with grpc.InferenceServerClient(address, channel_args=CHANNEL_ARGS) as client:
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


def free_ports(count: int) -> list[int]:
    """Return a number of different ports that no process listens on."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
