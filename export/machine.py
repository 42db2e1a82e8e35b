"""What this machine is: asked without importing anything large."""

from __future__ import annotations

import platform
import resource
import subprocess
from pathlib import Path


def cpu_name() -> str:
    """The processor's model name from the kernel, or its architecture where the kernel has none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def gpus() -> list[tuple[str, str]]:
    """Name and compute capability (``9.0``) of every GPU, as nvidia-smi lists them; empty without a driver."""
    command = ["nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[cell.strip() for cell in line.rpartition(",")[::2]] for line in found.stdout.splitlines() if "," in line]
    return [(name, capability) for name, capability in rows]


def peak_memory_mib() -> int:
    """The most resident memory this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
