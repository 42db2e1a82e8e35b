"""Building and publishing: a failed build changes nothing, an unchanged one does nothing."""

import contextlib
import dataclasses
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from copy import deepcopy
from pathlib import Path

import numpy as np
import openvino
import pytest
import torch
from PIL import Image

import hosts
from export import machine
from export import onnx_runtime as ort
from export.__main__ import main
from export.build import build
from export.context import BuildContext
from export.errors import ExportError, GateError
from export.fidelity import Fidelity, NotRun, Reference, require_fidelity, torch_runner
from export.fingerprint import fingerprint
from export.metrics import Distance
from export.precision import PRECISIONS
from export.publish import lock_models, provenance, remove_version, replace_version
from export.request import Options, Request, make_command
from export.targets import TARGETS
from export.targets.cpu import why_not
from tests.conftest import ROOT, SERVER_PYTHON, bare_repository
from tests.export.conftest import save_package


def files(folder):
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder): path.read_bytes() for path in paths}


@pytest.fixture
def copy(repository, tmp_path):
    shutil.copytree(repository, tmp_path / "copy")
    return tmp_path / "copy"


def request_for(folder, **options):
    engines = folder.parent / "engines"
    return Request(
        **{"package": ROOT / "demo/package", "repository": folder, "engines": engines, "target": "cpu", **options}
    )


def test_the_json_beside_an_engine_records_its_origin(repository):
    document = provenance(repository / "restormer/1/model.onnx")
    assert document["precision"] == "fp32"
    assert document["target"] == "cpu"
    stages = {stage["rung"]: stage for stage in document["fidelity"]["ladder"]}
    assert list(stages) == ["torch float32, rewritten", "ONNX Runtime", "engine, OpenVINO", "served by Triton"]
    assert document["fidelity"]["decided_by"] in ("engine, OpenVINO", "served by Triton")
    assert stages["engine, OpenVINO"]["psnr"] >= document["fidelity"]["gate_psnr"] == 90
    assert 0.9 < stages["engine, OpenVINO"]["truth"]["ssim"] < 1
    assert document["runtime"]["work_executed_in"] == {"FLOAT": 1.0}
    assert document["profile"] == {"compiled": [1, 3, 512, 512]}
    assert document["files"] == ["model.onnx", "model.onnx.json", "model.py"]
    assert document["peak_memory_mib"] > 100


def test_an_unchanged_build_writes_nothing(repository, capsys):
    before = {path: path.stat().st_mtime_ns for path in repository.rglob("*")}
    build(request_for(repository, server_python=SERVER_PYTHON))
    assert "up to date" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in repository.rglob("*")} == before


def test_a_modified_engine_is_not_up_to_date(copy):
    with (copy / "restormer/1/model.onnx").open("ab") as file:
        file.write(b"!")
    assert provenance(copy / "restormer/1/model.onnx") == {}


