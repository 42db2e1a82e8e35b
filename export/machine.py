"""What this machine is: asked without importing anything large."""

from __future__ import annotations

import functools
import os
import platform
import resource
import subprocess
from collections.abc import Collection
from pathlib import Path


def cpu_name() -> str:
    """The processor's model name from the kernel, or its architecture where the kernel has none."""
    return _cpuinfo("model name") or platform.machine()


def cpu_flags() -> set[str]:
    """The processor's features as the kernel names them; empty where the kernel has none."""
    return set(_cpuinfo("flags").split())


def _cpuinfo(field: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == field), "")


@functools.cache
def gpus() -> list[tuple[str, str]]:
    """Name and compute capability (``9.0``) of every GPU that CUDA_VISIBLE_DEVICES leaves; empty without a driver.

    nvidia-smi itself ignores that variable. A plan is built for the first GPU: on a mixed host set the variable, and
    CUDA_DEVICE_ORDER=PCI_BUS_ID. The server has a copy of this: neither room imports the other.
    """
    command = ["nvidia-smi", "--query-gpu=name,compute_cap,uuid", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in found.stdout.splitlines() if "," in line]
    return [(name, capability) for name, capability, *_ in _visible(rows, os.environ.get("CUDA_VISIBLE_DEVICES"))]


def why_no_gpu(capabilities: Collection[str]) -> str:
    """Return why no GPU here has one of these compute capabilities; empty if one has."""
    present = {capability for _, capability in gpus()}
    if present.intersection(capabilities):
        return ""
    here = f"found {', '.join(sorted(present))}" if present else "no GPU here"
    return f"wants compute capability {' or '.join(sorted(capabilities))}, {here}"


def _visible(rows: list[list[str]], chosen: str | None) -> list[list[str]]:
    """The rows that CUDA_VISIBLE_DEVICES leaves: up to the first entry that names no GPU, as CUDA does it.

    An entry is an index, counted as nvidia-smi does (and CUDA with CUDA_DEVICE_ORDER=PCI_BUS_ID), or the beginning of a
    UUID. A MIG slice does not say whose it is, so it leaves all.
    """
    if chosen is None:
        return rows
    visible: list[list[str]] = []
    for entry in map(str.strip, chosen.split(",")):
        if entry.startswith("MIG-"):
            return rows
        by_uuid = entry.startswith("GPU-")
        named = [row for i, row in enumerate(rows) if (row[-1].startswith(entry) if by_uuid else entry == str(i))]
        if len(named) != 1:
            break
        visible += named
    return visible


def peak_memory_mib() -> int:
    """The most resident memory this process has had so far, in MiB.

    From the kernel's own account of it; ``getrusage`` counts a parent's memory for a child that was started from it.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) // 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
