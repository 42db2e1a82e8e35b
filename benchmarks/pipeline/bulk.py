"""Compare a Ray job with the plain client, and one server with two (``make benchmark-bulk``).

*enhance*: the same photographs through the same server, by ``restormer-client enhance --input_dir`` and by
``python -m bulk``, with the same requests in flight, in turns. The server has one core, everything else the other. The
rate is that of the outputs, from the first written to the last; the start and the end are reported separately.

*identity*: the same with nothing behind the server's contract, so that the transport takes the time: files are read,
sent, received, checked and written. Its CPU is the work of the core of everything else.

*servers*: one Triton on one core with everything else on the other; then two, a core each, and everything else on both.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pipeline.sampling import Sampler
from benchmarks.report import tables
from export.machine import cpu_name
from operations.recording import add_record_option, exit_on_interrupt, find_jpegs, finish_run, print_status
from traffic.server import Server, repository_with_identity, run_server

BULK = Path(".envs/bulk/bin/python")
IN_FLIGHT = 8
GOAL = 0.95  #: of the plain client's rate
COUNT = {"enhance": 28, "identity": 600, "servers": 24}


@contextmanager
def copy_photographs(paths: Sequence[Path], count: int) -> Iterator[Path]:
    """Make a folder of ``count`` photographs, repeating these."""
    with tempfile.TemporaryDirectory() as folder:
        for number, path in zip(range(count), itertools.cycle(paths), strict=False):
            shutil.copy(path, Path(folder, f"{number:05}-{path.name}"))
        yield Path(folder)


def client_command(photos: Path, output: Path, url: str, in_flight: int) -> list[str]:
    """Return the command of the plain client."""
    options = ["--input_dir", str(photos), "--output_dir", str(output), "--url", url, "--jobs", str(in_flight)]
    return [str(BULK.with_name("restormer-client")), "enhance", *options, "--timeout", "120"]


def bulk_command(photos: Path, output: Path, url: str, in_flight: int) -> list[str]:
    """Return the command of the job."""
    options = ["--input", str(photos), "--output", str(output), "--server", url, "--in-flight", str(in_flight)]
    return [str(BULK), "-m", "bulk", "enhance", *options, "--actors", "1"]


PROGRAMS = {"restormer-client": client_command, "bulk": bulk_command}


def run_program(name: str, photos: Path, url: str, in_flight: int, cores: set[int]) -> dict[str, float]:
    """Return the photographs a second between the first and the last output of a run, the CPU of these cores meanwhile,
    and the seconds before and after."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "out")
        command = ["taskset", "-c", ",".join(map(str, cores)), *PROGRAMS[name](photos, output, url, in_flight)]
        started = time.perf_counter()
        with Sampler(lambda: busy_seconds(cores), 0.2) as sampler:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            wall = time.perf_counter() - started
        if done.returncode:
            sys.exit(f"error: {name} failed: {(done.stderr.strip() or 'it printed nothing').splitlines()[-1]}")
        written = sorted(path.stat().st_mtime for path in output.rglob("*.jpg"))
    first, last = written[0], written[-1]
    moments, seconds = zip(*sampler.samples, strict=True)
    cpu = float(np.interp(last, moments, seconds) - np.interp(first, moments, seconds))
    return {
        "photographs_a_second": (len(written) - 1) / (last - first),
        "cpu_ms": 1000 * cpu / (len(written) - 1),
        "start_seconds": wall - (last - first),
    }


def busy_seconds(cores: set[int]) -> tuple[float, float]:
    """Return the time, and the seconds that these cores have worked since boot."""
    lines = Path("/proc/stat").read_text(encoding="utf-8").splitlines()
    ticks = 0
    for core in cores:
        user, nice, system, _idle, _wait, irq, softirq, *_ = map(
            int, next(line for line in lines if line.startswith(f"cpu{core} ")).split()[1:]
        )
        ticks += user + nice + system + irq + softirq
    return time.time(), ticks / os.sysconf("SC_CLK_TCK")


