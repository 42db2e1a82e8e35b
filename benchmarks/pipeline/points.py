"""Measure a point: perf_analyzer sends, and the server's own counters give the rates in the middle of the run.

Rates are between moments that lie whole cycles of the inputs apart, because photographs differ in size. Requests that
fill and empty the server are outside.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import resource
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.child import used_cpu_seconds
from benchmarks.pipeline import analyzer
from benchmarks.pipeline.parts import CORE, NAMES
from benchmarks.pipeline.sampling import Sampler
from traffic.server import Counters, Server

ENHANCE, TILED = "enhance", "enhance_tiled"
#: The models whose counters show where a request of a model was.
STEPS = {CORE: (CORE,), ENHANCE: NAMES, TILED: (TILED,)}
#: Where a request may be, and Triton's name for it.
WHERE = {"queue": "queue", "input": "compute_input", "infer": "compute_infer", "output": "compute_output"}
POLL = 0.05  #: seconds between two samples of the server's counters
TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Load:
    """What is sent: the model, perf_analyzer's options, and how many requests are one cycle of the inputs."""

    model: str
    options: tuple[str, ...]
    cycle: int


@dataclass(frozen=True)
class Moment:
    """The server at a moment: its counters, and the CPU seconds of its processes by what they run."""

    time: float
    counters: Counters
    cpu: dict[str, float]


@dataclass(frozen=True)
class Point:
    """A run: moments between windows, perf_analyzer's percentiles, and the cores that it used itself."""

    moments: list[Moment]
    percentiles: dict[str, float]
    generator: float


class Bench:
    """A running server, and the load generator."""

    def __init__(self, server: Server, command: list[str], loads: dict[str, Load], seconds: float) -> None:
        self.server, self._command, self.loads, self._seconds = server, command, loads, seconds

    def closed(self, model: str, concurrency: int, *, windows: int, expected: float) -> Point:
        """Keep this many requests in flight. ``expected``: about how many a second will be done, 0 if unknown."""
        options, window = ["--concurrency-range", str(concurrency)], self._window(model, expected)
        while True:
            point = self._run(model, options, concurrency, windows, window)
            if point.moments[-1].time - point.moments[0].time >= windows * self._seconds / 2:
                return point
            window *= 4  # faster than expected, so the window was too short

    def open(self, model: str, rate: float, *, windows: int) -> Point:
        """Send this many requests a second, at even intervals. Raises `analyzer.QueueFull`."""
        # Its own Poisson distribution sends in bursts. Without the step, its range would start at 1.
        options = ["--request-rate-range", f"{rate:.3f}:{rate:.3f}:1", "--request-distribution", "constant", "--async"]
        return self._run(model, options, 1, windows, self._window(model, rate))

    def _window(self, model: str, expected: float) -> int:
        """Return the requests of a window: whole cycles, for at least the seconds of this bench."""
        cycle = self.loads[model].cycle
        return cycle * max(1, math.ceil(self._seconds * expected / cycle))

    def _run(self, model: str, options: Sequence[str], around: int, windows: int, window: int) -> Point:
        """Send the windows; before and after them ``around`` requests, which fill and empty the server."""
        marks = [around + number * window for number in range(windows + 1)]
        command = [*self._command, "-u", self.server.url, "-m", model, *self.loads[model].options, *options]
        command += ["--request-count", str(marks[-1] + around)]
        before = self.server.read_counters()[model, "request_success"]

        def read() -> Moment:
            return Moment(time.perf_counter(), self.server.read_counters(), cpu_seconds(self.server))

        def has_reached(moment: Moment, mark: int) -> bool:
            return moment.counters[model, "request_success"] - before >= mark

        began, cpu = time.perf_counter(), used_cpu_seconds(resource.RUSAGE_CHILDREN)
        with Sampler(read, POLL, lambda moment: has_reached(moment, marks[-1])) as sampler:
            percentiles = analyzer.run_analyzer(command)
            generator = (used_cpu_seconds(resource.RUSAGE_CHILDREN) - cpu) / (time.perf_counter() - began)
        moments = [next((each for each in sampler.samples if has_reached(each, mark)), None) for mark in marks]
        found = [moment for moment in moments if moment]
        if len(found) < len(marks):
            raise SystemExit(f"error: {model}: the server counted fewer than the {marks[-1]} requests that were sent")
        return Point(found, percentiles, generator)


def cpu_seconds(server: Server) -> dict[str, float]:
    """Return the CPU seconds so far of Triton and of each model's processes."""
    found: dict[str, float] = {}
    for pid, line in server.list_processes().items():
        name = next((model for model in (TILED, *NAMES) if f" {model}_0_" in line), "tritonserver")
        with contextlib.suppress(OSError):
            user, system = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[11:13]
            found[name] = found.get(name, 0.0) + (int(user) + int(system)) / TICK
    return found


def window_rates(model: str, moments: Sequence[Moment]) -> list[float]:
    """Return the requests a second of each window."""
    return [
        (after.counters[model, "request_success"] - before.counters[model, "request_success"])
        / (after.time - before.time)
        for before, after in itertools.pairwise(moments)
    ]


def summarize(model: str, points: Sequence[Point]) -> dict[str, Any]:
    """Return the figures of one point, or of the same point several times."""
    found = [rate for point in points for rate in window_rates(model, point.moments)]
    grown: Counters = defaultdict(float)
    for point in points:
        for key, value in point.moments[-1].counters.items():
            grown[key] += value - point.moments[0].counters[key]
    done = grown[model, "request_success"]
    by_step = {step: {f"{what}_ms": _ms_a_request(grown, step, what) for what in WHERE} for step in STEPS[model]}
    return {
        "rate": statistics.median(found),
        "least": min(found),
        "most": max(found),
        "requests": int(done),
        **{key: statistics.median(point.percentiles[key] for point in points) for key in points[0].percentiles},
        **{f"{what}_ms": sum(step[f"{what}_ms"] for step in by_step.values()) for what in WHERE},
        "server_ms": grown[model, "request_duration_us"] / done / 1e3,
        "by_step": by_step,
        "batch": grown[CORE, "count"] / grown[CORE, "exec_count"],
        "generator_cpu": statistics.median(point.generator for point in points),
    }


def _ms_a_request(grown: Counters, model: str, what: str) -> float:
    """Return the milliseconds that a request of a model spent there."""
    requests = grown[model, "request_success"]
    return grown[model, f"{WHERE[what]}_duration_us"] / requests / 1e3 if requests else 0.0
