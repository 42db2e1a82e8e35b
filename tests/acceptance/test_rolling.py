"""Test the parts of the rolling test that need no Triton; `make test-rolling` runs all of it."""

import asyncio
import json
from types import SimpleNamespace

import pytest
from restormer_client import AsyncEnhancer, ServerUnavailable
from restormer_client.testing import FakeTriton

from tests.acceptance import rolling
from tests.conftest import ROOT

RECORDED = json.loads((ROOT / "benchmarks/results/rolling.json").read_text(encoding="utf-8"))


def check_goals(figures):
    return {goal.name: goal.is_met for goal in rolling.rolling_goals(figures)}


def test_recorded_figures_meet_all_goals():
    assert check_goals(RECORDED) == RECORDED["claims"]
    assert all(RECORDED["claims"].values())
    assert RECORDED["chosen"] == rolling.deployed_times(), "make test-rolling RECORD=benchmarks/results/rolling.json"


@pytest.mark.parametrize(
    ("scenario", "changes", "name"),
    [
        ("resent, enhance", {"failed": 1, "answered": RECORDED["resent, enhance"]["answered"] - 1}, "whole pipeline"),
        ("resent, identity", {"failed": 1, "answered": RECORDED["resent, identity"]["answered"] - 1}, "`identity`"),
        ("resent, identity", {"another's": 1}, "another photograph"),
        ("drained", {"answered": RECORDED["drained"]["answered"] + 1}, "answered once"),
        ("drained", {"failed": 1, "answered": RECORDED["drained"]["answered"] - 1}, "without retries"),
        ("drained", {"in the last seconds": 1}, "last seconds"),
        ("at once", {"failed": 0}, "not drained"),
        ("dead", {"ended": False}, "liveness check"),
    ],
)
def test_each_goal_can_be_missed(scenario, changes, name):
    goals = check_goals({**RECORDED, scenario: {**RECORDED[scenario], **changes}})
    (missed,) = [goal for goal, is_met in goals.items() if not is_met]
    assert name in missed


def test_scenarios_that_were_not_run_have_no_goals():
    goals = check_goals({**RECORDED, "dead": {"not run": "needs unshare"}})
    assert len(goals) == len(RECORDED["claims"]) - 1


async def call_with_name_server(triton, call):
    """Await ``call`` with a name server for a Triton and a client of the name."""
    server = SimpleNamespace(command=["--grpc-port", "1", "--grpc-port", triton.url.rpartition(":")[2]])
    with rolling.NameServer({"127.0.0.1": server}) as names:
        async with AsyncEnhancer(names.target) as enhancer:
            return await call(names, enhancer)


def test_grpc_resolves_the_ready_addresses():
    """Use gRPC's own resolver; without an address the client reports that no server answers."""

    async def call(names, enhancer):
        return await enhancer.enhance(b"a photograph")

    async def call_without_address(names, enhancer):
        names.ready.clear()
        with pytest.raises(ServerUnavailable, match="no server answers at"):
            await enhancer.enhance(b"a photograph", timeout=1)

    with FakeTriton(b"enhanced") as triton:
        assert asyncio.run(call_with_name_server(triton, call)) == b"enhanced"
        asyncio.run(call_with_name_server(triton, call_without_address))


def test_calls_wait_for_the_first_ready_server():
    async def call(names, enhancer):
        names.ready.clear()
        asyncio.get_running_loop().call_later(0.5, names.ready.add, "127.0.0.1")
        return await enhancer.enhance(b"a photograph", timeout=60)

    with FakeTriton(b"enhanced") as triton:
        assert asyncio.run(call_with_name_server(triton, call)) == b"enhanced"


def test_photographs_differ_in_size():
    sizes = [rolling.read_size(rolling.make_photograph(number)) for number in range(1000)]
    assert len(set(sizes)) == 1000