def test_an_engine_below_the_gate_is_not_published(copy, tiny):
    """A real build against a gate that float32 cannot reach: the published engine stays, a picture shows the error."""
    before = files(copy)
    with pytest.raises(
        GateError, match=r"below the gate of fp32, 199 dB: nothing was published; .*cpu-fp32\.png shows"
    ):
        build(request_for(copy, **tiny, gate=199.0))
    assert files(copy) == before
    with Image.open(copy.parent / "engines/failed/cpu-fp32.png") as picture:
        assert picture.size == (4 * 512, 512)
    assert json.loads((copy.parent / "engines/failed/cpu-fp32.json").read_text(encoding="utf-8"))["psnr"] < 199


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--precision", "fp8"], "--precision fp8 is unknown: choose one of fp32, tf32, bf16, fp16, int8, auto"),
        (["--target", "gpu"], "--target gpu is unknown: choose one of auto, cpu, rtx, tensorrt"),
        (["--precision", "auto", "--target", "gpu"], "--target gpu is unknown: choose one of auto, cpu, rtx, tensorrt"),
        (
            ["--precision", "tf32", "--target", "cpu"],
            "tf32 is a mode of NVIDIA's GPUs: use --target auto",
        ),
        (["--precision", "int8", "--calibrator", "best"], "--calibrator best is unknown"),
        (["--gate", "nan"], "--gate nan must be a finite number of dB"),
        (
            ["--target", "rtx", "--compute-capabilities", "9.0"],
            "TensorRT for RTX does not build for 9.0",
        ),
        (["--precision", "int8", "--calibration", "demo/photos"], "holds 5 photographs, at least 8 are needed"),
        (["--precision", "int8", "--plan", "demo/photos"], "--plan demo/photos is not a file: give the .int8.json"),
        (["--photos", "server"], "server holds 0 photographs"),
        (["--photos", "nowhere"], "nowhere holds 0 photographs"),
        (["--truth", "nowhere"], "--truth nowhere is not a folder"),
        (["--repository", "demo"], "config.pbtxt not found"),
        (["--opt-batch", "16"], "--opt-batch 16 is larger than --max-batch 8"),
    ],
)
def test_invalid_requests_print_one_error_line(flags, message, capsys, tmp_path, tiny):
    given = ["--repository", str(bare_repository(tmp_path / "bare"))] if "--repository" not in flags else []
    folders = ["--package", str(tiny["package"]), "--photos", str(tiny["photos"]), "--engines", str(tmp_path)]
    assert main(["engine", *folders, *flags, *given]) == 1
    output = capsys.readouterr().err
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "reading the package" not in output


@pytest.mark.parametrize("verb", ["engines", "rollback --version 1", "evaluate --package demo/package --pairs a.jsonl"])
def test_a_folder_that_is_not_a_repository_is_named(verb, capsys):
    assert main([*verb.split(), "--repository", "demo"]) == 1
    assert "--repository demo is not a restormer repository" in capsys.readouterr().err


def test_an_empty_path_is_rejected(capsys):
    with pytest.raises(SystemExit):
        main(["inspect", "--package", ""])
    assert capsys.readouterr().err == "error: argument --package: the path is empty\n"


@pytest.mark.parametrize(("name", "type_name"), [("bf16", "bfloat16"), ("fp16", "float16"), ("int8", "INT8")])
def test_a_precision_that_the_cpu_would_emulate_is_rejected(monkeypatch, tiny, tmp_path, name, type_name):
    monkeypatch.setattr(openvino.Core, "get_property", lambda self, device, name: ["FP32", "INT8"])
    monkeypatch.setattr(machine, "cpu_flags", lambda: {"avx2", "fma"})  # OpenVINO lists INT8 on every CPU
    request = request_for(bare_repository(tmp_path / "models"), **tiny, precision=name)
    with pytest.raises(ExportError, match=f"no {type_name} arithmetic .*--precision fp32"):
        build(request)


def test_outputs_that_are_not_finite_fail():
    image = {"a.jpg": np.zeros((1, 3, 16, 16), np.float32)}
    with pytest.raises(GateError, match=r"a\.jpg holds NaN or infinity"):
        Reference(image, image, {}).measure("engine", "float32", lambda x: x + np.float32("nan"))


def context_of(reference, precision, **options):
    """Return the context of a build without its package."""
    context = object.__new__(BuildContext)
    context.precision, context.gate, context.reference = PRECISIONS[precision], PRECISIONS[precision].gate, reference
    context.request = Request(package=Path(), options=Options(**options))
    return context


def test_a_batch_of_different_photographs_is_compared_with_each_alone(tiny_network):
    """The network itself passes; one that mixes the images of a batch does not, although each alone is right."""
    image = np.random.default_rng(0).random((1, 3, 64, 64), np.float32)
    reference, run, seen = Reference({"a": image}, {"a": image}, {}), torch_runner(tiny_network), []
    (stage,) = context_of(reference, "fp32").measure_batch("float32", lambda images: seen.append(images) or run(images))
    assert stage.psnr > 90
    batch = seen[-1]
    assert len({one.tobytes() for one in batch}) == len(batch) == 8
    assert context_of(reference, "fp32", max_batch=1).measure_batch("float32", run) == []
    four = context_of(reference, "fp32", max_batch=4)
    with pytest.raises(GateError, match=r"in a batch of 4, a(, turned \d)? is .* alone"):
        four.measure_batch("float32", lambda images: run(np.roll(images, 1, axis=0)))


