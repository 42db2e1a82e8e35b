"""Pre-start checks and their fixes: one table, a row for each check."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import socket
import ssl
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

import hosts
from server import assemble, host
from server.engines import Engine, check_engines, published_versions, versions_to_serve
from server.errors import ServerError
from server.settings import SHM_MIB, Settings, libpython_folder

PYTHONS = ((3, 11), (3, 12))
KEY = re.compile(r"[A-Za-z0-9._~+/=-]{16,}")
LOOPBACK = ("127.", "::1", "localhost")


@dataclass(frozen=True)
class Row:
    """A check's name and result; ``problem`` is why the server cannot start, and the fix."""

    name: str
    result: str
    problem: str = ""


def check(settings: Settings) -> Engine:
    """Raise `ServerError` with the first problem; return the engine to be served."""
    for row in run_checks(settings):
        if row.problem:
            raise ServerError(row.problem)
    return check_engines(settings.repository, serving_gpus(settings), settings.versions)


def format_table(rows: Iterable[Row]) -> str:
    """Format the rows as a table."""
    rows = list(rows)
    width = max(len(row.name) for row in rows)
    return "\n".join(
        f"{'NO' if row.problem else 'ok'}  {row.name.ljust(width)}  {row.problem or row.result}" for row in rows
    )


def run_checks(settings: Settings) -> Iterator[Row]:
    """Run all checks, in the order in which a start needs them."""
    checks: dict[str, Callable[[Settings], str]] = {
        "settings": _check_settings, "Python": _check_environment, "Triton": _check_triton, "client": _check_client,
        "hardware": _check_hardware, "engine": _check_engine, "driver": _check_driver, "instances": _describe_instances,
        "shared memory": _check_shared_memory, "state folder": check_state, "ports": _check_ports, "TLS": _check_tls,
        "admin key": _check_admin_key,
    }  # fmt: skip
    for name, check_one in checks.items():
        try:
            yield Row(name, check_one(settings))
        except (ServerError, OSError) as error:
            yield Row(name, "", str(error))


def serving_gpus(settings: Settings) -> list[tuple[str, str]]:
    """Return name and compute capability of the GPUs that serve; none on a CPU host.

    Raise `ServerError` if a GPU host has no visible GPU.
    """
    if assemble.resolve_hardware(settings) == "cpu":
        return []
    if not hosts.gpus():
        raise ServerError("no GPU is visible")  # _check_hardware says why
    return hosts.gpus()


def _check_settings(settings: Settings) -> str:
    if settings.trace and urlsplit(settings.trace).scheme not in ("http", "https"):
        raise ServerError(f"--trace={settings.trace} is not a URL: use http://collector:4318/v1/traces, for example")
    if settings.control == "explicit" and not settings.admin_key_file:
        raise ServerError(
            "--control=explicit lets callers with the admin key load models: set the key with --admin-key-file=..."
        )
    if settings.http_port and settings.tls_cert and not settings.address.startswith(LOOPBACK):
        raise ServerError(
            f"Triton has no TLS for HTTP, and --http-port would open it on {settings.address} beside gRPC's TLS: "
            "leave --http-port out, or bind to loopback behind a proxy"
        )
    off = [] if settings.http_port else ["HTTP"]
    off += [name for name, is_on in (("tracing", settings.trace), ("response cache", settings.cache_mb)) if not is_on]
    return f"model control {settings.control}; off: {', '.join(off) or 'nothing'}"


def _check_environment(settings: Settings) -> str:
    if settings.triton:
        return f"{sys.version.split()[0]} ({sys.executable})"
    check_python()
    check_numpy()
    libpython_folder()
    return f"{sys.version.split()[0]}, numpy {metadata.version('numpy')} ({sys.executable})"


def _check_triton(settings: Settings) -> str:
    if not settings.binary.is_file():
        fix = "correct --triton" if settings.triton else "correct --wheel, or install it with make setup"
        raise ServerError(f"Triton is not installed ({settings.binary} not found): {fix}")
    if unusable := re.search(r"[^\w@%+=:,./-]" if settings.triton else "[:;$]", str(settings.root.absolute())):
        raise ServerError(
            f"Triton cannot run from {settings.root.absolute()}: {unusable[0]!r} in the path has a meaning to the shell"
            " or to the loader of its libraries: move it"
        )
    return str(settings.binary)


