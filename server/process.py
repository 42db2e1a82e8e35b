"""Start Triton in the background, wait until it enhances a photograph, and stop it."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from server import assemble, host, preflight
from server.engines import Engine, check_engines
from server.errors import ServerError
from server.settings import Settings, libpython_folder

STOP_SECONDS = 5.0  #: grace on top of Triton's own exit timeout
KILLED_SECONDS = 10.0  #: limit for the kernel to remove a killed process


@dataclass(frozen=True, kw_only=True)
class RunningServer:
    """The running server of a state folder: its address, the engine it loaded, the `assemble.SERVED_SETTINGS` used."""

    pid: int
    url: str
    engine: str
    engine_sha256: str
    chosen: dict[str, Any]


def start(settings: Settings) -> RunningServer:
    """Start Triton and return once ``enhance`` has enhanced a photograph."""
    with _locked(settings):  # the second of two starts then finds the first one's server
        engine = _check_start(settings)
        command = prepare(settings)
        with settings.log.open("wb") as log:
            triton = subprocess.Popen(
                command, env=triton_environment(settings), cwd=settings.state, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, start_new_session=True,
            )  # fmt: skip
        try:
            server = _write_record(settings, triton.pid, engine)
            _wait_until_ready(settings, triton, settings.start_timeout)
        except BaseException:
            stop(settings)
            triton.kill()  # in case it was not recorded yet
            raise
    return server


def run(settings: Settings) -> None:
    """Replace this process by Triton, for containers and supervisors. Does not return."""
    with _locked(settings):  # released by the kernel at execve
        engine = _check_start(settings)
        command = prepare(settings)
        # The process id stays the same: `stop` and the health check find the server by it.
        _write_record(settings, os.getpid(), engine)
        environment = triton_environment(settings)
        os.chdir(settings.state)  # the settings' relative paths are no longer valid
        os.execve(command[0], command, environment)


def _check_start(settings: Settings) -> Engine:
    """Raise `ServerError` if the server cannot start; kill orphaned stubs; return the engine to be served."""
    if server := running_server(settings):
        raise ServerError(
            f"a server is already running on {server.url} (state in {settings.state}): "
            f"stop it: python -m server --state {settings.state} stop (make stop)"
        )
    engine = preflight.check(settings)
    kill_orphans(settings)
    return engine


def prepare(settings: Settings) -> list[str]:
    """Write the served copy and the backends into the state folder; return Triton's command line."""
    (settings.state / "healthy").unlink(missing_ok=True)  # left by the last server
    assemble.assemble_repository(settings)
    if not settings.triton:
        assemble_backends(settings)
    known = host.triton_options(settings.binary, triton_environment(settings))
    pools = len(preflight.serving_gpus(settings)), assemble.pinned_mib(settings)
    return settings.flags(preflight.admin_key(settings), known, assemble.rate_limits(settings), *pools)


def refresh(settings: Settings) -> None:
    """Replace the served copy under a running server, which loads it on request (``--control=explicit``).

    Uses the settings that the server was started with, not the current ones.
    """
    with _locked(settings):
        server = running_server(settings)
        if server is None:
            raise ServerError(f"no server is running (state in {settings.state}): start it, or correct --state")
        started = replace(
            settings, **{
                **server.chosen, "repository": Path(server.chosen["repository"]),
                "versions": tuple(server.chosen["versions"]),
            }
        )  # fmt: skip
        check_engines(started.repository, preflight.serving_gpus(started), started.versions)
        assemble.assemble_repository(started)


def stop(settings: Settings, *, at_most: float | None = None) -> bool:
    """Stop the server of this state folder; return False if none was running.

    Kills it if it takes longer than its exit timeout (or ``at_most`` seconds) plus `STOP_SECONDS`. Takes no lock, so
    that a start that hangs can be stopped. Leaves alone a server that was started meanwhile.
    """
    server = running_server(settings)
    if server:
        _send_signal(server.pid, signal.SIGTERM)
        grace = settings.exit_timeout if at_most is None else min(settings.exit_timeout, at_most)
        if not _wait_until_gone(settings, server, grace + STOP_SECONDS):
            _send_signal(server.pid, signal.SIGKILL)
            # The kernel needs time to remove a process that holds gigabytes; until then it still looks alive.
            _wait_until_gone(settings, server, KILLED_SECONDS)
        # Stubs that were still starting do not notice that their parent exited; they are in its process group.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(server.pid, signal.SIGKILL)
    if not running_server(settings):
        kill_orphans(settings)
        record_path(settings).unlink(missing_ok=True)
    return server is not None


