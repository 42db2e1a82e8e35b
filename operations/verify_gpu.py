"""Runs docs/gpu-checklist.md on a host with a GPU, and writes one JSON object with every figure (``make verify-gpu``).

Nothing is judged by thresholds of its own here: a step has passed when its command has, and the commands carry their
own gates (`make engine` its fidelity, the client its answer). A step that fails does not keep the others from being
tried. Not run on a GPU yet.
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
from pathlib import Path
from typing import Any

from operations.recording import add_record_option, finish_run, write_record

ROOT = Path(__file__).parents[1]
ENGINES = ROOT / "model_repository/restormer"
SWEEP = ROOT / "out/perf.csv"
#: Versions 1 to 5, built from the last to the first; 2 to 5 are then removed, and fp16 is served alone.
PRECISIONS = ("fp16", "fp32", "tf32", "bf16", "int8")
KEY = "docker/secrets/admin-key"
MAKE_KEY = f"openssl rand -hex 24 | install -m 0400 -o 10001 /dev/stdin {KEY}"
ENHANCE = "restormer-client enhance demo/photos/balcony.jpg"
QUERY = "name,compute_cap,driver_version,memory.total"


@dataclass(frozen=True)
class Step:
    """One row of the checklist: its command, and what is read off afterwards (nothing: only that it passed)."""

    name: str
    command: str
    figures: Callable[[str], Any] = lambda output: None


def steps() -> list[Step]:
    """The rows in their order. A test holds every command to the page."""
    building = [
        Step(
            f"plan, {precision}",
            f"docker compose run --rm builder make engine TARGET=tensorrt PRECISION={precision} VERSION={version}",
            lambda output, version=version: engine(version),  # type: ignore[misc]
        )
        for version, precision in reversed(list(enumerate(PRECISIONS, 1)))
    ]
    only_fp16 = [
        Step(f"serve fp16 alone: {version} away", f"docker compose run --rm builder make rollback VERSION={version}")
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
        Step("enhance", f"{ENHANCE} out/gpu.jpg --timeout 120"),
        Step("enhance_tiled", f"{ENHANCE} out/gpu-tiled.jpg --tiled --timeout 120"),
        Step("metrics of the GPU", f"docker compose exec -T triton python -c {METRICS!r}", gpu_metrics),
        Step("load", f"python docker/perf.py --key-file {KEY} -- --concurrency-range 1:64:9 -f out/perf.csv", sweep),
        Step("mean batch under load", f"docker compose exec -T triton python -c {METRICS!r}", batches),
        Step("down", "docker compose down"),
    ]  # fmt: skip


TENSORRT = "dpkg-query -W 'libnvinfer*' | head -1"
METRICS = "from urllib.request import urlopen; print(urlopen('http://127.0.0.1:8002/metrics').read().decode())"


def engine(version: int) -> Any:
    """What the engine's own JSON says: precision, fidelity, versions, time."""
    found = sorted((ENGINES / str(version)).glob("*.plan.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in found]


def gpu_metrics(output: str) -> dict[str, float]:
    """The ``nv_gpu_`` samples."""
    return samples(output, "nv_gpu_")


def batches(output: str) -> dict[str, float]:
    """Inferences and executions of restormer; their ratio is the mean batch."""
    found = samples(output, 'nv_inference_count{model="restormer"') | samples(
        output, 'nv_inference_exec_count{model="restormer"'
    )
    total, runs = (
        sum(v for k, v in found.items() if name in k) for name in ("nv_inference_count", "nv_inference_exec_count")
    )
    return {"inferences": total, "executions": runs, "mean": total / runs if runs else 0.0}


def samples(text: str, prefix: str) -> dict[str, float]:
    """``name{labels}`` to value of Prometheus' text format."""
    lines = (line.rsplit(" ", 1) for line in text.splitlines() if line.startswith(prefix))
    return {name: float(value) for name, value in lines}


def sweep(output: str) -> list[dict[str, str]]:
    """perf_analyzer's own table, a row a concurrency."""
    with SWEEP.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def gpus() -> list[str]:
    """The GPUs of this host; raises `SystemExit` with one line if there is none."""
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        raise SystemExit(
            "error: no NVIDIA GPU answers here (nvidia-smi): run this on the host of docs/gpu-checklist.md"
        ) from None
    return done.stdout.strip().splitlines()


def run(step: Step) -> dict[str, Any]:
    """Runs one step from the repository's root; the clients are those of the build environment."""
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
        return {**row, "said": (done.stdout + done.stderr)[-2000:]}
    try:
        return {**row, "figures": step.figures(done.stdout)}
    except (OSError, ValueError, KeyError) as error:
        return {**row, "passed": False, "said": f"its figures cannot be read: {error}"}


def main() -> int:
    """Runs all steps; the last line is the JSON object, which ``--record`` also writes."""
    parser = argparse.ArgumentParser(prog="python -m operations.verify_gpu", description=str(__doc__).splitlines()[0])
    add_record_option(parser)
    options = parser.parse_args()
    document: dict[str, Any] = {"gpus": gpus(), "steps": {}}
    if os.geteuid():
        raise SystemExit(f"error: {KEY} is made for user 10001 and read by nobody else: run this as root")
    (ROOT / "out").mkdir(exist_ok=True)
    for step in steps():
        print(f"{step.name} ...", end=" ", file=sys.stderr, flush=True)
        document["steps"][step.name] = row = run(step)
        print(f"{'passed' if row['passed'] else 'FAILED'} ({row['seconds']} s)", file=sys.stderr)
        write_record(document, options.record)  # after every step: a host that is lost leaves what was found
    finish_run(document, options.record)
    return int(not all(row["passed"] for row in document["steps"].values()))


if __name__ == "__main__":
    sys.exit(main())