def _check_client(settings: Settings) -> str:
    assemble.import_schema()
    client = shutil.which("restormer-client", path=str(Path(sys.executable).parent))
    if client is None and not settings.triton:
        raise ServerError(f"restormer-client is not installed beside {sys.executable}: install client/ (make setup)")
    return client or "not installed here: no deep check"


def _check_hardware(settings: Settings) -> str:
    chosen = assemble.resolve_hardware(settings)
    if chosen != "cpu" and not settings.triton:
        raise ServerError(
            f"--hardware={chosen} needs NVIDIA's Triton, the PyPI wheel has no TensorRT backend: "
            "use docker compose up triton, or --hardware=cpu (make: HARDWARE=cpu)"
        )
    if chosen != "cpu" and not hosts.gpus():
        raise ServerError(
            "no GPU is visible: check nvidia-smi and CUDA_VISIBLE_DEVICES; a container needs --gpus all (docker run), "
            "NVIDIA's container toolkit (compose), or nvidia.com/gpu and runtimeClassName: nvidia (Kubernetes)"
        )
    if chosen != "cpu":
        return f"{chosen}: " + ", ".join(f"{name} ({cc})" for name, cc in hosts.gpus())
    unused = hosts.gpus() and not settings.triton
    why = "; GPUs are not used: the PyPI wheel has no TensorRT backend" if unused else ""
    return f"cpu: {host.cores()} cores{why}"


def _check_engine(settings: Settings) -> str:
    for path in (settings.repository, *settings.repository.rglob("[!.]*")):
        if path.exists() and not os.access(path, os.R_OK):  # another user wrote it under a umask of 077
            raise ServerError(f"user {os.getuid()} cannot read {path}: chmod -R a+rX {settings.repository}")
    gpus = serving_gpus(settings)
    engine = check_engines(settings.repository, gpus, settings.versions)
    result = [str(engine.path), str(engine.document.get("precision")), engine.document["sha256"][:12]]
    if gpus:
        folders = ", ".join(map(str, host.LIBRARIES))
        version = host.tensorrt_version()
        result.append(f"TensorRT {version}" if version else f"TensorRT not compared: no libnvinfer in {folders}")
    return ", ".join(result + _unusable_versions(settings))


def _unusable_versions(settings: Settings) -> list[str]:
    """Describe published versions that are not served and would fail here: a rollback to them is not possible."""
    served = versions_to_serve(settings.repository, settings.versions)
    problems = []
    for version in sorted(set(published_versions(settings.repository)) - set(served)):
        try:
            check_engines(settings.repository, serving_gpus(settings), [version])
        except ServerError as error:
            problems.append(f"not served, and not usable: {error}")
    return problems


def _check_driver(settings: Settings) -> str:
    """Compare the driver with what this image's CUDA needs."""
    if not serving_gpus(settings):
        return "not used"
    driver, cuda, minimum = host.driver_version(), host.cuda_version(), host.minimum_driver()
    if not driver or not minimum:
        return f"{driver or 'unknown'}, not compared: CUDA {cuda or 'not found'}"
    if not host.is_driver_too_old():
        return f"{driver}; CUDA {cuda} needs {minimum}"
    if libraries := host.compatibility_libraries():
        return f"{driver}, and CUDA {cuda} needs {minimum}: using {libraries}, which only data-center GPUs support"
    raise ServerError(
        f"driver {driver} is too old for CUDA {cuda} of this image: install {minimum} or newer on the host, or use an "
        f"image of an older release and build the plans again there (TRITON_RELEASE)"
    )


def _describe_instances(settings: Settings) -> str:
    described = [f"{count} {name}" for name, count in assemble.instance_counts(settings).items()]
    if serving_gpus(settings):
        core = assemble.served_config(settings, settings.repository / assemble.CORE)
        described += [f"{core.instance_group[0].count} restormer on each GPU", f"batches of 1 to {core.max_batch_size}"]
        described += [f"{assemble.photographs_in_flight(settings)} photographs in flight"]
        described += [f"pinned memory {settings.pinned_mb or assemble.pinned_mib(settings)} MiB"]
        if 0 < (batch := assemble.photographs_in_memory(settings)) < core.max_batch_size:
            described += [
                f"little GPU memory: if the plan does not load, build it with --max-batch {batch} (make: MAX_BATCH)"
            ]
    return ", ".join(described)


