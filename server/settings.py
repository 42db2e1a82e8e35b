"""Where the server's parts are and where it listens; and from these, the one list of flags."""

from __future__ import annotations

import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from server.errors import ServerError


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One server. Loopback unless told otherwise; HTTP is off, the client speaks gRPC."""

    repository: Path = Path("model_repository")
    wheel: Path = Path(".envs/triton")
    state: Path = Path(".run")
    address: str = "127.0.0.1"
    grpc_port: int = 8001
    metrics_port: int = 8002

    @property
    def url(self) -> str:
        """Where clients reach it."""
        return f"{self.address}:{self.grpc_port}"

    @property
    def binary(self) -> Path:
        """The server of the PyPI wheel ``nvidia-pytriton``."""
        return self.wheel / "pytriton/tritonserver/bin/tritonserver"

    @property
    def backends(self) -> Path:
        """Our backend directory: the Python backend with the stub of this interpreter beside it."""
        return self.state / "backends"

    @property
    def log(self) -> Path:
        """Triton's own log of the last start."""
        return self.state / "triton.log"

    def flags(self) -> list[str]:
        """Triton's command line. Every flag in this project is in this list."""
        return [
            str(self.binary.absolute()),
            f"--model-repository={self.repository.absolute()}",
            f"--backend-directory={self.backends.absolute()}",
            # Models with configs/cpu.pbtxt use it, the others their config.pbtxt.
            "--model-config-name=cpu",
            # What the configs leave out is an error, not a guess.
            "--disable-auto-complete-config",
            # Repository updates equal code execution.
            "--model-control-mode=none",
            "--strict-readiness=true",
            "--exit-timeout-secs=15",
            "--allow-http=false",
            "--allow-grpc=true",
            f"--grpc-address={self.address}",
            f"--grpc-port={self.grpc_port}",
            "--allow-metrics=true",
            f"--metrics-address={self.address}",
            f"--metrics-port={self.metrics_port}",
            "--metrics-config=summary_latencies=true",
            # A core tensor is 3 MiB; the default of 1 MiB grows in single megabytes while requests wait.
            "--backend-config=python,shm-default-byte-size=16777216",
            "--backend-config=python,shm-growth-byte-size=16777216",
        ]


def libpython_folder() -> Path:
    """The folder of this interpreter's shared library, which Triton's Python stub links to."""
    name = sysconfig.get_config_var("INSTSONAME") or ""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    candidates = [Path(sysconfig.get_config_var(key) or "/") for key in ("LIBDIR", "LIBPL")]
    candidates += [Path("/usr/lib") / (sysconfig.get_config_var("MULTIARCH") or ""), Path(sys.base_prefix) / "lib"]
    for folder in candidates:
        if ".so" in name and (folder / name).is_file():
            return folder
    raise ServerError(
        f"libpython{version}.so is missing ({sys.executable} has none): install it (Debian and Ubuntu: "
        f"apt-get install libpython{version}), or use a Python built with --enable-shared"
    )
