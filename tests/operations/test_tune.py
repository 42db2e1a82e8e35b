"""Test the search of `make tune`, the file that it writes, and that a server accepts it, without real loads."""

import math
import subprocess
from argparse import Namespace
from dataclasses import replace

import pytest

from operations import tune
from operations.tune import Choice, Result
from server import assemble
from server.settings import Settings
from tests.conftest import ROOT, server_command
from traffic.loops import Answer

START = Choice(1, 1, 1, 1, 1, 0)
ALLOWED = {"versions": [1, 2], "core_instances": [1, 2], "core_batch": [1, 2, 4], "core_delay_us": [0, 2000],
           "preprocess_instances": [1, 2]}  # fmt: skip


def found(rate=1.0, p99_ms=1000.0, lost=0):
    return Result(rate, p99_ms / 2, p99_ms, 20, lost)


def test_within_the_objective_the_faster_wins_and_outside_the_nearer():
    slow, fast, late = found(1, 900), found(2, 990), found(3, 1500)
    assert max([slow, fast, late], key=lambda each: each.worth(1000, 0)) == fast
    assert max([slow, fast, late], key=lambda each: each.worth(1000, 0.5)) == slow
    assert max([found(3, 1500), found(3, 1400)], key=lambda each: each.worth(1000, 0)).p99_ms == 1400


def test_a_lost_photograph_misses_the_objective():
    assert found(p99_ms=10).meets(1000)
    assert not found(p99_ms=10, lost=1).meets(1000)
    assert not tune.FAILED.meets(1000)


def test_the_search_finds_two_settings_that_pay_only_together():
    """A second instance pays only once two photographs are prepared at a time: the second round finds it."""

    def measure(choice):
        both = choice.core_instances == 2 and choice.preprocess_instances == 2
        return found(rate=3 if both else 1 + 0.5 * (choice.preprocess_instances == 2) + 0.1 * (choice.core_batch == 2))

    tried = tune.search(START, ALLOWED, measure, lambda each: each.worth(2000, 0))
    best = max(tried, key=lambda choice: tried[choice].worth(2000, 0))
    assert (best.core_instances, best.preprocess_instances) == (2, 2)
    assert next(iter(tried)) == START


def test_a_batch_of_one_does_not_wait():
    tried = tune.search(START, ALLOWED, lambda choice: found(), lambda each: each.worth(2000, 0))
    assert all(choice.core_delay_us == 0 for choice in tried)


def test_nothing_is_tried_twice():
    asked = []
    tune.search(START, ALLOWED, lambda choice: asked.append(choice) or found(), lambda each: each.worth(2000, 0))
    assert len(asked) == len(set(asked))


FASTER, FASTEST = replace(START, core_instances=2), replace(START, core_batch=2)


def test_the_best_are_loaded_again_beside_the_servers_own_choice():
    tried = {
        START: found(1, 990),
        FASTER: found(2, 800),
        FASTEST: found(5, 700),
        replace(START, versions=2): found(9, 2000),
    }
    assert tune.finalists(tried, START, 1000, 0) == [START, FASTEST, FASTER]
    late = {START: found(1, 1990), FASTER: found(2, 800)}
    assert tune.finalists(late, START, 1000, 0) == [START, FASTER]
    assert tune.finalists({START: found(1, 1990)}, START, 1000, 0) == []


def test_of_several_loads_the_longest_times_count():
    once = tune.merge_results([found(2, 900), found(4, 1100, lost=1)])
    assert (once.rate, once.p99_ms, once.photographs, once.lost) == (3, 1100, 40, 1)


@pytest.mark.parametrize(
    ("ours", "theirs", "rate", "chosen"),
    [
        (found(1.04, 500), found(1, 500), 0, START),  # may be chance
        (found(1.06, 500), found(1, 500), 0, FASTER),
        (found(9, 1500), found(1, 500), 0, START),  # no longer within the objective
        (found(1, 500), found(9, 1500), 0, FASTER),
        (found(9, 1500), found(9, 1500), 0, None),
        (found(1, 490), found(1, 500), 1, START),
        (found(1, 400), found(1, 500), 1, FASTER),
    ],
)
def test_the_servers_own_choice_stays_unless_another_is_clearly_better(ours, theirs, rate, chosen):
    assert tune.choose_winner({START: theirs, FASTER: ours}, START, 1000, rate) == chosen


def test_answers_become_a_finding():
    answers = [Answer(0, 1, "ok"), Answer(1, 2, "ok"), Answer(2, 0.01, "rejected")]
    made = tune.result_from_answers(answers, 2.0, 4)
    assert (made.photographs, made.lost, made.at_a_time) == (2, 1, 4)
    assert made.rate == pytest.approx(2 / 3)
    assert made.p50_ms == 1500
    nothing = tune.result_from_answers([Answer(0, 1, "failed")], 2.0, 1)
    assert nothing.p99_ms == math.inf
    assert tune.row(START, nothing, "fp32", 1000)["p99_ms"] is None
    assert "no photograph was enhanced" in tune.line(tune.row(START, nothing, "fp32", 1000))


