"""Compare the client with NVIDIA's own load generator and plain tritonclient (``make benchmark-client``).

One server has two models: ``enhance`` with the published engine, where the network takes the time, and ``identity``,
the same contract with nothing behind it, which gets photographs of 6 MB and hides nothing of the client. The programs
take turns, round after round, with the same photograph, requests in flight and requests in all; the tables have medians
over the rounds and the spread.

Every rate is the server's: what its counters answered between the first tenth of the requests and the last. So the
start and end of a program count for nothing, and no program measures itself (with four in flight, the rate by
perf_analyzer's mean latency is a third too high: it leaves out the work between two requests). *Triton alone* is a
calculation: requests in flight, divided by the time of a request in the server, as with a client that costs nothing.

Server and clients share the machine's cores, so the server lacks what a client wastes. *Overhead* is the time of a call
beyond the time in the server, one photograph at a time. *CPU* is user and system time of the client's process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc
from restormer_client import AsyncEnhancer, DeadlineExceeded, Enhancer, calls

from benchmarks.child import process_memory, run_part, used_cpu_seconds
from benchmarks.pipeline import analyzer
from benchmarks.pipeline.sampling import Sampler
from benchmarks.report import tables
from operations.recording import add_record_option, exit_on_interrupt, finish_run, show_progress
from traffic.server import Server, repository_with_identity, run_server

#: Requests in flight. A CPU takes a second or more for each of `enhance`, and its queue is short.
IN_FLIGHT = {"identity": 4, "enhance": 2}
SMALL, LARGE = 1_000, 6_000_000  #: bytes
POLL = 0.05  #: seconds between two samples of the server's counters
LONG = 10_000  #: photographs of the `map` whose memory is measured
OURS, ASYNC, PLAIN, NVIDIA = "restormer_client", "restormer_client, asyncio", "tritonclient", "perf_analyzer"
#: Sends requests (url, model, photograph, how many, how many in flight) and returns when all are answered.
Program = Callable[[str, str, bytes, int, int], None]
Figures = dict[str, dict[str, float]]


@contextmanager
def client_model(model: str) -> Iterator[None]:
    """Send the client's calls to this model instead of ``enhance``."""
    usual, calls.MODEL = calls.MODEL, model
    try:
        yield
    finally:
        calls.MODEL = usual


def send_by_map(url: str, model: str, photo: bytes, count: int, in_flight: int) -> None:
    """Send with `Enhancer.map`."""
    with client_model(model), Enhancer(url) as enhancer:
        for result in enhancer.map([photo] * count, max_in_flight=in_flight, ordered=False):
            result.unwrap()


def send_by_async_map(url: str, model: str, photo: bytes, count: int, in_flight: int) -> None:
    """Send with `AsyncEnhancer.map`."""

    async def run() -> None:
        async with AsyncEnhancer(url) as enhancer:
            async for result in enhancer.map([photo] * count, max_in_flight=in_flight, ordered=False):
                result.unwrap()

    with client_model(model):
        asyncio.run(run())


def send_by_tritonclient(url: str, model: str, photo: bytes, count: int, in_flight: int) -> None:
    """Send with plain tritonclient, as in its examples, from as many threads."""
    with tritonclient.grpc.InferenceServerClient(url) as client, ThreadPoolExecutor(in_flight) as pool:
        for _ in pool.map(lambda _: _infer(client, model, photo), range(count)):
            pass


def _infer(client: Any, model: str, photo: bytes) -> bytes:
    """Make one call with tritonclient."""
    image = tritonclient.grpc.InferInput("IMAGE", [1, 1], "BYTES")
    image.set_data_from_numpy(np.array([[photo]], dtype=np.object_))
    return bytes(client.infer(model, [image], client_timeout=30).as_numpy("ENHANCED").item())


def send_by_perf_analyzer(command: list[str], url: str, model: str, photo: bytes, count: int, in_flight: int) -> None:
    """Send with perf_analyzer. ``command``: its command and the options it always needs."""
    with tempfile.TemporaryDirectory() as folder:
        data = analyzer.write_input_data([photo], Path(folder, "photo.json"))
        options = ["-m", model, "-u", url, "--input-data", str(data), "--concurrency-range", str(in_flight)]
        analyzer.run_analyzer([*command, *options, "--request-count", str(count)])


