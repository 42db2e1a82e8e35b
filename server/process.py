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
from dataclasses import asdict, dataclass
from pathlib import Path

from server import machine, preflight, served
from server.errors import ServerError
from server.settings import Settings, libpython_folder

STOP_SECONDS = 5.0  #: what Triton gets on top of its own exit timeout


@dataclass(frozen=True, kw_only=True)
class Running:
    """The server of a state folder as it was started: where it answers, and the engine it loaded."""

    pid: int
    url: str
    engine: str
    engine_sha256: str


def start(settings: Settings, *, seconds: float = 120.0) -> Running:
    """Starts Triton and returns once ``enhance`` has enhanced a photograph."""
    settings.state.mkdir(parents=True, exist_ok=True)
    with (settings.state / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two starts at once: the second finds the first's server running
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
        server = Running(pid=triton.pid, url=settings.url, engine=str(engine.path), engine_sha256=engine.sha256)
        try:
            _state(settings).write_text(json.dumps(asdict(server)) + "\n", encoding="utf-8")
            _await(settings, triton, seconds)
        except BaseException:
            stop(settings)
            raise
    return server


def run(settings: Settings) -> None:
    """Becomes Triton: for containers and supervisors, which want the process itself. Does not return."""
    if server := running(settings):
        raise ServerError(f"a server is already running on {server.url} (state in {settings.state}): stop it first")
    engine = preflight.check(settings)
    end_orphans(settings)
    command = prepare(settings)
    # The process id stays: `stop` and the health check find the server by it.
    server = Running(pid=os.getpid(), url=settings.url, engine=str(engine.path), engine_sha256=engine.sha256)
    _state(settings).write_text(json.dumps(asdict(server)) + "\n", encoding="utf-8")
    os.execve(settings.binary, command, environment(settings))


def prepare(settings: Settings) -> list[str]:
    """Puts into the state folder what Triton is given, and returns its command line."""
    served.assemble(settings)
    if not settings.triton:
        assemble_backends(settings)
    known = machine.options(settings.binary, environment(settings))
    return settings.flags(preflight.admin_key(settings), known)


def refresh(settings: Settings) -> None:
    """Makes the served copy anew under a running server, which loads it when told (``--control=explicit``)."""
    if not running(settings):
        raise ServerError(f"no server is running (state in {settings.state}): make serve")
    preflight.check_engines(settings.repository, preflight.served_on(settings), settings.versions)
    served.assemble(settings)


def stop(settings: Settings) -> bool:
    """Ends the server of this state folder; false if none was running."""
    server = running(settings)
    if server:
        _signal(server.pid, signal.SIGTERM)
        deadline = time.monotonic() + settings.exit_timeout + STOP_SECONDS
        while running(settings) and time.monotonic() < deadline:
            _reap(server.pid)
            time.sleep(0.1)
        if running(settings):
            _signal(server.pid, signal.SIGKILL)
            _reap(server.pid)
        # Stubs that were starting up do not notice that their parent has gone; they are in its process group.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(server.pid, signal.SIGKILL)
    _state(settings).unlink(missing_ok=True)
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
    """The running server, if the recorded process is there and is a Triton."""
    try:
        server = Running(**json.loads(_state(settings).read_text(encoding="utf-8")))
        command = Path(f"/proc/{server.pid}/cmdline").read_bytes()
    except (OSError, ValueError, TypeError):
        return None
    return server if b"tritonserver" in command else None


def environment(settings: Settings) -> dict[str, str]:
    """Triton's environment: this interpreter first on PATH, and for the wheel its libraries and our libpython.

    The stub ignores PYTHONPATH and PYTHONHOME; it takes the environment whose ``bin`` is first on PATH.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    if settings.triton:
        return {**os.environ, "PATH": path}
    libraries = [settings.wheel.absolute() / "nvidia_pytriton.libs", libpython_folder()]
    return {
        **os.environ,
        "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
        "PATH": path,
    }


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

    Under mutual TLS it shows the server's own certificate, which therefore has to be good for a client too.
    """
    command = [str(Path(sys.executable).with_name("restormer-client")), "status"]
    command += [
        "--url",
        settings.url.replace("0.0.0.0", "127.0.0.1"),
        "--wait",
        str(seconds),
        "--timeout",
        str(seconds),
    ]
    if settings.tls_cert:
        command += ["--tls-ca", str(settings.tls_ca or settings.tls_cert)]
    if settings.tls_ca:
        command += ["--tls-cert", str(settings.tls_cert), "--tls-key", str(settings.tls_key)]
    return command


#: Lines of a failed start's log that tell why, the most telling kind first.
_TELLING = (r"failed to load '.*version", r"failed to start", r"^error: ", r"^[EF]\d{4} ")


def _reason(log: Path) -> str:
    """The most telling line of a failed start's log, without Triton's prefix and without a stack trace."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    found = (line for pattern in _TELLING for line in lines if re.search(pattern, line))
    line = re.sub(r"^[EFIW]\d{4} [\d:.]+ \d+ \S+\] ", "", next(found, "it left no message"))
    said = line.split("\\n\\nAt:")[0].replace("\\n", " ")
    return " ".join(said.split()).strip('" ')[:400]


def _state(settings: Settings) -> Path:
    return settings.state / "server.json"


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _reap(pid: int) -> None:
    """Collects the process if it is our own child; it is not when `stop` runs as a command of its own."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
