"""The autoscaler's queries, as they stand in the manifest, run by promtool on what they have to tell apart."""

import re
import subprocess
from urllib.request import urlopen

import pytest
import yaml

from tests.kubernetes.test_manifests import OVERLAYS, one
from tests.watching.test_watching import config, needs_promtool, reachable

#: NVIDIA's own rule (deploy/k8s-onprem/values.yaml, as server#8979 quotes it): the mean, over models, of the wait.
NVIDIA = (
    "avg(delta(nv_inference_queue_duration_us[30s]) / (1 + delta(nv_inference_request_success[30s]))) by (pod) / 1e6"
)
STEPS = ("preprocess", "restormer", "postprocess")


def trigger(overlay, name):
    (found,) = (t for t in one(overlay, "ScaledObject")["spec"]["triggers"] if t["name"] == name)
    return found


def query(name):
    assert trigger("cpu", name)["metadata"]["query"] == trigger("gpu", name)["metadata"]["query"]
    return trigger("cpu", name)["metadata"]["query"]


def series(name, pod, model, values):
    labels = f'namespace="restormer",pod="{pod}",model="{model}",version="1"'
    return {"series": f"{name}{{{labels}}}", "values": values}


def server(pod, *, photographs, waited, worked, pending=0):
    """A server's counters, scraped every 5 s for ten minutes: photographs a scrape, and seconds of each at the network.

    The steps around it wait and work a hundredth of that. `enhance_tiled` and a second model are loaded, and idle.
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
            rows.append(series(name, pod, model, f"0+{each:g}x120"))
        waiting = pending if model == "restormer" else 0
        rows.append(series("nv_inference_pending_request_count", pod, model, f"{waiting}x120"))
    return rows


def asked(tmp_path, expression, rows, minutes="8m"):
    """What Prometheus answers at that time: promtool tells it by refusing an answer that is none."""
    asked_for = {"expr": expression, "eval_time": minutes, "exp_samples": [{"value": 987654321}]}
    test = {"interval": "5s", "input_series": rows, "promql_expr_test": [asked_for]}
    path = tmp_path / "test.yml"
    path.write_text(yaml.safe_dump({"rule_files": [], "evaluation_interval": "15s", "tests": [test]}))
    done = subprocess.run(["promtool", "test", "rules", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    got = re.search(r"^ +got: (.*)$", done.stdout + done.stderr, re.MULTILINE)[1]
    return [] if got == "nil" else [float(value) for value in re.findall(r"\} ([^\s,]+)(?:,|$)", got)]


@needs_promtool
def test_an_idle_model_hides_the_wait_from_nvidias_query_and_not_from_ours(tmp_path):
    """Each photograph waits 4 s for 2 s of work, at the one model of five that is worth waiting at."""
    rows = server("a", photographs=2, waited=4.0, worked=2.0)
    (theirs,) = asked(tmp_path, NVIDIA, rows)
    assert theirs < 4.0 / 4, "the mean over five models, three of which hardly wait and two of which do not work"
    assert asked(tmp_path, query("queue-to-compute"), rows) == [pytest.approx(2.0)]
    # Without the idle ones NVIDIA's query says three times as much of the same server; ours says the same.
    busy = [row for row in rows if 'model="restormer"' in row["series"]]
    assert asked(tmp_path, NVIDIA, busy)[0] > 3 * theirs
    assert asked(tmp_path, query("queue-to-compute"), busy) == [pytest.approx(2.0)]


@needs_promtool
def test_a_server_without_traffic_does_not_change_the_ratio(tmp_path):
    """A new server, whose counters stand still, beside one that drowns: sums are of both, means would be halved."""
    rows = [*server("a", photographs=2, waited=4.0, worked=2.0), *server("b", photographs=0, waited=0, worked=0)]
    assert asked(tmp_path, query("queue-to-compute"), rows) == [pytest.approx(2.0)]


@needs_promtool
def test_nothing_to_do_is_nought_and_no_servers_are_no_answer(tmp_path):
    idle = server("a", photographs=0, waited=0, worked=0)
    assert asked(tmp_path, query("queue-to-compute"), idle) == [0.0]
    assert asked(tmp_path, query("waiting"), idle) == [0.0]
    other = [{**row, "series": row["series"].replace('"restormer",pod', '"elsewhere",pod')} for row in idle]
    for name in ("queue-to-compute", "waiting"):
        assert asked(tmp_path, query(name), other) == []
        for overlay in OVERLAYS:
            assert trigger(overlay, name)["metadata"]["ignoreNullValues"] == "false"


@needs_promtool
def test_a_standstill_shows_in_what_is_waiting_only(tmp_path):
    """Counters move when photographs are done; here none is."""
    rows = [
        *server("a", photographs=0, waited=0, worked=0, pending=12),
        *server("b", photographs=0, waited=0, worked=0, pending=9),
    ]
    assert asked(tmp_path, query("queue-to-compute"), rows) == [0.0]
    assert asked(tmp_path, query("waiting"), rows) == [21.0]


def test_the_thresholds_are_those_of_the_queues():
    """Two full batches of a GPU; half of what one level of a CPU's queue holds."""
    batch = int(re.search(r"^max_batch_size: (\d+)", config("restormer"), re.MULTILINE)[1])
    assert int(trigger("gpu", "waiting")["metadata"]["threshold"]) == 2 * batch
    cpu = reachable(config("preprocess", "configs/cpu.pbtxt"))  # the queue in which they wait
    assert int(trigger("cpu", "waiting")["metadata"]["threshold"]) == cpu // 2
    for overlay in OVERLAYS:
        assert trigger(overlay, "waiting")["metricType"] == "AverageValue"
        assert trigger(overlay, "queue-to-compute")["metricType"] == "Value"
        # Never on a GPU's utilisation: nobody asks for it.
        assert "utilization" not in yaml.safe_dump(one(overlay, "ScaledObject"))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_each_step_down_is_seen_before_the_next(overlay):
    down = one(overlay, "ScaledObject")["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]
    (policy,) = down["policies"]
    assert policy["type"] == "Pods"
    window = int(re.search(r"\[(\d+)m\]", query("queue-to-compute"))[1]) * 60
    assert policy["periodSeconds"] > window
    assert down["stabilizationWindowSeconds"] > window


def test_the_queries_ask_for_the_namespace_and_for_metrics_that_exist(triton):
    with urlopen(f"http://127.0.0.1:{triton.metrics_port}/metrics", timeout=10) as answer:
        live = answer.read().decode()
    for overlay in OVERLAYS:
        namespace = one(overlay, "Deployment")["metadata"]["namespace"]
        for name in ("queue-to-compute", "waiting"):
            text = query(name)
            asked_for = re.findall(r'(nv_\w+)\{namespace="(\w+)",model=~"([^"]*)"\}', text)
            assert len(asked_for) == text.count("nv_")
            for metric, space, models in asked_for:
                assert space == namespace
                for model in models.split("|"):
                    assert f'{metric}{{model="{model}"' in live, (metric, model)
