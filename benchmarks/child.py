"""Run a part of a benchmark in a process of its own, for its memory, its start or its cores."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

from operations.recording import print_status


def run_part(module: str, part: str, *arguments: object, **environment: str) -> dict[str, float]:
    """Run ``python -m MODULE --part PART ARGUMENTS``; return the JSON object that it prints."""
    print_status(f"{part} {' '.join(map(str, arguments))}")
    command = [sys.executable, "-m", module, "--part", part, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, env={**os.environ, **environment}, check=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def process_memory(name: str) -> float:
    """Return the bytes of this process in a line of /proc/self/status, such as VmHWM, the high-water mark."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def used_cpu_seconds(who: int = resource.RUSAGE_SELF) -> float:
    """Return user and system time of this process, or of its children that have ended (``RUSAGE_CHILDREN``)."""
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime
