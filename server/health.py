"""A container's health: a tiny photograph through the whole pipeline, and an end for a server that no longer does it.

Triton 2.51 goes on answering "ready" after a Python process of it died, and does not start it again; and Docker marks a
container unhealthy without replacing it. So a failed check stops the server: its container ends, and ``restart:
unless-stopped`` puts a new one in its place. A server that was never healthy gets `START_SECONDS` first.

Overload is no failure. Whoever is turned away, or waits in vain, behind a queue that moves, is told by a server that
works; so after such an answer Triton's counters decide: have photographs been finished since the last check?
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

#: Longer than an interactive photograph may wait in the queues of the three steps (5 s each, 10 s at a CPU restormer).
#: Within it a failure is tried again every second.
SECONDS = 30.0
#: Seconds from its start after which a server that was never healthy is ended: longer than compose's start period.
START_SECONDS = 300.0
#: Seconds a check waits for the server it stops, however long the exit timeout is: the check has a timeout of its own.
STOP_AT_MOST = 40.0
#: How the client says that the server is busy, and not why: full queues, and no answer in the time that was left.
BUSY = ("is overloaded", "did not answer in time")
#: What is counted: photographs through the last step, those that failed there, and what the network did for others.
COUNTERS = {
    "finished": ("nv_inference_request_success", "postprocess"),
    "failed": ("nv_inference_request_failure", "postprocess"),
    "restored": ("nv_inference_request_success", "restormer"),
}


def check(settings: Settings, *, seconds: float = SECONDS) -> None:
    """Returns if a photograph was enhanced within ``seconds``, or the server is busy enhancing others.

    If not, stops a server that was healthy before or had its time to start. Raises `ServerError` with what was said.
    """
    healthy = settings.state / "healthy"
    complaint = _complaint(settings, seconds)
    counts = _counts(settings)
    if _is_busy(complaint) and not counts:
        raise ServerError(f"busy, and {settings.metrics_url} does not say with what: {complaint}")
    if not complaint or (_is_busy(complaint) and healthy.exists() and has_moved(_kept(settings), counts)):
        healthy.write_text(json.dumps(counts), encoding="utf-8")
        return
    if not healthy.exists() and _age(settings) < START_SECONDS:
        raise ServerError(f"not healthy yet: {complaint}")
    what = "no longer healthy" if healthy.exists() else f"not healthy {START_SECONDS:g} s after its start"
    process.stop(settings, at_most=STOP_AT_MOST)
    raise ServerError(f"{what}, and stopped to be replaced: {complaint}")


def has_moved(before: dict[str, float], now: dict[str, float]) -> bool:
    """Whether photographs were finished between two readings of `COUNTERS`.

    The network's work counts alone where nothing reached the last step: clients may ask for ``restormer`` only.
    """
    finished, failed, restored = (now.get(name, 0.0) - before.get(name, 0.0) for name in COUNTERS)
    return finished > 0 or (restored > 0 and failed == 0)


def _complaint(settings: Settings, seconds: float) -> str:
    """Nothing if a try got through before the deadline; else what the last said that failed for more than overload."""
    deadline, complaint = time.monotonic() + seconds, ""
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
        said = " ".join(tried.stderr.split())[:400]
        if not complaint or not _is_busy(said):
            complaint = said
        if time.monotonic() + 1 >= deadline:
            return complaint
        time.sleep(1)


def _is_busy(complaint: str) -> bool:
    return any(words in complaint for words in BUSY)


def _counts(settings: Settings) -> dict[str, float]:
    """`COUNTERS` now; nothing where the metrics do not answer."""
    try:
        with build_opener(ProxyHandler({})).open(settings.metrics_url, timeout=5) as answer:
            text = answer.read().decode()
    except OSError:
        return {}
    return {
        name: sum(float(value) for value in re.findall(rf'^{metric}{{model="{model}",.*}} (\S+)$', text, re.MULTILINE))
        for name, (metric, model) in COUNTERS.items()
    }


def _kept(settings: Settings) -> dict[str, float]:
    """The counts of the last check that passed."""
    try:
        kept = json.loads((settings.state / "healthy").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _age(settings: Settings) -> float:
    """Seconds since the server of this state folder was started; 0 if there is none."""
    try:
        return time.time() - process.record(settings).stat().st_mtime
    except OSError:
        return 0.0
