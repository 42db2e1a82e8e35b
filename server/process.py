"""Triton's life as a process: started in the background, awaited until it truly answers, stopped."""

from __future__ import annotations

import contextlib
import fcntl
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

from server import assemble as served
from server import host as machine
from server import preflight
from server.errors import ServerError
from server.settings import Settings, libpython_folder

STOP_SECONDS = 5.0  #: what Triton gets on top of its own exit timeout
KILLED_SECONDS = 10.0  #: what the kernel gets to clear away what was killed


@dataclass(frozen=True, kw_only=True)
class Running:
    """The server of a state folder as it was started: where it answers, the engine it loaded, what decided that."""

    pid: int
    url: str
    engine: str
    engine_sha256: str
    chosen: dict[str, Any]


def start(settings: Settings) -> Running:
    """Starts Triton and returns once ``enhance`` has enhanced a photograph."""
    with _locked(settings):  # two starts at once: the second finds the first's server running
        if server := running(settings):
            raise ServerError(f"a server is already running on {server.url} (state in {settings.state}): make stop")
        engine = preflight.check(settings)
        end_orphans(settings)
        command = prepare(settings)
        with settings.log.open("wb") as log:
            triton = subprocess.Popen(
                command, env=environment(settings), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        server = _record(settings, triton.pid, engine)
        try:
            _await(settings, triton, settings.start_timeout)
        except BaseException:
            stop(settings)
            raise
    return server


def run(settings: Settings) -> None:
    """Becomes Triton: for containers and supervisors, which want the process itself. Does not return."""
    with _locked(settings):  # let go by the kernel when the process becomes Triton
        if server := running(settings):
            raise ServerError(f"a server is already running on {server.url} (state in {settings.state}): stop it first")
        engine = preflight.check(settings)
        end_orphans(settings)
        command = prepare(settings)
        # The process id stays: `stop` and the health check find the server by it.
        _record(settings, os.getpid(), engine)
        os.execve(settings.binary, command, environment(settings))


def prepare(settings: Settings) -> list[str]:
    """Puts into the state folder what Triton is given, and returns its command line."""
    (settings.state / "healthy").unlink(missing_ok=True)  # that was the last server
    served.assemble(settings)
    if not settings.triton:
        assemble_backends(settings)
    known = machine.options(settings.binary, environment(settings))
    return settings.flags(preflight.admin_key(settings), known, served.rate_limits(settings))


def refresh(settings: Settings) -> None:
    """Makes the served copy anew under a running server, which loads it when told (``--control=explicit``).

    With the settings the server was started with, whatever is given now.
    """
    with _locked(settings):
        server = running(settings)
        if server is None:
            raise ServerError(f"no server is running (state in {settings.state}): make serve")
        started = replace(
            settings, **{
                **server.chosen, "repository": Path(server.chosen["repository"]),
                "versions": tuple(server.chosen["versions"]),
            }
        )  # fmt: skip
        preflight.check_engines(started.repository, preflight.served_on(started), started.versions)
        served.assemble(started)


def stop(settings: Settings, *, at_most: float | None = None) -> bool:
    """Ends the server of this state folder; false if none was running.

    It is killed when it takes longer than its exit timeout, or than ``at_most`` seconds, and some. Without the lock: a
    start that hangs can be stopped. A server that was started meanwhile is left alone.
    """
    server = running(settings)
    if server:
        _signal(server.pid, signal.SIGTERM)
        grace = settings.exit_timeout if at_most is None else min(settings.exit_timeout, at_most)
        deadline = time.monotonic() + grace + STOP_SECONDS
        while running(settings) == server and time.monotonic() < deadline:
            _reap(server.pid)
            time.sleep(0.1)
        if running(settings) == server:
            _signal(server.pid, signal.SIGKILL)
            # The kernel takes a while to clear away a process with gigabytes; until then it still looks alive.
            deadline = time.monotonic() + KILLED_SECONDS
            while running(settings) == server and time.monotonic() < deadline:
                _reap(server.pid)
                time.sleep(0.05)
        # Stubs that were starting up do not notice that their parent has gone; they are in its process group.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(server.pid, signal.SIGKILL)
    if not running(settings):
        record(settings).unlink(missing_ok=True)
    return server is not None


def end_orphans(settings: Settings) -> int:
    """Ends the Python stubs of this state folder whose Triton was killed, and says how many there were.

    They notice only after a while, and hold a network's memory until then. To be called when no server of it runs.
    """
    ours, ended = f"{settings.served.absolute()}/".encode(), 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # gone in the meantime
            command = path.read_bytes()
            if b"triton_python_backend_stub" in command.partition(b"\0")[0] and ours in command:
                _signal(int(path.parent.name), signal.SIGKILL)
                ended += 1
    return ended


def running(settings: Settings) -> Running | None:
    """The running server, if the recorded process is there and is a Triton that serves from this state folder."""
    try:
        server = Running(**json.loads(record(settings).read_text(encoding="utf-8")))
        program, *options = Path(f"/proc/{server.pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except (OSError, ValueError, TypeError):
        return None
    flag = "--model-repository="
    given = [option.removeprefix(flag) for option in options if option.startswith(flag)]
    is_ours = [Path(path).resolve() for path in given] == [settings.served.resolve()]
    return server if Path(program).name == "tritonserver" and is_ours else None


def environment(settings: Settings) -> dict[str, str]:
    """Triton's environment: this interpreter first on PATH, and for the wheel its libraries and our libpython.

    The stub ignores PYTHONPATH and PYTHONHOME; it takes the environment whose ``bin`` is first on PATH. Its OpenBLAS
    would start a thread a core in each of them, for work that is shared out by processes; OpenVINO's threads are TBB's
    and heed none of the two variables.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    given = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", **os.environ, "PATH": path}
    if settings.triton:
        return given
    libraries = [settings.wheel.absolute() / "nvidia_pytriton.libs", libpython_folder()]
    return {**given, "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries))}


def assemble_backends(settings: Settings) -> None:
    """A backend directory with the Python backend and the stub of this very Python version in one folder."""
    root = settings.wheel / "pytriton/tritonserver"
    stub = root / f"python_backend_stubs/{sys.version_info.major}.{sys.version_info.minor}/triton_python_backend_stub"
    if not stub.is_file():
        raise ServerError(f"the Triton wheel has no stub for this Python ({stub} is missing): use Python 3.11 or 3.12")
    target = settings.backends / "python"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(root / "backends/python", target)
    shutil.copy2(stub, target)
    (target / stub.name).chmod(0o755)


def _await(settings: Settings, triton: subprocess.Popen[bytes], seconds: float) -> None:
    """Until the deep check passes: a photograph goes through ``enhance`` and comes back."""
    deep = subprocess.Popen(deep_check(settings, seconds), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while deep.poll() is None:
        if triton.poll() is not None:
            deep.kill()
            deep.wait()
            raise ServerError(f"Triton ended with code {triton.returncode}: {_reason(settings.log)} ({settings.log})")
        time.sleep(0.1)
    assert deep.stderr is not None
    complaint = " ".join(deep.stderr.read().split())[:400]
    if deep.returncode:
        raise ServerError(f"Triton started but does not enhance: {complaint} (its log: {settings.log})")


def deep_check(settings: Settings, seconds: float) -> list[str]:
    """The client's command that sends a tiny photograph through ``enhance``, within so many seconds in all.

    It trusts the server's own certificate and nobody else's: ``tls_ca`` says who may be a client, not who we are. Under
    mutual TLS it shows that certificate too, which therefore has to be good for a client.
    """
    command = [str(Path(sys.executable).with_name("restormer-client")), "status", "--url", settings.local_url]
    command += ["--wait", str(seconds), "--timeout", str(seconds)]
    if settings.tls_cert:
        command += ["--tls-ca", str(settings.tls_cert)]
    if settings.tls_name:
        command += ["--tls-name", settings.tls_name]
    if settings.tls_ca:
        command += ["--tls-cert", str(settings.tls_cert), "--tls-key", str(settings.tls_key)]
    return command


#: How Triton begins a line of its log (``--log-format=ISO8601``, the letter says how bad it is).
_PREFIX = r"^\d{4}-\d\d-\d\dT[\d:.]+Z? [%s] \d+ \S+\] "
#: Lines of a failed start's log that tell why, the most telling kind first.
_TELLING = (
    r"failed to load '.*version",
    r"failed to start",
    r"^error: ",
    _PREFIX % "EF" + "(?!.*CudaDriverHelper)",
)


def _reason(log: Path) -> str:
    """The most telling line of a failed start's log, without Triton's prefix and without a stack trace."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    found = (line for pattern in _TELLING for line in lines if re.search(pattern, line))
    line = re.sub(_PREFIX % "EFIW", "", next(found, "it left no message"))
    said = line.split("\\n\\nAt:")[0].replace("\\n", " ")
    return " ".join(said.split()).strip('" ')[:400]


@contextlib.contextmanager
def _locked(settings: Settings) -> Iterator[None]:
    """Nobody else starts a server from this state folder or changes what is served from it."""
    settings.state.mkdir(parents=True, exist_ok=True)
    with (settings.state / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _record(settings: Settings, pid: int, engine: preflight.Engine) -> Running:
    """Writes down which server this state folder has."""
    chosen = {name: getattr(settings, name) for name in served.DECIDE} | {
        "repository": str(settings.repository.absolute())
    }
    server = Running(
        pid=pid, url=settings.url, engine=str(engine.path), engine_sha256=engine.sha256,
        chosen={**chosen, "versions": list(settings.versions)},
    )  # fmt: skip
    record(settings).write_text(json.dumps(asdict(server)) + "\n", encoding="utf-8")
    return server


def record(settings: Settings) -> Path:
    """The file that says which server this state folder has; it is as old as the server."""
    return settings.state / "server.json"


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _reap(pid: int) -> None:
    """Collects the process if it is our own child; it is not when `stop` runs as a command of its own."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
