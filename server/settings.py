"""Define the settings of a server, and make Triton's command line from them."""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shlex
import socket
import sys
import sysconfig
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from server.errors import ServerError
from server.hardware import GPUS

T = TypeVar("T")
#: Protocol groups that change the server or describe it: every call needs the key.
RESTRICTED = ("model-repository", "model-config", "shared-memory", "trace", "logging", "statistics")
#: Name of the key's header: ``triton-grpc-protocol-admin-key`` in gRPC, ``admin-key`` in HTTP.
ADMIN_KEY = "admin-key"
CONTROLS = ("none", "explicit")
HARDWARE = ("auto", "cpu", "gpu", *GPUS)
SHM_MIB = 16  #: shared memory of a Python process at its start, and each increment


def _number(noun: str, minimum: int, maximum: int) -> Callable[[str], int]:
    """Return a parser of whole numbers in a range; ``noun`` names them in its error."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not minimum <= int(text) <= maximum:
            raise argparse.ArgumentTypeError(f"{text} is not a {noun} from {minimum} to {maximum}")
        return int(text)

    return parse


_COUNT, _SECONDS = _number("count", 0, 1 << 20), _number("number of whole seconds", 0, 86400)
_TIMEOUT = _number("number of whole seconds", 1, 86400)
_PORT, _VERSION = _number("port", 1, 65535), _number("version", 1, 1 << 31)


def _versions(text: str) -> tuple[int, ...]:
    return tuple(_VERSION(part.strip()) for part in text.split(",") if part.strip())


def _host_policies(text: str) -> tuple[str, ...]:
    for part in text.split():
        if not re.fullmatch(r"\w+,(numa-node=\d+|cpu-cores=\d+-\d+)", part):
            raise argparse.ArgumentTypeError(f"{part} does not look like gpu_0,numa-node=0 or gpu_0,cpu-cores=0-15")
    return tuple(text.split())


def _file(text: str) -> Path | None:
    return Path(text) if text else None


def _flag(default: T, kind: Callable[[str], object] | tuple[str, ...], help_text: str) -> T:
    """Define a setting by its default, the parser or the choices of its flag, and the help text."""
    return field(default=default, metadata={"kind": kind, "help": help_text})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of one server. It listens on loopback and without HTTP by default; the client uses gRPC.

    Each setting is a flag of ``python -m server`` too, with a help text. ``core_`` settings are the network's.
    """

    repository: Path = _flag(Path("model_repository"), Path, "published model repository; only read")
    state: Path = _flag(Path(".run"), Path, "folder for the served copy, log, backends, key and process id")
    wheel: Path = _flag(Path(".envs/triton"), Path, "folder of the installed Triton wheel")
    triton: Path | None = _flag(None, _file, "NVIDIA's installation instead of the wheel, as in /opt/tritonserver")
    hardware: str = _flag("auto", HARDWARE, "selects the configs; auto: cpu, or with --triton the visible GPUs")
    versions: tuple[int, ...] = _flag((), _versions, "engine versions to serve, such as 1,2; default: the highest")
    preprocess_instances: int = _flag(0, _COUNT, "preprocess processes; 0: computed from the cores")
    postprocess_instances: int = _flag(0, _COUNT, "postprocess processes; 0: computed from the cores")
    core_instances: int = _flag(0, _COUNT, "instances of the network on each GPU; 0: value of its config")
    core_batch: int = _flag(0, _COUNT, "maximum batch that the batcher forms; 0: value of its config")
    core_delay_us: int | None = _flag(None, _COUNT, "wait for a batch in microseconds; default: value of its config")
    address: str = _flag("127.0.0.1", str, "address for gRPC and HTTP")
    grpc_port: int = _flag(8001, _PORT, "port for gRPC")
    metrics_address: str = _flag("", str, "address for metrics; default: --address")
    metrics_port: int = _flag(8002, _PORT, "port for metrics")
    http_port: int = _flag(0, _number("port", 0, 65535), "port for HTTP; 0: no HTTP")
    tls_cert: Path | None = _flag(None, _file, "PEM file of the certificate; turns on TLS for gRPC")
    tls_key: Path | None = _flag(None, _file, "PEM file of the certificate's key")
    tls_ca: Path | None = _flag(None, _file, "PEM file of the clients' authority; turns on mutual TLS")
    tls_name: str = _flag("", str, "name on the certificate for the health check; default: the address")
    admin_key_file: Path | None = _flag(None, _file, "file with the key of the restricted groups; default: random")
    control: str = _flag("none", CONTROLS, "explicit: callers with the admin key may load and unload models")
    trace: str = _flag("", str, "URL of an OpenTelemetry collector: http://host:4318/v1/traces")
    trace_rate: int = _flag(100, _number("rate", 1, 1 << 31), "trace one request in this many")
    cache_mb: int = _flag(0, _COUNT, "response cache of restormer in MiB; 0: none")
    # Triton copies outputs in GPU memory to the CPU on CUDA's legacy default stream. That stream waits for all others,
    # and they wait for it: a copy would stall the batches in flight. Without a GPU pool, Triton puts outputs into
    # pinned memory instead; its default of 256 MiB holds 85 of them. (Read in Triton's sources of 2026;
    # docs/gpu-checklist.md measures both ways.)
    gpu_pool_mb: int = _flag(0, _COUNT, "memory for outputs on each GPU in MiB; 0: outputs go to pinned memory")
    pinned_mb: int = _flag(0, _COUNT, "pinned memory on a GPU host in MiB; 0: computed from the queues")
    host_policy: tuple[str, ...] = _flag(
        (), _host_policies, "cores or NUMA node for each GPU's instances, as in 'gpu_0,numa-node=0 gpu_1,numa-node=1'"
    )
    start_timeout: int = _flag(120, _TIMEOUT, "seconds that a start waits for the first enhanced photograph")
    exit_timeout: int = _flag(30, _SECONDS, "seconds that a stop waits for requests in flight")
    grpc_pool: int = _flag(64, _COUNT, "gRPC request objects kept for reuse")
    grpc_connection_age: int = _flag(0, _SECONDS, "seconds after which connections are renewed; 0: never")

    @property
    def url(self) -> str:
        """The gRPC address that the server listens on."""
        return f"{_bracket_ipv6(self.address)}:{self.grpc_port}"

    @property
    def local_url(self) -> str:
        """The gRPC address to call from this machine: loopback if the server listens on all addresses."""
        return f"{_bracket_ipv6(_reachable_address(self.address))}:{self.grpc_port}"

    @property
    def metrics_url(self) -> str:
        """The URL of the metrics, to be read from this machine."""
        address = _reachable_address(self.metrics_address or self.address)
        return f"http://{_bracket_ipv6(address)}:{self.metrics_port}/metrics"

    @property
    def root(self) -> Path:
        """The folder of the installation, with ``bin``, ``backends`` and ``caches``."""
        return self.triton or self.wheel / "pytriton/tritonserver"

    @property
    def binary(self) -> Path:
        """The tritonserver program."""
        return self.root / "bin/tritonserver"

    @property
    def backends(self) -> Path:
        """NVIDIA's backends, or a copy of the wheel's Python backend with the stub for this interpreter."""
        return self.triton / "backends" if self.triton else self.state / "backends"

    @property
    def served(self) -> Path:
        """The repository that Triton loads: configs for this machine, and links to the published files."""
        return self.state / "served"

    @property
    def log(self) -> Path:
        """Triton's log since the last start."""
        return self.state / "triton.log"

    @property
    def shm_prefix(self) -> str:
        """Prefix of this state folder's regions in /dev/shm; containers that share one differ by their host names."""
        owner = f"{socket.gethostname()}:{self.state.resolve()}"
        return f"restormer_{hashlib.sha256(owner.encode()).hexdigest()[:16]}_"

    @property
    def admin_key(self) -> Path:
        """The file with the key of the restricted groups: the given one, or one written at the start."""
        return self.admin_key_file or self.state / "admin.key"

    def ports(self) -> dict[str, tuple[str, int]]:
        """Return the address and port of every listener, by the setting's name."""
        ports = {
            "grpc-port": (self.address, self.grpc_port),
            "metrics-port": (self.metrics_address or self.address, self.metrics_port),
        }
        return {**ports, "http-port": (self.address, self.http_port)} if self.http_port else ports

    def flags(
        self, key: str, known: Collection[str], rate_limits: Mapping[str, int], gpus: int = 0, pinned_mib: int = 0
    ) -> list[str]:
        """Return Triton's command line. No other code in this project adds flags to it.

        ``key`` opens the restricted groups. ``known`` are the options of this Triton: flags that only newer releases
        have are left out if it does not list them. ``rate_limits`` are the rate limiter's resources; without any it is
        off. ``gpus`` is the number of GPUs that serve, ``pinned_mib`` the pinned memory that they need.
        """
        flags = [str(self.binary.absolute()), *self._fixed(), *self._optional(key)]
        if rate_limits:
            flags.append("--rate-limit=execution_count")
        flags += [f"--rate-limit-resource={name}:{count}" for name, count in rate_limits.items()]
        if gpus:
            flags.append(f"--pinned-memory-pool-byte-size={(self.pinned_mb or pinned_mib) << 20}")
        flags += [f"--cuda-memory-pool-byte-size={gpu}:{self.gpu_pool_mb << 20}" for gpu in range(gpus)]
        if "allow-client-shm" in known:  # off by default since 26.04; stated explicitly
            flags.append("--allow-client-shm=false")
        if self.http_port and "http-max-input-size" in known:  # as max_bytes of the configs; Triton's own is lower
            flags.append("--http-max-input-size=200000000")
        return flags

    def _fixed(self) -> Iterator[str]:
        yield f"--model-repository={self._path_for_shell(self.served)}"
        yield f"--backend-directory={self._path_for_shell(self.backends)}"
        yield "--disable-auto-complete-config"  # a field missing in a config is an error
        yield "--strict-readiness=true"
        yield "--exit-on-error=true"
        yield f"--exit-timeout-secs={self.exit_timeout}"
        yield "--log-verbose=0"  # verbose logs describe requests
        yield "--log-format=ISO8601"
        yield "--allow-sagemaker=false"
        yield "--allow-vertex-ai=false"
        yield "--allow-grpc=true"
        yield f"--grpc-address={_bracket_ipv6(self.address)}"
        yield f"--grpc-port={self.grpc_port}"
        yield f"--grpc-infer-allocation-pool-size={self.grpc_pool}"
        yield "--allow-metrics=true"
        yield f"--metrics-address={self.metrics_address or self.address}"
        yield f"--metrics-port={self.metrics_port}"
        yield "--metrics-config=summary_latencies=true"
        # A core tensor is 3 MiB; with the default of 1 MiB the pool would grow by single megabytes during requests.
        yield f"--backend-config=python,shm-default-byte-size={SHM_MIB << 20}"
        yield f"--backend-config=python,shm-growth-byte-size={SHM_MIB << 20}"
        yield f"--backend-config=python,shm-region-prefix-name={self.shm_prefix}"

    def _path_for_shell(self, path: Path) -> str:
        """Return the path for Triton, which passes it to a shell without quotes to start a Python stub.

        A path that needs quotes becomes relative to the state folder, in which Triton runs.
        """
        absolute = str(path.absolute())
        return absolute if shlex.quote(absolute) == absolute else os.path.relpath(path, self.state)

    def _optional(self, key: str) -> Iterator[str]:
        groups = ",".join(RESTRICTED)
        yield f"--grpc-restricted-protocol={groups}:{ADMIN_KEY}={key}"
        # Loading a model executes its code: off, or behind the key.
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
        for policy in self.host_policy:
            yield f"--host-policy={policy}"
        if self.grpc_connection_age:
            yield f"--grpc-max-connection-age={self.grpc_connection_age * 1000}"
            yield f"--grpc-max-connection-age-grace={self.exit_timeout * 1000}"


def _bracket_ipv6(address: str) -> str:
    """Put an IPv6 address into brackets, as it is written before a port."""
    return f"[{address}]" if ":" in address else address


def _reachable_address(address: str) -> str:
    """Replace an address that means all interfaces by loopback."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)


def libpython_folder() -> Path:
    """Find the folder of this interpreter's shared library, which Triton's Python stub links to."""
    name = sysconfig.get_config_var("INSTSONAME") or ""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    candidates = [Path(sysconfig.get_config_var(key) or "/") for key in ("LIBDIR", "LIBPL")]
    candidates += [Path("/usr/lib") / (sysconfig.get_config_var("MULTIARCH") or ""), Path(sys.base_prefix) / "lib"]
    for folder in candidates:
        if ".so" in name and (folder / name).is_file():
            return folder
    raise ServerError(
        f"libpython{version}.so not found for {sys.executable}: install it (Debian and Ubuntu: "
        f"apt-get install libpython{version}), or use a Python built with --enable-shared"
    )
