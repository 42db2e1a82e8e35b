"""What the client costs beside NVIDIA's own load generator and plain tritonclient (``make benchmark-client``).

One server of its own, and on it two models: ``enhance`` with the demo engine, where the network is what takes time, and
``identity``, the same contract with nothing behind it and photographs of 6 MB, where nothing hides the client. The ways
take turns, round after round, with the same photograph, the same number in flight and the same number of requests; the
table has medians over the rounds and the spread.

Every rate is the server's: what its counters say it answered, from the tenth of the requests that came first to the
tenth that came last. So start and end of a way are nobody's advantage, and no way is taken at its own word (with four
in flight perf_analyzer's mean latency promises a third more than the server saw: it does not contain what
perf_analyzer does between two requests). *Triton alone* is a calculation: photographs in flight, divided by the time a
request spends in the server, which is what a client that costs nothing would reach.

Server and clients share the machine's cores, so what a client wastes the server lacks. *Overhead* is what a caller
waits beyond the time in the server, one photograph at a time. *CPU* is user and system time of the client's process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import tritonclient.grpc
from restormer_client import AsyncEnhancer, DeadlineExceeded, Enhancer, calls

from benchmarks.pipeline import analyzer
from operations.recording import add_record_option, finish_run, show_progress
from traffic.server import Server, repository_with_identity, run_server

#: Photographs on their way at a time. A CPU takes a second or more for each of `enhance`, and its queue is short.
IN_FLIGHT = {"identity": 4, "enhance": 2}
SMALL, LARGE = 1_000, 6_000_000  #: bytes
GOAL = 0.95  #: of perf_analyzer's throughput
POLL = 0.05  #: seconds between two looks at the server's counters
LONG = 10_000  #: photographs through one `map`, for its memory
OURS, ASYNC, PLAIN, NVIDIA = "restormer_client", "restormer_client, asyncio", "tritonclient", "perf_analyzer"


def counted(server: Server, model: str) -> tuple[float, float]:
    """Requests so far, and the seconds they spent in the server together."""
    requests, microseconds = (
        server.read_metric(f"nv_inference_request_{what}", model=model) for what in ("success", "duration_us")
    )
    return requests, microseconds / 1e6


@contextmanager
def model_of_calls(model: str) -> Iterator[None]:
    """The client's calls go to this model instead of ``enhance``."""
    usual, calls.MODEL = calls.MODEL, model
    try:
        yield
    finally:
        calls.MODEL = usual


def by_map(url: str, model: str, photo: bytes, count: int, in_flight: int) -> None:
    """`Enhancer.map`."""
    with model_of_calls(model), Enhancer(url) as enhancer:
        for result in enhancer.map([photo] * count, max_in_flight=in_flight, ordered=False):
            result.unwrap()


def by_async_map(url: str, model: str, photo: bytes, count: int, in_flight: int) -> None:
    """`AsyncEnhancer.map`."""

    async def run() -> None:
        async with AsyncEnhancer(url) as enhancer:
            async for result in enhancer.map([photo] * count, max_in_flight=in_flight, ordered=False):
                result.unwrap()

    with model_of_calls(model):
        asyncio.run(run())


def by_tritonclient(url: str, model: str, photo: bytes, count: int, in_flight: int) -> None:
    """Plain tritonclient, as its examples use it, from as many threads."""
    with tritonclient.grpc.InferenceServerClient(url) as client:

        def enhanced(_: int) -> bytes:
            image = tritonclient.grpc.InferInput("IMAGE", [1, 1], "BYTES")
            image.set_data_from_numpy(np.array([[photo]], dtype=np.object_))
            return bytes(client.infer(model, [image], client_timeout=30).as_numpy("ENHANCED").item())

        with ThreadPoolExecutor(in_flight) as pool:
            for _ in pool.map(enhanced, range(count)):
                pass


