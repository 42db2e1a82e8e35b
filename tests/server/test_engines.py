"""Which engines the server accepts, on a CPU host and on simulated GPU hosts."""

import functools
import hashlib
import json
import re
import shutil

import pytest

import hosts
from imaging import FRAME
from server import engines, host
from server.errors import ServerError
from tests.conftest import copy_repository
from tests.server.conftest import publish_plan, rows


def test_a_version_without_an_engine_for_the_cpu_is_rejected(tmp_path):
    (tmp_path / "restormer/2").mkdir(parents=True)
    (tmp_path / "restormer/2/model.sm90.plan").write_bytes(b"plan")
    with pytest.raises(
        ServerError, match=r"version 2 holds only model\.sm90\.plan, .* TARGET=cpu VERSION=2.* rollback --version 2"
    ):
        engines.check_engines(tmp_path)


@pytest.mark.parametrize("content", ["[]", "{}", "no json", '{"sha256": 1}'])
def test_an_invalid_engine_json_is_reported_in_one_line(tmp_path, repository, content):
    copy = copy_repository(repository, tmp_path / "copy")
    (copy / "restormer/1/model.onnx.json").write_text(content)
    with pytest.raises(ServerError, match="make engine"):
        engines.check_engines(copy)


def test_server_imaging_and_engines_name_the_same_frame(repository):
    document = json.loads((repository / "restormer/1/model.onnx.json").read_text())
    assert engines.FRAME == FRAME == document["frame"] == document["origin"]["frame"]


@pytest.mark.parametrize("frame", [{}, {"frame": "letterbox-512"}], ids=["none recorded", "another"])
def test_an_engine_of_another_frame_is_rejected_with_the_command_that_builds_it(tmp_path, repository, frame):
    copy = copy_repository(repository, tmp_path / "copy")
    path = copy / "restormer/1/model.onnx.json"
    document = json.loads(path.read_text())
    del document["frame"]
    path.write_text(json.dumps({**document, **frame}))
    with pytest.raises(ServerError, match=f"{FRAME}.*: {re.escape(document['command'])}$"):
        engines.check_engines(copy)


def test_the_highest_version_is_served(tmp_path, repository):
    copy = copy_repository(repository, tmp_path / "copy")
    for version in ("2", "10"):
        shutil.copytree(copy / "restormer/1", copy / "restormer" / version)
    assert engines.check_engines(copy).path == copy / "restormer/10/model.onnx"


def test_two_precisions_of_one_graph_are_different_engines(tmp_path, repository):
    copy = copy_repository(repository, tmp_path / "copy")
    document = copy / "restormer/1/model.onnx.json"
    document.write_text(json.dumps({**json.loads(document.read_text()), "precision": "bf16"}))
    assert engines.check_engines(copy).sha256 != engines.check_engines(repository).sha256


A100, H100 = ("NVIDIA A100-SXM4-80GB", "8.0"), ("NVIDIA H100 80GB HBM3", "9.0")


@pytest.fixture
def plans(tmp_path):
    """Publish plans for an A100 and an H100. Return the function that publishes."""
    publish = functools.partial(publish_plan, tmp_path)
    publish(1, "8.0")
    publish(1, "9.0")
    return publish


def test_a_fitting_plan_is_used(plans, tmp_path):
    assert engines.check_engines(tmp_path, [H100], tensorrt="11.4.1").path.name == "model.sm90.plan"
    assert engines.check_engines(tmp_path, [A100, H100], tensorrt="").path.name == "model.sm80.plan"


def test_every_gpu_needs_its_plan(plans, tmp_path):
    with pytest.raises(
        ServerError, match=r"no model\.sm89\.plan for NVIDIA L40S .*make engine .*TARGET=tensorrt VERSION=1"
    ):
        engines.check_engines(tmp_path, [H100, ("NVIDIA L40S", "8.9")], tensorrt="")


def test_a_plan_of_another_tensorrt_is_rejected(plans, tmp_path):
    for installed in ("11.3.0", "11.4.1.6"):
        with pytest.raises(
            ServerError, match=rf"by TensorRT 11\.4\.1\.5, which {re.escape(installed)}.* --rm builder "
        ):
            engines.check_engines(tmp_path, [H100], tensorrt=installed)


def test_a_plan_for_another_gpu_is_rejected_unless_it_is_portable(plans, tmp_path):
    plans(2, "9.0", machine={"gpu_compute_capability": "8.0"})
    with pytest.raises(ServerError, match=r"built for compute capability 8\.0, NVIDIA H100 80GB HBM3 has 9\.0"):
        engines.check_engines(tmp_path, [H100], tensorrt="")
    plans(2, "9.0", machine={"gpu_compute_capability": "8.0"}, options={"compatibility": "ampere_plus"})
    assert engines.check_engines(tmp_path, [H100], tensorrt="").path.parent.name == "2"


def test_a_missing_tensorrt_is_reported_as_not_compared(plans, tmp_path, monkeypatch):
    monkeypatch.setattr(hosts, "gpus", lambda: [H100, H100])
    options = {"repository": tmp_path, "hardware": "h100", "triton": tmp_path}
    monkeypatch.setattr(host, "tensorrt_version", lambda: "")
    assert "TensorRT not compared: no libnvinfer in /usr/lib" in rows(**options)["engine"].result
    monkeypatch.setattr(host, "tensorrt_version", lambda: "11.4.1")
    assert rows(**options)["engine"].result.endswith(", TensorRT 11.4.1")


def test_only_served_versions_must_fit_and_others_are_reported(plans, tmp_path, monkeypatch):
    """Version 1 has no plan for the L40S; version 2, which is served, has one."""
    card = ("NVIDIA L40S", "8.9")
    monkeypatch.setattr(hosts, "gpus", lambda: [card])
    monkeypatch.setattr(host, "tensorrt_version", lambda: "11.4.1")
    plans(2, "8.9")
    assert engines.check_engines(tmp_path, [card], tensorrt="11.4.1").path.parent.name == "2"
    row = rows(repository=tmp_path, hardware="gpu", triton=tmp_path)["engine"]
    assert row.problem == ""
    assert "not served, and not usable: version 1 has no model.sm89.plan" in row.result
    assert (
        "version 1 has no"
        in rows(repository=tmp_path, hardware="gpu", triton=tmp_path, versions=(1,))["engine"].problem
    )


def test_an_engine_is_hashed_once(plans, tmp_path, monkeypatch):
    reads = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, name: reads.append(file.name) or digest(file, name))
    for _ in range(3):
        engines.check_engines(tmp_path, [H100] * 8, tensorrt="")
    assert len(reads) == 1


def test_a_changed_plan_is_rejected(plans, tmp_path):
    plans(1, "9.0").write_bytes(b"another")
    with pytest.raises(ServerError, match="not the file its JSON describes"):
        engines.check_engines(tmp_path, [H100], tensorrt="")


def test_a_requested_version_must_be_published(plans, tmp_path):
    with pytest.raises(ServerError, match=r"version 3, 4 is not published .*; published: 1$"):
        engines.check_engines(tmp_path, [H100], (1, 3, 4), tensorrt="")
