"""Where the server's parts are, where it listens and what it allows; and from these, the one list of flags."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from server.errors import ServerError
from server.hardware import GPUS

#: Protocol groups that change the server or tell about it: closed to everybody without the key.
RESTRICTED = ("model-repository", "model-config", "shared-memory", "trace", "logging", "statistics")
#: The header is ``triton-grpc-protocol-admin-key`` in gRPC, ``admin-key`` in HTTP.
ADMIN_KEY = "admin-key"
CONTROLS = ("none", "explicit")
HARDWARE = ("auto", "cpu", "gpu", *GPUS)
SHM_MIB = 16  #: shared memory of one Python instance at its start, and each time it grows


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One server. Loopback unless told otherwise; HTTP is off, the client speaks gRPC.

    ``triton`` is NVIDIA's own installation (``/opt/tritonserver``); without it the PyPI wheel in ``wheel`` is used.
    ``hardware`` is what the configs are for: cpu, gpu (any) or one of `hardware.GPUS`; ``auto`` means cpu with the
    wheel, which has no TensorRT backend.
    Instances of 0 mean: from this machine's cores. ``core_`` are the network's: 0 instances, a batch of 0 and no delay
    mean: as its config says. A port, an age, a cache of 0 mean: off. Times are in seconds, ``core_delay_us`` in
    microseconds.
    """

    repository: Path = Path("model_repository")
    state: Path = Path(".run")
    wheel: Path = Path(".envs/triton")
    triton: Path | None = None
    hardware: str = "auto"
    versions: tuple[int, ...] = ()
    preprocess_instances: int = 0
    postprocess_instances: int = 0
    core_instances: int = 0
    core_batch: int = 0
    core_delay_us: int | None = None
    address: str = "127.0.0.1"
    grpc_port: int = 8001
    metrics_address: str = ""
    metrics_port: int = 8002
    http_port: int = 0
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_ca: Path | None = None
    tls_name: str = ""
    admin_key_file: Path | None = None
    control: str = "none"
    trace: str = ""
    trace_rate: int = 100
    cache_mb: int = 0
    start_timeout: int = 120
    exit_timeout: int = 30
    grpc_pool: int = 64
    grpc_connection_age: int = 0

    @property
    def url(self) -> str:
        """Where it listens, as gRPC writes it."""
        return f"{_bracketed(self.address)}:{self.grpc_port}"

    @property
    def local_url(self) -> str:
        """Where this machine reaches it: an address that means all of them is asked for on loopback."""
        return f"{_bracketed(_reachable(self.address))}:{self.grpc_port}"

    @property
    def metrics_url(self) -> str:
        """Where this machine reads its metrics."""
        return f"http://{_bracketed(_reachable(self.metrics_address or self.address))}:{self.metrics_port}/metrics"

    @property
    def root(self) -> Path:
        """The installation: ``bin``, ``backends`` and ``caches`` lie in it."""
        return self.triton or self.wheel / "pytriton/tritonserver"

    @property
    def binary(self) -> Path:
        """The server itself."""
        return self.root / "bin/tritonserver"

    @property
    def backends(self) -> Path:
        """NVIDIA's backends, or the wheel's Python backend with the stub of this interpreter beside it."""
        return self.triton / "backends" if self.triton else self.state / "backends"

    @property
    def served(self) -> Path:
        """The copy that Triton is given: configs as chosen for this machine, and links to what is published."""
        return self.state / "served"

    @property
    def log(self) -> Path:
        """Triton's own log of the last start."""
        return self.state / "triton.log"

    @property
    def admin_key(self) -> Path:
        """The file of the key that opens the restricted groups: the one given, or one made at the start."""
        return self.admin_key_file or self.state / "admin.key"

    def ports(self) -> dict[str, tuple[str, int]]:
        """Address and port of everything that listens, by the setting's name."""
        ports = {
            "grpc-port": (self.address, self.grpc_port),
            "metrics-port": (self.metrics_address or self.address, self.metrics_port),
        }
        return {**ports, "http-port": (self.address, self.http_port)} if self.http_port else ports

    def flags(self, key: str, known: Collection[str], rate_limits: Mapping[str, int]) -> list[str]:
        """Triton's command line. Every flag in this project is in this list.

        ``key`` opens the restricted groups. ``known`` are the options this Triton has: what only newer ones know is
        left out for the others. ``rate_limits`` are the rate limiter's resources; it stays off without any.
        """
        flags = [*self._always(), *self._chosen(key), *_limited(rate_limits), *self._newer(known)]
        return [str(self.binary.absolute()), *flags]

    def _always(self) -> Iterator[str]:
        yield f"--model-repository={self.served.absolute()}"
        yield f"--backend-directory={self.backends.absolute()}"
        yield "--disable-auto-complete-config"  # what the configs leave out is an error, not a guess
        yield "--strict-readiness=true"
        yield "--exit-on-error=true"
        yield f"--exit-timeout-secs={self.exit_timeout}"
        yield "--log-verbose=0"  # verbose logs tell of requests
        yield "--log-format=ISO8601"
        yield "--allow-sagemaker=false"
        yield "--allow-vertex-ai=false"
        yield "--allow-grpc=true"
        yield f"--grpc-address={_bracketed(self.address)}"
        yield f"--grpc-port={self.grpc_port}"
        yield f"--grpc-infer-allocation-pool-size={self.grpc_pool}"
        yield "--allow-metrics=true"
        yield f"--metrics-address={self.metrics_address or self.address}"
        yield f"--metrics-port={self.metrics_port}"
        yield "--metrics-config=summary_latencies=true"
        # A core tensor is 3 MiB; the default of 1 MiB grows in single megabytes while requests wait.
        yield f"--backend-config=python,shm-default-byte-size={SHM_MIB << 20}"
        yield f"--backend-config=python,shm-growth-byte-size={SHM_MIB << 20}"

    def _chosen(self, key: str) -> Iterator[str]:
        groups = ",".join(RESTRICTED)
        yield f"--grpc-restricted-protocol={groups}:{ADMIN_KEY}={key}"
        # Repository updates equal code execution: off, or behind the key.
        yield f"--model-control-mode={self.control}"
        if self.control == "explicit":
            yield "--load-model=*"
        yield f"--allow-http={str(bool(self.http_port)).lower()}"
        if self.http_port:
            yield f"--http-address={self.address}"
            yield f"--http-port={self.http_port}"
            yield f"--http-restricted-api={groups}:{ADMIN_KEY}={key}"
        if self.tls_cert:
            yield "--grpc-use-ssl=true"
            yield f"--grpc-server-cert={self.tls_cert.absolute()}"
            yield f"--grpc-server-key={self.tls_key.absolute()}" if self.tls_key else ""
        if self.tls_ca:
            yield "--grpc-use-ssl-mutual=true"
            yield f"--grpc-root-cert={self.tls_ca.absolute()}"
        if self.trace:
            yield "--trace-config=mode=opentelemetry"
            yield f"--trace-config=opentelemetry,url={self.trace}"
            yield "--trace-config=opentelemetry,resource=service.name=restormer-triton"
            yield "--trace-config=level=TIMESTAMPS"  # TENSORS would write pixels
            yield f"--trace-config=rate={self.trace_rate}"
        if self.cache_mb:
            yield f"--cache-directory={(self.root / 'caches').absolute()}"
            yield f"--cache-config=local,size={self.cache_mb << 20}"
        if self.grpc_connection_age:
            yield f"--grpc-max-connection-age={self.grpc_connection_age * 1000}"
            yield f"--grpc-max-connection-age-grace={self.exit_timeout * 1000}"

    def _newer(self, known: Collection[str]) -> Iterator[str]:
        # 26.04 turned it off by default; said all the same.
        if "allow-client-shm" in known:
            yield "--allow-client-shm=false"
        # Photographs go by gRPC in one piece; HTTP is for health and for trying out, at most max_bytes of the configs.
        if self.http_port and "http-max-input-size" in known:
            yield "--http-max-input-size=200000000"


def _limited(resources: Mapping[str, int]) -> Iterator[str]:
    if resources:
        yield "--rate-limit=execution_count"
    for name, count in resources.items():
        yield f"--rate-limit-resource={name}:{count}"


def _bracketed(address: str) -> str:
    """An IPv6 address as it stands before a port."""
    return f"[{address}]" if ":" in address else address


def _reachable(address: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)


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