def _check_shared_memory(settings: Settings) -> str:
    (need, worst), (size, free) = shared_memory_need(settings), host.shared_memory(settings.shm_prefix)
    if free < need <= size:
        raise ServerError(
            f"{host.SHM} has {free >> 20} of {size >> 20} MiB free, and {need >> 20} are needed: stop the programs "
            f"that use it, or remove the files that they left there (ls -lS {host.SHM})"
        )
    if size < need:
        raise ServerError(
            f"{host.SHM} has {size >> 20} MiB, and {need >> 20} are needed: docker run --shm-size={need >> 20}m, or "
            f"SHM_SIZE={need >> 20}m docker compose up, or mount -o remount,size={need >> 20}m {host.SHM}"
        )
    return (
        f"{free >> 20} of {size >> 20} MiB free; {need >> 20} needed, {worst >> 20} if every process held the largest "
        "photograph at once"
    )


def shared_memory_need(settings: Settings) -> tuple[int, int]:
    """Return the bytes of shared memory needed for photographs of 24 megapixels, and if all are of the largest size.

    Every Python process starts with one pool and grows it once; input file, output file and core tensors of 3 MiB pass
    through it. The largest file is ``max_bytes`` of the configs.
    """
    config = settings.repository / "postprocess/config.pbtxt"
    max_bytes = assemble.read_config(config).parameters["max_bytes"].string_value
    if not max_bytes.isdecimal():
        raise ServerError(f"{config} has no max_bytes: restore it from the project")
    largest = int(max_bytes)
    counts = assemble.instance_counts(settings)
    others = 2 + max(1, settings.core_instances)  # of enhance_tiled, and of restormer on a CPU host
    processes = sum(counts.values()) + others
    need = processes * 2 * (SHM_MIB << 20)
    return need, need + largest * (counts["preprocess"] + 2 * counts["postprocess"] + 2 * 2)


def check_state(settings: Settings) -> str:
    """Make the state folder and check that a server can run from it."""
    folder = settings.state
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ServerError(
            f"cannot write to {folder} ({error.strerror}): choose another with --state=... (make: STATE=...)"
        ) from None
    if not settings.triton and os.statvfs(folder).f_flag & os.ST_NOEXEC:
        raise ServerError(
            f"{folder} is mounted noexec, and Triton's Python stub runs from it: mount it with exec, or set --state"
        )
    return f"{folder.absolute()}, {shutil.disk_usage(folder).free >> 20} MiB free"


def _check_ports(settings: Settings) -> str:
    ports = settings.ports()
    numbers = {name: port for name, (_, port) in ports.items()}
    for name, port in numbers.items():
        if twin := next((other for other in numbers if other != name and numbers[other] == port), None):
            raise ServerError(f"--{name} and --{twin} are both {port}: choose two different ports")
    for name, (address, port) in ports.items():
        _check_port(address, port, name)
    return ", ".join(f"{name.removesuffix('-port')} {address}:{port}" for name, (address, port) in ports.items())


def _check_tls(settings: Settings) -> str:
    cert, key, ca = settings.tls_cert, settings.tls_key, settings.tls_ca
    if not (cert or key or ca):
        where = "" if settings.address.startswith(LOOPBACK) else f" on {settings.address}"
        return f"off: gRPC is not encrypted{where}"
    if not cert or not key:
        raise ServerError("TLS needs both --tls-cert and --tls-key, and for mutual TLS also --tls-ca")
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key, password=_reject_password)
        if ca:
            context.load_verify_locations(ca)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        files = ", ".join(str(path) for path in (cert, key, ca) if path)
        raise ServerError(
            f"TLS: {files}: {error}: the PEM files must belong together and be readable by this user"
        ) from None
    _check_key_mode(key)
    _check_handshake(settings, cert, key)
    return f"{'mutual, clients of ' + str(ca) if ca else 'on'}: {cert}"


