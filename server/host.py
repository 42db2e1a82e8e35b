"""What this machine has: cores, GPUs, shared memory, TensorRT. Asked at every start, with nothing large imported."""

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
    """Cores this process may use: those it may run on, or fewer where a container's quota is smaller; at least one."""
    return max(1, min(len(os.sched_getaffinity(0)), _quota(cgroup)))


def _quota(cgroup: Path) -> int:
    """A container's ``cpus``, rounded down; without one, more than any machine has. cgroup v2, else v1."""
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
    """Name and compute capability (``9.0``) of every GPU that CUDA_VISIBLE_DEVICES leaves; empty without a driver.

    nvidia-smi itself ignores that variable.
    """
    command = ["nvidia-smi", "--query-gpu=name,compute_cap,uuid", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return ()
    rows = [[cell.strip() for cell in line.split(",")] for line in found.stdout.splitlines() if "," in line]
    return tuple((name, capability) for name, capability, *_ in _visible(rows, os.environ.get("CUDA_VISIBLE_DEVICES")))


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


def hardware(cards: Iterable[tuple[str, str]]) -> str:
    """Name these GPUs: one of `hardware.GPUS`, ``gpu`` for others or a mixture, ``cpu`` without any.

    The name has to be a word of its own: an RTX A1000 is not an A100, a GH200 not an H200.
    """
    known = (re.search(rf"\b({'|'.join(GPUS)})\b", card.lower()) for card, _ in cards)
    names = {match[1] if match else "gpu" for match in known}
    return names.pop() if len(names) == 1 else "gpu" if names else "cpu"


def shared_memory(folder: Path = SHM) -> int:
    """Bytes of shared memory in all."""
    held = os.statvfs(folder)
    return held.f_frsize * held.f_blocks


def tensorrt(folders: Iterable[Path] = LIBRARIES) -> str:
    """TensorRT's version (``11.4.1``) by the name of its library; empty if it is not installed."""
    for folder in folders:
        for library in sorted(folder.glob("libnvinfer.so.*.*")):
            return library.name.removeprefix("libnvinfer.so.")
    return ""


def options(binary: Path, environment: dict[str, str]) -> frozenset[str]:
    """The names of the options this Triton has, from its own help; empty if it does not even tell those."""
    try:
        told = subprocess.run(
            [str(binary), "--help"], env=environment, capture_output=True, text=True, check=False, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return frozenset()
    return frozenset(re.findall(r"^\s*--([a-z0-9-]+)", told.stdout + told.stderr, re.MULTILINE))
