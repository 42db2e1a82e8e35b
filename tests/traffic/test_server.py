"""Test the handle of a running server, and a repository with the model `identity`."""

import json

from tests.acceptance import rolling
from traffic.server import Server


def test_processes_and_memory(triton):
    pid = json.loads((triton.state / "server.json").read_text())["pid"]
    server = Server(pid, triton.grpc_port, triton.metrics_port, [], triton.state / "triton.log")
    assert server.engine == triton.repository / "restormer/1/model.onnx"
    assert len(server.list_stubs("restormer")) == 1
    assert len(server.list_stubs("enhance_tiled")) == 2
    assert server.measure_memory() > 100
    assert server.read_metric("nv_inference_count", model="restormer") >= 1


def test_metrics_are_read_without_a_proxy(triton, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    server = Server(0, triton.grpc_port, triton.metrics_port, [], triton.state / "triton.log")
    assert server.read_metric("nv_inference_count", model="restormer") >= 1


def test_identity_replaces_one_model(repository):
    with rolling.quick_repository(repository) as models:
        assert sorted(path.name for path in models.iterdir()) == sorted(
            path.name for path in repository.iterdir() if not path.name.startswith((".", "__"))
        )
        assert 'name: "enhance"' in (models / "enhance/config.pbtxt").read_text()
        assert f"time.sleep({rolling.WORK})" in (models / "enhance/1/model.py").read_text()
