"""Check a container's health: send a tiny photograph through the whole pipeline, and stop a server that fails.

Triton 2.51 still reports "ready" after one of its Python processes died, and does not restart it; and Docker marks a
container unhealthy without replacing it. So a failed check stops the server: its container exits, and ``restart:
unless-stopped`` starts a new one. A server that was never healthy gets `START_SECONDS` first.

Overload is not a failure: a rejection or a timeout while the queues move proves that the server works. After such an
answer the check passes if Triton's counters show that photographs were finished since the last check.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from urllib.request import ProxyHandler, build_opener

from server import process
from server.errors import ServerError
from server.settings import Settings

#: Seconds during which a failed check is repeated. Longer than an interactive photograph may wait in the queues of the
#: three steps (5 s each; on a CPU 10 s in those of preprocess and restormer).
SECONDS = 30.0
#: Seconds after its start when a server that was never healthy is stopped: longer than compose's start period.
START_SECONDS = 300.0
#: Maximum seconds that a check waits for the server to stop: the check has a timeout of its own.
STOP_AT_MOST = 40.0
#: The client's messages for a busy server: full queues, and no answer before the deadline.
BUSY = ("is overloaded", "did not answer in time")
#: Photographs that left the last step, those that failed there, and requests that the network finished.
COUNTERS = {
    "finished": ("nv_inference_request_success", "postprocess"),
    "failed": ("nv_inference_request_failure", "postprocess"),
    "restored": ("nv_inference_request_success", "restormer"),
}


def check(settings: Settings, *, seconds: float = SECONDS) -> None:
    """Return if a photograph was enhanced within ``seconds``, or if the server is busy enhancing others.

    Otherwise raise `ServerError` with the client's message, and first stop the server if it was healthy before or
    started more than `START_SECONDS` ago.
    """
    healthy = settings.state / "healthy"
    failure = _try_until_deadline(settings, seconds)
    counts = _read_counters(settings)
    if _is_busy(failure) and not counts:
        raise ServerError(f"busy, and {settings.metrics_url} does not answer: {failure}")
    if not failure or (_is_busy(failure) and healthy.exists() and has_progressed(_saved_counters(settings), counts)):
        healthy.write_text(json.dumps(counts), encoding="utf-8")
        return
    if not healthy.exists() and _server_age(settings) < START_SECONDS:
        raise ServerError(f"not healthy yet: {failure}")
    state = "no longer healthy" if healthy.exists() else f"not healthy {START_SECONDS:g} s after its start"
    process.stop(settings, at_most=STOP_AT_MOST)
    raise ServerError(f"{state}, and stopped to be replaced: {failure}")


def has_progressed(before: dict[str, float], now: dict[str, float]) -> bool:
    """Return whether photographs were finished between two readings of `COUNTERS`.

    The network's requests count if nothing failed in the last step: clients may call ``restormer`` alone.
    """
    finished, failed, restored = (now.get(name, 0.0) - before.get(name, 0.0) for name in COUNTERS)
    return finished > 0 or (restored > 0 and failed == 0)


def _try_until_deadline(settings: Settings, seconds: float) -> str:
    """Try until the deadline; return "" after a success, else the last message, if possible not one of overload."""
    deadline, failure = time.monotonic() + seconds, ""
    while True:
        remaining = max(deadline - time.monotonic(), 1.0)
        tried = subprocess.run(
            process.deep_check_command(settings, remaining),
            env=process.environment_without_proxies(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if tried.returncode == 0:
            return ""
        message = " ".join(tried.stderr.split())[:400]
        if not failure or not _is_busy(message):
            failure = message
        if time.monotonic() + 1 >= deadline:
            return failure
        time.sleep(1)


def _is_busy(message: str) -> bool:
    return any(phrase in message for phrase in BUSY)


def _read_counters(settings: Settings) -> dict[str, float]:
    """Read `COUNTERS`; empty if the metrics do not answer."""
    try:
        with build_opener(ProxyHandler({})).open(settings.metrics_url, timeout=5) as answer:
            text = answer.read().decode()
    except OSError:
        return {}
    return {
        name: sum(float(value) for value in re.findall(rf'^{metric}{{model="{model}",.*}} (\S+)$', text, re.MULTILINE))
        for name, (metric, model) in COUNTERS.items()
    }


def _saved_counters(settings: Settings) -> dict[str, float]:
    """Read the counters that the last passed check saved."""
    try:
        counters: dict[str, float] = json.loads((settings.state / "healthy").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return counters


def _server_age(settings: Settings) -> float:
    """Return the seconds since the server of this state folder was started; 0 if there is none."""
    try:
        return time.time() - process.record_path(settings).stat().st_mtime
    except OSError:
        return 0.0
