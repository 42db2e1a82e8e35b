"""How the server bears more than it can do: `make test-load`, on a real Triton, with the goals that decide.

The physics first. A server that does C photographs a second and is sent 4C has to turn three of four away. Whoever is
turned away should know at once (his queue was full), whoever is taken should be done within what the queue holds, and
turning away must not cost so much that fewer than C are done. In numbers, with Q who may wait as files in the queue or
are taken by preprocess, and A who are in the network:

    goodput                 >= 0.88 C
    a rejection             < 10 ms at the median
    an accepted photograph  <= (Q + A) / goodput + idle p99, 99 of 100 times
    memory                  flat: the last quarter within 5 % of the second
    somebody waiting        <= idle p99 + three batch times, 99 of 100 times, while bulk keeps the network busy

C is measured in a closed loop with the same photographs on the same server. A shared machine's speed drifts by more
within a minute than the goal leaves, so short stretches of both take turns, and the sums count: `PAIRS` times a closed
loop and then four times its rate. The overload of two minutes that the other goals are about comes after them. The
server's memory is looked at all the while, because looking takes time. Prints a table, and one JSON object as the last
line; exit 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.machine import cpu_name
from operations.recording import add_record_option, find_jpegs, finish_run, print_status, read_record
from server.assemble import read_config
from tests.acceptance import faults
from traffic.loops import BULK, INTERACTIVE, Answer, count_outcomes, latency_percentile, run_closed_loop, run_open_loop
from traffic.loops import throughput as done_a_second
from traffic.server import Server, run_server

OVERLOAD, SKIP = 4.0, 5.0
PAIRS, STRETCH = 6, 25.0  #: how often capacity and overload take turns, and seconds of each
#: The configs that decide: where photographs wait, and what they wait for.
QUEUE_CONFIG, CORE_CONFIG = "preprocess/configs/cpu.pbtxt", "restormer/configs/cpu.pbtxt"


@dataclass(frozen=True)
class Goal:
    """A claim, the figure found, and what it has to be."""

    claim: str
    found: float
    bound: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether the figure is on the right side."""
        return self.found >= self.bound if self.at_least else self.found <= self.bound


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.acceptance.load", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--photos", type=Path, default=Path("demo/photos"))
    parser.add_argument("--seconds", type=float, default=120.0, help="of overload; the rest is measured half as long")
    parser.add_argument("--only", choices=("overload", "faults"), help="usually both")
    add_record_option(parser, "; with --only the others stay in it")
    options = parser.parse_args()
    photographs = [path.read_bytes() for path in find_jpegs(options.photos)]
    figures: dict[str, Any] = {"machine": {"cores": os.cpu_count(), "cpu": cpu_name()}, "seconds": options.seconds}
    goals: list[Goal] = []
    if options.only != "faults":
        with run_server(options.repository) as server:
            figures["overload"] = asyncio.run(overload(server, photographs, options.seconds))
        figures["config_sha256"] = config_sha256(options.repository)
        goals = goals_of(figures["overload"], waiting_of(options.repository))
        figures["goals"] = {goal.claim: [goal.found, goal.bound, goal.met] for goal in goals}
        for goal in goals:
            relation = ">=" if goal.at_least else "<="
            print(f"{'met   ' if goal.met else 'MISSED'} {goal.claim}: {goal.found:.3g} {relation} {goal.bound:.3g}")
    if options.only != "overload":
        figures["faults"] = faults.run(options.repository, photographs)
        figures["claims"] = claims = faults.claims_of(figures["faults"])
        for claim, holds in claims.items():
            print(f"{'met   ' if holds else 'MISSED'} {claim}")
    finish_run(figures, options.record, {**read_record(options.record), **figures})
    return int(not all((*(goal.met for goal in goals), *figures.get("claims", {}).values())))


async def overload(server: Server, photographs: Sequence[bytes], seconds: float) -> dict[str, Any]:
    """Idle, capacity, four times the capacity, and somebody waiting while bulk keeps the network busy."""
    half = seconds / 2
    await run_closed_loop(server.url, photographs, workers=1, seconds=SKIP)  # what a first photograph pays
    idle = await run_closed_loop(server.url, photographs, workers=1, seconds=half)
    tell("idle", idle)
    pairs = [await _pair(server, photographs, STRETCH * seconds / 120, turn) for turn in range(PAIRS)]
    capacity = sum(pair[0] for pair in pairs) / PAIRS
    flood, samples = await asyncio.gather(
        run_open_loop(server.url, photographs, rate=OVERLOAD * capacity, seconds=seconds),
        _memory(server, seconds, seconds / 40),
    )
    tell(f"{OVERLOAD:g} times that", flood)
    began = _worked(server)
    bulk, waiting = await asyncio.gather(
        run_closed_loop(server.url, photographs, workers=6, seconds=seconds, priority=BULK),
        run_closed_loop(server.url, photographs, workers=1, seconds=seconds, priority=INTERACTIVE),
    )
    worked, runs = (after - then for after, then in zip(_worked(server), began, strict=True))
    tell("bulk", bulk)
    tell("somebody waiting", waiting)
    return {
        "idle": _latency(idle),
        "capacity": capacity,
        "pairs": pairs,
        "rate": OVERLOAD * capacity,
        "flood": {
            **_latency(flood),
            **count_outcomes(flood),
            "goodput": done_a_second(flood, seconds, skip=SKIP),
            "rejected_p50": latency_percentile(flood, 50, "rejected"),
            "rejected_p99": latency_percentile(flood, 99, "rejected"),
        },
        "memory_mib": samples,
        "bulk": {**_latency(bulk), **count_outcomes(bulk), "goodput": done_a_second(bulk, seconds, skip=SKIP)},
        "waiting": {**_latency(waiting), **count_outcomes(waiting)},
        "batch_seconds": worked / 1e6 / runs,
    }


