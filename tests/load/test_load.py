"""The parts of the load test that decide: arrivals, percentiles, goals. The load itself is `make test-load`."""

import ast
import asyncio
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from restormer_client import errors

from benchmarks.report import tables
from operations import canary
from tests.acceptance import faults, load
from tests.conftest import ROOT
from tests.photographs import encoded, pixels
from traffic import loops
from traffic import server as traffic_server
from traffic.loops import Answer


def test_arrivals_are_poisson():
    """Their number and the spread of the gaps: an exponential's deviation is its mean."""
    moments = loops.draw_arrivals(50, 200, seed=1)
    gaps = np.diff(moments)
    assert len(moments) == 50 * 200
    assert 0 <= moments[0] <= moments[-1] < 200
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)
    assert moments == sorted(moments)
    assert loops.draw_arrivals(50, 200, seed=1) == moments


def answers(*rows):
    return [Answer(*row) for row in rows]


def test_throughput_counts_what_came_back_in_the_window():
    found = answers((0, 1, "ok"), (1, 4.5, "ok"), (6, 3, "ok"), (7, 0.01, "rejected"), (9, 2, "ok"))
    assert loops.throughput(found, 10, skip=5) == pytest.approx(2 / 5)


def test_the_pace_is_between_two_photographs_not_of_a_window():
    """Four gaps in eight seconds: the edges of the window count nothing, and the first fifth is left out."""
    found = answers(*((moment, 0, "ok") for moment in (0.5, 1, 11, 13, 15, 17, 19, 26)), (12, 0, "rejected"))
    assert load.pace_of(found, 25) == pytest.approx(0.5)
    with pytest.raises(SystemExit, match="fewer than two photographs came back within 1 s: a longer --seconds"):
        load.pace_of(found, 1)


def test_percentiles_are_of_one_kind():
    found = answers((0, 1, "ok"), (0, 3, "ok"), (0, 0.01, "rejected"))
    assert loops.latency_percentile(found, 50) == 2
    assert loops.latency_percentile(found, 50, "rejected") == 0.01
    assert loops.latency_percentile(found, 50, "failed") == 0
    assert loops.count_outcomes(found) == {"ok": 2, "rejected": 1, "expired": 0, "failed": 0}


GOOD = {
    "pairs": [(0.9, 0.79), (1.1, 0.98)], "idle": {"p99": 1.2}, "batch_seconds": 0.9, "waiting": {"p99": 3.8},
    "flood": {"goodput": 1.0, "rejected_p50": 0.009, "p99": 6.0, "failed": 0}, "memory_mib": [500.0] * 40,
}  # fmt: skip


def test_good_figures_meet_every_goal():
    assert [goal.claim for goal in load.goals_of(GOOD, waiting=5) if not goal.met] == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pairs": [(0.9, 0.79), (1.1, 0.96)]}, "goodput"),
        ({"flood": {**GOOD["flood"], "rejected_p50": 0.011}}, "rejection"),
        ({"flood": {**GOOD["flood"], "p99": 6.3}}, "accepted"),
        ({"flood": {**GOOD["flood"], "failed": 1}}, "failed"),
        ({"memory_mib": [500.0] * 30 + [540.0] * 10}, "memory"),
        ({"waiting": {"p99": 4.0}}, "somebody waiting"),
    ],
)
def test_every_goal_can_be_missed(changes, words):
    missed = [goal.claim for goal in load.goals_of({**GOOD, **changes}, waiting=5) if not goal.met]
    assert len(missed) == 1
    assert words in missed[0]


def test_the_requests_in_flight_are_read_off_the_configs():
    """Files in the queue, one that preprocess has taken, and one in the network."""
    text = (ROOT / "model_repository" / load.QUEUE_CONFIG).read_text()
    files = int(re.search(r"max_queue_size: (\d+)", text)[1])
    assert load.queue_of(ROOT / "model_repository") == files
    assert load.waiting_of(ROOT / "model_repository") == files + 1 + 1


@pytest.mark.parametrize("changed", [load.QUEUE_CONFIG, load.CORE_CONFIG])
def test_the_configs_checksum_is_of_what_they_say(tmp_path, changed):
    for name in (load.QUEUE_CONFIG, load.CORE_CONFIG):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text((ROOT / "model_repository" / name).read_text())
    path, found = tmp_path / changed, []
    text = path.read_text()
    for content in (text, f"# a word more\n\n{text}", text.replace("max_queue_size: 4", "max_queue_size: 5")):
        path.write_text(content)
        found.append(load.config_sha256(tmp_path))
    assert found[0] == found[1] != found[2]


RECORDED = json.loads((ROOT / "benchmarks/results/load.json").read_text())["faults"]


def test_every_claim_about_faults_held_when_it_was_recorded():
    assert [claim for claim, holds in faults.claims_of(RECORDED).items() if not holds] == []