@pytest.mark.parametrize("output", [np.float32("nan"), ExportError("out of memory")], ids=["NaN", "error"])
def test_a_failure_of_onnx_runtime_on_a_gpu_does_not_fail_the_build(output, monkeypatch):
    """The runtime is a stub; on a CPU the same failure ends the build."""

    def run(image):
        if isinstance(output, Exception):
            raise output
        return image + output

    image = {"a.jpg": np.zeros((1, 3, 16, 16), np.float32)}
    context = context_of(Reference(image, image, {}), "fp16")
    monkeypatch.setattr(ort, "runner_from_graph", lambda graph, provider, *, tf32: (run, "float16"))
    for provider in (ort.CUDA, ort.TENSORRT):
        stage = context.measure_onnx_runtime(b"", provider)
        assert isinstance(stage, NotRun)
        assert stage.reason
    with pytest.raises(ExportError):
        context.measure_onnx_runtime(b"", ort.CPU)


def test_a_failed_publication_leaves_the_version_and_no_files(copy):
    before = files(copy)

    def interrupted():
        with replace_version(copy / "restormer", 1) as folder:
            (folder / "half").write_text("written")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert files(copy) == before


def test_a_version_set_aside_by_a_crash_is_restored(copy):
    before = files(copy)
    (copy / "restormer/1").rename(copy / "restormer/.1.aside")
    with pytest.raises(RuntimeError), replace_version(copy / "restormer", 1):
        raise RuntimeError
    assert files(copy) == before


def test_a_version_that_cannot_be_replaced_is_restored(copy, monkeypatch):
    before = files(copy)
    rename = Path.rename

    def failing(self, target):
        if self.name.endswith(".staging"):
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(ExportError, match="No space left on device"), replace_version(copy / "restormer", 1) as folder:
        (folder / "new").write_text("engine")
    assert files(copy) == before


def test_ctrl_c_between_the_two_renames_restores_the_version(copy, monkeypatch):
    before = files(copy)
    rename = Path.rename

    def interrupted(self, target):
        rename(self, target)
        if Path(target).name.endswith(".aside"):
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), replace_version(copy / "restormer", 1) as folder:
        (folder / "new").write_text("engine")
    monkeypatch.undo()
    assert files(copy) == before


def test_a_version_in_a_lower_layer_of_an_overlay_is_replaced_and_removed(copy, lower_layer):
    with lower_layer(copy), replace_version(copy / "restormer", 1) as folder:
        (folder / "new").write_text("engine")
    assert files(copy / "restormer/1") == {Path("new"): b"engine"}
    with lower_layer(copy):
        assert remove_version(copy / "restormer", 1)
    assert sorted(path.name for path in (copy / "restormer").iterdir() if path.name[0] in ".1") == [".lock"]


def test_ctrl_c_while_such_a_version_is_removed_restores_it(copy, lower_layer, monkeypatch):
    before, rmtree = files(copy), shutil.rmtree

    def interrupted(path, **options):
        if path.name == "1" and not options:
            (path / "model.onnx").unlink()
            raise KeyboardInterrupt
        rmtree(path, **options)

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with lower_layer(copy), pytest.raises(KeyboardInterrupt), replace_version(copy / "restormer", 1) as folder:
        (folder / "new").write_text("engine")
    assert files(copy) == before


def test_leftovers_of_a_killed_build_are_removed(copy):
    before = files(copy)
    (copy / "restormer/.1.staging").mkdir()
    (copy / "restormer/.1.staging/half").write_text("written")
    with pytest.raises(RuntimeError), replace_version(copy / "restormer", 1):
        raise RuntimeError
    assert files(copy) == before


@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_a_concurrent_build_is_rejected_before_anything_is_measured(copy, tiny, capsys, precision):
    with lock_models([copy / "restormer"]), pytest.raises(ExportError, match="another build"):
        build(request_for(copy, **tiny, precision=precision))
    assert capsys.readouterr().err == ""


