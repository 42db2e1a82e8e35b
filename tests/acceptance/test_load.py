"""Test the goals of the load and fault tests on given figures; `make test-load` measures them."""

import json
import re

import pytest

from benchmarks.report import tables
from tests.acceptance import faults, load
from tests.acceptance.goals import Goal, report_goals
from tests.conftest import ROOT
from traffic.loops import Answer

GOOD = {
    "pairs": [(0.9, 0.79), (1.1, 0.98)], "idle": {"p99": 1.2}, "batch_seconds": 0.9, "waiting": {"p99": 3.8},
    "flood": {"goodput": 1.0, "rejected_p50": 0.009, "p99": 6.0, "failed": 0}, "memory_mib": [500.0] * 40,
}  # fmt: skip
RECORDED = json.loads((ROOT / "benchmarks/results/load.json").read_text())["faults"]
REPOSITORY = ROOT / "model_repository"


def missed_goals(goals):
    return [goal.name for goal in goals if not goal.is_met]


def test_goals_are_printed_and_all_must_be_met(capsys):
    assert report_goals([Goal("a", 1.0, 2.0), Goal("b", True), Goal("c", 3, 2, at_least=True)])
    assert not report_goals([Goal("a", 1.0, 2.0), Goal("b", False)])
    last = capsys.readouterr().out.splitlines()[-1]
    assert [cell.strip() for cell in last.split("|")[1:-1]] == ["b", "yes", "no", "no"]


def test_the_completion_rate_is_measured_between_answers():
    """Four gaps in eight seconds; the first fifth of the run is left out."""
    answers = [Answer(time, 0, "ok") for time in (0.5, 1, 11, 13, 15, 17, 19, 26)] + [Answer(12, 0, "rejected")]
    assert load.completion_rate(answers, 25) == pytest.approx(0.5)
    with pytest.raises(SystemExit, match="--seconds"):
        load.completion_rate(answers, 1)


def test_good_figures_meet_all_goals():
    assert missed_goals(load.overload_goals(GOOD, timeout=6.0)) == []


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"pairs": [(0.9, 0.79), (1.1, 0.96)]}, "goodput"),
        ({"flood": {**GOOD["flood"], "rejected_p50": 0.011}}, "rejection"),
        ({"flood": {**GOOD["flood"], "p99": 6.3}}, "accepted"),
        ({"flood": {**GOOD["flood"], "failed": 1}}, "failed"),
        ({"memory_mib": [500.0] * 30 + [540.0] * 10}, "memory"),
        ({"waiting": {"p99": 4.0}}, "interactive"),
    ],
)
def test_each_goal_can_be_missed(changes, name):
    (goal,) = missed_goals(load.overload_goals({**GOOD, **changes}, timeout=6.0))
    assert goal.startswith(name)


def test_the_timeout_is_read_from_the_config():
    timeout = int(re.search(r"default_timeout_microseconds: (\d+)", (REPOSITORY / load.QUEUE_CONFIG).read_text())[1])
    assert load.queue_timeout(REPOSITORY) == timeout / 1e6


@pytest.mark.parametrize("changed", [load.QUEUE_CONFIG, load.CORE_CONFIG])
def test_the_checksum_ignores_comments(tmp_path, changed):
    for name in (load.QUEUE_CONFIG, load.CORE_CONFIG):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text((REPOSITORY / name).read_text())
    path, checksums = tmp_path / changed, []
    text = path.read_text()
    for content in (text, f"# one more comment\n\n{text}", text.replace("max_queue_size: 4", "max_queue_size: 5")):
        path.write_text(content)
        checksums.append(load.hash_configs(tmp_path))
    assert checksums[0] == checksums[1] != checksums[2]


def test_recorded_faults_meet_all_goals():
    assert missed_goals(faults.fault_goals(RECORDED)) == []


@pytest.mark.parametrize(
    ("scenario", "changes", "name"),
    [
        ("large", {"outcome": "failed"}, "100 megapixels"),
        ("large", {"after": {**RECORDED["large"]["after"], "failed": 1}}, "100 megapixels"),
        ("preprocess's process killed", {"deep_check": True}, "the deep check detects a dead process of preprocess"),
        ("restormer's process killed", {"deep_check": True}, "the deep check detects a dead process of restormer"),
        ("the server killed", {"started_again": False}, "a killed server"),
        ("shared memory filled", {"between": "failed"}, "minimum shared memory"),
        ("shared memory filled", {"full": [["failed", ""]] * 3}, "full shared memory"),
    ],
)
def test_each_fault_goal_can_be_missed(scenario, changes, name):
    (goal,) = missed_goals(faults.fault_goals({**RECORDED, scenario: {**RECORDED[scenario], **changes}}))
    assert goal.startswith(name)


def test_scenarios_that_were_not_run_have_no_goals():
    reason = {"not run": "needs unshare and the right to mount"}
    goals = faults.fault_goals({**RECORDED, "shared memory filled": reason})
    assert not [goal for goal in goals if "shared memory" in goal.name]
    (row,) = tables.shared_memory_rows(reason)
    assert "not run: needs unshare" in row[1]
