"""The ladder's last rung: the engine behind a real Triton, before it is published.

The server is started by ``python -m server`` of the server's environment, on a copy of the model repository that
holds only the new engine, on loopback ports of its own.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.build import MODEL
from export.errors import ExportError
from export.names import INPUT, OUTPUT


@contextmanager
def triton(
    python: Path, repository: Path, engine: Path
) -> Iterator[Callable[[NDArray[np.float32]], NDArray[np.float32]]]:
    """A running Triton that serves the version folder ``engine``; yields a function from core tensor to core tensor.

    ``python`` is the interpreter of the server's environment. Raises `ExportError` with the server's last words.
    """
    import tritonclient.grpc as grpc

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(repository, folder / "models", ignore=_without_versions)
        shutil.copytree(engine, folder / "models" / MODEL / "1")
        grpc_port, metrics_port = _free_ports()
        command = [str(python.absolute()), "-m", "server"]
        command += ["--repository", str(folder / "models"), "--state", str(folder / "state")]
        command += ["--grpc-port", str(grpc_port), "--metrics-port", str(metrics_port)]
        command += ["--wheel", str(python.absolute().parents[2] / "triton"), "--hardware", "cpu"]
        try:
            started = subprocess.run([*command, "start"], capture_output=True, text=True, check=False)
            if started.returncode:
                last = (started.stderr.strip().splitlines() or ["no message"])[-1]
                raise ExportError(f"Triton does not serve the engine: {last.removeprefix('error: ')}")
            with grpc.InferenceServerClient(f"127.0.0.1:{grpc_port}") as client:

                def run(image: NDArray[np.float32]) -> NDArray[np.float32]:
                    tensor = grpc.InferInput(INPUT, list(image.shape), "FP32")
                    tensor.set_data_from_numpy(image)
                    output: NDArray[np.float32] = client.infer(MODEL, [tensor], client_timeout=600).as_numpy(OUTPUT)
                    return output

                yield run
        except grpc.InferenceServerException as error:
            raise ExportError(f"Triton does not answer for the engine: {error.message()}") from error
        finally:
            subprocess.run([*command, "stop"], capture_output=True, check=False)


def _without_versions(path: str, names: list[str]) -> list[str]:
    is_model = Path(path).name == MODEL
    return [n for n in names if n == "__pycache__" or n.startswith(".") or (is_model and n.isdigit())]


def _free_ports() -> tuple[int, int]:
    with socket.socket() as first, socket.socket() as second:
        for probe in (first, second):
            probe.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]
