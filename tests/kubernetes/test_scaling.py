"""Evaluate the queries of the autoscaler's manifest with promtool on synthetic series."""

import re
import subprocess
from urllib.request import urlopen

import pytest
import yaml

from tests.kubernetes.render import FOLDER, OVERLAYS, one
from tests.watching.test_watching import config, needs_promtool, reachable

#: NVIDIA's rule (deploy/k8s-onprem/values.yaml, quoted in server#8979): the mean wait over models.
NVIDIA = (
    "avg(delta(nv_inference_queue_duration_us[30s]) / (1 + delta(nv_inference_request_success[30s]))) by (pod) / 1e6"
)
STEPS = ("preprocess", "restormer", "postprocess")


def read_trigger(overlay, name):
    return next(t for t in one(overlay, "ScaledObject")["spec"]["triggers"] if t["name"] == name)


def read_query(name):
    """Return a query of the component, without rendering it."""
    text = (FOLDER / "components/autoscaling/scaledobject.yaml").read_text(encoding="utf-8")
    return next(t["metadata"]["query"] for t in yaml.safe_load(text)["spec"]["triggers"] if t["name"] == name)


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("name", ["queue-to-compute", "waiting"])
def test_overlays_keep_the_queries(overlay, name):
    assert read_trigger(overlay, name)["metadata"]["query"] == read_query(name)
    assert read_trigger(overlay, name)["metadata"]["ignoreNullValues"] == "false"


def make_series(name, pod, model, values):
    labels = f'namespace="restormer",pod="{pod}",model="{model}",version="1"'
    return {"series": f"{name}{{{labels}}}", "values": values}


def make_counters(pod, *, photographs, waited, worked, pending=0):
    """Return the counters of a server, scraped every 5 s for ten minutes.

    ``photographs`` are per scrape; ``waited`` and ``worked`` are seconds of each at the network. The other steps take a
    hundredth of that; `enhance_tiled` and a second model are loaded and idle.
    """
    rows = []
    for model in (*STEPS, "enhance_tiled", "spare"):
        share = {"restormer": 1.0, "enhance_tiled": 0.0, "spare": 0.0}.get(model, 0.01)
        count = photographs if share else 0
        for name, each in (
            ("nv_inference_queue_duration_us", waited * 1e6 * share * count),
            ("nv_inference_compute_infer_duration_us", worked * 1e6 * share * count),
            ("nv_inference_request_success", count),
        ):
            rows.append(make_series(name, pod, model, f"0+{each:g}x120"))
        waiting = pending if model == "restormer" else 0
        rows.append(make_series("nv_inference_pending_request_count", pod, model, f"{waiting}x120"))
    return rows


