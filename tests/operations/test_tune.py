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


def make_result(rate=1.0, p99_ms=1000.0, lost=0):
    return Result(rate, p99_ms / 2, p99_ms, 20, lost)


def test_results_within_the_objective_rank_by_rate_and_others_by_latency():
    slow, fast, late = make_result(1, 900), make_result(2, 990), make_result(3, 1500)
    assert max([slow, fast, late], key=lambda each: each.sort_key(1000, 0)) == fast
    assert max([slow, fast, late], key=lambda each: each.sort_key(1000, 0.5)) == slow
    assert max([make_result(3, 1500), make_result(3, 1400)], key=lambda each: each.sort_key(1000, 0)).p99_ms == 1400


def test_a_lost_photograph_misses_the_objective():
    assert make_result(p99_ms=10).meets(1000)
    assert not make_result(p99_ms=10, lost=1).meets(1000)
    assert not tune.FAILED.meets(1000)


def test_the_search_finds_two_settings_that_are_faster_only_together():
    """A second instance is faster only with a second preprocess instance, so only the second round finds it."""

    def measure(choice):
        both = choice.core_instances == 2 and choice.preprocess_instances == 2
        return make_result(
            rate=3 if both else 1 + 0.5 * (choice.preprocess_instances == 2) + 0.1 * (choice.core_batch == 2)
        )

    tried = tune.search(START, ALLOWED, measure, lambda each: each.sort_key(2000, 0))
    best = max(tried, key=lambda choice: tried[choice].sort_key(2000, 0))
    assert (best.core_instances, best.preprocess_instances) == (2, 2)
    assert next(iter(tried)) == START


def test_a_batch_of_one_does_not_wait():
    tried = tune.search(START, ALLOWED, lambda choice: make_result(), lambda each: each.sort_key(2000, 0))
    assert all(choice.core_delay_us == 0 for choice in tried)


def test_no_setting_is_measured_twice():
    calls = []
    tune.search(
        START, ALLOWED, lambda choice: calls.append(choice) or make_result(), lambda each: each.sort_key(2000, 0)
    )
    assert len(calls) == len(set(calls))


FASTER, FASTEST = replace(START, core_instances=2), replace(START, core_batch=2)


def test_the_best_are_loaded_again_beside_the_defaults():
    tried = {
        START: make_result(1, 990),
        FASTER: make_result(2, 800),
        FASTEST: make_result(5, 700),
        replace(START, versions=2): make_result(9, 2000),
    }
    assert tune.select_finalists(tried, START, 1000, 0) == [START, FASTEST, FASTER]
    late = {START: make_result(1, 1990), FASTER: make_result(2, 800)}
    assert tune.select_finalists(late, START, 1000, 0) == [START, FASTER]
    assert tune.select_finalists({START: make_result(1, 1990)}, START, 1000, 0) == []


def test_merged_loads_have_the_mean_rate_and_the_longest_times():
    merged = tune.merge_results([make_result(2, 900), make_result(4, 1100, lost=1)])
    assert (merged.rate, merged.p99_ms, merged.photographs, merged.lost) == (3, 1100, 40, 1)


@pytest.mark.parametrize(
    ("other", "default", "rate", "chosen"),
    [
        (make_result(1.04, 500), make_result(1, 500), 0, START),  # may be chance
        (make_result(1.06, 500), make_result(1, 500), 0, FASTER),
        (make_result(9, 1500), make_result(1, 500), 0, START),  # no longer within the objective
        (make_result(1, 500), make_result(9, 1500), 0, FASTER),
        (make_result(9, 1500), make_result(9, 1500), 0, None),
        (make_result(1, 490), make_result(1, 500), 1, START),
        (make_result(1, 400), make_result(1, 500), 1, FASTER),
    ],
)
def test_the_defaults_stay_unless_another_setting_is_better_by_5_percent(other, default, rate, chosen):
    assert tune.choose_winner({START: default, FASTER: other}, START, 1000, rate) == chosen


def test_results_are_calculated_from_answers():
    answers = [Answer(0, 1, "ok"), Answer(1, 2, "ok"), Answer(2, 0.01, "rejected")]
    result = tune.result_from_answers(answers, 2.0, 4)
    assert (result.photographs, result.lost, result.at_a_time) == (2, 1, 4)
    assert result.rate == pytest.approx(2 / 3)
    assert result.p50_ms == 1500
    failed = tune.result_from_answers([Answer(0, 1, "failed")], 2.0, 1)
    assert failed.p99_ms == math.inf
    row = tune.row_from_result(START, failed, "fp32", 1000)
    assert row["p99_ms"] is None
    assert "no photograph was enhanced" in tune.format_row(row)


