"""Prometheus and Grafana watch what is there: names, labels and numbers held to a live server and to the configs."""

import json
import os
import re
import shutil
import subprocess
import time
from urllib.request import urlopen

import pytest
import yaml

from tests.conftest import ROOT, free_port
from tests.watching.draw import DASHBOARD, draw

RULES = ROOT / "docker/prometheus/rules.yml"
PROMETHEUS = ROOT / "docker/prometheus/prometheus.yml"
#: Names that this CPU server has no reason to show: those of a GPU, and those of the response cache, which is off here.
#: From Triton's documentation (docs/user_guide/metrics.md).
ELSEWHERE = {
    "nv_gpu_utilization", "nv_gpu_memory_used_bytes", "nv_gpu_memory_total_bytes", "nv_gpu_power_usage",
    "nv_cache_num_hits_per_model", "nv_cache_num_misses_per_model",
}  # fmt: skip
#: Panels that have nothing to show on a CPU host whose cache is off and whose server is well.
EMPTY = {"Alerts", "Response cache", "GPU utilization", "GPU memory", "GPU power"}


def needs(command):
    """Skips where the command is not, unless CI is set: there it fails."""
    missing = shutil.which(command) is None and not os.environ.get("CI")
    return pytest.mark.skipif(missing, reason=f"{command} is not on PATH (Debian, Ubuntu: apt-get install prometheus)")


needs_promtool = needs("promtool")


def rules():
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def panels():
    return json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]


def expressions():
    """Everything that is asked of Prometheus, rules and panels."""
    return [rule["expr"] for rule in rules()] + [target["expr"] for panel in panels() for target in panel["targets"]]


def names(text):
    return set(re.findall(r"\b(?:nv_|restormer[_:])[a-z0-9_:]+", text))


@pytest.fixture(scope="module")
def live(triton):
    """The text of a live /metrics."""
    with urlopen(f"http://127.0.0.1:{triton.metrics_port}/metrics", timeout=10) as answer:
        return answer.read().decode()


def test_every_metric_that_is_asked_for_exists(live):
    there = set(re.findall(r"^([a-z_:0-9]+)[{ ]", live, re.MULTILINE))
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    asked = set().union(*map(names, expressions()))
    assert asked - there - recorded - ELSEWHERE == set()
    assert asked >= ELSEWHERE, "a name that nobody asks for needs no exception"
    assert not ELSEWHERE & there, "a name that is there needs no exception"
    assert recorded <= asked, "a rule that nobody uses"


def test_every_label_that_is_asked_for_exists(live):
    asked = [
        pair for text in expressions() for pair in re.findall(r'(model|reason|quantile|outcome)=~?"([^"]*)"', text)
    ]
    assert asked
    there = {(label, value) for label, value in re.findall(r'(model|reason|quantile|outcome)="([^"]*)"', live)}
    assert {(label, one) for label, values in asked for one in values.split("|")} - there == set()


