"""Send more photographs than a real Triton can process, then break its parts (``make test-load``).

A server with a capacity of C photographs per second that receives 4C must reject three of four. Rejections must be
immediate, accepted photographs must be done within the timeout of the queue policy, and rejections must not reduce
the throughput. The goals are:

    goodput                   >= 0.88 C
    rejection                 median <= 10 ms
    accepted photograph       p99 <= timeout of the queue policy
    memory                    mean of the last quarter within 5 % of the second
    interactive beside bulk   p99 <= idle p99 + three batch times

C is measured in a closed loop. The speed of a shared machine drifts by more within a minute than the goal allows, so
short stretches of closed loop and overload alternate `PAIRS` times, and their sums are compared. The other goals are
measured in a longer overload afterwards. The server's memory is sampled throughout, because sampling takes time.
Prints a table of the goals and one JSON object as the last line; exits with 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from export.machine import cpu_name
from operations.recording import add_record_option, exit_on_interrupt, find_jpegs, finish_run, print_status, read_record
from server.assemble import read_config
from tests.acceptance import faults
from tests.acceptance.goals import Goal, report_goals
from tests.acceptance.leftovers import expect_no_leftovers
from traffic.loops import (
    BULK,
    INTERACTIVE,
    Answer,
    count_outcomes,
    latency_percentile,
    run_closed_loop,
    run_open_loop,
    throughput,
)
from traffic.server import Server, run_server

OVERLOAD, SKIP = 4.0, 5.0
PAIRS, STRETCH = 6, 25.0  #: number of alternations of capacity and overload, and seconds of each
#: The configs of the queue in which photographs wait, and of the network.
QUEUE_CONFIG, CORE_CONFIG = "preprocess/configs/cpu.pbtxt", "restormer/configs/cpu.pbtxt"


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.acceptance.load", description=str(__doc__).splitlines()[0])
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--photos", type=Path, default=Path("demo/photos"))
    parser.add_argument("--seconds", type=float, default=120.0, help="of the overload (default %(default)g)")
    parser.add_argument("--only", choices=("overload", "faults"), help="default: both")
    add_record_option(parser, "; with --only it keeps the other part")
    options = parser.parse_args()
    photographs = [path.read_bytes() for path in find_jpegs(options.photos)]
    figures: dict[str, Any] = {"machine": {"cores": os.cpu_count(), "cpu": cpu_name()}, "seconds": options.seconds}
    goals: list[Goal] = []
    with expect_no_leftovers():
        if options.only != "faults":
            with run_server(options.repository) as server:
                figures["overload"] = asyncio.run(measure_overload(server, photographs, options.seconds))
            figures["config_sha256"] = hash_configs(options.repository)
            goals = overload_goals(figures["overload"], queue_timeout(options.repository))
            figures["goals"] = {goal.name: [goal.measured, goal.limit, goal.is_met] for goal in goals}
        if options.only != "overload":
            figures["faults"] = faults.run(options.repository, photographs)
            fault_goals = faults.fault_goals(figures["faults"])
            figures["claims"] = {goal.name: goal.is_met for goal in fault_goals}
            goals += fault_goals
    are_met = report_goals(goals)
    finish_run(figures, options.record, {**read_record(options.record), **figures})
    return int(not are_met)


async def measure_overload(server: Server, photographs: Sequence[bytes], seconds: float) -> dict[str, Any]:
    """Measure idle latency, capacity, overload, and an interactive caller beside bulk."""
    await run_closed_loop(server.url, photographs, workers=1, seconds=SKIP)  # warm up
    idle = await run_closed_loop(server.url, photographs, workers=1, seconds=seconds / 2)
    print_answers("idle", idle)
    pairs = [await _measure_pair(server, photographs, STRETCH * seconds / 120, turn) for turn in range(PAIRS)]
    capacity = sum(pair[0] for pair in pairs) / PAIRS
    flood, samples = await asyncio.gather(
        run_open_loop(server.url, photographs, rate=OVERLOAD * capacity, seconds=seconds),
        sample_memory(server, seconds, seconds / 40),
    )
    print_answers("overload", flood)
    before = server.read_counters()
    bulk, interactive = await asyncio.gather(
        run_closed_loop(server.url, photographs, workers=6, seconds=seconds, priority=BULK),
        run_closed_loop(server.url, photographs, workers=1, seconds=seconds, priority=INTERACTIVE),
    )
    after = server.read_counters()
    print_answers("bulk", bulk)
    print_answers("interactive", interactive)
    worked, runs = (
        after["restormer", name] - before["restormer", name] for name in ("compute_infer_duration_us", "exec_count")
    )
    return {
        "idle": _latency(idle),
        "capacity": capacity,
        "pairs": pairs,
        "rate": OVERLOAD * capacity,
        "flood": {
            **_latency(flood),
            **count_outcomes(flood),
            "goodput": throughput(flood, seconds, skip=SKIP),
            "rejected_p50": latency_percentile(flood, 50, "rejected"),
            "rejected_p99": latency_percentile(flood, 99, "rejected"),
        },
        "memory_mib": samples,
        "bulk": {**_latency(bulk), **count_outcomes(bulk), "goodput": throughput(bulk, seconds, skip=SKIP)},
        "waiting": {**_latency(interactive), **count_outcomes(interactive)},
        "batch_seconds": worked / 1e6 / runs,
    }


async def _measure_pair(server: Server, photographs: Sequence[bytes], seconds: float, seed: int) -> tuple[float, float]:
    """Return the capacity in a closed loop, and the goodput at four times as many requests right after it."""
    every = seconds / 8
    closed, _ = await asyncio.gather(
        run_closed_loop(server.url, photographs, workers=4, seconds=seconds), sample_memory(server, seconds, every)
    )
    capacity = completion_rate(closed, seconds)
    flood, _ = await asyncio.gather(
        run_open_loop(server.url, photographs, rate=OVERLOAD * capacity, seconds=seconds, seed=seed),
        sample_memory(server, seconds, every),
    )
    goodput = completion_rate(flood, seconds)
    print_answers(f"capacity {capacity:.2f}/s, goodput {goodput:.2f}/s", flood)
    return capacity, goodput


def completion_rate(answers: Sequence[Answer], seconds: float) -> float:
    """Return the enhanced photographs per second between the first and the last in the last four fifths of a run."""
    times = sorted(answer.sent + answer.seconds for answer in answers if answer.outcome == "ok")
    times = [time for time in times if seconds / 5 <= time < seconds]
    if len(times) < 2:
        raise SystemExit(f"error: fewer than two photographs were enhanced within {seconds:g} s: increase --seconds")
    return (len(times) - 1) / (times[-1] - times[0])


def overload_goals(figures: dict[str, Any], timeout: float) -> list[Goal]:
    """Return the goals of this module's docstring, in its order."""
    flood, idle, memory = figures["flood"], figures["idle"], figures["memory_mib"]
    quarter = len(memory) // 4
    growth = sum(memory[-quarter:]) / sum(memory[quarter:][:quarter])
    capacity, goodput = (sum(each) for each in zip(*figures["pairs"], strict=True))
    beside_bulk = idle["p99"] + 3 * figures["batch_seconds"]
    return [
        Goal("goodput at four times the capacity / capacity", goodput / capacity, 0.88, at_least=True),
        Goal("rejection, median (s)", flood["rejected_p50"], 0.01),
        Goal("accepted photograph, p99 (s)", flood["p99"], timeout),
        Goal("memory, last quarter / second quarter", growth, 1.05),
        Goal("failed for other reasons", flood["failed"], 0),
        Goal("interactive beside bulk, p99 (s)", figures["waiting"]["p99"], beside_bulk),
    ]


