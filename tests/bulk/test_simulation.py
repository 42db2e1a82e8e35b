"""The simulation against what queueing theory knows, and what it has to do when a station is widened."""

import pytest

from benchmarks.simulation import CASES, GPUS, Assumptions, Station, simulated, stations

COSTS = {"bytes_in": 2.5e6, "bytes_out": 3e6, "client": 0.01, "server": 0.13}


@pytest.mark.parametrize(("count", "in_flight"), [(1, 4), (2, 1), (2, 3), (4, 8)])
def test_a_balanced_loop_is_as_fast_as_theory_says(count, in_flight):
    """K stations of rate µ, N on their way, exponential times: N / (N + K - 1) · µ (closed Jackson network)."""
    line = [Station(str(n), 1, 0.01) for n in range(count)]
    found = simulated(line, in_flight, 40_000)
    assert found["photographs_a_second"] == pytest.approx(100 * in_flight / (in_flight + count - 1), rel=0.02)


def test_a_delay_holds_up_nobody_else():
    """Little's law: 20 on their way, 0.1 s each."""
    found = simulated([Station("store", 1, 1e-6, delay=0.1)], 20, 4_000)
    assert found["photographs_a_second"] == pytest.approx(200, rel=0.02)


def test_the_slowest_station_is_the_busy_one():
    found = simulated([Station("fast", 4, 0.01), Station("slow", 2, 0.02), Station("quick", 1, 0.001)], 40, 20_000)
    assert found["photographs_a_second"] == pytest.approx(100, rel=0.02)
    assert found["busy"]["slow"] == pytest.approx(1, abs=0.02)
    assert found["busy"]["fast"] == pytest.approx(0.25, abs=0.02)
    assert found["busy"]["quick"] == pytest.approx(0.1, abs=0.02)


def test_the_gpus_are_the_bound_of_one_node_and_a_prefix_that_of_many():
    assumed = Assumptions()
    one = simulated(stations(COSTS, assumed, 1), 32, 8_000)
    assert one["busy"][GPUS] > 0.9
    assert one["photographs_a_second"] == pytest.approx(assumed.gpu_rate, rel=0.1)
    many = simulated(stations(COSTS, assumed, 100), 3200, 40_000)
    assert many["busy"]["object store, reads"] > 0.95
    assert many["photographs_a_second"] == pytest.approx(assumed.reads / 2, rel=0.05)


def test_one_ten_and_a_hundred_nodes():
    assert {nodes for nodes, _ in CASES} == {1, 10, 100}
