"""Describe this machine, without heavy imports."""

import platform
import resource
from collections.abc import Collection
from pathlib import Path

import hosts


def cpu_name() -> str:
    """Return the CPU's model name from the kernel, or its architecture where the kernel has none."""
    return _cpuinfo("model name") or platform.machine()


def cpu_flags() -> set[str]:
    """Return the CPU's features as the kernel names them; empty where the kernel has none."""
    return set(_cpuinfo("flags").split())


def _cpuinfo(field: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == field), "")


def why_no_gpu(capabilities: Collection[str]) -> str:
    """Return why no GPU here has one of these compute capabilities; empty if one has."""
    present = {capability for _, capability in hosts.gpus()}
    if present.intersection(capabilities):
        return ""
    here = f"found {', '.join(sorted(present))}" if present else "no GPU here"
    return f"needs compute capability {' or '.join(sorted(capabilities, key=float))}, {here}"


def peak_memory_mib() -> int:
    """Return the peak resident memory of this process in MiB.

    From the kernel's own accounting; ``getrusage`` includes the memory of the parent that started the process.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) // 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
