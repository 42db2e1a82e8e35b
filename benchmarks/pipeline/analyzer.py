"""NVIDIA's ``perf_analyzer`` as a load generator: what it is given, and what it says."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from restormer_client import wire

from traffic.server import Server

PERCENTILES = (50, 90, 99)
#: How it says that the server turned a request away; it then stops.
FULL = "xceeds maximum queue size"


class Full(Exception):
    """The server's queue was full, and perf_analyzer stopped."""


def require(command: str) -> None:
    """Ends in one line where there is no perf_analyzer."""
    if shutil.which(command) is None:
        raise SystemExit(f"error: {command} is no command: pip install perf-analyzer, or PERF_ANALYZER=/path/to/it")


def command(perf_analyzer: str, server: Server) -> list[str]:
    """It, and the key of the server, whose statistics it asks for."""
    key = server.log.with_name("admin.key").read_text(encoding="utf-8").strip()
    return [perf_analyzer, "-H", f"triton-grpc-protocol-admin-key:{key}", "-i", "grpc", "-b", "1"]


def written(photographs: Sequence[bytes], path: Path) -> Path:
    """The photographs as a file for ``--input-data``: each with its length before it, as on the wire."""
    elements = (b"".join(wire.one_file("IMAGE", photograph).content) for photograph in photographs)
    data = [{"IMAGE": {"b64": base64.b64encode(element).decode()}} for element in elements]
    path.write_text(json.dumps({"data": data}), encoding="ascii")
    return path


def analyzed(words: Sequence[str]) -> dict[str, float]:
    """Runs it; the latencies it says, in ms: ``p50_ms``, ``p90_ms``, ``p99_ms``. Raises `Full`."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if FULL in done.stderr:
        raise Full
    found = latencies(done.stdout)
    if done.returncode or not found:
        said = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
        raise SystemExit(f"error: perf_analyzer failed: {said[-1]}")
    return found


def latencies(text: str) -> dict[str, float]:
    """Percentiles of its report, in ms; empty if it has none."""
    found = {int(share): float(us) / 1e3 for share, us in re.findall(r"^\s*p(\d+) latency: (\d+) usec", text, re.M)}
    return {f"p{share}_ms": found[share] for share in PERCENTILES if share in found}