def test_what_is_missing_is_no_excuse_in_ci(monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    assert needs("no-such-command").args == (True,)
    monkeypatch.setenv("CI", "1")
    assert needs("no-such-command").args == (False,)
    assert "export CI=1" in (ROOT / ".ci/run").read_text(encoding="utf-8")


@needs_promtool
def test_promtool_takes_rules_and_configuration(tmp_path):
    subprocess.run(["promtool", "check", "rules", str(RULES)], check=True)
    local = tmp_path / "prometheus.yml"
    local.write_text(PROMETHEUS.read_text().replace("/etc/prometheus/", f"{RULES.parent}/"))
    subprocess.run(["promtool", "check", "config", str(local)], check=True)


@needs_promtool
def test_the_alerts_fire_on_what_they_are_for():
    done = subprocess.run(
        ["promtool", "test", "rules", "tests/watching/rules_test.yml"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_every_query_of_the_dashboard_is_promql(tmp_path):
    asked = [{"record": f"panel:{i}", "expr": text} for i, text in enumerate(expressions())]
    (tmp_path / "asked.yml").write_text(yaml.safe_dump({"groups": [{"name": "asked", "rules": asked}]}))
    subprocess.run(["promtool", "check", "rules", str(tmp_path / "asked.yml")], check=True)


def test_every_alert_is_tried_says_what_to_do_and_is_in_the_manual():
    alerts = {rule["alert"]: rule for rule in rules() if "alert" in rule}
    tried = set(re.findall(r"alertname: (\w+)", (ROOT / "tests/watching/rules_test.yml").read_text()))
    assert tried == set(alerts)
    manual = (ROOT / "docs/watching.md").read_text(encoding="utf-8")
    for name, rule in alerts.items():
        assert set(rule["annotations"]) == {"summary", "do"}, name
        assert f"`{name}`" in manual


def config(model, name="config.pbtxt"):
    return (ROOT / "model_repository" / model / name).read_text(encoding="utf-8")


def reachable(text):
    """What one level alone can bring to wait at a model: its shorter queue, or what ``enhance`` lets through."""
    sizes = [int(n) for n in re.findall(r"^ +max_queue_size: (\d+)", text, re.MULTILINE)]
    assert len(sizes) == 2
    return min(*sizes, int(re.search(r"max_inflight_requests: (\d+)", config("enhance"))[1]))


def patience(text):
    """Seconds that an interactive photograph may wait at a model."""
    return int(re.search(r"default_timeout_microseconds: (\d+)", text)[1]) / 1e6


def thresholds(alert, model):
    """The numbers that an alert compares a model with: on processors alone or on GPUs alone, and everywhere."""
    expression = next(rule["expr"] for rule in rules() if rule.get("alert") == alert)
    lines = [line for line in expression.splitlines() if re.search(rf'"[^"]*\b{model}\b', line)]
    found = {"on()" in line: int(re.search(r"> (\d+)", line)[1]) for line in lines}
    assert len(found) == len(lines)
    return found


def test_the_alerts_numbers_are_those_of_the_configs():
    cpu = config("restormer", "configs/cpu.pbtxt")
    for model in ("preprocess", "postprocess", "enhance_tiled"):
        assert thresholds("Backlog", model) == {False: int(reachable(config(model)) * 0.8)}
        assert thresholds("QueueOverBudget", model) == {False: patience(config(model))}
    gpu = config("restormer")
    assert thresholds("Backlog", "restormer") == {False: int(reachable(gpu) * 0.8), True: int(reachable(cpu) * 0.8)}
    assert thresholds("QueueOverBudget", "restormer") == {True: patience(gpu), False: patience(cpu)}


def test_an_alert_on_a_backlog_can_be_reached_by_one_level():
    for model, name in (("preprocess", "config.pbtxt"), ("postprocess", "config.pbtxt"), ("restormer", "config.pbtxt"),
                        ("restormer", "configs/cpu.pbtxt"), ("enhance_tiled", "configs/cpu.pbtxt")):  # fmt: skip
        assert thresholds("Backlog", model)[name == "configs/cpu.pbtxt" and model == "restormer"] < reachable(
            config(model, name)
        )


def test_the_dashboard_is_in_order():
    ids = [panel["id"] for panel in panels()]
    assert len(ids) == len(set(ids))
    cells = [
        (x, y)
        for panel in panels()
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells)), "panels overlap"
    assert max(x for x, _ in cells) < 24
    source = yaml.safe_load((ROOT / "docker/grafana/datasources/prometheus.yml").read_text())["datasources"][0]
    for panel in panels():
        assert panel["datasource"]["uid"] == source["uid"]
        assert panel["targets"], panel["title"]
        assert all(target["datasource"]["uid"] == source["uid"] for target in panel["targets"])


@needs("prometheus")
def test_every_panel_shows_numbers_of_a_real_prometheus(triton, tmp_path, client_command):
    """The project's own configuration, the server's address and the pace aside; photographs, and one that is none."""
    port = free_port()
    text = (
        PROMETHEUS.read_text()
        .replace("/etc/prometheus/", f"{tmp_path}/")
        .replace("server:8002", f"127.0.0.1:{triton.metrics_port}")
    )
    (tmp_path / "prometheus.yml").write_text(re.sub(r"(scrape|evaluation)_interval: \d+s", r"\1_interval: 1s", text))
    (tmp_path / "rules.yml").write_text(RULES.read_text().replace("interval: 15s", "interval: 1s"))
    flags = (
        ("config.file", tmp_path / "prometheus.yml"),
        ("storage.tsdb.path", tmp_path / "data"),
        ("web.listen-address", f"127.0.0.1:{port}"),
    )
    with (tmp_path / "log").open("wb") as log:
        prometheus = subprocess.Popen(["prometheus", *(f"--{k}={v}" for k, v in flags)], stdout=log, stderr=log)
    try:
        bad = tmp_path / "bad.jpg"
        bad.write_bytes((ROOT / "demo/photos/balcony.jpg").read_bytes()[:5000])
        for photograph, code in ((ROOT / "demo/photos/balcony.jpg", 0), (bad, 1)) * 6:
            asked = [*client_command, "enhance", str(photograph), str(tmp_path / "out.jpg"), "--url", triton.url]
            assert subprocess.run(asked, capture_output=True, check=False).returncode == code
            time.sleep(1)
        shown = draw(f"http://127.0.0.1:{port}", tmp_path / "dashboard.png", minutes=0.5)
    finally:
        prometheus.terminate()
        prometheus.wait(timeout=30)
    assert {title for title, count in shown.items() if not count} <= EMPTY
    assert (tmp_path / "dashboard.png").stat().st_size > 50_000