@pytest.mark.parametrize(
    ("scenario", "changes", "words"),
    [
        ("large", {"outcome": "failed"}, "100 megapixels"),
        ("large", {"after": {**RECORDED["large"]["after"], "failed": 1}}, "100 megapixels"),
        ("preprocess's process killed", {"deep_check": True}, "deep check sees that the process of preprocess"),
        ("restormer's process killed", {"deep_check": True}, "deep check sees that the process of restormer"),
        ("the server killed", {"started_again": False}, "started again"),
        ("shared memory filled", {"between": "failed"}, "only the too large one"),
        ("shared memory filled", {"full": [["failed", ""]] * 3}, "only the large one"),
    ],
)
def test_every_claim_about_faults_can_fail(scenario, changes, words):
    found = {**RECORDED, scenario: {**RECORDED[scenario], **changes}}
    missed = [claim for claim, holds in faults.claims_of(found).items() if not holds]
    assert len(missed) == 1
    assert words in missed[0]


def test_a_scenario_that_was_not_run_is_said_and_claimed_nothing_of():
    reason = {"not run": "needs unshare and the right to mount"}
    assert not [c for c in faults.claims_of({**RECORDED, "shared memory filled": reason}) if "shared memory" in c]
    (row,) = tables.shared_memory_rows(reason)
    assert row[1] == "not run: needs unshare and the right to mount"


def test_an_overload_is_told_by_the_same_words_everywhere():
    """By the client, by the tiles, and by the load test; a real server says them in tests/client."""
    tree = ast.parse((ROOT / "model_repository/enhance_tiled/1/model.py").read_text())
    (tiles,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "OVERLOAD"
    )
    assert tiles == (loops.REJECTED, loops.EXPIRED)
    for words in tiles:
        failure = errors.Failure("UNAVAILABLE", f"E{words}: more of it")
        assert isinstance(errors.error_from_failure(failure, url="", model="enhance", attempts=1), errors.Overloaded)


def test_answers_of_a_real_server_are_told_apart(triton):
    """One good photograph, one that is none, and one to nobody."""

    async def three():
        async with loops.connect(triton.url) as client, loops.connect("127.0.0.1:9") as nobody:
            good = await loops.send_photograph(client, encoded(pixels(48, 64)), 0.0)
            bad = await loops.send_photograph(client, b"a letter", 0.0)
            lost = await loops.send_photograph(nobody, b"", 0.0, timeout=5)
        return good, bad, lost

    good, bad, lost = asyncio.run(three())
    assert good.outcome == "ok"
    assert (bad.outcome, lost.outcome) == ("failed", "failed")
    assert "INVALID_ARGUMENT" in bad.message
    assert "UNAVAILABLE" in lost.message


def test_the_servers_processes_are_found_and_weighed(triton, tmp_path):
    status = subprocess.run(triton.command("status"), cwd=ROOT, capture_output=True, text=True, check=True).stdout
    pid = int(re.search(r'"pid": (\d+)', status)[1])
    server = traffic_server.Server(pid, triton.grpc_port, triton.metrics_port, [], tmp_path)
    assert len(server.list_stubs("restormer")) == 1
    assert len(server.list_stubs("enhance_tiled")) == 2
    assert server.measure_memory() > 100
    assert server.read_metric("nv_inference_count", model="restormer") >= 1


def test_the_canary_compares_two_versions(repository, tmp_path):
    """The same engine twice: alike to the last bit, through a real server that serves both."""
    copy = tmp_path / "models"
    shutil.copytree(repository, copy)
    shutil.copytree(copy / "restormer/1", copy / "restormer/2")
    photos = tmp_path / "photos"
    photos.mkdir()
    shutil.copy(ROOT / "demo/photos/balcony.jpg", photos)
    command = [sys.executable, "-m", "operations.canary", "--repository", str(copy), "--photos", str(photos)]
    command += ["--repeat", "1", "--at-least", "100", "--record", str(tmp_path / "canary.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "canary.json").read_text())["photographs"]
    assert row["between"] == 200
    assert row["truth"]["1"] == row["truth"]["2"] > 20
    assert "| balcony | 200.0 |" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--photos", "docs/nothing"], "no photograph in docs/nothing"),
        (["--candidate", "1"], "name two versions"),
        (["--candidate", "77"], "version 77 is not published"),
        (["--url", "127.0.0.1:9"], "error: "),
    ],
)
def test_a_canary_that_cannot_is_one_line(options, message, repository):
    command = [sys.executable, "-m", "operations.canary", "--repository", str(repository), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_the_canarys_table_says_where_there_is_no_truth():
    row = {"name": "a", "between": 50.0, "truth": {"1": None, "2": 30.0}, "ms": {"1": 10.0, "2": 20.0}}
    assert canary.table([row], ("1", "2")).endswith("| a | 50.0 | – | 30.00 | 10 | 20 |")
