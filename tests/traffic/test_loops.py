"""Test loops of requests: arrivals, statistics, and outcomes of a real server's answers."""

import asyncio

import numpy as np
import pytest

from tests.photographs import encode_image, pixels
from traffic import loops
from traffic.loops import Answer


def test_arrivals_are_poisson():
    """The gaps are exponential: their standard deviation equals their mean."""
    moments = loops.draw_arrivals(50, 200, seed=1)
    gaps = np.diff(moments)
    assert len(moments) == 50 * 200
    assert 0 <= moments[0] <= moments[-1] < 200
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)
    assert moments == sorted(moments)
    assert loops.draw_arrivals(50, 200, seed=1) == moments


def test_throughput_counts_answers_in_the_window():
    rows = ((0, 1, "ok"), (1, 4.5, "ok"), (6, 3, "ok"), (7, 0.01, "rejected"), (9, 2, "ok"))
    assert loops.throughput([Answer(*row) for row in rows], 10, skip=5) == pytest.approx(2 / 5)


def test_percentiles_are_of_one_outcome():
    answers = [Answer(0, 1, "ok"), Answer(0, 3, "ok"), Answer(0, 0.01, "rejected")]
    assert loops.latency_percentile(answers, 50) == 2
    assert loops.latency_percentile(answers, 50, "rejected") == 0.01
    assert loops.latency_percentile(answers, 50, "failed") == 0
    assert loops.count_outcomes(answers) == {"ok": 2, "rejected": 1, "expired": 0, "failed": 0}


def test_outcomes_of_a_real_server(triton):
    """Send a good photograph, a text, and a request to a server that does not exist."""

    async def send_all():
        async with loops.connect(triton.url) as client, loops.connect("127.0.0.1:9") as unreachable:
            good = await loops.send_photograph(client, encode_image(pixels(48, 64)), 0.0)
            bad = await loops.send_photograph(client, b"a letter", 0.0)
            lost = await loops.send_photograph(unreachable, b"", 0.0, timeout=5)
        return good, bad, lost

    good, bad, lost = asyncio.run(send_all())
    assert good.outcome == "ok"
    assert (bad.outcome, lost.outcome) == ("failed", "failed")
    assert "INVALID_ARGUMENT" in bad.message
    assert "UNAVAILABLE" in lost.message
