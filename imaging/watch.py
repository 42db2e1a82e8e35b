"""What a server of these functions is watched by, kept alike by all its adapters: outcomes, times, and the memory left.

Triton counts an error that a Python model answers as a success of that model; so the adapters count by themselves. This
module knows no Triton: it is handed the class that makes a family of metrics (``pb_utils.MetricFamily``).
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

#: Of a request: worked on; refused for what was sent; given up because the network was overloaded; given up because the
#: sender went away; failed by a fault of ours.
OUTCOMES = ("done", "refused", "overloaded", "cancelled", "internal")
CGROUP, SHM = Path("/sys/fs/cgroup"), "/dev/shm"


class Watch:
    """Metrics of one adapter. ``args`` are those of ``initialize``; its parameter ``histogram_ms`` has the edges."""

    def __init__(self, family: Any, args: dict[str, str]) -> None:
        labels = {"model": args["model_name"], "version": args["model_version"]}
        edges = json.loads(args["model_config"])["parameters"]["histogram_ms"]["string_value"]
        times = family(
            name="restormer_photograph_ms",
            description="Time a step worked on a photograph, in ms",
            kind=family.HISTOGRAM,
        )
        counts = family(
            name="restormer_requests_total", description="Requests a step answered, by outcome", kind=family.COUNTER
        )
        gauges = {
            name: family(name=name, description=text, kind=family.GAUGE)
            for name, text in (
                ("restormer_memory_used_bytes", "Memory in use where the server runs: its container, or the host"),
                ("restormer_memory_limit_bytes", "The most that may be in use there"),
                ("restormer_shm_used_bytes", "Shared memory in use where the server runs"),
                ("restormer_shm_total_bytes", "Shared memory there"),
            )
        }
        self._families = (times, counts, *gauges.values())  # kept: their metrics die with them
        self._worked = times.Metric(labels=labels, buckets=[float(edge) for edge in edges.split()])
        # All of them from the start, at zero: an alert on growth sees the first.
        self._ended = {outcome: counts.Metric(labels={**labels, "outcome": outcome}) for outcome in OUTCOMES}
        self._memory = {name: gauge.Metric(labels={}) for name, gauge in gauges.items()}
        self._look()

    def ended(self, outcome: str, started: float) -> None:
        """Counts a request that began at ``started`` (`time.perf_counter`); only what was done is in the histogram."""
        self._ended[outcome].increment(1)
        if outcome == "done":
            self._worked.observe((time.perf_counter() - started) * 1000)
        self._look()

    def _look(self) -> None:
        shm = os.statvfs(SHM)
        used, limit = memory()
        for name, value in (
            ("restormer_memory_used_bytes", used),
            ("restormer_memory_limit_bytes", limit),
            ("restormer_shm_used_bytes", (shm.f_blocks - shm.f_bfree) * shm.f_frsize),
            ("restormer_shm_total_bytes", shm.f_blocks * shm.f_frsize),
        ):
            self._memory[name].set(value)


def memory(cgroup: Path = CGROUP) -> tuple[int, int]:
    """Bytes in use and the most there may be: of the container (cgroup 2, then 1), without the file cache that the
    kernel would give back; of the host, where no container limits it."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    names = (("memory.current", "memory.max", "inactive_file"),
             ("memory/memory.usage_in_bytes", "memory/memory.limit_in_bytes", "total_inactive_file"))  # fmt: skip
    for current, most, cache in names:
        try:
            used, limit = int((cgroup / current).read_text()), (cgroup / most).read_text().strip()
            held = dict(line.split() for line in (cgroup / current).with_name("memory.stat").read_text().splitlines())
        except OSError:
            continue
        # "max", or in cgroup 1 a number beyond any machine: no limit.
        if limit.isdecimal() and int(limit) < total:
            return used - int(held[cache]), int(limit)
    free = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable:"))
    return total - int(free.split()[1]) * 1024, total
