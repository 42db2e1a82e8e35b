"""Run NVIDIA's ``perf_analyzer`` as a load generator, and read its report."""

from __future__ import annotations

import base64
import csv
import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from restormer_client import wire

from traffic.server import Server

PERCENTILES = (50, 90, 99)
#: The message with which it stops when the server rejects a request.
FULL = "xceeds maximum queue size"


class QueueFull(Exception):
    """The server's queue was full, and perf_analyzer stopped."""


def require_command(command: str) -> None:
    """Exit with one line if there is no perf_analyzer."""
    if shutil.which(command) is None:
        raise SystemExit(f"error: {command} not found: pip install perf-analyzer, or give its path as --perf-analyzer")


def base_command(perf_analyzer: str, server: Server) -> list[str]:
    """Return the command with the key of the server, whose statistics it reads."""
    key = server.log.with_name("admin.key").read_text(encoding="utf-8").strip()
    return [perf_analyzer, "-H", f"triton-grpc-protocol-admin-key:{key}", "-i", "grpc", "-b", "1"]


def write_input_data(photographs: Sequence[bytes], path: Path) -> Path:
    """Write a file for ``--input-data``: each photograph after its length, as in a request."""
    elements = (b"".join(wire.one_file("IMAGE", photograph).content) for photograph in photographs)
    data = [{"IMAGE": {"b64": base64.b64encode(element).decode()}} for element in elements]
    path.write_text(json.dumps({"data": data}), encoding="ascii")
    return path


def run_analyzer(command: Sequence[str]) -> dict[str, float]:
    """Run the command; return the latencies ``p50_ms``, ``p90_ms`` and ``p99_ms``. Raises `QueueFull`."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.csv")
        done = subprocess.run([*command, "-f", str(report)], capture_output=True, text=True, check=False)
        found = read_percentiles(report)
    if FULL in done.stderr:
        raise QueueFull
    if done.returncode or not found:
        output = (done.stderr or done.stdout).strip().splitlines() or ["it printed nothing"]
        raise SystemExit(f"error: perf_analyzer failed: {output[-1]}")
    return found


def read_percentiles(report: Path) -> dict[str, float]:
    """Return the percentiles of a report in ms, which are microseconds in the file; none if it is missing or empty."""
    if not report.is_file():
        return {}
    with report.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {f"p{share}_ms": float(rows[0][f"p{share} latency"]) / 1e3 for share in PERCENTILES} if rows else {}
