"""Find out what this machine has: cores, GPUs, shared memory, TensorRT, the options of its Triton."""

from __future__ import annotations

import functools
import os
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from server.hardware import GPUS

CGROUP = Path("/sys/fs/cgroup")
SHM = Path("/dev/shm")
LIBRARIES = (Path("/usr/lib/x86_64-linux-gnu"), Path("/usr/lib/aarch64-linux-gnu"), Path("/opt/tritonserver/lib"))


def cores(cgroup: Path = CGROUP) -> int:
    """Count the cores that this process may use: its CPU affinity, limited by the container's quota; at least one."""
    return max(1, min(len(os.sched_getaffinity(0)), _quota(cgroup)))


def _quota(cgroup: Path) -> int:
    """Read the container's CPU quota in whole cores, from cgroup v2 or v1; without one, more than any machine has."""
    try:
        quota, period = (cgroup / "cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        try:
            quota = (cgroup / "cpu/cpu.cfs_quota_us").read_text(encoding="ascii").strip()
            period = (cgroup / "cpu/cpu.cfs_period_us").read_text(encoding="ascii").strip()
        except OSError:
            quota = "max"
    return int(quota) // int(period) if quota.isdecimal() else 1 << 16


@functools.cache
def gpus() -> tuple[tuple[str, str], ...]:
    """Return name and compute capability (``9.0``) of every GPU in CUDA_VISIBLE_DEVICES; empty without a driver.

    nvidia-smi itself ignores that variable. `export.machine` has a copy of this function and of `_visible`, because
    neither room imports the other; tests/server/test_flags.py runs both on the same cases.
    """
    command = ["nvidia-smi", "--query-gpu=name,compute_cap,uuid", "--format=csv,noheader"]
    try:
        listing = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return ()
    rows = [[cell.strip() for cell in line.split(",")] for line in listing.stdout.splitlines() if "," in line]
    return tuple((name, capability) for name, capability, *_ in _visible(rows, os.environ.get("CUDA_VISIBLE_DEVICES")))


def _visible(rows: list[list[str]], chosen: str | None) -> list[list[str]]:
    """Select the rows that CUDA_VISIBLE_DEVICES lists, up to the first entry that matches no GPU, as CUDA does.

    An entry is an index in nvidia-smi's order (CUDA's with CUDA_DEVICE_ORDER=PCI_BUS_ID), or the beginning of a UUID.
    The UUID of a MIG slice does not identify its GPU, so all rows are kept.
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


def hardware_from_gpus(cards: Iterable[tuple[str, str]]) -> str:
    """Return the hardware setting for these GPUs: one of `hardware.GPUS`, ``gpu`` (others, or mixed) or ``cpu`` (none).

    The name must be a whole word: an RTX A1000 is not an A100, a GH200 is not an H200.
    """
    known = (re.search(rf"\b({'|'.join(GPUS)})\b", card.lower()) for card, _ in cards)
    names = {match[1] if match else "gpu" for match in known}
    return names.pop() if len(names) == 1 else "gpu" if names else "cpu"


def shared_memory_size(folder: Path = SHM) -> int:
    """Return the size of the shared memory in bytes."""
    held = os.statvfs(folder)
    return held.f_frsize * held.f_blocks


def tensorrt_version(folders: Iterable[Path] = LIBRARIES) -> str:
    """Read TensorRT's version (``11.4.1``) from the name of its library; empty if it is not installed."""
    for folder in folders:
        for library in sorted(folder.glob("libnvinfer.so.*.*")):
            return library.name.removeprefix("libnvinfer.so.")
    return ""


def triton_options(binary: Path, environment: dict[str, str]) -> frozenset[str]:
    """Read the names of this Triton's options from its help; empty if it cannot be run."""
    try:
        help_text = subprocess.run(
            [str(binary), "--help"], env=environment, capture_output=True, text=True, check=False, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return frozenset()
    return frozenset(re.findall(r"^\s*--([a-z0-9-]+)", help_text.stdout + help_text.stderr, re.MULTILINE))