async def _pair(server: Server, photographs: Sequence[bytes], seconds: float, seed: int) -> tuple[float, float]:
    """Photographs a second when there is always one to begin with, and right after that at four times as many."""
    every = seconds / 8
    full, _ = await asyncio.gather(
        run_closed_loop(server.url, photographs, workers=4, seconds=seconds), _memory(server, seconds, every)
    )
    capacity = pace_of(full, seconds)
    flood, _ = await asyncio.gather(
        run_open_loop(server.url, photographs, rate=OVERLOAD * capacity, seconds=seconds, seed=seed),
        _memory(server, seconds, every),
    )
    goodput = pace_of(flood, seconds)
    tell(f"capacity {capacity:.2f}/s, and at {OVERLOAD:g} times that {goodput:.2f}/s", flood)
    return capacity, goodput


def pace_of(answers: Sequence[Answer], seconds: float) -> float:
    """Photographs a second between the first and the last that came back in the last four fifths of ``seconds``."""
    came = sorted(a.sent + a.seconds for a in answers if a.outcome == "ok")
    came = [moment for moment in came if seconds / 5 <= moment < seconds]
    if len(came) < 2:
        raise SystemExit(f"error: fewer than two photographs came back within {seconds:g} s: a longer --seconds")
    return (len(came) - 1) / (came[-1] - came[0])


def goals_of(found: dict[str, Any], waiting: int) -> list[Goal]:
    """The goals of this module's docstring, in its order."""
    flood, idle = found["flood"], found["idle"]
    quarter = len(found["memory_mib"]) // 4
    second, last = (
        sum(part) / len(part) for part in (found["memory_mib"][quarter:][:quarter], found["memory_mib"][-quarter:])
    )
    capacity, goodput = (sum(each) for each in zip(*found["pairs"], strict=True))
    within = waiting / flood["goodput"] + idle["p99"]
    return [
        Goal("goodput at four times the capacity, of the capacity", goodput / capacity, 0.88, at_least=True),
        Goal("a rejection at the median, s", flood["rejected_p50"], 0.01),
        Goal("an accepted photograph, 99 of 100, s", flood["p99"], within),
        Goal("memory, last quarter over second", last / second, 1.05),
        Goal("failed for another reason", flood["failed"], 0),
        Goal(
            "somebody waiting beside bulk, 99 of 100, s",
            found["waiting"]["p99"],
            idle["p99"] + 3 * found["batch_seconds"],
        ),
    ]


def queue_of(repository: Path, config: str = QUEUE_CONFIG) -> int:
    """Return how many requests of level 1 a model's queue holds, by its config."""
    return int(read_config(repository / config).dynamic_batching.default_queue_policy.max_queue_size)


def waiting_of(repository: Path) -> int:
    """Return how many requests of level 1 may be in flight: queued, taken by preprocess, and in the network."""
    taken = (read_config(repository / name).instance_group[0].count for name in (QUEUE_CONFIG, CORE_CONFIG))
    return queue_of(repository) + sum(taken)


def config_sha256(repository: Path) -> str:
    """Checksum of what both configs say, without comments: by it a record tells what it was measured with."""
    lines = [
        line
        for name in (QUEUE_CONFIG, CORE_CONFIG)
        for line in (repository / name).read_text(encoding="utf-8").splitlines()
    ]
    said = "\n".join(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))
    return hashlib.sha256(said.encode()).hexdigest()


def tell(what: str, answers: Sequence[Answer]) -> None:
    """A line on the way."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in count_outcomes(answers).items() if count)
    print_status(
        f"{what}: {kinds}; p50 {latency_percentile(answers, 50):.2f} s, p99 {latency_percentile(answers, 99):.2f} s"
    )


def _latency(answers: Sequence[Answer]) -> dict[str, float]:
    return {
        "p50": latency_percentile(answers, 50),
        "p99": latency_percentile(answers, 99),
        "count": float(count_outcomes(answers)["ok"]),
    }


def _worked(server: Server) -> tuple[float, float]:
    """Microseconds the network has run, and how often."""
    names = ("nv_inference_compute_infer_duration_us", "nv_inference_exec_count")
    return server.read_metric(names[0], model="restormer"), server.read_metric(names[1], model="restormer")


async def _memory(server: Server, seconds: float, every: float) -> list[float]:
    samples, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        samples.append(round(await asyncio.to_thread(server.measure_memory), 1))
        await asyncio.sleep(every)
    return samples


if __name__ == "__main__":
    sys.exit(main())