def compare_programs(server: Server, photos: Path, rounds: int, core: int) -> dict[str, Any]:
    """Run both programs, round after round; return medians, the spread, and the median of the ratios."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in PROGRAMS}
    run_program("restormer-client", photos, server.url, IN_FLIGHT, {core})  # a warm-up
    for turn in range(rounds):
        for name, runs in found.items():
            print_status(f"{photos.name}: round {turn + 1}/{rounds}, {name}")
            runs.append(run_program(name, photos, server.url, IN_FLIGHT, {core}))
    made: dict[str, Any] = {name: _summarize(runs) for name, runs in found.items()}
    return made | _ratios(*found.values()) | {"rounds": rounds}


def _summarize(runs: list[dict[str, float]]) -> dict[str, float]:
    rates = [run["photographs_a_second"] for run in runs]
    medians = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    return {**medians, "least": min(rates), "most": max(rates)}


def _ratios(base: list[dict[str, float]], other: list[dict[str, float]]) -> dict[str, Any]:
    """Return the ratios of the rates by round, and their median."""
    pairs = zip(base, other, strict=True)
    ratios = [theirs["photographs_a_second"] / ours["photographs_a_second"] for ours, theirs in pairs]
    return {"ratio": statistics.median(ratios), "ratios": ratios}


def measure_servers(repository: Path, paths: Sequence[Path], rounds: int, cores: list[int]) -> dict[str, Any]:
    """Measure one server and two, in turns. The second idles while one is measured."""
    one, two = [], []
    with (
        copy_photographs(paths, COUNT["servers"]) as photos,
        _run_pinned(repository, cores[0]) as first,
        _run_pinned(repository, cores[1]) as second,
    ):
        both = f"ipv4:127.0.0.1:{first.grpc_port},127.0.0.1:{second.grpc_port}"
        run_program("bulk", photos, both, 2 * IN_FLIGHT, set(cores))  # a warm-up
        for turn in range(rounds):
            print_status(f"servers: round {turn + 1}/{rounds}")
            one.append(run_program("bulk", photos, first.url, IN_FLIGHT, {cores[1]}))
            two.append(run_program("bulk", photos, both, 2 * IN_FLIGHT, set(cores)))
    ratio = _ratios(one, two)["ratio"]
    return {"one": _summarize(one), "two": _summarize(two), "ratio": ratio, "rounds": rounds}


def _run_pinned(repository: Path, core: int) -> AbstractContextManager[Server]:
    return run_server(repository, wrapper=("taskset", "-c", str(core)))


def measure(repository: Path, photos: Sequence[Path], rounds: int, cores: list[int]) -> dict[str, Any]:
    """Compare the programs through `enhance` and through `identity`, and one server with two."""
    found = {}
    with copy_photographs(photos, COUNT["enhance"]) as folder, _run_pinned(repository, cores[0]) as server:
        found["enhance"] = compare_programs(server, folder, rounds, cores[1])
    with (
        copy_photographs(photos, COUNT["identity"]) as folder,
        repository_with_identity(repository, "enhance") as models,
        _run_pinned(models, cores[0]) as server,
    ):
        found["identity"] = compare_programs(server, folder, rounds, cores[1])
    return {**found, "servers": measure_servers(repository, photos, rounds, cores)}


def main() -> int:
    """Run the command line; exit 1 if the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--photos", type=Path, default=Path("demo/photos"))
    parser.add_argument("--rounds", type=int, default=3)
    add_record_option(parser)
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[:2]
    photos = find_jpegs(options.photos)
    if len(cores) < 2 or not BULK.is_file():
        sys.exit(f"error: needs two cores and {BULK} (make setup-bulk)")
    os.sched_setaffinity(0, {cores[1]})
    about: dict[str, Any] = {"cpu": cpu_name(), "in_flight": IN_FLIGHT, "count": COUNT}
    found = about | measure(options.repository, photos, options.rounds, cores)
    print(tables.bulk_table(found))
    finish_run(found, options.record)
    return int(found["enhance"]["ratio"] < GOAL)


if __name__ == "__main__":
    exit_on_interrupt(main)
