"""The figures of `make benchmark` from counters, and its errors. No load is run here."""

import argparse
import base64
import json
import os
import struct
import subprocess
from collections import Counter

import pytest

from benchmarks.pipeline import analyzer, parts, pipeline, points
from benchmarks.pipeline.parts import CORE
from benchmarks.pipeline.points import ENHANCE, TILED, Moment, Point
from benchmarks.pipeline.sampling import Sampler
from operations.recording import format_make_command
from tests.conftest import ROOT
from traffic.server import SERVER_PYTHON, Server

REPORT = """\
Concurrency,Inferences/Second,Client Send,Server Queue,p50 latency,p90 latency,p95 latency,p99 latency
1,2.77494,35,60,1353930,1562488,1663307,1666157
"""


def moment(time, done, *, cpu=0.0, infer_ms=(20, 900, 60)):
    """Return a server after so many photographs, each through all three parts, in batches of two in the network."""
    counters = Counter({(ENHANCE, "request_success"): done, (ENHANCE, "request_duration_us"): done * 1_100_000})
    for name, ms in zip(parts.NAMES, infer_ms, strict=True):
        counters[name, "request_success"] = done
        counters[name, "compute_infer_duration_us"] = done * ms * 1000
        counters[name, "photograph_ms_sum"] = done * ms
        counters[name, "queue_duration_us"] = done * 10_000
    counters |= {(CORE, "count"): done, (CORE, "exec_count"): done / 2}
    return Moment(time, counters, {"tritonserver": cpu, CORE: 2 * cpu, TILED: 5.0})


def point(*moments, **percentiles):
    return Point(list(moments), {"p50_ms": 1.0, "p90_ms": 2.0, "p99_ms": 3.0, **percentiles}, 0.1)


def test_percentiles_come_from_perf_analyzers_report(tmp_path):
    report = tmp_path / "report.csv"
    assert analyzer.read_percentiles(report) == {}
    report.write_text(REPORT.splitlines()[0])
    assert analyzer.read_percentiles(report) == {}
    report.write_text(REPORT)
    assert analyzer.read_percentiles(report) == {"p50_ms": 1353.93, "p90_ms": 1562.488, "p99_ms": 1666.157}


def test_a_full_queue_is_not_a_failure_of_perf_analyzer():
    with pytest.raises(analyzer.QueueFull):
        analyzer.run_analyzer(["sh", "-c", "echo 'in ensemble, Exceeds maximum queue size' >&2; exit 99"])
    with pytest.raises(SystemExit, match="perf_analyzer failed: connection refused"):
        analyzer.run_analyzer(["sh", "-c", "echo connection refused >&2; exit 1"])
    with pytest.raises(SystemExit, match="it printed nothing"):
        analyzer.run_analyzer(["true"])


def test_the_length_of_a_photograph_comes_before_it(tmp_path):
    path = analyzer.write_input_data([b"abc", b"defgh"], tmp_path / "data.json")
    elements = [base64.b64decode(row["IMAGE"]["b64"]) for row in json.loads(path.read_text())["data"]]
    assert elements == [struct.pack("<I", 3) + b"abc", struct.pack("<I", 5) + b"defgh"]


def test_times_of_parts_on_shared_cores_add_up_and_a_gpu_runs_beside_them():
    alone = {"preprocess": 40.0, CORE: 4.0, "postprocess": 20.0}
    assert pipeline.allowed_rate(alone, on_gpu=False) == pytest.approx(1 / (0.025 + 0.25 + 0.05))
    assert pipeline.allowed_rate(alone, on_gpu=True) == 4.0
    assert pipeline.allowed_rate(alone | {CORE: 100.0}, on_gpu=True) == pytest.approx(1 / (0.025 + 0.05))


def test_figures_are_medians_between_the_first_and_the_last_moment():
    row = points.summarize(
        ENHANCE, [point(moment(10, 5), moment(20, 15), moment(40, 25)), point(moment(0, 0), moment(5, 10))]
    )
    assert (row["least"], row["rate"], row["most"]) == (0.5, 1.0, 2.0)
    assert row["requests"] == 30
    assert (row["queue_ms"], row["infer_ms"], row["input_ms"]) == (30, 980, 0)
    assert row["by_step"][CORE]["infer_ms"] == 900
    assert (row["batch"], row["server_ms"]) == (2, 1100)
    assert row["p99_ms"] == 3.0


def turn(reached, allowed, parts_ms):
    one, many = point(moment(0, 0), moment(10, 10)), point(moment(0, 0, cpu=1), moment(10, 10, cpu=2))
    each = dict.fromkeys(parts.NAMES, 3 * allowed)
    latency = {"preprocess": parts_ms / 4, CORE: parts_ms / 2, "postprocess": parts_ms / 4}
    return {"parts": each, "cpu_ms": latency, "latency_ms": latency, "allowed": allowed, "reached": reached,
            "points": {1: one, 4: many}}  # fmt: skip


