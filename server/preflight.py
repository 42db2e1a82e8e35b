"""Everything that can be known to fail before Triton is started, in one table, each with the command that mends it."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import ssl
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from server import assemble as served
from server import host as machine
from server.errors import ServerError
from server.settings import SHM_MIB, Settings, libpython_folder

PYTHONS = ((3, 11), (3, 12))
KEY = re.compile(r"[A-Za-z0-9._~+/=-]{16,}")
LOOPBACK = ("127.", "::1", "localhost")
#: Engines built with these run on other GPUs than the one they were built on (export/targets/tensorrt.py).
PORTABLE = ("ampere_plus", "same_cc")
#: How preprocess fits a photograph to the square (imaging/frame.py); an engine must have been checked with the same.
FRAME = "stretch-512-bilinear"


@dataclass(frozen=True)
class Engine:
    """The engine Triton will serve: the highest published version.

    ``sha256`` is that of its JSON: two precisions may share one graph, and then differ only there.
    """

    path: Path
    sha256: str


@dataclass(frozen=True)
class Row:
    """A line of the table: what was looked at and what was found. ``mend``: what stands in the way and what to do."""

    what: str
    found: str
    mend: str = ""


def check(settings: Settings) -> Engine:
    """Raises `ServerError` with the first thing that stands in the way; returns the engine to be served."""
    for row in rows(settings):
        if row.mend:
            raise ServerError(row.mend)
    return check_engines(settings.repository, served_on(settings), settings.versions)


def table(found: Iterable[Row]) -> str:
    """The table for people."""
    found = list(found)
    width = max(len(row.what) for row in found)
    return "\n".join(f"{'NO' if r.mend else 'ok'}  {r.what.ljust(width)}  {r.mend or r.found}" for r in found)


def rows(settings: Settings) -> Iterator[Row]:
    """The table, line by line, in the order in which things are needed."""
    checks: dict[str, Callable[[Settings], str]] = {
        "settings": _settings, "Python": _python, "Triton": _triton, "client": _client, "hardware": _hardware,
        "engine": _engine, "instances": _instances, "shared memory": _shared_memory, "state folder": _state,
        "ports": _ports, "TLS": _tls, "admin key": _admin_key,
    }  # fmt: skip
    for what, look in checks.items():
        try:
            yield Row(what, look(settings))
        except (ServerError, OSError) as error:
            yield Row(what, "", str(error))


def served_on(settings: Settings) -> tuple[tuple[str, str], ...]:
    """The GPUs that serve, by name and compute capability; none where the CPU does."""
    return () if served.hardware(settings) == "cpu" else machine.gpus()


def _settings(settings: Settings) -> str:
    if settings.trace and urlsplit(settings.trace).scheme not in ("http", "https"):
        raise ServerError(f"--trace={settings.trace} is no address: http://collector:4318/v1/traces, for example")
    if settings.control == "explicit" and not settings.admin_key_file:
        raise ServerError(
            "--control=explicit lets whoever has the key load models: give it a key, --admin-key-file=..."
        )
    if settings.http_port and settings.tls_cert and not settings.address.startswith(LOOPBACK):
        raise ServerError(
            f"Triton speaks no TLS over HTTP, and --http-port would open it on {settings.address} beside gRPC's TLS: "
            "leave --http-port out, or put a proxy in front of it"
        )
    off = [] if settings.http_port else ["HTTP"]
    off += [what for what, is_on in (("tracing", settings.trace), ("response cache", settings.cache_mb)) if not is_on]
    return f"model control {settings.control}; off: {', '.join(off) or 'nothing'}"


def _python(settings: Settings) -> str:
    if settings.triton:
        return f"{sys.version.split()[0]} ({sys.executable})"
    check_python()
    check_numpy()
    libpython_folder()
    return f"{sys.version.split()[0]}, numpy {metadata.version('numpy')} ({sys.executable})"


def _triton(settings: Settings) -> str:
    if not settings.binary.is_file():
        where = "is --triton right?" if settings.triton else "make setup"
        raise ServerError(f"Triton is not installed ({settings.binary} is missing): {where}")
    return str(settings.binary)


def _client(settings: Settings) -> str:
    served.schema()
    client = shutil.which("restormer-client", path=str(Path(sys.executable).parent))
    if client is None and not settings.triton:
        raise ServerError(f"restormer-client is not installed beside {sys.executable}: make setup")
    return client or "not installed here: no deep check"


def _hardware(settings: Settings) -> str:
    chosen, cards = served.hardware(settings), machine.gpus()
    if chosen != "cpu" and not cards:
        raise ServerError(
            f"--hardware={chosen}, but no GPU is visible (nvidia-smi, CUDA_VISIBLE_DEVICES): "
            "nvidia-smi says why, or --hardware=cpu (make: HARDWARE=cpu)"
        )
    if chosen != "cpu" and not settings.triton:
        raise ServerError(
            f"--hardware={chosen} needs NVIDIA's Triton, the PyPI wheel has no TensorRT backend: "
            "docker compose up triton, or --hardware=cpu (make: HARDWARE=cpu)"
        )
    if chosen != "cpu":
        return f"{chosen}: " + ", ".join(f"{name} ({cc})" for name, cc in cards)
    left_out = ", its GPUs unused: the PyPI wheel has no TensorRT backend" if cards and not settings.triton else ""
    return f"cpu: {machine.cores()} cores{left_out}"


def _engine(settings: Settings) -> str:
    engine = check_engines(settings.repository, served_on(settings), settings.versions)
    document = json.loads(engine.path.with_name(f"{engine.path.name}.json").read_bytes())
    found = [str(engine.path), str(document.get("precision")), document["sha256"][:12]]
    if served_on(settings):
        folders = ", ".join(map(str, machine.LIBRARIES))
        here = machine.tensorrt()
        found.append(f"TensorRT {here}" if here else f"TensorRT not compared: no libnvinfer in {folders}")
    return ", ".join(found + _unfit(settings))


def _unfit(settings: Settings) -> list[str]:
    """Published versions that are not served now and could not be: a rollback to them would fail."""
    complaints = []
    for version in sorted(set(_published(settings.repository)) - set(_wanted(settings.repository, settings.versions))):
        try:
            check_engines(settings.repository, served_on(settings), [version])
        except ServerError as error:
            complaints.append(f"and one that is not served: {error}")
    return complaints


def _instances(settings: Settings) -> str:
    return ", ".join(f"{count} {name}" for name, count in served.instances(settings).items())


def _shared_memory(settings: Settings) -> str:
    need, worst, held = *shared_memory_need(settings), machine.shared_memory()
    if held < need:
        raise ServerError(
            f"{machine.SHM} has {held >> 20} MiB, and {need >> 20} are needed: docker run --shm-size={need >> 20}m, or "
            f"SHM_SIZE={need >> 20}m docker compose up, or mount -o remount,size={need >> 20}m {machine.SHM}"
        )
    return f"{held >> 20} MiB; {need >> 20} needed, {worst >> 20} if every process had the largest photograph at a time"


def shared_memory_need(settings: Settings) -> tuple[int, int]:
    """Bytes of shared memory to start and work with photographs of 24 megapixels, and with the largest everywhere.

    Every Python process begins with one pool and grows it by another; what it works on passes through: a file in, a
    file out, core tensors of 3 MiB. The largest file is ``max_bytes`` of the configs.
    """
    config = settings.repository / "postprocess/config.pbtxt"
    text = served.read_config(config).parameters["max_bytes"].string_value
    if not text.isdecimal():
        raise ServerError(f"{config} does not say max_bytes: take it from the project")
    largest = int(text)
    counts = served.instances(settings)
    others = 2 + max(1, settings.core_instances)  # enhance_tiled's, and restormer's where the CPU serves it
    processes = sum(counts.values()) + others
    need = processes * 2 * (SHM_MIB << 20)
    return need, need + largest * (counts["preprocess"] + 2 * counts["postprocess"] + 2 * 2)


def _state(settings: Settings) -> str:
    folder = settings.state
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ServerError(
            f"cannot write to {folder} ({error.strerror}): choose another with --state=..., or STATE=... for make"
        ) from None
    if not settings.triton and os.statvfs(folder).f_flag & os.ST_NOEXEC:
        raise ServerError(f"{folder} is mounted noexec, and Triton's Python stub runs from it: mount it with exec")
    return f"{folder.absolute()}, {shutil.disk_usage(folder).free >> 20} MiB free"


def _ports(settings: Settings) -> str:
    ports = settings.ports()
    numbers = {name: port for name, (_, port) in ports.items()}
    for name, port in numbers.items():
        if twin := next((other for other in numbers if other != name and numbers[other] == port), None):
            both = f"{_variable(name)} and {_variable(twin)}"
            raise ServerError(f"{both} are both {port}: choose two different ports")
    for name, (address, port) in ports.items():
        check_port(address, port, _variable(name))
    return ", ".join(f"{name.removesuffix('-port')} {address}:{port}" for name, (address, port) in ports.items())


def _variable(name: str) -> str:
    return name.upper().replace("-", "_")


def _tls(settings: Settings) -> str:
    cert, key, ca = settings.tls_cert, settings.tls_key, settings.tls_ca
    if not (cert or key or ca):
        return "off: gRPC in the clear" + ("" if settings.address.startswith(LOOPBACK) else f" on {settings.address}")
    if not cert or not key:
        raise ServerError("TLS needs both --tls-cert and --tls-key; --tls-ca comes on top, for mutual TLS")
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key, password=_no_password)
        if ca:
            context.load_verify_locations(ca)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        files = ", ".join(str(path) for path in (cert, key, ca) if path)
        raise ServerError(
            f"TLS: {files}: {error}: give PEM files that belong together and can be read by this user"
        ) from None
    _only_ours(key)
    _shake_hands(settings, cert, key)
    return f"{'mutual, clients signed by ' + str(ca) if ca else 'on'}: {cert}"


def _shake_hands(settings: Settings, cert: Path, key: Path) -> None:
    """The health check's handshake with this server, in memory: a certificate it would refuse is known now."""
    name = settings.tls_name or settings.local_url.rpartition(":")[0].strip("[]")
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for context in (server, client):
        context.load_cert_chain(cert, key, password=_no_password)
    client.load_verify_locations(cert)
    client.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN  # as gRPC does
    if settings.tls_ca:
        server.load_verify_locations(settings.tls_ca)
        server.verify_mode = ssl.CERT_REQUIRED
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(back, there, server_hostname=name), server.wrap_bio(there, back, server_side=True)]
    for end in ends * 4:  # a flight each way, twice
        try:
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
                end.read(0)
        except ssl.SSLError as error:
            why = (getattr(error, "verify_message", "") or str(error)).rstrip(".")
            if end is ends[0]:
                mend = "give the name on it with --tls-name" if "match" in why or "not valid for" in why else "renew it"
                raise ServerError(f"TLS: the health check asks for {name}, and refuses {cert}: {why}: {mend}") from None
            raise ServerError(
                f"TLS: the health check shows {cert} as its own, which {settings.tls_ca} does not let in: {why}: "
                "the server's certificate has to be of that authority, and good for a client too"
            ) from None


