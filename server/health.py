"""A container's health: a tiny photograph through the whole pipeline, and an end for a server that no longer does it.

Triton 2.51 goes on answering "ready" after a Python process of it died, and does not start it again; and Docker marks a
container unhealthy without replacing it. So a failed check stops the server: its container ends, and ``restart:
unless-stopped`` puts a new one in its place. A server that was never healthy is left alone: it is starting.
"""

from __future__ import annotations

import subprocess
import time

from server import process
from server.errors import ServerError
from server.settings import Settings

#: Longer than an interactive photograph may wait in the queues of the three steps (5 s each, 10 s at a CPU restormer).
#: Within it a failure is tried again every second, so that a queue that is full for a moment does not fail the check:
#: overload alone does not end a server.
SECONDS = 30.0


def check(settings: Settings, *, seconds: float = SECONDS) -> None:
    """Returns if a photograph was enhanced within ``seconds``; if not, stops a server that was healthy before.

    Raises `ServerError` with what the last try said.
    """
    healthy = settings.state / "healthy"
    complaint = _complaint(settings, seconds)
    if not complaint:
        healthy.touch()
        return
    if not healthy.exists():
        raise ServerError(f"not healthy yet: {complaint}")
    process.stop(settings)
    raise ServerError(f"no longer healthy, and stopped to be replaced: {complaint}")


def _complaint(settings: Settings, seconds: float) -> str:
    """What the last try said, or nothing when one got through before the deadline."""
    deadline = time.monotonic() + seconds
    while True:
        left = max(deadline - time.monotonic(), 1.0)
        tried = subprocess.run(
            process.deep_check(settings, left),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if tried.returncode == 0:
            return ""
        if time.monotonic() + 1 >= deadline:
            return " ".join(tried.stderr.split())[:400]
        time.sleep(1)
