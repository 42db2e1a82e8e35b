"""A point of a benchmark: perf_analyzer sends, and the server's own counters say what came of it in the middle.

Rates are between moments that lie whole cycles of the inputs apart, because photographs differ in size; what fills and
empties the server is outside of them.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import resource
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.pipeline import analyzer
from benchmarks.pipeline.parts import CORE, NAMES
from traffic.server import Counters, Server

ENHANCE, TILED = "enhance", "enhance_tiled"
#: The models whose counters say where a request was.
STEPS = {CORE: (CORE,), ENHANCE: NAMES, TILED: (TILED,)}
#: Where a request may be, and what Triton calls it.
WHERE = {"queue": "queue", "input": "compute_input", "infer": "compute_infer", "output": "compute_output"}
POLL = 0.05  #: seconds between two looks at the server's counters
TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Load:
    """What is sent: to which model, what perf_analyzer is told, and how many requests are one cycle of the inputs."""

    model: str
    words: tuple[str, ...]
    cycle: int


@dataclass(frozen=True)
class Moment:
    """What the server had done at a moment: its counters, and the CPU seconds of its processes by what they do."""

    time: float
    counters: Counters
    cpu: dict[str, float]


@dataclass(frozen=True)
class Point:
    """A run: moments between windows, perf_analyzer's percentiles, and the cores it used itself."""

    moments: list[Moment]
    percentiles: dict[str, float]
    generator: float

    @property
    def seconds(self) -> float:
        """Between the first moment and the last."""
        return self.moments[-1].time - self.moments[0].time


class Bench:
    """A running server, its parts in process, and the load generator."""

    def __init__(self, server: Server, command: list[str], loads: dict[str, Load], seconds: float) -> None:
        self.server, self._command, self.loads, self._seconds = server, command, loads, seconds

    def closed(self, model: str, concurrency: int, *, windows: int, expected: float) -> Point:
        """So many requests on their way; ``expected``: about how many a second will be done, 0 if nobody knows."""
        words, window = ["--concurrency-range", str(concurrency)], self._window(model, expected)
        while True:
            point = self._run(model, words, concurrency, windows, window)
            if point.seconds >= windows * self._seconds / 2:
                return point
            window *= 4  # faster than expected, so too short to tell

    def open(self, model: str, rate: float, *, windows: int) -> Point:
        """So many requests a second at even intervals. Raises `analyzer.Full` where the server turns one away."""
        # perf_analyzer's own Poisson was tried: it sends in bursts far from one. Its range would end at 1 by itself.
        words = ["--request-rate-range", f"{rate:.3f}:{rate:.3f}:1", "--request-distribution", "constant", "--async"]
        return self._run(model, words, 1, windows, self._window(model, rate))

    def _window(self, model: str, expected: float) -> int:
        """Requests of a window: whole cycles, for so many seconds at least."""
        cycle = self.loads[model].cycle
        return cycle * max(1, math.ceil(self._seconds * expected / cycle))

    def _run(self, model: str, words: Sequence[str], around: int, windows: int, window: int) -> Point:
        """Before and after the windows come so many requests as are on their way: they fill and empty the server."""
        marks = [around + number * window for number in range(windows + 1)]
        sent = [*self._command, "-u", self.server.url, "-m", model, *self.loads[model].words, *words]
        sent += ["--request-count", str(marks[-1] + around)]
        began, cpu = time.perf_counter(), _children()
        with _watched(self.server, model, marks) as moments:
            percentiles = analyzer.analyzed(sent)
        generator = (_children() - cpu) / (time.perf_counter() - began)
        return Point(moments, percentiles, generator)


@contextlib.contextmanager
def _watched(server: Server, model: str, marks: Sequence[int]) -> Iterator[list[Moment]]:
    """The moments at which the model had answered so many requests more than now; all are there when the block ends."""
    over, moments, before = threading.Event(), list[Moment](), server.read_counters()[model, "request_success"]

    def watch() -> None:
        patience = math.inf
        while len(moments) < len(marks) and time.perf_counter() < patience:
            counters = server.read_counters()
            if counters[model, "request_success"] - before >= marks[len(moments)]:
                moments.append(Moment(time.perf_counter(), counters, cpu_of(server)))
            elif over.is_set():  # the last answer is counted after it was sent
                patience = min(patience, time.perf_counter() + 5)
            time.sleep(POLL)

    with ThreadPoolExecutor(1) as pool:
        watcher = pool.submit(watch)
        try:
            yield moments
        finally:
            over.set()
            watcher.result()
    if len(moments) < len(marks):
        raise SystemExit(f"error: {model}: the server counted fewer than the {marks[-1]} requests that were sent")


def cpu_of(server: Server) -> dict[str, float]:
    """CPU seconds so far of Triton and of each model's processes."""
    found: dict[str, float] = {}
    for pid, line in server.list_processes().items():
        name = next((model for model in (TILED, *NAMES) if f" {model}_0_" in line), "tritonserver")
        with contextlib.suppress(OSError):
            user, system = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[11:13]
            found[name] = found.get(name, 0.0) + (int(user) + int(system)) / TICK
    return found


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def rates(model: str, moments: Sequence[Moment]) -> list[float]:
    """Requests a second in each window."""
    return [
        (after.counters[model, "request_success"] - before.counters[model, "request_success"])
        / (after.time - before.time)
        for before, after in itertools.pairwise(moments)
    ]


def row(model: str, points: Sequence[Point]) -> dict[str, Any]:
    """A row of the table: one point, or the same point several times."""
    found = [rate for point in points for rate in rates(model, point.moments)]
    grown: Counters = defaultdict(float)
    for point in points:
        for key, value in point.moments[-1].counters.items():
            grown[key] += value - point.moments[0].counters[key]
    done = grown[model, "request_success"]
    return {
        "rate": statistics.median(found),
        "least": min(found),
        "most": max(found),
        "requests": int(done),
        **{key: statistics.median(point.percentiles[key] for point in points) for key in points[0].percentiles},
        **{f"{what}_ms": sum(spent(grown, step, what) for step in STEPS[model]) for what in WHERE},
        "server_ms": grown[model, "request_duration_us"] / done / 1e3,
        "by_step": {step: {f"{what}_ms": spent(grown, step, what) for what in WHERE} for step in STEPS[model]},
        "batch": grown[CORE, "count"] / grown[CORE, "exec_count"],
        "generator_cpu": statistics.median(point.generator for point in points),
    }


def spent(grown: Counters, model: str, what: str) -> float:
    """Milliseconds a request of a model was there."""
    requests = grown[model, "request_success"]
    return grown[model, f"{WHERE[what]}_duration_us"] / requests / 1e3 if requests else 0.0
