"""Closed and open loops of requests to ``enhance``, and statistics of their answers.

In an open loop photographs arrive at random (Poisson), whether or not the server has answered. A closed loop slows down
with the server and so hides the effect of an overload.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tritonclient.grpc.aio as grpc
from tritonclient.utils import InferenceServerException

from export.triton import CHANNEL_ARGS

INTERACTIVE, BULK = 1, 2
PAUSE = 0.2  #: seconds that a worker of a closed loop waits after a failure
#: Triton's messages about overload: rejected by a full queue, or timed out in it.
REJECTED, EXPIRED = "xceeds maximum queue size", "Request timeout expired"


@dataclass(frozen=True)
class Answer:
    """The answer to one request: when it was sent and how long it took, in seconds, and its outcome."""

    sent: float
    seconds: float
    outcome: str  # ok, rejected (the queue was full), expired (timed out in the queue), failed
    message: str = ""


def connect(url: str) -> grpc.InferenceServerClient:
    """Return a client without a limit on message sizes and without a proxy; use it with ``async with``."""
    return grpc.InferenceServerClient(url, channel_args=CHANNEL_ARGS)


async def send_photograph(
    client: grpc.InferenceServerClient,
    photograph: bytes,
    started: float,
    *,
    priority: int = 0,
    timeout: float = 120.0,
) -> Answer:
    """Send one photograph and wait for its answer; ``started`` is the time that `Answer.sent` is relative to."""
    image = grpc.InferInput("IMAGE", [1, 1], "BYTES")
    image.set_data_from_numpy(np.array([[photograph]], dtype=np.object_))
    sent = time.monotonic()
    try:
        await client.infer("enhance", [image], priority=priority, client_timeout=timeout)
        outcome, message = "ok", ""
    except InferenceServerException as error:
        message = f"{error.status()}: {error.message()}"
        outcome = "rejected" if REJECTED in message else "expired" if EXPIRED in message else "failed"
    return Answer(sent - started, time.monotonic() - sent, outcome, message)


async def run_closed_loop(
    url: str, photographs: Sequence[bytes], *, workers: int, seconds: float, priority: int = 0
) -> list[Answer]:
    """Send photographs from a number of workers, each of which waits for an answer before it sends the next."""
    answers: list[Answer] = []
    started = time.monotonic()

    async def work(client: grpc.InferenceServerClient, number: int) -> None:
        while time.monotonic() - started < seconds:
            photograph = photographs[number % len(photographs)]
            answer = await send_photograph(client, photograph, started, priority=priority)
            answers.append(answer)
            number += 1
            if answer.outcome != "ok":
                await asyncio.sleep(PAUSE)

    async with connect(url) as client:
        await asyncio.gather(*(work(client, number) for number in range(workers)))
    return answers


async def run_open_loop(
    url: str, photographs: Sequence[bytes], *, rate: float, seconds: float, seed: int = 0
) -> list[Answer]:
    """Send photographs at Poisson arrivals, ``rate`` per second, without waiting for answers."""
    started, tasks = time.monotonic(), []
    async with connect(url) as client:
        for number, moment in enumerate(draw_arrivals(rate, seconds, seed)):
            await asyncio.sleep(max(0.0, started + moment - time.monotonic()))
            photograph = photographs[number % len(photographs)]
            tasks.append(asyncio.create_task(send_photograph(client, photograph, started)))
        return list(await asyncio.gather(*tasks))


def draw_arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Draw the arrival times of a Poisson process, given its expected number of arrivals, at least one.

    Given their number, the times are independent and uniform. A random number would vary too much between short runs.
    """
    generator = random.Random(seed)
    return sorted(generator.uniform(0, seconds) for _ in range(max(1, round(rate * seconds))))


def throughput(answers: Sequence[Answer], seconds: float, *, skip: float = 0.0) -> float:
    """Return the enhanced photographs per second between ``skip`` and ``seconds``."""
    times = [answer.sent + answer.seconds for answer in answers if answer.outcome == "ok"]
    return sum(skip <= time < seconds for time in times) / (seconds - skip)


def latency_percentile(answers: Sequence[Answer], percent: float, outcome: str = "ok") -> float:
    """Return a percentile of the seconds of answers with this outcome, 0 if there are none."""
    times = [answer.seconds for answer in answers if answer.outcome == outcome]
    return float(np.percentile(times, percent)) if times else 0.0


def count_outcomes(answers: Sequence[Answer]) -> dict[str, int]:
    """Count the answers by outcome."""
    return {
        outcome: sum(answer.outcome == outcome for answer in answers)
        for outcome in ("ok", "rejected", "expired", "failed")
    }