PROGRAMS: dict[str, Program] = {OURS: send_by_map, ASYNC: send_by_async_map, PLAIN: send_by_tritonclient}


@dataclass(frozen=True)
class Run:
    """A run: requests a second, seconds of a request in the server, seconds of this process's CPU a request."""

    rate: float
    in_server: float
    cpu: float


def measure_run(server: Server, model: str, count: int, send: Callable[[], None]) -> Run:
    """Measure by the server's counters, while ``send`` sends ``count`` requests, without the first and last tenth."""

    def read() -> tuple[float, float, float]:
        """Return the time, the requests so far, and the seconds that they spent in the server together."""
        requests, microseconds = (
            server.read_metric(f"nv_inference_request_{what}", model=model) for what in ("success", "duration_us")
        )
        return time.perf_counter(), requests, microseconds / 1e6

    _, before, seconds_before = read()
    with Sampler(read, POLL, lambda sample: sample[1] - before >= count) as sampler:
        cpu = used_cpu_seconds()
        send()
        cpu = used_cpu_seconds() - cpu
    moments = [(at, requests - before, seconds) for at, requests, seconds in sampler.samples]
    _, sent, seconds = moments[-1]
    begin, end = (next((each for each in moments if each[1] >= share * sent), None) for share in (0.1, 0.9))
    if sent != count or begin is None or end is None or begin[1] == end[1]:
        raise SystemExit(f"error: the server counted {sent:.0f} requests of {count}, or too fast to be measured")
    rate = (end[1] - begin[1]) / (end[0] - begin[0])
    return Run(rate, (seconds - seconds_before) / sent, max(cpu - sampler.cpu, 0.0) / sent)


def measure_throughput(
    server: Server, programs: Mapping[str, Program], model: str, photo: bytes, count: int, rounds: int
) -> Figures:
    """Measure the photographs a second of each program, with ``IN_FLIGHT[model]`` requests in flight, in turns."""
    rates: dict[str, list[float]] = {name: [] for name in ("Triton alone", *programs)}
    for turn in range(rounds + 1):  # the first is a warm-up
        for name, send in programs.items():
            show_progress(f"{model}: round {turn}/{rounds}, {name}")
            found = measure_run(server, model, count, partial(send, server.url, model, photo, count, IN_FLIGHT[model]))
            if turn:
                rates[name].append(found.rate)
            if turn and name == NVIDIA:
                rates["Triton alone"].append(IN_FLIGHT[model] / found.in_server)
    against = rates[NVIDIA]
    return {
        name: {
            "photographs_a_second": statistics.median(each),
            "least": min(each),
            "most": max(each),
            "of_perf_analyzer": statistics.median(ours / theirs for ours, theirs in zip(each, against, strict=True)),
        }
        for name, each in rates.items()
    }


def measure_overhead(server: Server, programs: Mapping[str, Program], photo: bytes, count: int, rounds: int) -> Figures:
    """Measure the microseconds of a call beyond the time in the server, and those of the client's CPU."""
    found: dict[str, list[Run]] = {name: [] for name in (NVIDIA, OURS, PLAIN)}
    for turn in range(rounds + 1):
        for name, runs in found.items():
            show_progress(f"one at a time, {len(photo):,} bytes: round {turn}/{rounds}, {name}")
            send = partial(programs[name], server.url, "identity", photo, count, 1)
            run = measure_run(server, "identity", count, send)  # waits until the server has counted every request
            if turn:
                runs.append(run)
    return {
        name: {
            "overhead_us": statistics.median(1 / each.rate - each.in_server for each in runs) * 1e6,
            **({} if name == NVIDIA else {"cpu_us": statistics.median(each.cpu for each in runs) * 1e6}),
        }
        for name, runs in found.items()
    }


def measure_held(url: str, program: str) -> dict[str, float]:
    """Measure the bytes held at the peak of one call with 64 MB, in photographs beside the photograph itself.

    In a process of its own, because the high-water mark is that of the process.
    """
    photo = os.urandom(64_000_000)
    PROGRAMS[program](url, "identity", photo[:SMALL], 3, 1)
    Path("/proc/self/clear_refs").write_text("5")
    before = process_memory("VmHWM")
    if program == OURS:
        with client_model("identity"), Enhancer(url) as enhancer:
            enhancer.enhance(photo)
    else:
        with tritonclient.grpc.InferenceServerClient(url) as client:
            _infer(client, "identity", photo)
    return {"photographs_held": (process_memory("VmHWM") - before) / len(photo)}