def kill_orphans(settings: Settings) -> None:
    """Kill the Python stubs of this state folder whose Triton was killed.

    A stub notices only after a while that its Triton is gone, and holds the network's memory until then. The regions
    that killed Tritons left in /dev/shm are removed too. Call this only while no server of this state folder runs.
    """
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it exited meanwhile
            program = path.read_bytes().partition(b"\0")[0]
            if b"triton_python_backend_stub" in program and _runs_in(settings.state, path.parent.name):
                _send_signal(int(path.parent.name), signal.SIGKILL)
    for region in host.leftover_regions(settings.shm_prefix):
        region.unlink(missing_ok=True)


def _runs_in(folder: Path, pid: int | str) -> bool:
    """Return whether a process runs in this folder, as Triton and its stubs do in the state folder."""
    return os.path.samefile(f"/proc/{pid}/cwd", folder)


def running_server(settings: Settings) -> RunningServer | None:
    """Return the recorded server, if its process exists and is a Triton that serves from this state folder."""
    try:
        server = RunningServer(**json.loads(record_path(settings).read_text(encoding="utf-8")))
        program = Path(f"/proc/{server.pid}/cmdline").read_bytes().partition(b"\0")[0]
        is_triton = program.endswith(b"/tritonserver") and _runs_in(settings.state, server.pid)
    except (OSError, ValueError, TypeError):
        return None
    return server if is_triton else None


def triton_environment(settings: Settings) -> dict[str, str]:
    """Return Triton's environment: this interpreter first on PATH; for the wheel, its libraries and libpython.

    The stub ignores PYTHONPATH and PYTHONHOME and uses the environment whose ``bin`` is first on PATH. The thread
    counts are for OpenBLAS, which would start a thread for each core in every stub, although the work is shared between
    processes. OpenVINO uses TBB, which ignores both variables. The user's variables for Python and for bash, which
    starts the stub, are left out, and so are proxies: the trace exporter ignores ``no_proxy``, even for loopback.
    NVIDIA's Triton gets CUDA's compatibility libraries if the driver is too old for its CUDA.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    kept = environment_without_proxies().items()
    users = {name: value for name, value in kept if not name.startswith(("PYTHON", "BASH"))}
    threads = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    environment = {**threads, **users, "PATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    if settings.triton:
        if newer := host.compatibility_libraries():
            environment["LD_LIBRARY_PATH"] = f"{newer}:{os.environ.get('LD_LIBRARY_PATH', '')}".rstrip(":")
        return environment
    libraries = [settings.wheel.absolute() / "nvidia_pytriton.libs", libpython_folder()]
    return {**environment, "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries))}


def assemble_backends(settings: Settings) -> None:
    """Copy the wheel's Python backend and the stub for this Python version into one folder."""
    root = settings.wheel / "pytriton/tritonserver"
    stub = root / f"python_backend_stubs/{sys.version_info.major}.{sys.version_info.minor}/triton_python_backend_stub"
    if not stub.is_file():
        raise ServerError(f"the Triton wheel has no stub for this Python ({stub} is missing): use Python 3.11 or 3.12")
    target = settings.backends / "python"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(root / "backends/python", target)
    shutil.copy2(stub, target)
    (target / stub.name).chmod(0o755)
    # The stub reads paths as ASCII and misses editable installs in other paths. It imports from this folder too.
    for package in ("adapters", "imaging"):
        spec = importlib.util.find_spec(package)
        if spec and spec.origin and not spec.origin.isascii():
            (target / package).symlink_to(Path(spec.origin).parent)


