"""What a Ray job costs beside the plain client, and how it grows with servers (``make benchmark-bulk``).

*Efficiency*: the same photographs through the same server, by ``restormer-client enhance --input_dir`` and by
``python -m bulk``, as many in flight, in turns. The server has one core for itself, everything else the other, in both.
The rate is that of the outputs, from the first written to the last: starts do not count, and are told by themselves.

*Carried*: the same with nothing behind the server's contract (``identity``), so that what carries the photographs is
what takes time: files read, sent, received, checked, written. Its CPU is what the core of everything else worked.

*Servers*: one Triton on one core with everything else on the other; then two, a core each, and everything else on both.
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
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from export.machine import cpu_name
from operations.recording import add_record_option, find_jpegs, finish_run, print_status, read_record
from traffic.server import Server, repository_with_identity, run_server

BULK = Path(".envs/bulk/bin/python")
IN_FLIGHT = 8
GOAL = 0.95  #: of the plain client's rate
COUNT = {"enhance": 28, "identity": 600, "servers": 24}


@contextmanager
def photographs(paths: Sequence[Path], count: int) -> Iterator[Path]:
    """A folder of so many, in turns."""
    with tempfile.TemporaryDirectory() as folder:
        for number, path in zip(range(count), itertools.cycle(paths), strict=False):
            shutil.copy(path, Path(folder, f"{number:05}-{path.name}"))
        yield Path(folder)


def by_the_client(photos: Path, output: Path, url: str, in_flight: int) -> list[str]:
    """The command of the plain client."""
    words = ["--input_dir", str(photos), "--output_dir", str(output), "--url", url, "--jobs", str(in_flight)]
    return [str(BULK.with_name("restormer-client")), "enhance", *words, "--timeout", "120"]


def by_bulk(photos: Path, output: Path, url: str, in_flight: int) -> list[str]:
    """The command of the job."""
    words = ["--input", str(photos), "--output", str(output), "--server", url, "--in-flight", str(in_flight)]
    return [str(BULK), "-m", "bulk", "enhance", *words, "--actors", "1"]


WAYS = {"restormer-client": by_the_client, "bulk": by_bulk}


def timed(way: str, photos: Path, url: str, in_flight: int, cores: set[int]) -> dict[str, float]:
    """One run: photographs a second between its first and its last output, the CPU that a photograph took of these
    cores meanwhile, and the seconds before and after."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "out")
        command = ["taskset", "-c", ",".join(map(str, cores)), *WAYS[way](photos, output, url, in_flight)]
        started = time.perf_counter()
        with _watched(cores) as busy:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        wall = time.perf_counter() - started
        if done.returncode:
            sys.exit(f"error: {way} failed: {(done.stderr.strip() or 'it said nothing').splitlines()[-1]}")
        written = sorted(path.stat().st_mtime for path in output.rglob("*.jpg"))
    first, last = written[0], written[-1]
    moments, seconds = zip(*busy, strict=True)
    cpu = float(np.interp(last, moments, seconds) - np.interp(first, moments, seconds))
    return {
        "photographs_a_second": (len(written) - 1) / (last - first),
        "cpu_ms": 1000 * cpu / (len(written) - 1),
        "cores_busy": cpu / (last - first),
        "start_seconds": wall - (last - first),
    }


def in_turns(server: Server, photos: Path, rounds: int, core: int) -> dict[str, Any]:
    """Both ways, round after round; medians, the spread, and the median of the ratios."""
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    timed("restormer-client", photos, server.url, IN_FLIGHT, {core})  # warms up
    for turn in range(rounds):
        for way, runs in found.items():
            print_status(f"{photos.name}: round {turn + 1}/{rounds}, {way}")
            runs.append(timed(way, photos, server.url, IN_FLIGHT, {core}))
    made: dict[str, Any] = {way: _summed(runs) for way, runs in found.items()}
    ratios = [b["photographs_a_second"] / c["photographs_a_second"] for c, b in zip(*found.values(), strict=True)]
    return {**made, "ratio": statistics.median(ratios), "ratios": ratios, "rounds": rounds}


def _summed(runs: list[dict[str, float]]) -> dict[str, float]:
    rates = [run["photographs_a_second"] for run in runs]
    medians = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    return {**medians, "least": min(rates), "most": max(rates)}


