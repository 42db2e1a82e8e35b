"""What stands in the way of a start is said in one line, with what to do; nothing is left running."""

import json
import shutil
import socket
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

import pytest

from server import preflight, settings
from server.errors import ServerError
from server.settings import Settings
from tests.conftest import ROOT, bare_repository, free_port, server_command


def started(tmp_path, **options):
    command = server_command("start", state=tmp_path / "state", **options)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in done.stderr
    return done.returncode, errors


def test_numpy_2_in_the_servers_environment_is_refused(tmp_path, repository):
    """The build environment has numpy 2: started from there, the server says so."""
    code, errors = started(tmp_path, python=sys.executable, repository=repository)
    assert code == 1
    assert len(errors) == 1
    assert "numpy 2" in errors[0]
    assert "pip install numpy==1.26.4" in errors[0]


def test_a_busy_port_is_named(tmp_path, repository):
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        code, errors = started(tmp_path, repository=repository, grpc_port=port, metrics_port=free_port())
    assert code == 1
    assert f"port {port} on 127.0.0.1" in errors[0]
    assert "GRPC_PORT=" in errors[0]


def test_no_engine(tmp_path):
    code, errors = started(tmp_path, repository=bare_repository(tmp_path / "bare"))
    assert code == 1
    assert "make engine" in errors[0]


def test_a_version_that_only_a_gpu_can_serve(tmp_path):
    (tmp_path / "restormer/2").mkdir(parents=True)
    (tmp_path / "restormer/2/model.sm90.plan").write_bytes(b"plan")
    with pytest.raises(
        ServerError, match=r"version 2 holds model\.sm90\.plan only, .* TARGET=cpu VERSION=2, or make roll"
    ):
        preflight.check_engines(tmp_path)


def test_an_engine_that_is_not_the_one_described(tmp_path, repository):
    copy = tmp_path / "copy"
    shutil.copytree(repository, copy)
    with (copy / "restormer/1/model.onnx").open("ab") as file:
        file.write(b"!")
    code, errors = started(tmp_path, repository=copy)
    assert code == 1
    assert "not the file its JSON describes" in errors[0]


def test_no_triton(tmp_path, repository):
    code, errors = started(tmp_path, repository=repository, wheel=tmp_path / "nowhere")
    assert code == 1
    assert "make setup" in errors[0]


def test_a_model_that_fails_to_load_is_told_from_tritons_log(tmp_path, repository):
    copy = tmp_path / "copy"
    shutil.copytree(repository, copy)
    document = copy / "restormer/1/model.onnx.json"
    engine = json.loads(document.read_text())
    engine["runtime"]["settings"]["NO_SUCH_SETTING"] = "1"
    document.write_text(json.dumps(engine))
    code, errors = started(tmp_path, repository=copy, grpc_port=free_port(), metrics_port=free_port())
    assert code == 1
    assert "restormer" in errors[0]
    assert "NO_SUCH_SETTING" in errors[0]
    assert not (tmp_path / "state/server.json").exists()


@pytest.mark.parametrize("content", ["[]", "{}", "no json", '{"sha256": 1}'])
def test_a_broken_engine_json_is_one_line(tmp_path, repository, content):
    copy = tmp_path / "copy"
    shutil.copytree(repository, copy)
    (copy / "restormer/1/model.onnx.json").write_text(content)
    with pytest.raises(ServerError, match="make engine"):
        preflight.check_engines(copy)


def test_the_highest_version_is_the_one_served(tmp_path, repository):
    copy = tmp_path / "copy"
    shutil.copytree(repository, copy)
    for version in ("2", "10"):
        shutil.copytree(copy / "restormer/1", copy / "restormer" / version)
    assert preflight.check_engines(copy).path == copy / "restormer/10/model.onnx"


def test_two_precisions_of_one_graph_are_two_engines(tmp_path, repository):
    copy = tmp_path / "copy"
    shutil.copytree(repository, copy)
    document = copy / "restormer/1/model.onnx.json"
    document.write_text(json.dumps({**json.loads(document.read_text()), "precision": "bf16"}))
    assert preflight.check_engines(copy).sha256 != preflight.check_engines(repository).sha256


def test_one_port_for_two_purposes_is_refused(tmp_path, repository):
    port = free_port()
    code, errors = started(tmp_path, repository=repository, grpc_port=port, metrics_port=port)
    assert code == 1
    assert "choose two different ports" in errors[0]


@pytest.mark.parametrize("port", ["0", "99999", "many"])
def test_an_impossible_port_is_refused(tmp_path, port):
    command = server_command("start", state=tmp_path / "state", grpc_port=port)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_missing_libpython(monkeypatch):
    monkeypatch.setattr(sysconfig, "get_config_var", lambda name: "libpython3.11.a" if name == "INSTSONAME" else None)
    with pytest.raises(ServerError, match=r"libpython3\.\d+\.so is missing .* apt-get install"):
        settings.libpython_folder()


@pytest.mark.parametrize("version", [(3, 10), (3, 13)])
def test_unsupported_python(monkeypatch, version):
    monkeypatch.setattr(sys, "version_info", (*version, 0))
    with pytest.raises(ServerError, match="use Python 3.11 or 3.12"):
        preflight.check_python()


def test_no_numpy_at_all(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(ServerError, match="no numpy: make setup"):
        preflight.check_numpy()


@pytest.mark.parametrize(("python", "message"), [("no-such-python", "not found"), ("false-python", "cannot run")])
def test_make_says_which_python_it_wants(tmp_path, python, message):
    if python == "false-python":
        # An interpreter that says it is 3.10: the recipe asks it, so it may as well be a script.
        fake = tmp_path / "python3.10"
        fake.write_text(f"#!/bin/sh\nexec {sys.executable} -c 'import sys; sys.version_info = (3, 10)\n'\"$2\"\n")
        fake.chmod(0o755)
        python = str(fake)
    done = subprocess.run(
        ["make", "check-python", f"PYTHON={python}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert message in done.stderr
    assert "3.11" in done.stderr


def test_every_flag_is_loopback_and_locked_down():
    flags = Settings(repository=Path("r")).flags()
    assert "--grpc-address=127.0.0.1" in flags
    assert "--metrics-address=127.0.0.1" in flags
    assert "--allow-http=false" in flags
    assert "--model-control-mode=none" in flags