def _wait_until_ready(settings: Settings, triton: subprocess.Popen[bytes], seconds: float) -> None:
    """Wait for the deep check: a photograph goes through ``enhance``."""
    deep = subprocess.Popen(
        deep_check_command(settings, seconds), env=environment_without_proxies(), stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        while deep.poll() is None:
            if triton.poll() is not None:
                reason = _failure_reason(settings.log)
                raise ServerError(f"Triton exited with {triton.returncode}: {reason} ({settings.log})")
            if line := re.search(_STUB_FAILURE, settings.log.read_bytes()):
                reason = line[0].decode(errors="replace")
                raise ServerError(f"Triton's Python stub does not start: {reason} ({settings.log})")
            time.sleep(0.1)
    finally:  # also after SIGTERM, which reaches this process alone
        deep.kill()
        _, errors = deep.communicate()
    if deep.returncode:
        message = " ".join(errors.split())[:400]
        raise ServerError(f"Triton started but does not enhance: {message} (its log: {settings.log})")


def deep_check_command(settings: Settings, seconds: float) -> list[str]:
    """Return the client's command that sends a tiny photograph through ``enhance`` within ``seconds``.

    The client trusts only the server's own certificate, because ``tls_ca`` is the clients' authority. With mutual TLS
    it also presents that certificate, which must therefore be valid for clients too.
    """
    # -I: without the user's variables for Python. -B: write no bytecode.
    command = [sys.executable, "-IBm", "restormer_client", "status", "--url", settings.local_url]
    command += ["--wait", str(seconds), "--timeout", str(seconds)]
    if settings.tls_cert:
        command += ["--tls-ca", str(settings.tls_cert)]
    if settings.tls_name:
        command += ["--tls-name", settings.tls_name]
    if settings.tls_ca:
        command += ["--tls-cert", str(settings.tls_cert), "--tls-key", str(settings.tls_key)]
    return command


def environment_without_proxies() -> dict[str, str]:
    """Return the environment without proxies: gRPC would ask one for this machine's own addresses too."""
    return {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}


#: Line of the log if a Python stub does not start: from bash, the loader, Triton or Python. Triton keeps waiting.
_STUB_FAILURE = re.compile(
    rb"^\S*sh: (?!warning).+|^.*triton_python_backend_stub: (?!.*no version information).+"
    rb"|^Failed to run python backend stub.*|^Fatal Python error.*",
    re.MULTILINE,
)
#: Start of a line in Triton's log (``--log-format=ISO8601``); the letter is the severity.
_PREFIX = r"^\d{4}-\d\d-\d\dT[\d:.]+Z? [%s] \d+ \S+\] "
#: Lines of a failed start's log that give the reason, the most specific kind first.
_REASONS = (
    r"failed to load '.*version",
    r"failed to start",
    r"^error: ",
    _PREFIX % "EF" + "(?!.*CudaDriverHelper)",
)


def _failure_reason(log: Path) -> str:
    """Return the most specific line of a failed start's log, without Triton's prefix and stack trace."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    reasons = (line for pattern in _REASONS for line in lines if re.search(pattern, line))
    line = re.sub(_PREFIX % "EFIW", "", next(reasons, "no reason in its log"))
    message = line.split("\\n\\nAt:")[0].replace("\\n", " ")
    return " ".join(message.split()).strip('" ')[:400]


@contextlib.contextmanager
def _locked(settings: Settings) -> Iterator[None]:
    """Lock the state folder, so that no other process starts a server from it or replaces its served copy."""
    preflight.check_state(settings)
    with (settings.state / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write_record(settings: Settings, pid: int, engine: Engine) -> RunningServer:
    """Record the server of this state folder."""
    chosen = {name: getattr(settings, name) for name in assemble.SERVED_SETTINGS}
    chosen["repository"] = str(settings.repository.absolute())
    server = RunningServer(
        pid=pid, url=settings.url, engine=str(engine.path), engine_sha256=engine.sha256, chosen=chosen
    )
    record_path(settings).write_text(json.dumps(asdict(server)) + "\n", encoding="utf-8")
    return server


def record_path(settings: Settings) -> Path:
    """Return the file that records the server; its modification time is the server's start."""
    return settings.state / "server.json"


def _send_signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _wait_until_gone(settings: Settings, server: RunningServer, seconds: float) -> bool:
    """Wait until this server no longer runs; return False if it still does after ``seconds``."""
    deadline = time.monotonic() + seconds
    while running_server(settings) == server:
        if time.monotonic() >= deadline:
            return False
        with contextlib.suppress(ChildProcessError):  # not a child of this process if `stop` is a command of its own
            os.waitpid(server.pid, os.WNOHANG)
        time.sleep(0.1)
    return True