def by_perf_analyzer(command: list[str]) -> Way:
    """perf_analyzer. ``command``: it, and what it always needs."""

    def run(url: str, model: str, photo: bytes, count: int, in_flight: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            data = analyzer.written([photo], Path(folder, "photo.json"))
            words = ["-m", model, "-u", url, "--input-data", str(data), "--concurrency-range", str(in_flight)]
            analyzer.analyzed([*command, *words, "--request-count", str(count)])

    return run


#: Sends so many requests (url, model, photograph, how many, how many in flight) and returns when all are answered.
Way = Callable[[str, str, bytes, int, int], None]
OUR_WAYS: dict[str, Way] = {OURS: by_map, ASYNC: by_async_map, PLAIN: by_tritonclient}


@dataclass(frozen=True)
class Watched:
    """A way's run: requests a second, seconds of a request in the server, seconds of our CPU a request."""

    rate: float
    in_server: float
    cpu: float


def watched(server: Server, model: str, count: int, run: Callable[[], None]) -> Watched:
    """What the server's counters say while ``run`` sends ``count`` requests, less the first and the last tenth."""
    moments: list[tuple[float, float, float]] = []
    over = threading.Event()
    requests_before, seconds_before = counted(server, model)

    def watch() -> float:
        while not over.wait(POLL):
            requests, seconds = counted(server, model)
            moments.append((time.perf_counter(), requests - requests_before, seconds))
        return time.thread_time()

    with ThreadPoolExecutor(1) as pool:
        watcher, cpu = pool.submit(watch), cpu_seconds()
        try:
            run()
        finally:
            over.set()
        cpu = cpu_seconds() - cpu - watcher.result()
    patience = time.perf_counter() + 5
    while (now := counted(server, model))[0] - requests_before < count and time.perf_counter() < patience:
        time.sleep(POLL)  # the last answer is counted after it was sent
    sent, seconds = now[0] - requests_before, now[1]
    begin, end = (next((each for each in moments if each[1] >= share * sent), None) for share in (0.1, 0.9))
    if sent != count or begin is None or end is None or begin[1] == end[1]:
        raise SystemExit(f"error: the server counted {sent:.0f} requests of {count}, or too fast to be watched")
    rate = (end[1] - begin[1]) / (end[0] - begin[0])
    return Watched(rate, (seconds - seconds_before) / sent, cpu / sent)


def throughput(
    server: Server, ways: dict[str, Way], model: str, photo: bytes, count: int, rounds: int
) -> dict[str, dict[str, float]]:
    """Photographs a second of each way, ``IN_FLIGHT[model]`` at a time; the ways take turns."""
    rates: dict[str, list[float]] = {name: [] for name in ("Triton alone", *ways)}
    for turn in range(rounds + 1):  # the first warms up
        for name, way in ways.items():
            show_progress(f"{model}: round {turn}/{rounds}, {name}")
            found = watched(server, model, count, partial(way, server.url, model, photo, count, IN_FLIGHT[model]))
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


def overhead(
    server: Server, ways: dict[str, Way], photo: bytes, count: int, rounds: int
) -> dict[str, dict[str, float]]:
    """Microseconds a call, one at a time: beyond the time in the server, and of the client's CPU."""
    found: dict[str, list[Watched]] = {name: [] for name in (NVIDIA, OURS, PLAIN)}
    for turn in range(rounds + 1):
        for name, measured in found.items():
            show_progress(f"one at a time, {len(photo):,} bytes: round {turn}/{rounds}, {name}")
            run = partial(ways[name], server.url, "identity", photo, count, 1)
            if turn:
                measured.append(watched(server, "identity", count, run))
            else:
                run()
    return {
        name: {
            "overhead_us": statistics.median(1 / each.rate - each.in_server for each in measured) * 1e6,
            **({} if name == NVIDIA else {"cpu_us": statistics.median(each.cpu for each in measured) * 1e6}),
        }
        for name, measured in found.items()
    }


def cpu_seconds() -> float:
    """User and system time of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def held(url: str, way: str) -> dict[str, float]:
    """Bytes held at the peak of one call with 64 MB, in photographs; the photograph itself was held before.

    In a process of its own: the high-water mark is the process's.
    """
    photo = os.urandom(64_000_000)
    OUR_WAYS[way](url, "identity", photo[:SMALL], 3, 1)
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmHWM")
    with_one_call = {OURS: one_of_ours, PLAIN: one_of_tritonclient}[way]
    with_one_call(url, photo)
    return {"photographs_held": (memory("VmHWM") - before) / len(photo)}


def one_of_ours(url: str, photo: bytes) -> None:
    with model_of_calls("identity"), Enhancer(url) as enhancer:
        enhancer.enhance(photo)


def one_of_tritonclient(url: str, photo: bytes) -> None:
    with tritonclient.grpc.InferenceServerClient(url) as client:
        image = tritonclient.grpc.InferInput("IMAGE", [1, 1], "BYTES")
        image.set_data_from_numpy(np.array([[photo]], dtype=np.object_))
        client.infer("identity", [image], client_timeout=30).as_numpy("ENHANCED").item()


def long_map(url: str) -> dict[str, float]:
    """MiB of this process after a tenth of ``LONG`` photographs, and after all. The photographs are made as they are
    sent, so none is there twice."""
    photographs = (number.to_bytes(8, "little") * 12_500 for number in range(LONG))  # 100 kB each
    with model_of_calls("identity"), Enhancer(url) as enhancer:
        for result in enhancer.map(photographs, max_in_flight=16):
            result.unwrap()
            if result.index == LONG // 10:
                tenth = memory("VmRSS")
    return {"after_a_tenth_mib": tenth / 2**20, "after_all_mib": memory("VmRSS") / 2**20}


def memory(what: str) -> float:
    """Bytes of this process, by its line in /proc."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith(what))


def late(url: str, times: int) -> dict[str, float]:
    """Milliseconds by which a deadline of 200 ms is overrun on a server that takes longer."""
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


def first_moments() -> dict[str, float]:
    """Milliseconds of ``import restormer_client`` beyond an empty Python, and of what the first call imports."""
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


PARTS: dict[str, Callable[..., dict[str, float]]] = {"held": held, "long": long_map}


def in_a_process(part: str, *arguments: str) -> dict[str, float]:
    """A part whose memory is measured, alone in a process."""
    show_progress(f"{part} {' '.join(arguments[1:])}")
    command = [sys.executable, "-m", "benchmarks.pipeline.client", "--part", part, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def report(server: Server, perf_analyzer: str, rounds: int) -> dict[str, object]:
    """Everything, as the JSON line has it."""
    command = analyzer.command(perf_analyzer, server)
    ways = {NVIDIA: by_perf_analyzer(command), **OUR_WAYS}
    photo, noise = Path("demo/photos/coffee-table.jpg").read_bytes(), os.urandom(LARGE)
    return {
        "in_flight": IN_FLIGHT,
        "cores": len(os.sched_getaffinity(0)),
        "identity": throughput(server, ways, "identity", noise, 300, rounds),
        "enhance": throughput(server, ways, "enhance", photo, 12, rounds),
        "one_at_a_time": {
            str(size): overhead(server, ways, noise[:size], count, rounds)
            for size, count in ((SMALL, 2000), (LARGE, 100))
        },
        "held": {way: in_a_process("held", server.url, way) for way in (OURS, PLAIN)},
        "long": in_a_process("long", server.url),
        "deadline": late(server.url, 20),
        "start": first_moments(),
    }


def lines(found: dict) -> list[str]:
    """The table."""
    made = []
    for model, payload in (("identity", f"{LARGE / 1e6:.0f} MB"), ("enhance", "demo/photos/coffee-table.jpg")):
        made.append(f"{model}, {payload}, {found['in_flight'][model]} in flight: photographs a second")
        for name, row in found[model].items():
            made.append(
                f"  {name:<28} {row['photographs_a_second']:8.2f}  ({row['least']:.2f}–{row['most']:.2f})"
                f"  {row['of_perf_analyzer']:6.3f} of perf_analyzer"
            )
        ratio = found[model][OURS]["of_perf_analyzer"]
        made.append(f"  goal {GOAL}: {'reached' if ratio >= GOAL else 'missed'} ({ratio:.3f})")
    for size, rows in found["one_at_a_time"].items():
        made.append(f"one at a time, {int(size):,} bytes: microseconds a call beyond the server's own, and of CPU")
        for name, row in rows.items():
            cpu = f"{row['cpu_us']:8.0f}" if "cpu_us" in row else "       –"
            made.append(f"  {name:<28} {row['overhead_us']:8.0f} {cpu}")
    made += [f"held at the peak of a call: {name} {row['photographs_held']:.1f}" for name, row in found["held"].items()]
    long, deadline, start = found["long"], found["deadline"], found["start"]
    made += [
        f"memory of a map over {LONG:,}: {long['after_a_tenth_mib']:.0f} MiB after a tenth, "
        f"{long['after_all_mib']:.0f} after all",
        f"a deadline of 200 ms is overrun by {deadline['median_ms']:.1f} ms (median), {deadline['most_ms']:.1f} (most)",
        f"import {start['import_ms']:.0f} ms, imports of the first call {start['first_call_imports_ms']:.0f} ms",
    ]
    return made


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
    analyzer.require(arguments.perf_analyzer)
    try:
        with repository_with_identity(arguments.repository, "identity") as models, run_server(models) as server:
            found = report(server, arguments.perf_analyzer, arguments.rounds)
    except KeyboardInterrupt:
        raise SystemExit("interrupted") from None
    print("\n".join(lines(found)))
    finish_run(found, arguments.record)


if __name__ == "__main__":
    main()