def test_the_share_is_the_median_of_the_ratios_of_the_rounds():
    rounds = [turn(0.8, 1.0, 1000), turn(1.9, 2.0, 1050), turn(0.91, 1.0, 1090)]
    found = pipeline.summarize_turns(rounds, 4, 0.90)
    assert (found["least"], found["ratio"], found["most"]) == pytest.approx((0.8, 0.91, 0.95))
    assert found["met"]
    assert (found["reached"], found["allowed"]) == (0.91, 1.0)  # of that round
    assert found["reached"] / found["allowed"] == found["ratio"]
    assert not pipeline.summarize_turns(rounds[:1], 4, 0.90)["met"]
    assert found["cpu_ms"]["served"] == {"tritonserver": 100, CORE: 200}
    assert [row["concurrency"] for row in found["closed"]] == [1, 4]


def test_light_load_adds_the_time_beyond_the_parts():
    found = pipeline.light_load([turn(1, 1, 1000), turn(1, 1, 1050), turn(1, 1, 1090)])
    assert (found["least"], found["added_ms"], found["most"]) == pytest.approx((10, 50, 100))
    assert (found["ensemble_ms"], found["between_ms"]) == pytest.approx((1100, 120))


def test_light_load_on_a_gpu_takes_the_time_of_the_network_from_triton():
    on_gpu = turn(1, 1, 200)
    del on_gpu["latency_ms"][CORE]
    assert pipeline.light_load([on_gpu])["parts_ms"] == pytest.approx(100 + 900)


class FixedRates:
    """A bench with known rates by requests in flight, a hundredth less each time."""

    def __init__(self, rates):
        self.rates, self.asked = rates, []

    def closed(self, model, concurrency, *, windows, expected):
        self.asked.append((model, concurrency))
        if concurrency not in self.rates:
            raise analyzer.QueueFull
        rate = self.rates[concurrency] - 0.01 * len(self.asked)
        moments = [Moment(at, Counter({(model, "request_success"): at * rate}), {}) for at in (0.0, 10.0)]
        return Point(moments, {}, 0.1)


def test_a_gpus_network_is_measured_at_the_highest_rate_that_its_queue_holds():
    bench = FixedRates({1: 50.0, 4: 90.0, 8: 80.0})
    assert pipeline.busiest_concurrency(bench, [1, 4, 8, 64]) == 4
    with pytest.raises(SystemExit, match="error: the queue of restormer is shorter than 16: .*--concurrency"):
        pipeline.busiest_concurrency(bench, [16, 32])


def test_a_gpus_network_takes_turns_with_the_pipeline_like_the_parts(monkeypatch):
    bench, seen = FixedRates({1: 30.0, 4: 90.0}), {}
    monkeypatch.setattr(pipeline, "run_alone", lambda *given: {"preprocess": ([parts.Work(100, 1, 1)],) * 2})
    monkeypatch.setattr(
        pipeline, "summarize_turns", lambda turns, concurrency, goal: seen.update(turns=turns, goal=goal)
    )
    pipeline.compare_with_parts(bench, {"preprocess": None}, 4, 1, 10.0, 4)
    assert bench.asked == [(CORE, 4), (ENHANCE, 1), (ENHANCE, 4), (CORE, 4)]
    (turn,) = seen["turns"]
    assert turn["parts"] == {"preprocess": 100.0, CORE: pytest.approx((89.99 + 89.96) / 2)}
    assert (turn["allowed"], turn["reached"]) == pytest.approx((turn["parts"][CORE], 89.97))
    assert seen["goal"] == 0.95


class ShortQueues:
    """A bench that answers one a second, unless the model's queue is shorter."""

    def __init__(self, **holds):
        self.holds, self.asked = holds, []

    def closed(self, model, concurrency, *, windows, expected):
        self.asked.append((model, concurrency))
        if concurrency > self.holds.get(model, 64):
            raise analyzer.QueueFull
        moments = [moment(0.0, 0), moment(10.0, 10)]
        for each in moments:
            each.counters[model, "request_success"] = 0 if each is moments[0] else 10
        return point(*moments)

    def open(self, model, rate, *, windows):
        return self.closed(model, rate, windows=windows, expected=rate)

    @property
    def server(self):
        return type("Counting", (), {"read_counters": staticmethod(Counter)})


def test_tiles_are_measured_with_few_requests_and_at_a_rate():
    bench = ShortQueues()
    closed, opened = pipeline.sweep(bench, [4, 8], [0.5], [])
    assert [row["concurrency"] for row in closed[TILED]] == [1]
    assert [row["concurrency"] for row in closed[CORE]] == [4, 8]
    assert all([row["asked"] for row in opened[model]] == [0.5] for model in (CORE, ENHANCE, TILED))


def test_a_queue_that_is_shorter_than_every_concurrency_fails_in_one_line():
    with pytest.raises(SystemExit, match="error: the queue of restormer is shorter than 8: .*--concurrency"):
        pipeline.sweep(ShortQueues(restormer=4), [8, 16], [0.5], [])