def queue_timeout(repository: Path) -> float:
    """Return the seconds that a request of level 1 may wait in the queue, from the config."""
    policy = read_config(repository / QUEUE_CONFIG).dynamic_batching.default_queue_policy
    return int(policy.default_timeout_microseconds) / 1e6


def hash_configs(repository: Path) -> str:
    """Return the checksum of both configs without comments, which identifies them in a record."""
    lines = [
        line.strip()
        for name in (QUEUE_CONFIG, CORE_CONFIG)
        for line in (repository / name).read_text(encoding="utf-8").splitlines()
    ]
    text = "\n".join(line for line in lines if line and not line.startswith("#"))
    return hashlib.sha256(text.encode()).hexdigest()


def print_answers(title: str, answers: Sequence[Answer]) -> None:
    """Print the outcomes and latencies of a phase."""
    counts = ", ".join(f"{count} {outcome}" for outcome, count in count_outcomes(answers).items() if count)
    latency = _latency(answers)
    print_status(f"{title}: {counts}; p50 {latency['p50']:.2f} s, p99 {latency['p99']:.2f} s")


def _latency(answers: Sequence[Answer]) -> dict[str, float]:
    return {
        "p50": latency_percentile(answers, 50),
        "p99": latency_percentile(answers, 99),
        "count": float(count_outcomes(answers)["ok"]),
    }


async def sample_memory(server: Server, seconds: float, every: float) -> list[float]:
    """Return the server's memory in MiB at regular times."""
    samples, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        samples.append(round(await asyncio.to_thread(server.measure_memory), 1))
        await asyncio.sleep(every)
    return samples


if __name__ == "__main__":
    exit_on_interrupt(main)
