"""Run the container checks of docs/gpu-checklist.md on a GPU host; record their figures (``make verify-gpu``).

A step passes if its command exits with 0: the commands have their own gates (`make engine` checks fidelity). After a
failed step the others still run. Not run on a GPU yet.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import hosts
from operations.recording import add_record_option, exit_on_interrupt, finish_run, write_record

ROOT = Path(__file__).parents[1]
#: The versions in the repository that docker/compose.yaml mounts.
ENGINES = ROOT / "docker" / os.environ.get("MODEL_REPOSITORY", "../model_repository") / "restormer"
SWEEP = ROOT / "out/perf.csv"
#: Versions 1 to 5, built from the last to the first; 2 to 5 are then removed, and fp16 is served alone.
PRECISIONS = ("fp16", "fp32", "tf32", "bf16", "int8")
KEY = "docker/secrets/admin-key"
MAKE_KEY = f"openssl rand -hex 24 | install -m 0400 -o 10001 /dev/stdin {KEY}"
FIDELITY = "python -m operations.served_fidelity --at-least 55"
ENHANCE = "restormer-client enhance demo/photos/balcony.jpg"


@dataclass(frozen=True)
class Step:
    """A row of the checklist: its command, and a function that reads figures from the command's output."""

    name: str
    command: str
    figures: Callable[[str], Any] = lambda output: None


def list_steps() -> list[Step]:
    """Return the rows in order. A test compares every command with the page."""
    building = [
        Step(
            f"plan, {precision}",
            f"docker compose run --rm builder make engine TARGET=tensorrt PRECISION={precision} VERSION={version}",
            partial(read_provenance, version),
        )
        for version, precision in reversed(list(enumerate(PRECISIONS, 1)))
    ]
    only_fp16 = [
        Step(f"remove version {version}", f"docker compose run --rm builder make rollback VERSION={version}")
        for version in range(2, len(PRECISIONS) + 1)
    ]
    return [
        Step("images", "docker compose build triton builder"),
        Step("TensorRT of the server", f"docker compose run --rm --entrypoint sh triton -c {TENSORRT!r}", str.strip),
        Step("TensorRT of the builder", f"docker compose run --rm builder sh -c {TENSORRT!r}", str.strip),
        *building,
        *only_fp16,
        Step("preflight", "docker compose run --rm triton preflight", str.splitlines),
        Step("a key for perf_analyzer", f"test -s {KEY} || {MAKE_KEY}"),
        Step("up and healthy", "RESTORMER_ADMIN_KEY_FILE=/run/secrets/admin-key docker compose up -d --wait triton"),
        Step("fidelity, alone and in a batch of eight", FIDELITY, lambda output: json.loads(output.splitlines()[-1])),
        Step("enhance", f"{ENHANCE} out/gpu.jpg --timeout 120"),
        Step("enhance_tiled", f"{ENHANCE} out/gpu-tiled.jpg --tiled --timeout 120"),
        Step("metrics of the GPU", METRICS, partial(read_samples, "nv_gpu_")),
        Step("load", f"python docker/perf.py --key-file {KEY} -- --concurrency-range 1:64:9 -f out/perf.csv", read_csv),
        Step("mean batch under load", METRICS, read_mean_batch),
        Step("down", "docker compose down"),
    ]  # fmt: skip


TENSORRT = "dpkg-query -W 'libnvinfer*' | head -1"
SCRAPE = "from urllib.request import urlopen; print(urlopen('http://127.0.0.1:8002/metrics').read().decode())"
METRICS = f"docker compose exec -T triton python -c {SCRAPE!r}"


def read_provenance(version: int, _: str) -> Any:
    """Return the JSON beside the engine: precision, fidelity, versions, time."""
    paths = sorted((ENGINES / str(version)).glob("*.plan.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def read_mean_batch(output: str) -> dict[str, float]:
    """Return the inferences and executions of restormer, and their ratio, the mean batch."""
    total, runs = (
        sum(read_samples(f'nv_inference_{name}{{model="restormer"', output).values())
        for name in ("count", "exec_count")
    )
    return {"inferences": total, "executions": runs, "mean": total / runs if runs else 0.0}


def read_samples(prefix: str, text: str) -> dict[str, float]:
    """Map ``name{labels}`` to the value, for the metrics in Prometheus' text format that start with the prefix."""
    lines = (line.rsplit(" ", 1) for line in text.splitlines() if line.startswith(prefix))
    return {name: float(value) for name, value in lines}


def read_csv(output: str) -> list[dict[str, str]]:
    """Return the rows of perf_analyzer's CSV file, one per concurrency."""
    with SWEEP.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def list_gpus() -> list[str]:
    """Return the GPUs of this host; exit with one line if there are none."""
    gpus = [", ".join(row) for row in hosts.query("name", "compute_cap", "driver_version", "memory.total")]
    if not gpus:
        raise SystemExit(
            "error: nvidia-smi finds no NVIDIA GPU: run this on a GPU host, as described in docs/gpu-checklist.md"
        )
    return gpus


def run_step(step: Step) -> dict[str, Any]:
    """Run one step in the root of the repository, with the client of the build environment."""
    began = time.monotonic()
    path = f"{ROOT / '.envs/build/bin'}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    done = subprocess.run(
        ["env", f"PATH={path}", "sh", "-c", step.command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    row: dict[str, Any] = {
        "command": step.command,
        "passed": done.returncode == 0,
        "seconds": round(time.monotonic() - began, 1),
    }
    if not row["passed"]:
        return {**row, "output": (done.stdout + done.stderr)[-2000:]}
    try:
        return {**row, "figures": step.figures(done.stdout)}
    except (OSError, ValueError, KeyError) as error:
        return {**row, "passed": False, "output": f"cannot read the figures: {error}"}


def record_step(step: Step, document: dict[str, Any], record: Path | None) -> None:
    """Run one step; write the record after it, so that a lost host keeps its figures."""
    print(f"{step.name} ...", end=" ", file=sys.stderr, flush=True)
    document["steps"][step.name] = row = run_step(step)
    print(f"{'passed' if row['passed'] else 'FAILED'} ({row['seconds']} s)", file=sys.stderr)
    write_record(document, record)


def main() -> int:
    """Run all steps; print a JSON object as the last line, and write it to ``--record``."""
    parser = argparse.ArgumentParser(prog="python -m operations.verify_gpu", description=str(__doc__).splitlines()[0])
    add_record_option(parser)
    options = parser.parse_args()
    document: dict[str, Any] = {"gpus": list_gpus(), "steps": {}}
    if os.geteuid():
        raise SystemExit(f"error: only user 10001 may read {KEY}: run this as root")
    if published := sorted(path.name for path in ENGINES.glob("[0-9]*")):
        raise SystemExit(
            f"error: {ENGINES} holds version {', '.join(published)}; this replaces 1 to {len(PRECISIONS)}: "
            "run it in a clone of its own"
        )
    (ROOT / "out").mkdir(exist_ok=True)
    *checks, down = list_steps()
    try:
        for step in checks:
            record_step(step, document, options.record)
    finally:  # also after Ctrl-C
        record_step(down, document, options.record)
    finish_run(document, options.record)
    return int(not all(row["passed"] for row in document["steps"].values()))


if __name__ == "__main__":
    exit_on_interrupt(main)