def test_an_unwritable_repository_is_reported(copy, monkeypatch):
    def deny(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", deny)  # the tests may run as root, which may write anywhere
    with (
        pytest.raises(ExportError, match="cannot publish into .*: Permission denied"),
        lock_models([copy / "restormer"]),
    ):
        pass


def test_other_photographs_change_the_fingerprint(repository, tmp_path):
    (tmp_path / "photos").mkdir()
    shutil.copy(ROOT / "demo/photos/coffee-table.jpg", tmp_path / "photos")
    first, second = (
        fingerprint(request_for(repository, **options), TARGETS["cpu"])
        for options in ({}, {"photos": tmp_path / "photos"})
    )
    assert {name for name in first if first[name] != second[name]} == {"photographs"}


def test_publishing_replaces_the_whole_version(copy):
    with replace_version(copy / "restormer", 1) as folder:
        (folder / "new").write_text("engine")
    assert files(copy / "restormer/1") == {(copy / "restormer/1/new").relative_to(copy / "restormer/1"): b"engine"}


def test_auto_without_a_gpu_prints_its_choice_and_the_remaining_command(published, tiny, capsys):
    """After `published` nothing is built again, and the command for the GPU host is printed."""
    build(Request(**tiny, **published, precision="tf32", version=2))
    lines = capsys.readouterr().err.splitlines()
    assert (
        lines[0]
        == "--target auto: no GPU here, so rtx (built ahead of time) and not cpu: tf32 is a mode of NVIDIA's GPUs"
    )
    assert "is up to date (tf32, same package, same builder): nothing to do" in lines[1]
    assert lines[-2] == "served here now: no engine: make engine PRECISION=fp32 TARGET=cpu"
    assert lines[-1].startswith("to finish on the GPU host: make engine PACKAGE=")
    assert "PRECISION=tf32 TARGET=tensorrt VERSION=2" in lines[-1]


def test_the_recorded_command_repeats_the_build():
    """All settings that differ from the defaults, quoted: parsed as make passes them on."""
    options = Options(
        max_batch=4, opt_batch=1, compatibility="ampere_plus", compute_capabilities=("8.6",), optimization_level=5,
        timing_iterations=8, tiling="full", aux_streams=0, onnxruntime_tensorrt=True,
    )  # fmt: skip
    pairs = {"pairs": Path("p q.jsonl"), "data": Path("d")}
    request = Request(package=Path("a b"), precision="int8", gate=40.0, calibration=Path("c"), options=options, **pairs)
    command = shlex.split(make_command(request, "tensorrt"))
    done = subprocess.run([*command, "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=True)
    line = done.stdout.replace("\\\n", " ").splitlines()[-1]
    for flag in ('--package "a b"', '--target "tensorrt"', '--gate "40.0"', '--calibration "c"', '--max-batch "4"'):
        assert flag in line
    assert '--compatibility "ampere_plus"' in line
    assert '--pairs "p q.jsonl" --data "d"' in line
    assert '--compute-capabilities "8.6"' in line
    assert '--opt-batch "1"' in line
    words = " ".join(line.split())
    assert '--optimization-level "5" --timing-iterations "8" --tiling "full" --aux-streams "0"' in words
    assert "--onnxruntime-tensorrt" in line


def test_a_release_is_one_setting():
    command = ["make", "engine", "RELEASE=1", "--dry-run"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert '--optimization-level "5" --timing-iterations "8" --tiling "full"' in done.stdout


@pytest.mark.parametrize(("lost", "passes"), [(0.05, True), (0.2, False)])
def test_the_loss_against_ground_truth_is_limited(lost, passes):
    reference = Distance(l1=0.1, psnr=26.0, ssim=0.9)
    ground_truth = dataclasses.replace(reference, psnr=26.0 - lost)
    figures = {"max_error": 0.0, "mean_error": 0.0, "psnr": 99.0, "ssim": 1.0, "worst": "a.jpg"}
    reached = Fidelity(stage="engine", executes="float32", ground_truth=ground_truth, **figures)
    rejection = pytest.raises(
        ExportError, match=r"against ground truth is 0\.20 dB, the maximum of fp32 is 0\.1 dB: nothing"
    )
    with contextlib.nullcontext() if passes else rejection:
        require_fidelity(reached, reference, PRECISIONS["fp32"], 90.0)


def test_auto_with_a_gpu_builds_for_tensorrt(monkeypatch, cuda_device, tiny, published, capsys):
    """As far as a machine without TensorRT gets: the choice, and one error line."""
    pytest.importorskip("tensorrt_rtx")
    if importlib.util.find_spec("tensorrt"):
        pytest.skip("TensorRT is installed here: see docs/gpu-checklist.md")
    monkeypatch.setattr(hosts, "gpus", lambda: [("NVIDIA H100", "9.0")])
    cuda_device("NVIDIA H100", "9.0")
    flags = [x for name, value in {**tiny, **published}.items() for x in (f"--{name}", str(value))]
    assert main(["engine", *flags, "--precision", "fp16"]) == 1
    output = capsys.readouterr().err
    assert "--target auto: tensorrt (NVIDIA H100, compute capability 9.0)" in output
    assert "error: --target tensorrt needs tensorrt, which cannot be loaded" in output.splitlines()[-1]
    assert not list((published["repository"] / "restormer").glob("*/*.plan"))


def test_every_precision_is_published_with_its_figures(published):
    documents = {}
    for path in sorted((published["engines"] / "restormer").glob("*/model.rtx.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        assert provenance(path.with_suffix("")) == document
        documents[document["precision"]] = document
        assert document["fidelity"]["decided_by"] != "engine, TensorRT for RTX"  # it cannot run here
        assert document["runtime"]["layers"] > 0
        assert document["runtime"]["tf32"] == (document["precision"] != "fp32")
        assert re.fullmatch(r"\d+\.\d+\.\d+\.\d+", document["runtime"]["version"])  # with its build number
        assert document["options"]["compute_capabilities"] == ["8.6", "8.9", "12.0"]
    typed = {name: document["work_typed"] for name, document in documents.items()}
    assert typed.pop("int8")["INT8"] > 0.3
    assert typed == {
        "fp32": {"FLOAT": 1.0},
        "tf32": {"FLOAT": 1.0},
        "bf16": {"BFLOAT16": 1.0},
        "fp16": {"FLOAT16": 1.0},
    }
    assert documents["fp16"]["ranges"][0]["peak"] < 65504 / 4
    assert documents["int8"]["int8"]["taken"] > 0
    assert documents["bf16"]["fidelity"]["ladder"][2]["reason"]  # ONNX Runtime has no bfloat16 convolution on a CPU
    assert documents["bf16"]["onnx"]["opset"] == 22


#: Target that can be built here in INT8: a CPU without VNNI is rejected, TensorRT for RTX needs no hardware.
INT8_TARGET = "rtx" if why_not(PRECISIONS["int8"]) else "cpu"


def test_a_plan_can_be_used_again(published, tiny, tmp_path):
    """Nothing is calibrated: an empty folder would be rejected."""
    plan = published["engines"] / "restormer/5/model.rtx.int8.json"
    (tmp_path / "calibration").mkdir()
    for path in sorted(tiny["calibration"].iterdir())[:8]:
        shutil.copy(path, tmp_path / "calibration")
    places = {"repository": published["repository"], "engines": tmp_path / "engines"}
    settings = {**tiny, **places, "precision": "int8", "plan": plan}
    if INT8_TARGET == "rtx":
        with pytest.raises(ExportError, match=r"no INT8 arithmetic \(VNNI\)"):
            build(Request(**settings, target="cpu"))
    [engine] = build(Request(**settings, target=INT8_TARGET))
    document = provenance(engine)
    assert document["int8"] == json.loads(plan.read_text(encoding="utf-8"))
    assert not (tmp_path / "engines/.cache").exists()
    assert INT8_TARGET == "rtx" or document["runtime"]["work_executed_in"]["INT8"] > 0.3
    shutil.rmtree(engine.parent)


def test_the_minimum_share_cannot_be_lowered(published, tiny, tmp_path, capsys):
    """A gate so high that too little runs in INT8: rejected, with the plan and its curve."""
    settings = {**tiny, "repository": published["repository"], "engines": tmp_path}
    (tmp_path / ".cache").mkdir()
    for known in (published["engines"] / ".cache").glob("int8-*.json"):
        shutil.copy(known, tmp_path / ".cache")
    with pytest.raises(ExportError, match=r"only \d+% of the 1x1 convolutions' work .*the minimum is 50%.*nothing was"):
        build(Request(**settings, precision="int8", target=INT8_TARGET, gate=110.0))
    assert "share of the 1x1 work -> dB expected:" in capsys.readouterr().err
    assert not list((published["repository"] / "restormer").glob("[0-9]*"))


def test_the_last_stage_is_the_engine_served_by_triton(tiny, tmp_path, gpu_host, monkeypatch):
    """A real Triton serves the engine before it is published; the same arithmetic gives the same figures.

    On a host with GPUs and settings for them (a stub), this stage is still served on the CPU. A proxy, settings of
    another server and of another Python are not used.
    """
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("RESTORMER_VERSIONS", "2")
    monkeypatch.setenv("RESTORMER_HARDWARE", "h100")
    repository = bare_repository(tmp_path / "models")
    [engine] = build(request_for(repository, **tiny, server_python=SERVER_PYTHON))
    stages = {stage["rung"]: stage for stage in provenance(engine)["fidelity"]["ladder"]}
    own, served = stages["engine, OpenVINO"], stages["served by Triton"]
    assert served["psnr"] == pytest.approx(own["psnr"], abs=1.0)
    assert served["executes"] == own["executes"] == "float32"


def test_an_engine_that_triton_does_not_serve_is_not_published(tiny, tmp_path):
    repository = bare_repository(tmp_path / "models")
    shutil.rmtree(repository / "postprocess")
    with pytest.raises(ExportError, match="Triton does not start"):
        build(request_for(repository, **tiny, server_python=SERVER_PYTHON))
    assert not (repository / "restormer/1").exists()


def test_engines_are_listed(repository, published, capsys):
    assert main(["engines", "--repository", str(repository), "--engines", str(published["engines"])]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 1 + 5
    assert lines[1].split()[0].endswith("restormer/1/model.onnx")
    assert lines[1].endswith("yes")
    assert all(
        "emulated" in line and line.endswith("no: needs compute capability 8.6 or 8.9 or 12.0, no GPU here")
        for line in lines[2:]
    )


def test_an_engine_of_an_older_release_is_listed_as_such(copy, capsys):
    path = copy / "restormer/1/model.onnx.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    document["fidelity"].pop("decided_by")
    path.write_text(json.dumps(document), encoding="utf-8")
    assert main(["engines", "--repository", str(copy), "--engines", str(copy)]) == 0
    assert "built by an older version: build it again" in capsys.readouterr().out


def test_an_empty_list_names_the_next_command(tmp_path, capsys):
    repository = bare_repository(tmp_path / "models")
    assert main(["engines", "--repository", str(repository), "--engines", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "no engine is published: make engine PRECISION=fp32\n"


def test_a_version_is_rolled_back(copy, capsys):
    shutil.copytree(copy / "restormer/1", copy / "restormer/2")
    flags = ["--repository", str(copy), "--engines", str(copy.parent / "none")]
    assert main(["rollback", "--version", "2", *flags]) == 0
    assert "Triton serves version 1 from its next start" in capsys.readouterr().err
    assert not (copy / "restormer/2").exists()
    assert main(["rollback", "--version", "2", *flags]) == 1
    assert "error: version 2 is not published" in capsys.readouterr().err


def test_engines_of_one_checkpoint_share_a_version(tiny, tiny_network, tmp_path, capsys):
    """A plan beside the engine stays when that is built again, and is removed with another network."""
    repository = bare_repository(tmp_path / "models")
    [engine] = build(request_for(repository, **tiny))
    document = provenance(engine)
    folder = engine.parent
    (folder / "model.sm90.plan").write_bytes(b"plan")
    plan = {**document, "engine": "model.sm90.plan", "files": ["model.sm90.plan", "model.sm90.plan.json"]}
    (folder / "model.sm90.plan.json").write_text(json.dumps(plan), encoding="utf-8")
    build(request_for(repository, **tiny, gate=70.0))
    assert (folder / "model.sm90.plan").read_bytes() == b"plan"
    figures = provenance(engine)["fidelity"]
    assert (figures["gate_psnr"], figures["gate_overridden"]) == (70.0, True)
    with torch.no_grad():
        another = deepcopy(tiny_network)
        another.output.weight.mul_(0.5)
    build(request_for(repository, **{**tiny, "package": save_package(tmp_path / "another", another)}))
    assert "model.sm90.plan is removed from version 1: it was made from another checkpoint" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == ["model.onnx", "model.onnx.json", "model.py"]


def test_two_onnxruntimes_in_one_folder_are_rejected(monkeypatch, tmp_path):
    from importlib import metadata

    class Fake:
        def __init__(self, name):
            self.metadata = {"Name": name}

    monkeypatch.setattr(metadata, "distributions", lambda: [Fake("onnxruntime"), Fake("onnxruntime-gpu")])
    with pytest.raises(ExportError, match="both installed and share a folder: pip uninstall both, then install one"):
        build(request_for(tmp_path))


def command_line(repository, tiny, *more):
    return [
        sys.executable, "-m", "export", "engine", "--package", str(tiny["package"]),
        "--photos", str(tiny["photos"]),
        "--repository", str(repository), "--engines", str(repository.parent / "engines"), "--target", "cpu", *more,
    ]  # fmt: skip


def test_a_full_disk_leaves_the_published_engine(copy, tiny):
    """A real limit of 64 kB per file, so the graph cannot be written."""
    before = files(copy)
    limited = "import resource, runpy, sys; sys.argv[0] = 'export';"
    limited += "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536));"
    limited += (
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); runpy.run_module('export', run_name='__main__')"
    )
    command = command_line(copy, tiny)
    done = subprocess.run(
        [sys.executable, "-c", limited, *command[3:]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert re.fullmatch(r"error: cannot publish into .*: File too large", done.stderr.splitlines()[-1])
    assert files(copy) == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_and_sigterm_leave_the_published_engine(copy, tiny, number, code):
    """A real build, interrupted before it publishes."""
    before = files(copy)
    # A shell's background jobs ignore SIGINT, and their children inherit that; a user's build does not.
    interruptible = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    command = command_line(copy, tiny)
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, **interruptible) as build_process:
        while not list((copy / "restormer").glob(".1.staging")) and build_process.poll() is None:
            time.sleep(0.02)
        build_process.send_signal(number)
        output = build_process.communicate(timeout=120)[1]
    assert build_process.returncode == code, output
    assert output.splitlines()[-1] == "interrupted: nothing was published"
    assert files(copy) == before
    assert not list((copy / "restormer").glob(".1.*"))


def test_sigterm_stops_a_private_server(repository, tmp_path):
    """Twice, as make and timeout send it to a whole process group, while a real Triton runs."""
    script = f"""if True:
        from pathlib import Path
        from export.triton import serve_engine
        with serve_engine(Path("{SERVER_PYTHON}"), Path("{repository}"), Path("{repository}/restormer/1")):
            print("running", flush=True)
            __import__("time").sleep(120)
    """
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout.readline() == "running\n"
        [record] = tmp_path.glob("*/server.json")
        pid = json.loads(record.read_text())["pid"]
        for _ in range(2):
            os.killpg(process.pid, signal.SIGTERM)
            time.sleep(0.2)
    assert process.returncode == 143
    assert not Path(f"/proc/{pid}/exe").exists()  # a zombie has none
    assert not list(tmp_path.iterdir())
