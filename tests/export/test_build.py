"""Building and publishing: a failed build leaves what was there, an unchanged one does nothing."""

import json
import shutil
from pathlib import Path

import numpy as np
import openvino
import pytest

from export import precision
from export.__main__ import main
from export.build import Request, _origin, build
from export.cpu import require_precision
from export.errors import ExportError
from export.fidelity import fidelity
from export.publish import provenance, staged
from tests.conftest import ROOT, bare_repository


def files(folder):
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder): path.read_bytes() for path in paths}


@pytest.fixture
def copy(repository, tmp_path):
    shutil.copytree(repository, tmp_path / "copy")
    return tmp_path / "copy"


def request_for(folder, **options):
    return Request(package=ROOT / "demo/package", repository=folder, **options)


def test_the_json_beside_the_engine_tells_where_it_came_from(repository):
    document = provenance(repository, 1, "model.onnx")
    assert document["precision"] == "fp32"
    assert document["target"] == "cpu"
    assert document["fidelity"]["ladder"][-1]["psnr"] >= document["fidelity"]["gate_psnr"] == 90
    assert document["runtime"]["convolutions_executed_in"] == {"f32": 1.0}
    assert document["profile"] == {"compiled": [1, 3, 512, 512], "max_batch": 8}


def test_building_again_with_nothing_changed_touches_nothing(repository, capsys):
    before = {path: path.stat().st_mtime_ns for path in repository.rglob("*")}
    build(request_for(repository))
    assert "up to date" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in repository.rglob("*")} == before


def test_an_engine_changed_by_hand_is_not_up_to_date(copy):
    with (copy / "restormer/1/model.onnx").open("ab") as file:
        file.write(b"!")
    assert provenance(copy, 1, "model.onnx") == {}


def test_below_the_gate_nothing_is_published(copy, monkeypatch):
    """The real build against a gate no float32 arithmetic reaches; the published engine survives."""
    document = json.loads((copy / "restormer/1/model.onnx.json").read_text(encoding="utf-8"))
    document["origin"]["package"] = "another"
    monkeypatch.setitem(precision.PRECISIONS, "fp32", precision.Precision("fp32", 199.0))
    (copy / "restormer/1/model.onnx.json").write_text(json.dumps(document), encoding="utf-8")
    before = files(copy)
    with pytest.raises(ExportError, match=r"below the gate of fp32, 199 dB: nothing was published"):
        build(request_for(copy))
    assert files(copy) == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--precision", "fp16"], "PRECISION=fp16 is not built here: choose one of fp32, bf16"),
        (["--target", "tensorrt"], "TARGET=tensorrt is not built here"),
        (["--photographs", "server"], "fidelity is measured on photographs"),
        (["--repository", "demo"], "no model repository of ours"),
    ],
)
def test_wrong_requests_end_in_one_line(flags, message, capsys, tmp_path):
    given = ["--repository", str(bare_repository(tmp_path / "bare"))] if "--repository" not in flags else []
    assert main(["engine", "--package", "demo/package", *flags, *given]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]


def test_bf16_is_refused_where_the_cpu_would_only_pretend(monkeypatch):
    monkeypatch.setattr(openvino.Core, "get_property", lambda self, device, name: ["FP32"])
    with pytest.raises(ExportError, match="no bfloat16 arithmetic .* PRECISION=fp32"):
        require_precision(precision.PRECISIONS["bf16"])


def test_outputs_that_are_not_finite_fail():
    image = {"a.jpg": np.zeros((1, 3, 8, 8), np.float32)}
    with pytest.raises(ExportError, match=r"a\.jpg holds NaN or infinity"):
        fidelity("engine", lambda x: x + np.float32("nan"), image, image)


def test_a_failed_staging_leaves_the_version_and_no_rubbish(copy):
    before = files(copy)

    def interrupted():
        with staged(copy, 1) as folder:
            (folder / "half").write_text("written")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert files(copy) == before


def test_a_version_set_aside_by_a_crash_is_put_back(copy):
    before = files(copy)
    (copy / "restormer/1").rename(copy / "restormer/.1.aside")
    with pytest.raises(RuntimeError), staged(copy, 1):
        raise RuntimeError
    assert files(copy) == before


def test_a_version_that_cannot_be_replaced_is_put_back(copy, monkeypatch):
    before = files(copy)
    rename = Path.rename

    def failing(self, target):
        if self.name.endswith(".staging"):
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(ExportError, match="No space left on device"), staged(copy, 1) as folder:
        (folder / "new").write_text("engine")
    assert files(copy) == before


def test_leftovers_of_a_killed_build_are_swept(copy):
    before = files(copy)
    (copy / "restormer/.1.staging").mkdir()
    (copy / "restormer/.1.staging/half").write_text("written")
    with pytest.raises(RuntimeError), staged(copy, 1):
        raise RuntimeError
    assert files(copy) == before


def test_a_second_build_at_once_is_refused(copy):
    with staged(copy, 1) as folder:
        with pytest.raises(ExportError, match="another build is publishing"), staged(copy, 1):
            pass
        (folder / "new").write_text("engine")
    assert (copy / "restormer/1/new").is_file()


def test_an_unwritable_repository_is_one_line(copy, monkeypatch):
    def refused(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refused)  # the tests may run as root, whom nothing is forbidden
    with pytest.raises(ExportError, match="cannot publish into .*: Permission denied"), staged(copy, 1):
        pass


def test_other_photographs_are_not_up_to_date(repository, tmp_path):
    (tmp_path / "photos").mkdir()
    shutil.copy(ROOT / "demo/photos/coffee-table.jpg", tmp_path / "photos")
    first, second = (_origin(request_for(repository, **o)) for o in ({}, {"photographs": tmp_path / "photos"}))
    assert {name for name in first if first[name] != second[name]} == {"photographs"}


def test_publishing_replaces_the_version_whole(copy):
    with staged(copy, 1) as folder:
        (folder / "new").write_text("engine")
    assert files(copy / "restormer/1") == {(copy / "restormer/1/new").relative_to(copy / "restormer/1"): b"engine"}
