"""Find out what this machine has: cores, shared memory, GPU memory, driver, TensorRT, the options of its Triton."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

import hosts
from server.hardware import GPUS

CGROUP = Path("/sys/fs/cgroup")
SHM = Path("/dev/shm")
LIBRARIES = (Path("/usr/lib/x86_64-linux-gnu"), Path("/usr/lib/aarch64-linux-gnu"), Path("/opt/tritonserver/lib"))
DPKG = Path("/var/lib/dpkg/status")
CUDA = Path("/usr/local/cuda")
#: Minimum major version of the driver for each major version of CUDA (NVIDIA's "CUDA Compatibility", minor versions).
DRIVERS = {11: 450, 12: 525, 13: 580}


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
    """Return the hardware setting for these GPUs: one of `hardware.GPUS`, or ``gpu`` (others, mixed, or none).

    The name must be a whole word: an RTX A1000 is not an A100, a GH200 is not an H200.
    """
    known = (re.search(rf"\b({'|'.join(GPUS)})\b", card.lower()) for card, _ in cards)
    names = {match[1] if match else "gpu" for match in known}
    return names.pop() if len(names) == 1 else "gpu"


def gpu_memory_mib() -> int:
    """Return the memory of the smallest visible GPU or MIG slice in MiB; 0 if it is not known.

    ``memory.total`` of a GPU with slices is that of the whole GPU. GPUs that share the host's memory have none.
    """
    sizes = [1000**3 * size >> 20 for size in hosts.mig_sizes()]
    texts = (text.partition(" ")[0] for (text,) in hosts.query("memory.total"))
    return min(sizes or [int(text) for text in texts if text.isdecimal()], default=0)


def driver_version() -> str:
    """Return the version of NVIDIA's driver (``580.95.05``); empty without a visible GPU."""
    return next((version for (version,) in hosts.query("driver_version")), "")


def cuda_version() -> str:
    """Return the version of this image's CUDA (``13.1.0``), from its environment or its files; empty without one."""
    try:
        installed = json.loads((CUDA / "version.json").read_bytes())["cuda"]["version"]
    except (OSError, ValueError, KeyError, TypeError):
        installed = ""
    return os.environ.get("CUDA_VERSION") or str(installed)


def minimum_driver() -> int:
    """Return the driver's minimum major version for this image's CUDA; 0 if it is not known."""
    major = cuda_version().partition(".")[0]
    return DRIVERS.get(int(major), 0) if major.isdecimal() else 0


def is_driver_too_old() -> bool:
    """Return whether this image's CUDA needs a newer driver, or its compatibility libraries in the driver's place."""
    major = driver_version().partition(".")[0]
    return major.isdecimal() and int(major) < minimum_driver()


def compatibility_libraries() -> Path | None:
    """Return the folder of CUDA's compatibility libraries if the driver is too old for this image's CUDA.

    The entry points of NVIDIA's images link these libraries in the file system of the container, as root. Ours is
    read-only and has another user, so Triton gets the folder in LD_LIBRARY_PATH. Only data-center GPUs support them.
    """
    if not is_driver_too_old():
        return None
    folders = (CUDA / "compat/lib.real", CUDA / "compat")
    return next((folder for folder in folders if list(folder.glob("libcuda.so.*"))), None)


def shared_memory(prefix: str) -> tuple[int, int]:
    """Return size and free bytes of the shared memory. `leftover_regions` count as free: a start removes them."""
    leftovers, held = sum(leftover_regions(prefix).values()), os.statvfs(SHM)
    return held.f_frsize * held.f_blocks, held.f_frsize * held.f_bavail + leftovers


def leftover_regions(prefix: str) -> dict[Path, int]:
    """Find this user's regions of shared memory that killed servers left behind; return the bytes that each occupies.

    These are all regions of state folders from which no server runs, and others that no process maps.
    """
    candidates, mapped = list(SHM.glob("restormer_*")), set[bytes]()
    for maps in Path("/proc").glob("[0-9]*/maps") if candidates else ():
        with contextlib.suppress(OSError):  # it exited meanwhile, or is another user's
            mapped.update(re.findall(rb"/(restormer_\S+)", maps.read_bytes()))
    regions = {}
    for region in candidates:
        is_unused = region.name.startswith(prefix) or os.fsencode(region.name) not in mapped
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            if is_unused and (status := region.stat()).st_uid == os.getuid():
                regions[region] = status.st_blocks * 512
    return regions


def tensorrt_version(folders: Iterable[Path] = LIBRARIES) -> str:
    """Return TensorRT's version (``11.4.1.5``); empty if it is not installed.

    The name of its library lacks the last number, the build; the package or the image's environment has it.
    """
    libraries = [library.name for folder in folders for library in sorted(folder.glob("libnvinfer.so.*.*"))]
    if not libraries:
        return ""
    version = libraries[0].removeprefix("libnvinfer.so.")
    packages = DPKG.read_text(encoding="utf-8") if DPKG.is_file() else ""
    texts = re.findall(r"^Package: libnvinfer\d+\n(?:.+\n)*?Version: (\S+)", packages, re.MULTILINE)
    full = (re.match(rf"{re.escape(version)}\.\d+", text) for text in (*texts, os.environ.get("TRT_VERSION", "")))
    return next((match[0] for match in full if match), version)


def triton_options(binary: Path, environment: dict[str, str]) -> frozenset[str]:
    """Read the names of this Triton's options from its help; empty if it cannot be run."""
    try:
        help_text = subprocess.run(
            [str(binary), "--help"], env=environment, capture_output=True, text=True, check=False, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return frozenset()
    return frozenset(re.findall(r"^\s*--([a-z0-9-]+)", help_text.stdout + help_text.stderr, re.MULTILINE))