def _only_ours(key: Path) -> None:
    """A key that others may read is none. The group may: that is how a cluster hands out its secrets."""
    mode = stat.S_IMODE(key.stat().st_mode)
    if mode & stat.S_IRWXO:
        raise ServerError(f"{key} is open to every user of the host (mode {mode:04o}): chmod o= {key}")


def _no_password() -> str:
    raise ValueError("the key has a password, and nobody is here to type it")


def _admin_key(settings: Settings) -> str:
    if not settings.admin_key_file:
        return f"random, in {settings.admin_key}"
    admin_key(settings)
    return f"from {settings.admin_key_file}"


def admin_key(settings: Settings) -> str:
    """The key of the restricted groups: from the file given, or a new one, put into the state folder for its owner."""
    if settings.admin_key_file:
        try:
            key = settings.admin_key_file.read_text(encoding="ascii").strip()
        except (OSError, ValueError) as error:
            raise ServerError(f"--admin-key-file: {error}") from None
        _only_ours(settings.admin_key_file)
        if not KEY.fullmatch(key):
            raise ServerError(
                f"{settings.admin_key_file} has to hold one key, 16 or more of A-Z a-z 0-9 . _ ~ + / = -: "
                f"openssl rand -hex 32 > {settings.admin_key_file}"
            )
        return key
    key = secrets.token_hex(32)
    settings.admin_key.unlink(missing_ok=True)
    with open(os.open(settings.admin_key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(key + "\n")
    return key


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


def check_engines(
    repository: Path, gpus: Sequence[tuple[str, str]] = (), wanted: Sequence[int] = (), tensorrt: str | None = None
) -> Engine:
    """The versions to be served are published, fit for this machine, and their bytes as their JSON says.

    ``gpus`` are those that serve, none where the CPU does; ``wanted`` are the versions, usually the highest alone.
    ``tensorrt`` is the version plans have to be built by, usually the one found here; empty: not compared. Returns the
    engine of the highest.
    """
    folders = _published(repository)
    if missing := [str(version) for version in wanted if version not in folders]:
        raise ServerError(f"version {', '.join(missing)} is not published in {repository}: make engines lists them")
    engines: list[Engine] = []
    for version in _wanted(repository, wanted):
        folder = folders[version]
        engines = [_plan(version, folder, gpu, tensorrt) for gpu in dict.fromkeys(gpus)] or [_graph(version, folder)]
    if not engines:
        target = "PRECISION=fp16 TARGET=tensorrt" if gpus else "PRECISION=fp32 TARGET=cpu"
        raise ServerError(f"no engine in {repository / 'restormer'}: make engine {target}")
    return engines[0]


def _published(repository: Path) -> dict[int, Path]:
    return {int(p.name): p for p in (repository / "restormer").glob("*") if p.name.isdigit()}


def _wanted(repository: Path, versions: Sequence[int]) -> list[int]:
    """The versions Triton will load, in their order."""
    return sorted(set(versions)) or sorted(_published(repository))[-1:]


def _graph(version: int, folder: Path) -> Engine:
    """The version's engine for a CPU."""
    plans = sorted(path.name for path in folder.glob("*.plan"))
    if plans and not (folder / "model.onnx").is_file():
        raise ServerError(
            f"version {version} holds {', '.join(plans)} only, which the CPU cannot serve: "
            f"make engine PRECISION=fp32 TARGET=cpu VERSION={version}, or make rollback VERSION={version}"
        )
    return _checked(folder / "model.onnx")[0]


def _plan(version: int, folder: Path, gpu: tuple[str, str], tensorrt: str | None) -> Engine:
    """The version's plan for a GPU: there, built for it, and by the TensorRT that will load it."""
    name, capability = gpu
    path = folder / f"model.sm{capability.replace('.', '')}.plan"
    again = f"make engine TARGET=tensorrt VERSION={version} on this host, or make rollback VERSION={version}"
    if not path.is_file():
        raise ServerError(f"version {version} has no {path.name} for {name} (compute capability {capability}): {again}")
    engine, document = _checked(path)
    built_for = document.get("machine", {}).get("gpu_compute_capability")
    if built_for != capability and document.get("options", {}).get("compatibility") not in PORTABLE:
        raise ServerError(f"{path} was built for compute capability {built_for}, {name} has {capability}: {again}")
    built_by, here = document.get("runtime", {}).get("version"), machine.tensorrt() if tensorrt is None else tensorrt
    if here and not _same_release(str(built_by), here):
        raise ServerError(f"{path} was built by TensorRT {built_by}, here is {here}, which does not load it: {again}")
    return engine


def _same_release(built_by: str, here: str) -> bool:
    """Whether two versions agree in as many numbers as both give: a library's name has three, Python's version four."""
    pairs = list(zip(built_by.split("."), here.split("."), strict=False))
    return len(pairs) >= 3 and all(a == b for a, b in pairs)


def _checked(path: Path) -> tuple[Engine, dict[str, Any]]:
    """The engine and its JSON, if the bytes are the ones it describes."""
    try:
        text = path.with_name(f"{path.name}.json").read_bytes()
        document = json.loads(text)
        expected = document["sha256"]
        held = path.stat()
        found = _sha256(path, held.st_mtime_ns, held.st_size)
    except (OSError, ValueError, KeyError, TypeError):
        raise ServerError(f"{path} or its JSON is missing or unreadable: build the engine again: make engine") from None
    if found != expected:
        raise ServerError(f"{path} is not the file its JSON describes: build the engine again: make engine")
    if document.get("frame") != FRAME:
        built = document.get("frame", "an unknown frame")
        again = document.get("command", "make engine")
        raise ServerError(f"{path} was built for {built}, this server uses {FRAME}: build the engine again: {again}")
    return Engine(path, hashlib.sha256(text).hexdigest()), document


@functools.cache
def _sha256(path: Path, changed: int, size: int) -> str:
    """The file's checksum, read once as long as the file is the same."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_port(address: str, port: int, variable: str) -> None:
    """Nobody else listens there."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            raise ServerError(
                f"port {port} on {address} cannot be used ({error.strerror}): "
                f"stop what listens there, or choose another with {variable}=..."
            ) from None
