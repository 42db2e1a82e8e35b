"""Export the outcomes, the durations and the memory of a Python model as Prometheus metrics.

Triton counts an error response of a Python model as a success of that model, so each model counts its own requests.
"""

import os
import time
from pathlib import Path
from typing import Any

#: The request was processed; invalid; abandoned because the network was overloaded; cancelled by the client; or failed
#: because of an error of the server.
OUTCOMES = ("done", "invalid", "overloaded", "cancelled", "internal")
CGROUP, SHM = Path("/sys/fs/cgroup"), "/dev/shm"
#: Gauges and their descriptions, in the order in which `Metrics` sets them.
GAUGES = {
    "restormer_memory_used_bytes": "Memory in use in the server's container, or on its host",
    "restormer_memory_limit_bytes": "Memory limit of the server's container, or of its host",
    "restormer_shm_used_bytes": "Shared memory in use where the server runs",
    "restormer_shm_total_bytes": "Shared memory in total where the server runs",
}


class Metrics:
    """The metrics of one model instance.

    ``family`` is ``pb_utils.MetricFamily``, and ``edges`` are those of the histogram, separated by spaces.
    """

    def __init__(self, family: Any, labels: dict[str, str], edges: str) -> None:
        durations = family(
            name="restormer_photograph_ms",
            description="Time a step worked on a photograph, in ms",
            kind=family.HISTOGRAM,
        )
        counts = family(
            name="restormer_requests_total", description="Requests a step answered, by outcome", kind=family.COUNTER
        )
        gauges = [family(name=name, description=text, kind=family.GAUGE) for name, text in GAUGES.items()]
        self._families = (durations, counts, *gauges)  # a metric is deleted with its family
        self._durations = durations.Metric(labels=labels, buckets=[float(edge) for edge in edges.split()])
        # All outcomes start at zero, so that an alert on growth sees the first.
        self._outcomes = {outcome: counts.Metric(labels={**labels, "outcome": outcome}) for outcome in OUTCOMES}
        self._gauges = [gauge.Metric(labels={}) for gauge in gauges]
        self._update_memory()

    def count(self, outcome: str, started: float) -> None:
        """Count a request that began at ``started`` (`time.perf_counter`); the histogram has processed ones only."""
        self._outcomes[outcome].increment(1)
        if outcome == "done":
            self._durations.observe((time.perf_counter() - started) * 1000)
        self._update_memory()

    def _update_memory(self) -> None:
        shm = os.statvfs(SHM)
        values = (*memory(), (shm.f_blocks - shm.f_bfree) * shm.f_frsize, shm.f_blocks * shm.f_frsize)
        for gauge, value in zip(self._gauges, values, strict=True):
            gauge.set(value)


def memory(cgroup: Path = CGROUP) -> tuple[int, int]:
    """Return the bytes in use and the limit, of the container (cgroup 2, else 1) or, without a limit, of the host.

    File cache that the kernel can reclaim is not counted.
    """
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    names = (("memory.current", "memory.max", "inactive_file"),
             ("memory/memory.usage_in_bytes", "memory/memory.limit_in_bytes", "total_inactive_file"))  # fmt: skip
    for current, maximum, cache in names:
        try:
            used, limit = int((cgroup / current).read_text()), (cgroup / maximum).read_text().strip()
            stat = dict(line.split() for line in (cgroup / current).with_name("memory.stat").read_text().splitlines())
        except OSError:
            continue
        # "max", or in cgroup 1 a number beyond any machine: no limit.
        if limit.isdecimal() and int(limit) < total:
            return used - int(stat[cache]), int(limit)
    free = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable:"))
    return total - int(free.split()[1]) * 1024, total
