"""Triton's life as a process: started in the background, awaited until it truly answers, stopped."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from server import preflight
from server.errors import ServerError
from server.settings import Settings, libpython_folder

STOP_SECONDS = 20.0  #: longer than Triton's own exit timeout


def start(settings: Settings, *, seconds: float = 120.0) -> int:
    """Starts Triton and returns its process id once ``enhance`` has enhanced a photograph."""
    if running(settings):
        raise ServerError(f"a server is already running on {settings.url} (state in {settings.state}): make stop")
    preflight.check(settings)
    settings.state.mkdir(parents=True, exist_ok=True)
    assemble_backends(settings)
    with settings.log.open("wb") as log:
        triton = subprocess.Popen(
            settings.flags(), env=environment(settings), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    _write_state(settings, triton.pid)
    try:
        _await(settings, triton, seconds)
    except BaseException:
        stop(settings)
        raise
    return triton.pid


def run(settings: Settings) -> None:
    """Becomes Triton: for containers and supervisors, which want the process itself. Does not return."""
    preflight.check(settings)
    settings.state.mkdir(parents=True, exist_ok=True)
    assemble_backends(settings)
    os.execve(settings.binary, settings.flags(), environment(settings))


def stop(settings: Settings) -> bool:
    """Ends the server of this state folder; false if none was running."""
    pid = running(settings)
    if pid:
        _signal(pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while running(settings) and time.monotonic() < deadline:
            _reap(pid)
            time.sleep(0.1)
        if running(settings):
            _signal(pid, signal.SIGKILL)
            _reap(pid)
    _state(settings).unlink(missing_ok=True)
    return bool(pid)


def running(settings: Settings) -> int | None:
    """The process id of the running server, if the recorded process is there and is a Triton."""
    try:
        pid = int(json.loads(_state(settings).read_text(encoding="utf-8"))["pid"])
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError, KeyError):
        return None
    return pid if b"tritonserver" in command else None


def environment(settings: Settings) -> dict[str, str]:
    """Triton's environment: its bundled libraries, our libpython, and this interpreter first on PATH.

    The stub ignores PYTHONPATH and PYTHONHOME; it takes the environment whose ``bin`` is first on PATH.
    """
    libraries = [settings.wheel.absolute() / "nvidia_pytriton.libs", libpython_folder()]
    return {
        **os.environ,
        "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
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
    client = Path(sys.executable).with_name("restormer-client")
    check = [str(client), "check", "--url", settings.url, "--timeout", str(seconds)]
    deep = subprocess.Popen(check, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while deep.poll() is None:
        if triton.poll() is not None:
            deep.kill()
            deep.wait()
            raise ServerError(f"Triton ended with code {triton.returncode}: {_reason(settings.log)} ({settings.log})")
        time.sleep(0.1)
    assert deep.stderr is not None
    complaint = deep.stderr.read().strip()
    if deep.returncode:
        raise ServerError(f"Triton started but does not enhance: {complaint} (its log: {settings.log})")


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


def _write_state(settings: Settings, pid: int) -> None:
    _state(settings).write_text(json.dumps({"pid": pid, "url": settings.url}) + "\n", encoding="utf-8")


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _reap(pid: int) -> None:
    """Collects the process if it is our own child; it is not when `stop` runs as a command of its own."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
