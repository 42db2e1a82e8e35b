"""List the GPUs of this host, for `export` and `server`, which do not import each other. Standard library only."""

from __future__ import annotations

import functools
import os
import re
import subprocess


@functools.cache
def gpus() -> list[tuple[str, str]]:
    """Return name and compute capability (``9.0``) of every GPU in CUDA_VISIBLE_DEVICES; empty without a driver.

    nvidia-smi itself ignores that variable and lists by bus; CUDA lists the fastest first. For the device that a
    process gets, ask CUDA.
    """
    return [(name, capability) for name, capability in query("name", "compute_cap")]


def query(*fields: str) -> list[list[str]]:
    """Return these fields of nvidia-smi for every GPU in CUDA_VISIBLE_DEVICES; empty without a driver."""
    listing = _nvidia_smi(f"--query-gpu={','.join((*fields, 'uuid'))}", "--format=csv,noheader")
    rows = [[cell.strip() for cell in line.split(",")] for line in listing.splitlines() if "," in line]
    return [row[: len(fields)] for row in _visible(rows, os.environ.get("CUDA_VISIBLE_DEVICES"))]


def mig_sizes() -> list[int]:
    """Return the memory of every visible MIG slice in GB, from its name (``MIG 1g.10gb``); empty without slices."""
    slices = re.findall(r"^\s+MIG \S*?(\d+)gb\S*\s.*UUID: (MIG-[^)\s]+)", _nvidia_smi("-L"), re.MULTILINE)
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return [int(size) for size, uuid in slices if "MIG-" not in chosen or uuid in chosen]


@functools.cache
def _nvidia_smi(*arguments: str) -> str:
    command = ["nvidia-smi", *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


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