def measure_long_map(url: str) -> dict[str, float]:
    """Measure the MiB of this process after a tenth of ``LONG`` photographs, made as they are sent, and after all."""
    photographs = (number.to_bytes(8, "little") * 12_500 for number in range(LONG))  # 100 kB each
    tenth = 0.0
    with client_model("identity"), Enhancer(url) as enhancer:
        for result in enhancer.map(photographs, max_in_flight=16):
            result.unwrap()
            if result.index == LONG // 10:
                tenth = process_memory("VmRSS")
    return {"after_a_tenth_mib": tenth / 2**20, "after_all_mib": process_memory("VmRSS") / 2**20}


def measure_deadline(url: str, times: int) -> dict[str, float]:
    """Measure the overrun of a deadline of 200 ms on a server that takes longer."""
    photo = Path("demo/photos/reading-corner.jpg").read_bytes()
    overrun = []
    with Enhancer(url) as enhancer:
        enhancer.enhance(photo, timeout=120)
        for _ in range(times):
            started = time.perf_counter()
            try:
                enhancer.enhance(photo, tiled=True, timeout=0.2)
            except DeadlineExceeded:
                overrun.append((time.perf_counter() - started - 0.2) * 1e3)
    if not overrun:
        raise SystemExit("error: this machine is too fast for the benchmark's deadline of 200 ms")
    return {"median_ms": statistics.median(overrun), "most_ms": max(overrun), "calls": len(overrun)}


def measure_imports() -> dict[str, float]:
    """Measure ``import restormer_client`` beyond an empty Python, and the imports of the first call, in ms."""
    programs = {
        "empty": "pass",
        "import": "import restormer_client",
        "first_call": "import restormer_client, grpc; from restormer_client import wire; wire.messages()",
    }
    taken: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(7):
        for name, program in programs.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, "-c", program], check=True)
            taken[name].append((time.perf_counter() - started) * 1e3)
    empty, imported, first = (statistics.median(taken[name]) for name in programs)
    return {"import_ms": imported - empty, "first_call_imports_ms": first - imported}


PARTS: dict[str, Callable[..., dict[str, float]]] = {"held": measure_held, "long": measure_long_map}


def measure(server: Server, perf_analyzer: str, rounds: int) -> dict[str, Any]:
    """Measure everything."""
    nvidia = partial(send_by_perf_analyzer, analyzer.base_command(perf_analyzer, server))
    programs: dict[str, Program] = {NVIDIA: nvidia, **PROGRAMS}
    run = partial(run_part, "benchmarks.pipeline.client")
    photo, noise = Path("demo/photos/coffee-table.jpg").read_bytes(), os.urandom(LARGE)
    return {
        "in_flight": IN_FLIGHT,
        "cores": len(os.sched_getaffinity(0)),
        "identity": measure_throughput(server, programs, "identity", noise, 300, rounds),
        "enhance": measure_throughput(server, programs, "enhance", photo, 12, rounds),
        "one_at_a_time": {
            str(size): measure_overhead(server, programs, noise[:size], count, rounds)
            for size, count in ((SMALL, 2000), (LARGE, 100))
        },
        "held": {program: run("held", server.url, program) for program in (OURS, PLAIN)},
        "long": run("long", server.url),
        "deadline": measure_deadline(server.url, 20),
        "start": measure_imports(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--perf-analyzer", default="perf_analyzer", help="the command (pip install perf-analyzer)")
    parser.add_argument("--rounds", type=int, default=7)
    add_record_option(parser)
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        print(json.dumps(PARTS[arguments.part[0]](*arguments.part[1:])))
        return
    analyzer.require_command(arguments.perf_analyzer)
    with repository_with_identity(arguments.repository, "identity") as models, run_server(models) as server:
        found = measure(server, arguments.perf_analyzer, arguments.rounds)
    for show in (tables.clients_table, tables.calls_table, tables.client_figures_table):
        print(f"{show(found)}\n")
    finish_run(found, arguments.record)


if __name__ == "__main__":
    exit_on_interrupt(main)