def test_the_table_shows_a_missed_goal_and_the_cpu_time(capsys):
    found = {**pipeline.summarize_turns([turn(0.5, 1.0, 1000)], 4, 0.90), "generator_cores": 1, "hardware": "cpu"}
    found |= {"small": None, "roofline": None, "open": {model: [] for model in points.STEPS}}
    found["closed"] = dict.fromkeys(points.STEPS, found["closed"])
    pipeline.print_tables(found)
    printed = [[cell.strip() for cell in line.split("|")] for line in capsys.readouterr().out.splitlines()]
    rows = {row[1]: row for row in reversed(printed) if len(row) > 1}
    assert rows["CPU, published network"][-6:-1] == ["0.500", "0.500–0.500", "0.90", "no", "–"]
    assert rows["CPU, published network, served"][-2] == "100"  # of tritonserver


def test_the_load_generator_has_a_core_of_its_own():
    assert pipeline.divide_cores([3, 0, 2]) == ([0, 2], [3])
    assert pipeline.divide_cores(range(16)) == (list(range(14)), [14, 15])
    with pytest.raises(SystemExit, match="needs one of its own"):
        pipeline.divide_cores([0])


def test_a_busy_load_generator_is_a_warning():
    assert pipeline.generator_warning(CORE, 8, 1.7, 4) is None
    assert pipeline.generator_warning(CORE, 8, 1.7, 2).startswith("warning: restormer, 8 in flight")


def test_parts_run_in_the_servers_environment(repository):
    """In processes of their own, over whole cycles of the photographs."""
    photos = ROOT / "demo/photos"
    with parts.run_part(SERVER_PYTHON, "preprocess", repository, photos, [0], 2) as part:
        works = part.work(0.01)
        assert len(works) == 2
        assert all(each.photographs % 5 == 0 and each.seconds > 0.01 for each in works)
        assert len(part.work(0.01, processes=1)) == 1
    assert parts.rate(works) == pytest.approx(sum(each.photographs / each.seconds for each in works))


CORES = len(os.sched_getaffinity(0))
THREADS = """
import sys
from pathlib import Path
from benchmarks.pipeline.parts import load_adapter

parameters = dict(each.split("=") for each in sys.argv[3:])
network = load_adapter(Path(sys.argv[1]), int(sys.argv[2]), **parameters)._network
print(network.get_property("INFERENCE_NUM_THREADS"), network.get_property("ENABLE_CPU_PINNING"))
"""


@pytest.mark.parametrize(
    ("arguments", "threads"), [(["1"], CORES), (["2"], max(1, CORES // 2)), (["1", "threads=1"], 1)]
)
def test_an_instance_uses_its_share_of_the_cores(repository, arguments, threads):
    """As OpenVINO reports it, in the server's environment, through the published adapter.

    Fewer threads than cores are not pinned: OpenVINO would pin those of every instance and container to the same cores.
    """
    command = [str(SERVER_PYTHON), "-c", THREADS, str(repository), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(threads), str(threads == CORES)]


def test_a_recorded_command_has_only_the_settings_that_change_figures():
    parser = argparse.ArgumentParser()
    for name, default in (("--rates", [0.8]), ("--rounds", 3), ("--photos", "demo/photos"), ("--record", None)):
        parser.add_argument(name, default=default)
    options = argparse.Namespace(rates=[0.5, 0.8], rounds=3, photos="my photos", record="a.json")
    assert (
        format_make_command("benchmark", parser, options, "record") == "make benchmark RATES=0.5,0.8 PHOTOS='my photos'"
    )


def test_a_part_that_cannot_run_fails_in_one_line(tmp_path, capfd):
    with (
        pytest.raises(SystemExit, match="restormer does not run in process"),
        parts.run_part(SERVER_PYTHON, CORE, tmp_path, ROOT / "demo/photos", [0], 1),
    ):
        pass
    assert "FileNotFoundError" in capfd.readouterr().err


def test_all_counters_equal_the_single_metrics(triton):
    server = Server(0, triton.grpc_port, triton.metrics_port, [], triton.state / "triton.log")
    counters = server.read_counters()
    for model in (ENHANCE, *parts.NAMES):
        assert counters[model, "request_success"] == server.read_metric("nv_inference_request_success", model=model) > 0
        assert counters[model, "photograph_ms_sum"] == server.read_metric("restormer_photograph_ms_sum", model=model)
    assert counters[parts.PREPROCESS, "photograph_ms_sum"] > 0
    assert counters[CORE, "exec_count"] == server.read_metric("nv_inference_exec_count", model=CORE)
    assert counters[TILED, "request_failure"] == server.read_metric("nv_inference_request_failure", model=TILED)


def test_samples_go_on_until_one_is_complete():
    """The server counts a request after it has answered, which is after the block."""
    counts = iter(range(100))
    with Sampler(lambda: next(counts), 0.001, lambda sample: sample >= 20) as sampler:
        pass
    assert sampler.samples == list(range(len(sampler.samples)))
    assert sampler.samples[-1] == 20