def test_the_search_starts_from_the_defaults_of_the_server(repository):
    on_cpu = tune.choice_from_settings(Settings(repository=repository, hardware="cpu"), 1)
    assert (on_cpu.core_instances, on_cpu.core_batch, on_cpu.core_delay_us) == (1, 1, 0)
    on_gpu = tune.choice_from_settings(Settings(repository=repository, hardware="h100"), 3)
    assert (on_gpu.versions, on_gpu.core_instances, on_gpu.core_batch, on_gpu.core_delay_us) == (3, 2, 8, 1500)


def test_the_search_on_a_gpu_includes_precisions_and_delays():
    allowed = tune.list_values(START, [1, 2, 3], 16, on_gpu=True)
    assert allowed["versions"] == [1, 2, 3]
    assert len(allowed["core_delay_us"]) > 2
    assert allowed["preprocess_instances"] == [1, 2]
    assert tune.list_values(START, [1], 6, on_gpu=False)["core_instances"] == [1, 2, 4]


def test_only_versions_of_one_network_are_compared(repository):
    engines = tune.read_engines(repository, on_gpu=False)
    assert {version: document["precision"] for version, document in engines.items()} == {1: "fp32"}
    with pytest.raises(SystemExit, match="make engine PRECISION=fp16 TARGET=tensorrt"):
        tune.read_engines(repository, on_gpu=True)


def test_tune_uses_the_hardware_of_the_server(gpu_host, monkeypatch, tmp_path):
    """The wheel uses the CPU also on a GPU host; RESTORMER_TRITON selects NVIDIA's installation."""
    options = Namespace(slo_p99_ms=1000.0, rate=0.0, repository=tmp_path)
    with pytest.raises(SystemExit, match="TARGET=cpu"):
        tune.run_search(options, [], "")
    monkeypatch.setenv("RESTORMER_TRITON", "/opt/tritonserver")
    with pytest.raises(SystemExit, match="TARGET=tensorrt"):
        tune.run_search(options, [], "")


def test_the_server_accepts_the_written_settings(tmp_path, repository):
    """Run its preflight with the settings in the environment, as `make serve` does."""
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
def test_the_served_config_has_the_tuned_settings(repository, hardware):
    settings = Settings(repository=repository, hardware=hardware, core_instances=3, core_batch=4, core_delay_us=700)
    config = assemble.served_config(settings, repository / "restormer")
    defaults = replace(settings, core_instances=0, core_batch=0, core_delay_us=None)
    assert [group.count for group in config.instance_group] == [3]
    assert list(config.dynamic_batching.preferred_batch_size) == [4]
    assert config.dynamic_batching.max_queue_delay_microseconds == 700
    assert assemble.served_config(defaults, repository / "restormer") != config


def test_requests_in_flight_double_until_the_objective_is_missed():
    """The result is the best load within the objective, or the one with the lowest latency if none is."""
    p99 = {1: 400, 2: 500, 4: 900, 8: 1200}
    calls = []

    def load(in_flight):
        calls.append(in_flight)
        return replace(make_result(rate=min(in_flight, 3), p99_ms=p99[in_flight]), at_a_time=in_flight)

    assert tune.find_concurrency(load, 1000).at_a_time == 4
    assert calls == [1, 2, 4, 8]
    assert tune.find_concurrency(load, 100).at_a_time == 1
    assert (
        tune.find_concurrency(lambda number: replace(make_result(rate=1, p99_ms=10), at_a_time=number), 1000).at_a_time
        == 1
    )


def test_a_failed_start_keeps_its_message_and_misses(tmp_path):
    options = Namespace(repository=tmp_path, slo_p99_ms=1000, rate=0, seconds=1)
    failed = tune.measure_choice(options, START, [b""], 0)
    assert not failed.meets(1e9)
    assert failed.message.startswith("error: ")


def test_a_load_lasts_until_enough_photographs_have_arrived():
    assert tune.choose_seconds(0) == tune.MIN_SECONDS
    assert tune.choose_seconds(0.3) == pytest.approx(100)
