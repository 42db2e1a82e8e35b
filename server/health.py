"""A container's health: a tiny photograph through the whole pipeline, and an end for the server that can no longer do that.

Triton 2.51 goes on answering "ready" after a Python process of it died, and does not start it again; and Docker marks a
container unhealthy without replacing it. So the second failed check in a row stops the server: its container ends, and
``restart: unless-stopped`` puts a new one in its place. A server that was never healthy is left alone: it is starting.
"""

from __future__ import annotations

import subprocess
import time

from server import process
from server.errors import ServerError
from server.settings import Settings

#: Longer than an interactive photograph may wait in the queues of the three steps (5 s each): a queue that is full for a
#: moment is tried again within it, so that overload alone does not fail the check.
SECONDS = 30.0
FAILURES = 2  #: in a row, before the server is ended


def check(settings: Settings, *, seconds: float = SECONDS) -> None:
    """Returns if a photograph was enhanced; raises `ServerError` if not, and the second time in a row stops the server."""
    failures = settings.state / "failures"  # there since the server was first healthy; its length is the count
    complaint = _complaint(settings, seconds)
    if not complaint:
        failures.write_bytes(b"")
        return
    if not failures.exists():
        raise ServerError(f"not healthy yet: {complaint}")
    with failures.open("ab") as file:
        file.write(b".")
    count = failures.stat().st_size
    if count < FAILURES:
        raise ServerError(f"check {count} of {FAILURES} failed: {complaint}")
    process.stop(settings)
    raise ServerError(f"check {count} of {FAILURES} failed, the server was stopped to be replaced: {complaint}")


def _complaint(settings: Settings, seconds: float) -> str:
    """What the last try said, or nothing when one got through before the deadline."""
    deadline = time.monotonic() + seconds
    while True:
        left = max(deadline - time.monotonic(), 1.0)
        tried = subprocess.run(
            process.deep_check(settings, left), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
        )
        if tried.returncode == 0:
            return ""
        if time.monotonic() + 1 >= deadline:
            return " ".join(tried.stderr.split())[:400]
        time.sleep(1)