def scaled(repository: Path, paths: Sequence[Path], rounds: int, cores: list[int]) -> dict[str, Any]:
    """*Servers*: one, and two, in turns. The second idles while one is measured."""
    one, two = [], []
    with (
        photographs(paths, COUNT["servers"]) as photos,
        _pinned(repository, cores[0]) as first,
        _pinned(repository, cores[1]) as second,
    ):
        both = f"ipv4:127.0.0.1:{first.grpc_port},127.0.0.1:{second.grpc_port}"
        timed("bulk", photos, both, 2 * IN_FLIGHT, set(cores))  # warms up
        for turn in range(rounds):
            print_status(f"servers: round {turn + 1}/{rounds}")
            one.append(timed("bulk", photos, first.url, IN_FLIGHT, {cores[1]}))
            two.append(timed("bulk", photos, both, 2 * IN_FLIGHT, set(cores)))
    ratios = [t["photographs_a_second"] / o["photographs_a_second"] for o, t in zip(one, two, strict=True)]
    found = {"one": _summed(one), "two": _summed(two), "ratio": statistics.median(ratios), "rounds": rounds}
    return {"servers": found}


def _pinned(repository: Path, core: int) -> Any:
    return run_server(repository, wrapper=("taskset", "-c", str(core)))


@contextmanager
def _watched(cores: set[int]) -> Iterator[list[tuple[float, float]]]:
    """Moments, and the seconds these cores had worked until then, whoever for."""
    samples, ended = [_busy(cores)], threading.Event()

    def watch() -> None:
        while not ended.wait(0.2):
            samples.append(_busy(cores))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()
        samples.append(_busy(cores))


def _busy(cores: set[int]) -> tuple[float, float]:
    lines = Path("/proc/stat").read_text(encoding="utf-8").splitlines()
    ticks = 0
    for core in cores:
        user, nice, system, _idle, _wait, irq, softirq, *_ = map(
            int, next(line for line in lines if line.startswith(f"cpu{core} ")).split()[1:]
        )
        ticks += user + nice + system + irq + softirq
    return time.time(), ticks / os.sysconf("SC_CLK_TCK")


def through_the_pipeline(repository: Path, photos: Sequence[Path], rounds: int, cores: list[int]) -> dict[str, Any]:
    """*Efficiency*."""
    with photographs(photos, COUNT["enhance"]) as folder, _pinned(repository, cores[0]) as server:
        return {"enhance": in_turns(server, folder, rounds, cores[1])}


def carried(repository: Path, photos: Sequence[Path], rounds: int, cores: list[int]) -> dict[str, Any]:
    """*Carried*."""
    with (
        photographs(photos, COUNT["identity"]) as folder,
        repository_with_identity(repository, "enhance") as models,
        _pinned(models, cores[0]) as server,
    ):
        return {"identity": in_turns(server, folder, rounds, cores[1])}


PARTS = {"enhance": through_the_pipeline, "identity": carried, "servers": scaled}


def lines(found: dict[str, Any]) -> list[str]:
    """The table."""
    made = []
    for model in {"enhance", "identity"} & set(found):
        for way in WAYS:
            row = found[model][way]
            made.append(
                f"{model:<10} {way:<18} {row['photographs_a_second']:8.3f} a second ({row['least']:.3f}–"
                f"{row['most']:.3f}), {row['cpu_ms']:.1f} ms of CPU a photograph, starts {row['start_seconds']:.1f} s"
            )
        made.append(f"{model:<10} bulk of restormer-client: {found[model]['ratio']:.3f}")
    if "enhance" in found:
        made.append(f"goal {GOAL} with enhance: {'reached' if found['enhance']['ratio'] >= GOAL else 'missed'}")
    if "servers" in found:
        made.append(f"two servers of one: {found['servers']['ratio']:.2f}")
    return made


def main() -> int:
    """Runs the command line; exit 1 if the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--photos", type=Path, default=Path("demo/photos"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=tuple(PARTS), help="usually all")
    add_record_option(parser, "; with --only the others stay in it")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[:2]
    photos = find_jpegs(options.photos)
    if len(cores) < 2 or not BULK.is_file():
        sys.exit(f"error: needs two cores and {BULK} (make setup-bulk)")
    os.sched_setaffinity(0, {cores[1]})
    found: dict[str, Any] = {"cpu": cpu_name(), "in_flight": IN_FLIGHT, "count": COUNT}
    try:
        for part in [options.only] if options.only else PARTS:
            found |= PARTS[part](options.repository, photos, options.rounds, cores)
    except KeyboardInterrupt:
        sys.exit("interrupted")
    print("\n".join(lines(found)))
    finish_run(found, options.record, {**read_record(options.record), **found})
    return int("enhance" in found and found["enhance"]["ratio"] < GOAL)


if __name__ == "__main__":
    sys.exit(main())
