"""Describe this machine, without heavy imports."""

from __future__ import annotations

import functools
import os
import platform
import resource
import subprocess
from collections.abc import Collection
from pathlib import Path


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


@functools.cache
def gpus() -> list[tuple[str, str]]:
    """List name and compute capability (``9.0``) of the GPUs in CUDA_VISIBLE_DEVICES; empty without a driver.

    nvidia-smi itself ignores that variable. A plan is built for the first GPU: on a mixed host set the variable, and
    CUDA_DEVICE_ORDER=PCI_BUS_ID. The server has a copy of this, because neither room imports the other.
    """
    command = ["nvidia-smi", "--query-gpu=name,compute_cap,uuid", "--format=csv,noheader"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in listed.stdout.splitlines() if "," in line]
    return [(name, capability) for name, capability, *_ in _visible_rows(rows, os.environ.get("CUDA_VISIBLE_DEVICES"))]


def why_no_gpu(capabilities: Collection[str]) -> str:
    """Return why no GPU here has one of these compute capabilities; empty if one has."""
    present = {capability for _, capability in gpus()}
    if present.intersection(capabilities):
        return ""
    here = f"found {', '.join(sorted(present))}" if present else "no GPU here"
    return f"wants compute capability {' or '.join(sorted(capabilities))}, {here}"


def _visible_rows(rows: list[list[str]], chosen: str | None) -> list[list[str]]:
    """Select the rows in CUDA_VISIBLE_DEVICES, up to the first entry that names no GPU, as CUDA does.

    An entry is an index, counted as nvidia-smi does (and CUDA with CUDA_DEVICE_ORDER=PCI_BUS_ID), or the beginning of a
    UUID. A MIG slice does not name its GPU, so it selects all.
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
    """Return the peak resident memory of this process in MiB.

    From the kernel's own accounting; ``getrusage`` includes the memory of the parent that started the process.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) // 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