def evaluate(tmp_path, expression, rows, minutes="8m"):
    """Return the values of an expression at a time; promtool prints them when it rejects a wrong expectation."""
    wrong = {"expr": expression, "eval_time": minutes, "exp_samples": [{"value": 987654321}]}
    test = {"interval": "5s", "input_series": rows, "promql_expr_test": [wrong]}
    path = tmp_path / "test.yml"
    path.write_text(yaml.safe_dump({"rule_files": [], "evaluation_interval": "15s", "tests": [test]}))
    done = subprocess.run(["promtool", "test", "rules", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    got = re.search(r"^ +got: (.*)$", done.stdout + done.stderr, re.MULTILINE)[1]
    return [] if got == "nil" else [float(value) for value in re.findall(r"\} ([^\s,]+)(?:,|$)", got)]


@needs_promtool
def test_idle_models_distort_nvidias_query_but_not_this_one(tmp_path):
    """Each photograph waits 4 s for 2 s of work at one of five models."""
    rows = make_counters("a", photographs=2, waited=4.0, worked=2.0)
    (mean,) = evaluate(tmp_path, NVIDIA, rows)
    assert mean < 4.0 / 4, "the mean over five models: three hardly wait and two are idle"
    assert evaluate(tmp_path, read_query("queue-to-compute"), rows) == [pytest.approx(2.0)]
    # Without the idle models NVIDIA's query returns three times as much for the same server; this one does not change.
    busy = [row for row in rows if 'model="restormer"' in row["series"]]
    assert evaluate(tmp_path, NVIDIA, busy)[0] > 3 * mean
    assert evaluate(tmp_path, read_query("queue-to-compute"), busy) == [pytest.approx(2.0)]


@needs_promtool
def test_servers_without_traffic_do_not_change_the_ratio(tmp_path):
    """With a new server beside an overloaded one, a mean over servers would be halved."""
    rows = [
        *make_counters("a", photographs=2, waited=4.0, worked=2.0),
        *make_counters("b", photographs=0, waited=0, worked=0),
    ]
    assert evaluate(tmp_path, read_query("queue-to-compute"), rows) == [pytest.approx(2.0)]


@needs_promtool
def test_idle_servers_give_zero_and_missing_servers_give_no_value(tmp_path):
    idle = make_counters("a", photographs=0, waited=0, worked=0)
    assert evaluate(tmp_path, read_query("queue-to-compute"), idle) == [0.0]
    assert evaluate(tmp_path, read_query("waiting"), idle) == [0.0]
    other = [{**row, "series": row["series"].replace('"restormer",pod', '"elsewhere",pod')} for row in idle]
    for name in ("queue-to-compute", "waiting"):
        assert evaluate(tmp_path, read_query(name), other) == []


@needs_promtool
def test_a_stalled_server_shows_only_in_the_pending_requests(tmp_path):
    """Counters grow only when photographs are done."""
    rows = [
        *make_counters("a", photographs=0, waited=0, worked=0, pending=12),
        *make_counters("b", photographs=0, waited=0, worked=0, pending=9),
    ]
    assert evaluate(tmp_path, read_query("queue-to-compute"), rows) == [0.0]
    assert evaluate(tmp_path, read_query("waiting"), rows) == [21.0]


def test_thresholds_match_the_queues():
    """The threshold is two full batches on a GPU and half of one level of the queue on a CPU host."""
    batch = int(re.search(r"^max_batch_size: (\d+)", config("restormer"), re.MULTILINE)[1])
    assert int(read_trigger("gpu", "waiting")["metadata"]["threshold"]) == 2 * batch
    cpu = reachable(config("preprocess", "configs/cpu.pbtxt"))  # the queue in which they wait
    assert int(read_trigger("cpu", "waiting")["metadata"]["threshold"]) == cpu // 2
    for overlay in OVERLAYS:
        assert read_trigger(overlay, "waiting")["metricType"] == "AverageValue"
        assert read_trigger(overlay, "queue-to-compute")["metricType"] == "Value"
        # GPU utilisation is the same with one photograph waiting and with a hundred.
        assert "utilization" not in yaml.safe_dump(one(overlay, "ScaledObject"))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_scaling_down_waits_for_the_effect_of_the_last_step(overlay):
    down = one(overlay, "ScaledObject")["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]
    (policy,) = down["policies"]
    assert policy["type"] == "Pods"
    window = int(re.search(r"\[(\d+)m\]", read_query("queue-to-compute"))[1]) * 60
    assert policy["periodSeconds"] > window
    assert down["stabilizationWindowSeconds"] > window


def test_queries_use_the_namespace_and_existing_metrics(triton):
    with urlopen(f"http://127.0.0.1:{triton.metrics_port}/metrics", timeout=10) as answer:
        live = answer.read().decode()
    for overlay in OVERLAYS:
        namespace = one(overlay, "Deployment")["metadata"]["namespace"]
        for name in ("queue-to-compute", "waiting"):
            text = read_query(name)
            selectors = re.findall(r'(nv_\w+)\{namespace="(\w+)",model=~"([^"]*)"\}', text)
            assert len(selectors) == text.count("nv_")
            for metric, space, models in selectors:
                assert space == namespace
                for model in models.split("|"):
                    assert f'{metric}{{model="{model}"' in live, (metric, model)