def _check_handshake(settings: Settings, cert: Path, key: Path) -> None:
    """Run the health check's TLS handshake in memory; raise `ServerError` if either side rejects the certificate."""
    name = settings.tls_name or settings.local_url.rpartition(":")[0].strip("[]")
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for context in (server, client):
        context.load_cert_chain(cert, key, password=_reject_password)
    client.load_verify_locations(cert)
    client.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN  # as gRPC does
    if settings.tls_ca:
        server.load_verify_locations(settings.tls_ca)
        server.verify_mode = ssl.CERT_REQUIRED
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for end in ends * 4:  # enough turns for the handshake and for the server's answer to the client's certificate
        try:
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
                end.read(0)
        except ssl.SSLError as error:
            reason = (getattr(error, "verify_message", "") or str(error)).rstrip(".")
            if end is ends[0]:
                is_wrong_name = "match" in reason or "not valid for" in reason
                fix = "set the certificate's name with --tls-name" if is_wrong_name else "renew it"
                raise ServerError(
                    f"TLS: the health check connects to {name} and rejects {cert}: {reason}: {fix}"
                ) from None
            raise ServerError(
                f"TLS: the health check presents {cert} as client certificate, and {settings.tls_ca} rejects it: "
                f"{reason}: that authority must sign the server's certificate, and allow it for clients (clientAuth)"
            ) from None


def _check_key_mode(key: Path) -> None:
    """Raise `ServerError` if every user may read the key. The group may: Kubernetes mounts secrets that way."""
    mode = stat.S_IMODE(key.stat().st_mode)
    if mode & stat.S_IRWXO:
        raise ServerError(f"{key} is accessible to every user of the host (mode {mode:04o}): chmod o= {key}")


def _reject_password() -> str:
    raise ValueError("the key is encrypted with a password, which is not supported")


def _check_admin_key(settings: Settings) -> str:
    if not settings.admin_key_file:
        return f"random, in {settings.admin_key}"
    admin_key(settings)
    return f"from {settings.admin_key_file}"


def admin_key(settings: Settings) -> str:
    """Return the key of the restricted groups: from the given file, or a new one, written for the owner alone."""
    if settings.admin_key_file:
        try:
            key = settings.admin_key_file.read_text(encoding="ascii").strip()
        except (OSError, ValueError) as error:
            raise ServerError(f"--admin-key-file: {error}") from None
        _check_key_mode(settings.admin_key_file)
        if not KEY.fullmatch(key):
            raise ServerError(
                f"{settings.admin_key_file} must hold one key of 16 or more characters A-Z a-z 0-9 . _ ~ + / = -: "
                f"openssl rand -hex 32 > {settings.admin_key_file}"
            )
        return key
    key = secrets.token_hex(32)
    settings.admin_key.unlink(missing_ok=True)
    with open(os.open(settings.admin_key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(key + "\n")
    return key


def check_python() -> None:
    """Check this Python for the local server: numpy 1.26 has wheels up to 3.12, and the project needs 3.11."""
    version = sys.version_info[:2]
    if version not in PYTHONS:
        raise ServerError(f"Python {version[0]}.{version[1]} cannot run the local server: use Python 3.11 or 3.12")


def check_numpy() -> None:
    """Check for NumPy 1: with NumPy 2, Triton's Python stub reads float tensors as zeros, without an error."""
    try:
        version = metadata.version("numpy")
    except metadata.PackageNotFoundError:
        raise ServerError(
            f"numpy is not installed in {sys.prefix}: install requirements/server.txt (make setup)"
        ) from None
    if int(version.split(".")[0]) >= 2:
        raise ServerError(
            f"numpy {version} in {sys.prefix}: with numpy 2, Triton's Python stub reads zeros: "
            f"install numpy 1.26: {sys.executable} -m pip install numpy==1.26.4"
        )


def _check_port(address: str, port: int, name: str) -> None:
    """Raise `ServerError` if the port cannot be bound."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            raise ServerError(
                f"port {port} on {address} cannot be used ({error.strerror}): stop the process that listens there, "
                f"or choose another with --{name}=... (make: {name.upper().replace('-', '_')}=...)"
            ) from None
