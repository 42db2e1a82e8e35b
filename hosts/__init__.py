"""List the GPUs of this host, for `export` and `server`, which do not import each other. Standard library only."""

from __future__ import annotations

import functools
import os
import subprocess


@functools.cache
def gpus() -> list[tuple[str, str]]:
    """Return name and compute capability (``9.0``) of every GPU in CUDA_VISIBLE_DEVICES; empty without a driver.

    nvidia-smi itself ignores that variable and lists by bus, CUDA lists the fastest first: ask CUDA for the device
    that a process gets.
    """
    command = ["nvidia-smi", "--query-gpu=name,compute_cap,uuid", "--format=csv,noheader"]
    try:
        listing = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in listing.stdout.splitlines() if "," in line]
    return [(name, capability) for name, capability, *_ in _visible(rows, os.environ.get("CUDA_VISIBLE_DEVICES"))]


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
