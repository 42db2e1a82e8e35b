"""What of the rehearsal can be tried in a moment; the rehearsal itself is `make test-rolling`."""

import asyncio
import json
from types import SimpleNamespace

import pytest
from restormer_client import AsyncEnhancer, ServerUnavailable
from restormer_client.testing import FakeTriton

from tests.acceptance import rolling
from tests.conftest import ROOT

RECORDED = json.loads((ROOT / "benchmarks/results/rolling.json").read_text(encoding="utf-8"))


def test_every_claim_held_when_it_was_recorded():
    assert rolling.claims_of(RECORDED) == RECORDED["claims"]
    assert all(RECORDED["claims"].values())
    assert RECORDED["chosen"] == rolling.as_deployed(), "make test-rolling RECORD=benchmarks/results/rolling.json"


@pytest.mark.parametrize(
    ("scenario", "changes", "words"),
    [
        ("resent, enhance", {"failed": 1, "answered": RECORDED["resent, enhance"]["answered"] - 1}, "whole pipeline"),
        ("resent, identity", {"failed": 1, "answered": RECORDED["resent, identity"]["answered"] - 1}, "thousands"),
        ("resent, identity", {"another's": 1}, "answered once"),
        ("drained", {"answered": RECORDED["drained"]["answered"] + 1}, "answered once"),
        ("drained", {"failed": 1, "answered": RECORDED["drained"]["answered"] - 1}, "never sends twice loses none"),
        ("drained", {"in the last seconds": 1}, "nobody is there"),
        ("at once", {"failed": 0}, "loses some"),
        ("dead", {"ended": False}, "whose Python process died"),
    ],
)
def test_every_claim_can_fail(scenario, changes, words):
    found = {**RECORDED, scenario: {**RECORDED[scenario], **changes}}
    (missed,) = [claim for claim, holds in rolling.claims_of(found).items() if not holds]
    assert words in missed


async def asked(triton, during):
    """A name server for a Triton, a client of the name, and what happens to both."""
    server = SimpleNamespace(command=["--grpc-port", "1", "--grpc-port", triton.url.rpartition(":")[2]])
    with rolling.NameServer({"127.0.0.1": server}) as names:
        async with AsyncEnhancer(names.target) as enhancer:
            return await during(names, enhancer)


def test_what_was_not_run_is_claimed_nothing_of():
    claims = rolling.claims_of({**RECORDED, "dead": {"not run": "needs unshare"}})
    assert set(RECORDED["claims"]) - set(claims) == {"the liveness check ends a server whose Python process died"}


def test_the_name_server_gives_grpc_the_ready_addresses():
    """Through gRPC's own resolver. Without an address nobody is reached, and it is said so."""

    async def there(names, enhancer):
        return await enhancer.enhance(b"a photograph")

    async def nobody(names, enhancer):
        names.ready.clear()
        with pytest.raises(ServerUnavailable, match="no server answers at"):
            await enhancer.enhance(b"a photograph", timeout=1)

    with FakeTriton(b"enhanced") as triton:
        assert asyncio.run(asked(triton, there)) == b"enhanced"
        asyncio.run(asked(triton, nobody))


def test_who_comes_while_no_server_is_ready_is_answered_by_the_first_that_is():
    async def later(names, enhancer):
        names.ready.clear()
        asyncio.get_running_loop().call_later(0.5, names.ready.add, "127.0.0.1")
        return await enhancer.enhance(b"a photograph", timeout=60)

    with FakeTriton(b"enhanced") as triton:
        assert asyncio.run(asked(triton, later)) == b"enhanced"


def test_photographs_are_told_apart_by_their_size():
    sizes = [rolling.size(rolling.photograph(number)) for number in range(1000)]
    assert len(set(sizes)) == 1000


def test_the_quick_models_are_the_published_ones_but_for_enhance(repository):
    with rolling.quick(repository) as models:
        assert sorted(p.name for p in models.iterdir()) == sorted(
            p.name for p in repository.iterdir() if not p.name.startswith((".", "__"))
        )
        assert 'name: "enhance"' in (models / "enhance/config.pbtxt").read_text()
        assert f"time.sleep({rolling.WORK})" in (models / "enhance/1/model.py").read_text()
