"""Compare the names, labels and thresholds of rules and dashboard with a running server and with the configs."""

import json
import os
import re
import shutil
import subprocess
import time
from urllib.request import urlopen

import pytest
import yaml

from server.settings import Settings
from tests.conftest import ROOT, free_port
from tests.watching.draw import DASHBOARD, draw

RULES = ROOT / "docker/prometheus/rules.yml"
PROMETHEUS = ROOT / "docker/prometheus/prometheus.yml"
#: Metrics that this CPU server does not have: those of a GPU, and those of the response cache, which is off.
#: From Triton's documentation (docs/user_guide/metrics.md).
ELSEWHERE = {
    "nv_gpu_utilization", "nv_gpu_memory_used_bytes", "nv_gpu_memory_total_bytes", "nv_gpu_power_usage",
    "nv_cache_num_hits_per_model", "nv_cache_num_misses_per_model",
}  # fmt: skip
#: Panels that are empty for a healthy server on a CPU host without the cache.
EMPTY = {"Alerts", "Response cache", "GPU utilization", "GPU memory", "GPU power"}


def needs(command):
    """Skip without the command, unless CI is set: then the test fails."""
    missing = shutil.which(command) is None and not os.environ.get("CI")
    return pytest.mark.skipif(missing, reason=f"{command} is not on PATH (Debian, Ubuntu: apt-get install prometheus)")


needs_promtool = needs("promtool")


def rules():
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def panels():
    return json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]


def expressions():
    """Return all queries of rules and panels."""
    return [rule["expr"] for rule in rules()] + [target["expr"] for panel in panels() for target in panel["targets"]]


def names(text):
    return set(re.findall(r"\b(?:nv_|restormer[_:])[a-z0-9_:]+", text))


@pytest.fixture(scope="module")
def live(triton):
    """Return the text of /metrics of a running server."""
    with urlopen(f"http://127.0.0.1:{triton.metrics_port}/metrics", timeout=10) as answer:
        return answer.read().decode()


def test_every_queried_metric_exists(live):
    existing = set(re.findall(r"^([a-z_:0-9]+)[{ ]", live, re.MULTILINE))
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    queried = set().union(*map(names, expressions()))
    assert queried - existing - recorded - ELSEWHERE == set()
    assert queried >= ELSEWHERE, "an exception for a metric that no query uses"
    assert not ELSEWHERE & existing, "an exception for a metric that exists"
    assert recorded <= queried, "a recording rule that no query uses"


def test_every_queried_label_exists(live):
    queried = [
        pair for text in expressions() for pair in re.findall(r'(model|reason|quantile|outcome)=~?"([^"]*)"', text)
    ]
    assert queried
    existing = {(label, value) for label, value in re.findall(r'(model|reason|quantile|outcome)="([^"]*)"', live)}
    assert {(label, one) for label, values in queried for one in values.split("|")} - existing == set()


