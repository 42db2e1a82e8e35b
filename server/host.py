"""Find out what this machine has: cores, shared memory, TensorRT, the options of its Triton."""

from __future__ import annotations

import contextlib
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


def hardware_from_gpus(cards: Iterable[tuple[str, str]]) -> str:
    """Return the hardware setting for these GPUs: one of `hardware.GPUS`, ``gpu`` (others, or mixed) or ``cpu`` (none).

    The name must be a whole word: an RTX A1000 is not an A100, a GH200 is not an H200.
    """
    known = (re.search(rf"\b({'|'.join(GPUS)})\b", card.lower()) for card, _ in cards)
    names = {match[1] if match else "gpu" for match in known}
    return names.pop() if len(names) == 1 else "gpu" if names else "cpu"


def shared_memory(prefix: str) -> tuple[int, int]:
    """Return size and free bytes of the shared memory. What `leftover_regions` occupy is free: a start removes them."""
    leftovers, held = sum(leftover_regions(prefix).values()), os.statvfs(SHM)
    return held.f_frsize * held.f_blocks, held.f_frsize * held.f_bavail + leftovers


def leftover_regions(prefix: str) -> dict[Path, int]:
    """Find this user's regions of shared memory that killed servers left behind; return the bytes that each occupies.

    Those are all with the prefix of a state folder that no server runs from, and others that no process maps.
    """
    mapped: set[bytes] = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):  # it exited meanwhile, or is another user's
            mapped.update(re.findall(rb"/(restormer_\S+)", maps.read_bytes()))
    regions = {}
    for region in SHM.glob("restormer_*"):
        is_unused = region.name.startswith(prefix) or os.fsencode(region.name) not in mapped
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            if is_unused and (status := region.stat()).st_uid == os.getuid():
                regions[region] = status.st_blocks * 512
    return regions


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