def test_the_search_starts_at_what_the_server_would_choose(repository):
    on_cpu = tune.server_choice(Settings(repository=repository, hardware="cpu"), 1)
    assert (on_cpu.core_instances, on_cpu.core_batch, on_cpu.core_delay_us) == (1, 1, 0)
    on_gpu = tune.server_choice(Settings(repository=repository, hardware="h100"), 3)
    assert (on_gpu.versions, on_gpu.core_instances, on_gpu.core_batch, on_gpu.core_delay_us) == (3, 2, 8, 1500)


def test_a_gpu_is_searched_by_precision_and_delay():
    allowed = tune.dimensions(START, [1, 2, 3], 16, on_gpu=True)
    assert allowed["versions"] == [1, 2, 3]
    assert len(allowed["core_delay_us"]) > 2
    assert allowed["preprocess_instances"] == [1, 2]
    assert tune.dimensions(START, [1], 6, on_gpu=False)["core_instances"] == [1, 2, 4]


def test_only_versions_of_one_network_are_compared(repository):
    assert tune.precision_by_version(tune.published_engines(repository, on_gpu=False)) == {1: "fp32"}
    with pytest.raises(SystemExit, match="make engine PRECISION=fp16 TARGET=tensorrt"):
        tune.published_engines(repository, on_gpu=True)


def test_the_hardware_is_that_of_the_server_which_is_tuned(gpu_host, monkeypatch, tmp_path):
    """Beside a GPU the wheel still serves on the CPU; NVIDIA's installation comes from the environment."""
    options = Namespace(slo_p99_ms=1000.0, rate=0.0, repository=tmp_path)
    with pytest.raises(SystemExit, match="TARGET=cpu"):
        tune.run_search(options, [], "")
    monkeypatch.setenv("RESTORMER_TRITON", "/opt/tritonserver")
    with pytest.raises(SystemExit, match="TARGET=tensorrt"):
        tune.run_search(options, [], "")


def test_the_settings_written_are_taken_by_the_server(tmp_path, repository):
    """By its preflight, through the environment, as `make serve` passes it on."""
    path = tmp_path / "tuned.env"
    choice = replace(START, core_instances=2, core_batch=4, core_delay_us=500)
    tune.write_settings(path, replace(choice, preprocess_instances=5, postprocess_instances=7), ["why"])
    assert [each.name for each in tmp_path.iterdir()] == ["tuned.env"]
    command = " ".join(server_command("preflight", repository=repository, state=tmp_path, grpc_port=1, metrics_port=2))
    done = subprocess.run(
        ["sh", "-c", f"set -a; . {path}; {command}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "5 preprocess, 7 postprocess" in done.stdout, done.stderr
    flags = dict(zip(*[iter(replace(START, core_instances=2).flags())] * 2, strict=True))
    assert {f"--{name.replace('_', '-')}" for name in Settings.__dataclass_fields__} >= set(flags)


@pytest.mark.parametrize("hardware", ["cpu", "gpu", "h100"])
def test_the_network_is_served_as_it_was_tuned(repository, hardware):
    settings = Settings(repository=repository, hardware=hardware, core_instances=3, core_batch=4, core_delay_us=700)
    made = assemble.served_config(settings, repository / "restormer")
    again = replace(settings, core_instances=0, core_batch=0, core_delay_us=None)
    assert [group.count for group in made.instance_group] == [3]
    assert list(made.dynamic_batching.preferred_batch_size) == [4]
    assert made.dynamic_batching.max_queue_delay_microseconds == 700
    assert assemble.served_config(again, repository / "restormer") != made


def test_more_and_more_are_sent_at_a_time_until_the_objective_is_missed():
    """What is kept is the best within it, and where nothing is, the nearest."""
    p99 = {1: 400, 2: 500, 4: 900, 8: 1200}
    asked = []

    def load(many):
        asked.append(many)
        return replace(found(rate=min(many, 3), p99_ms=p99[many]), at_a_time=many)

    assert tune.find_concurrency(load, 1000).at_a_time == 4
    assert asked == [1, 2, 4, 8]
    assert tune.find_concurrency(load, 100).at_a_time == 1
    assert tune.find_concurrency(lambda many: replace(found(rate=1, p99_ms=10), at_a_time=many), 1000).at_a_time == 1


def test_a_failed_start_keeps_its_message_and_misses(tmp_path):
    failed = tune.measure_choice(tmp_path, START, [b""], slo=1000, rate=0, seconds=1, many=0)
    assert not failed.meets(1e9)
    assert failed.message.startswith("error: ")


def test_a_load_lasts_until_there_are_enough_to_tell():
    assert tune.load_seconds(0) == tune.MIN_SECONDS
    assert tune.load_seconds(0.3) == pytest.approx(100)