def test_a_missing_command_fails_in_ci(monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    assert needs("no-such-command").args == (True,)
    monkeypatch.setenv("CI", "1")
    assert needs("no-such-command").args == (False,)
    assert "export CI=1" in (ROOT / ".ci/run").read_text(encoding="utf-8")


@needs_promtool
def test_promtool_accepts_rules_and_configuration(tmp_path):
    subprocess.run(["promtool", "check", "rules", str(RULES)], check=True)
    local = tmp_path / "prometheus.yml"
    local.write_text(PROMETHEUS.read_text().replace("/etc/prometheus/", f"{RULES.parent}/"))
    subprocess.run(["promtool", "check", "config", str(local)], check=True)


@needs_promtool
def test_the_alerts_fire_as_intended():
    done = subprocess.run(
        ["promtool", "test", "rules", "tests/watching/rules_test.yml"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_every_query_of_the_dashboard_is_promql(tmp_path):
    queries = [{"record": f"panel:{i}", "expr": text} for i, text in enumerate(expressions())]
    (tmp_path / "queries.yml").write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": queries}]}))
    subprocess.run(["promtool", "check", "rules", str(tmp_path / "queries.yml")], check=True)


def test_every_alert_is_tested_documented_and_says_what_to_do():
    alerts = {rule["alert"]: rule for rule in rules() if "alert" in rule}
    tested = set(re.findall(r"alertname: (\w+)", (ROOT / "tests/watching/rules_test.yml").read_text()))
    assert tested == set(alerts)
    manual = (ROOT / "docs/watching.md").read_text(encoding="utf-8")
    for name, rule in alerts.items():
        assert set(rule["annotations"]) == {"summary", "do"}, name
        named = re.findall(r"RESTORMER_([A-Z_]+)|(?<!docker inspect )--([a-z-]+)", rule["annotations"]["do"])
        assert {variable.lower() or flag.replace("-", "_") for variable, flag in named} <= set(vars(Settings())), name
        assert f"`{name}`" in manual


def config(model, name="config.pbtxt"):
    return (ROOT / "model_repository" / model / name).read_text(encoding="utf-8")


def reachable(text):
    """Return how many requests of one level can wait at a model: its shorter queue, or the limit of ``enhance``."""
    sizes = [int(n) for n in re.findall(r"^ +max_queue_size: (\d+)", text, re.MULTILINE)]
    assert len(sizes) == 2
    return min(*sizes, int(re.search(r"max_inflight_requests: (\d+)", config("enhance"))[1]))


def time_limit(text):
    """Return the seconds that an interactive request may wait at a model."""
    return int(re.search(r"default_timeout_microseconds: (\d+)", text)[1]) / 1e6


def thresholds(alert, model):
    """Return the thresholds of an alert for a model, by whether they apply to one kind of host only."""
    expression = next(rule["expr"] for rule in rules() if rule.get("alert") == alert)
    lines = [line for line in expression.splitlines() if re.search(rf'"[^"]*\b{model}\b', line)]
    numbers = {"on()" in line: int(re.search(r"> (\d+)", line)[1]) for line in lines}
    assert len(numbers) == len(lines)
    return numbers


def test_the_thresholds_match_the_configs():
    for model in ("preprocess", "postprocess", "enhance_tiled"):
        assert thresholds("Backlog", model) == {False: int(reachable(config(model)) * 0.8)}
    for model in ("postprocess", "enhance_tiled"):
        assert thresholds("QueueOverBudget", model) == {False: time_limit(config(model))}
    for model in ("preprocess", "restormer"):
        gpu, cpu = config(model), config(model, "configs/cpu.pbtxt")
        assert thresholds("QueueOverBudget", model) == {True: time_limit(gpu), False: time_limit(cpu)}
    gpu, cpu = config("restormer"), config("restormer", "configs/cpu.pbtxt")
    assert thresholds("Backlog", "restormer") == {False: int(reachable(gpu) * 0.8), True: int(reachable(cpu) * 0.8)}


def test_one_level_alone_can_cause_the_backlog_alert():
    for model, name in (("preprocess", "config.pbtxt"), ("postprocess", "config.pbtxt"), ("restormer", "config.pbtxt"),
                        ("restormer", "configs/cpu.pbtxt"), ("enhance_tiled", "configs/cpu.pbtxt")):  # fmt: skip
        assert thresholds("Backlog", model)[name == "configs/cpu.pbtxt" and model == "restormer"] < reachable(
            config(model, name)
        )


def test_the_dashboard_is_consistent():
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
def test_every_panel_shows_data_of_a_real_prometheus(triton, tmp_path, client_command):
    """With the project's configuration, except for address and intervals; send valid and invalid photographs."""
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
            command = [*client_command, "enhance", str(photograph), str(tmp_path / "out.jpg"), "--url", triton.url]
            assert subprocess.run(command, capture_output=True, check=False).returncode == code
            time.sleep(1)
        shown = draw(f"http://127.0.0.1:{port}", tmp_path / "dashboard.png", minutes=0.5)
    finally:
        prometheus.terminate()
        prometheus.wait(timeout=30)
    assert {title for title, count in shown.items() if not count} <= EMPTY
    assert (tmp_path / "dashboard.png").stat().st_size > 50_000
