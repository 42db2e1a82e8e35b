"""Test the runner of the GPU checklist: commands, readers of figures, and the error without a GPU."""

import json
import os
import re
import subprocess
import sys

import pytest

from operations import verify_gpu
from tests.conftest import ROOT

PAGE = (ROOT / "docs/gpu-checklist.md").read_text(encoding="utf-8").replace("\\|", "|")


@pytest.mark.parametrize("step", verify_gpu.list_steps(), ids=lambda step: step.name)
def test_every_command_is_on_the_page(step):
    """Ignore precision, version and the shell's quotes."""
    shape = re.sub(r"PRECISION=\w+ VERSION=\d", "PRECISION=fp16 VERSION=1", step.command)
    shape = re.sub(r"rollback VERSION=\d", "rollback VERSION=2", shape)
    assert shape.replace("'", "").replace('"', "") in PAGE.replace("'", "").replace('"', "")


def test_without_a_gpu_it_exits_with_one_line(tmp_path):
    """Hide nvidia-smi, because this machine may have one."""
    done = subprocess.run(
        [sys.executable, "-m", "operations.verify_gpu", "--record", str(tmp_path / "gpu.json")],
        cwd=ROOT, env={**os.environ, "PATH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert re.fullmatch(r"error: .*no NVIDIA GPU.*\n", done.stderr)
    assert not (tmp_path / "gpu.json").exists()


def test_published_engines_are_not_replaced(tmp_path, monkeypatch, capsys):
    version = tmp_path / "restormer/1"
    version.mkdir(parents=True)
    monkeypatch.setattr(verify_gpu, "ENGINES", version.parent)
    monkeypatch.setattr(verify_gpu, "list_gpus", lambda: ["a GPU"])
    monkeypatch.setattr(verify_gpu.os, "geteuid", lambda: 0)
    monkeypatch.setattr(verify_gpu, "run_step", lambda step: pytest.fail(f"{step.name} ran"))
    monkeypatch.setattr(sys, "argv", ["verify_gpu"])
    with pytest.raises(SystemExit, match="version 1"):
        verify_gpu.main()
    assert version.is_dir()


def test_a_failed_step_is_recorded_with_its_output(tmp_path):
    row = verify_gpu.run_step(verify_gpu.Step("fails", "echo because >&2; exit 3"))
    assert (row["passed"], row["output"]) == (False, "because\n")
    row = verify_gpu.run_step(verify_gpu.Step("figures", "echo 26.11", str.strip))
    assert (row["passed"], row["figures"]) == (True, "26.11")
    assert not verify_gpu.run_step(verify_gpu.Step("unreadable", "echo x", lambda text: int(text)))["passed"]


def test_the_mean_batch_is_calculated_from_the_metrics():
    text = """# TYPE nv_inference_count counter
nv_inference_count{model="restormer",version="1"} 60
nv_inference_count{model="enhance",version="1"} 60
nv_inference_exec_count{model="restormer",version="1"} 15
"""
    assert verify_gpu.read_mean_batch(text) == {"inferences": 60, "executions": 15, "mean": 4.0}


def test_all_versions_but_fp16_are_removed():
    commands = [step.command for step in verify_gpu.list_steps()]
    built = [re.search(r"PRECISION=(\w+) VERSION=(\d)", text).groups() for text in commands if "make engine" in text]
    removed = {re.search(r"VERSION=(\d)", text)[1] for text in commands if "rollback" in text}
    assert [precision for precision, version in built if version not in removed] == ["fp16"]


def test_an_interrupt_stops_the_containers(monkeypatch, tmp_path):
    def interrupt(output):
        raise KeyboardInterrupt

    steps = [verify_gpu.Step("up", "true", interrupt), verify_gpu.Step("load", "true"), verify_gpu.Step("down", "true")]
    monkeypatch.setattr(verify_gpu, "list_steps", lambda: steps)
    monkeypatch.setattr(verify_gpu, "list_gpus", lambda: ["NVIDIA H100"])
    monkeypatch.setattr(verify_gpu, "ENGINES", tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(sys, "argv", ["verify_gpu", "--record", str(tmp_path / "gpu.json")])
    with pytest.raises(KeyboardInterrupt):
        verify_gpu.main()
    assert list(json.loads((tmp_path / "gpu.json").read_text())["steps"]) == ["down"]


#: Stands in for every program of the checklist: prints what the figures are read from.
STUB = """#!/bin/sh
case "$*" in
*served_fidelity*) echo '{"photographs": [{"alone": 61.5}]}' ;;
*perf.py*) printf 'Concurrency,Inferences/Second\\n1,40\\n' > out/perf.csv ;;
*urlopen*) printf 'nv_gpu_utilization{gpu_uuid="a"} 0.5\\nnv_inference_count{model="restormer"} 6\\n' ;;
*dpkg-query*) echo 'libnvinfer11 11.4.0.106' ;;
esac
"""


def test_a_dry_run_goes_through_all_steps(gpu_host, monkeypatch, tmp_path, capsys):
    """With stubs of Docker, Python, the client and nvidia-smi: every step runs, and all figures are read."""
    programs = tmp_path / ".envs/build/bin"
    for folder in (programs, tmp_path / "docker/secrets"):
        folder.mkdir(parents=True)
    for name in ("docker", "python", "restormer-client", "openssl", "install"):
        (programs / name).write_text(STUB)
        (programs / name).chmod(0o755)
    monkeypatch.setattr(verify_gpu, "ROOT", tmp_path)
    monkeypatch.setattr(verify_gpu, "ENGINES", tmp_path / "models")
    monkeypatch.setattr(verify_gpu, "SWEEP", tmp_path / "out/perf.csv")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(sys, "argv", ["verify_gpu"])
    assert verify_gpu.main() == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["gpus"][0] == "NVIDIA H100 80GB HBM3, 9.0, 580.95.05, 81559 MiB"
    steps = document["steps"]
    assert list(steps) == [step.name for step in verify_gpu.list_steps()]
    assert all(row["passed"] for row in steps.values())
    assert steps["TensorRT of the server"]["figures"] == "libnvinfer11 11.4.0.106"
    assert steps["fidelity, alone and in a batch of eight"]["figures"]["photographs"] == [{"alone": 61.5}]
    assert steps["load"]["figures"] == [{"Concurrency": "1", "Inferences/Second": "40"}]
