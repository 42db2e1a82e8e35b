"""The checks before a start: each problem is reported in one line with its fix, and no process is left running."""

import datetime
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import trustme

import hosts
from server import host, preflight, process, settings
from server.errors import ServerError
from server.settings import Settings
from tests.conftest import ROOT, SERVER_PYTHON, bare_repository, copy_repository, free_port, server_command
from tests.server.conftest import rows

MODELS = ROOT / "model_repository"


def start(tmp_path, **options):
    command = server_command("start", state=tmp_path / "state", **options)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in done.stderr
    return done.returncode, errors


def test_numpy_2_is_rejected(tmp_path, repository):
    """The build environment has numpy 2."""
    code, errors = start(tmp_path, python=sys.executable, repository=repository)
    assert code == 1
    assert len(errors) == 1
    assert "numpy 2" in errors[0]
    assert "pip install numpy==1.26.4" in errors[0]


def test_a_busy_port_is_reported(tmp_path, repository):
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        code, errors = start(tmp_path, repository=repository, grpc_port=port, metrics_port=free_port())
    assert code == 1
    assert f"port {port} on 127.0.0.1" in errors[0]
    assert "--grpc-port=" in errors[0]


def test_a_repository_without_engines_is_rejected(tmp_path):
    code, errors = start(tmp_path, repository=bare_repository(tmp_path / "bare"))
    assert code == 1
    assert "make engine" in errors[0]


def test_a_folder_that_is_not_a_repository_is_rejected(tmp_path):
    code, errors = start(tmp_path, repository=tmp_path)
    assert code == 1
    assert "not a restormer repository" in errors[0]


def test_a_changed_engine_is_rejected(tmp_path, repository):
    copy = copy_repository(repository, tmp_path / "copy")
    with (copy / "restormer/1/model.onnx").open("ab") as file:
        file.write(b"!")
    code, errors = start(tmp_path, repository=copy)
    assert code == 1
    assert "not the file its JSON describes" in errors[0]


def test_an_environment_without_tritons_schema_is_reported(monkeypatch):
    monkeypatch.setitem(sys.modules, "tritonclient", None)
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)
    monkeypatch.setitem(sys.modules, "tritonclient.grpc.model_config_pb2", None)
    checked = rows(repository=MODELS)
    for row in ("client", "shared memory"):
        assert "tritonclient" in checked[row].problem
        assert "make setup" in checked[row].problem


def test_check_python_needs_no_packages():
    """`make` calls it before the environments exist."""
    command = [SERVER_PYTHON, "-S", "-m", "server", "check-python"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_missing_triton_is_reported(tmp_path, repository):
    code, errors = start(tmp_path, repository=repository, wheel=tmp_path / "nowhere")
    assert code == 1
    assert "make setup" in errors[0]


def test_the_reason_of_a_model_that_fails_to_load_comes_from_tritons_log(tmp_path, repository):
    copy = copy_repository(repository, tmp_path / "copy")
    document = copy / "restormer/1/model.onnx.json"
    engine = json.loads(document.read_text())
    engine["runtime"]["settings"]["NO_SUCH_SETTING"] = "1"
    document.write_text(json.dumps(engine))
    code, errors = start(tmp_path, repository=copy, grpc_port=free_port(), metrics_port=free_port())
    assert code == 1
    assert "restormer" in errors[0]
    assert "NO_SUCH_SETTING" in errors[0]
    assert re.match(r"error: Triton exited with \d+: failed to load 'restormer' version 1", errors[0]), errors[0]
    assert not (tmp_path / "state/server.json").exists()


def test_the_same_port_for_two_listeners_is_rejected(tmp_path, repository):
    port = free_port()
    code, errors = start(tmp_path, repository=repository, grpc_port=port, metrics_port=port)
    assert code == 1
    assert "choose two different ports" in errors[0]


def test_a_missing_libpython_is_reported(monkeypatch):
    monkeypatch.setattr(sysconfig, "get_config_var", lambda name: "libpython3.11.a" if name == "INSTSONAME" else None)
    with pytest.raises(ServerError, match=r"libpython3\.\d+\.so not found .* apt-get install"):
        settings.libpython_folder()


@pytest.mark.parametrize("version", [(3, 10), (3, 13)])
def test_an_unsupported_python_is_rejected(monkeypatch, version):
    monkeypatch.setattr(sys, "version_info", (*version, 0))
    with pytest.raises(ServerError, match="use Python 3.11 or 3.12"):
        preflight.check_python()


def test_a_missing_numpy_is_reported(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(ServerError, match="numpy is not installed .*make setup"):
        preflight.check_numpy()


@pytest.mark.parametrize(("python", "message"), [("no-such-python", "not found"), ("false-python", "cannot run")])
def test_make_names_the_python_it_needs(tmp_path, python, message):
    if python == "false-python":
        # A script that reports Python 3.10 to the recipe.
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


def test_preflight_prints_a_line_for_each_check(repository, tmp_path):
    command = server_command(
        "preflight", repository=repository, state=tmp_path, grpc_port=free_port(), metrics_port=free_port()
    )
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    assert all(line.startswith("ok  ") for line in lines)
    assert len(lines) == 13
    assert "model.onnx, fp32" in done.stdout
    assert not (tmp_path / "served").exists()


def test_preflight_prints_all_problems(tmp_path):
    command = server_command("preflight", repository=tmp_path, wheel=tmp_path, state=tmp_path, hardware="h100")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    wrong = [line for line in done.stdout.splitlines() if line.startswith("NO")]
    assert done.returncode == 1
    assert [line.split()[1] for line in wrong][:3] == ["Triton", "hardware", "engine"]
    assert "Traceback" not in done.stderr


def test_too_little_shared_memory_is_rejected(monkeypatch):
    monkeypatch.setattr(host, "shared_memory", lambda prefix: (64 << 20, 64 << 20))  # Docker's default
    checked = rows(repository=MODELS, hardware="cpu", preprocess_instances=2, postprocess_instances=3)
    problem = checked["shared memory"].problem
    assert "has 64 MiB, and 256 are needed" in problem
    assert "--shm-size=256m" in problem


def test_free_shared_memory_includes_what_killed_servers_left(monkeypatch):
    monkeypatch.setattr(
        os,
        "statvfs",
        lambda folder: SimpleNamespace(f_frsize=1 << 20, f_blocks=1024, f_bavail=100, f_bfree=100, f_flag=0),
    )
    options = {"repository": MODELS, "hardware": "cpu", "preprocess_instances": 1, "postprocess_instances": 1}
    monkeypatch.setattr(host, "leftover_regions", lambda prefix: {})
    assert "100 of 1024 MiB free, and 160 are needed" in rows(**options)["shared memory"].problem
    monkeypatch.setattr(host, "leftover_regions", lambda prefix: {Path("region"): 80 << 20})
    assert rows(**options)["shared memory"].result.startswith("180 of 1024 MiB free")


def test_a_repository_of_another_user_that_cannot_be_read_is_reported(monkeypatch):
    """A container's user cannot read what was built under a umask of 077. (The tests may run as root, which can.)"""
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "restormer")
    problem = rows(repository=MODELS)["engine"].problem
    assert "model_repository/restormer: chmod -R a+rX" in problem


@pytest.mark.parametrize("option", ["wheel", "triton"])
def test_a_path_from_which_triton_does_not_run_is_reported(tmp_path, option):
    binary = Settings(**{option: tmp_path / "with: colon"}).binary
    binary.parent.mkdir(parents=True)
    binary.touch()
    row = rows(**{option: tmp_path / "with: colon"})["Triton"]
    assert "in the path has a meaning to the shell" in row.problem


def test_more_processes_need_more_shared_memory(repository):
    few, many = (
        preflight.shared_memory_need(Settings(repository=repository, preprocess_instances=n, postprocess_instances=n))
        for n in (1, 8)
    )
    assert many[0] - few[0] == 14 * 32 << 20
    assert few[0] < few[1] < many[1]


def test_an_unwritable_state_folder_is_reported(repository, tmp_path):
    (tmp_path / "file").write_text("")
    assert "--state=..." in rows(repository=repository, state=tmp_path / "file/state")["state folder"].problem
    with pytest.raises(ServerError, match="--state="):
        process.start(Settings(repository=repository, state=tmp_path / "file"))


@pytest.mark.parametrize("content", ["", "short", "with a space in it 0123456789", "ümlaut-0123456789-0123456789"])
def test_an_invalid_key_is_rejected(tmp_path, content):
    path = tmp_path / "key"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(ServerError, match="must hold one key|admin-key-file"):
        preflight.admin_key(Settings(admin_key_file=path))


def test_a_missing_key_file_is_reported_in_one_line(tmp_path):
    with pytest.raises(ServerError, match="--admin-key-file: .*No such file"):
        preflight.admin_key(Settings(admin_key_file=tmp_path / "nothing"))


def test_a_generated_key_is_new_each_time_and_readable_by_its_owner_only(tmp_path):
    settings = Settings(state=tmp_path)
    first, second = preflight.admin_key(settings), preflight.admin_key(settings)
    assert first != second
    assert settings.admin_key.read_text().strip() == second
    assert settings.admin_key.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"control": "explicit"}, "--admin-key-file="),
        ({"trace": "collector:4318"}, "http://collector:4318/v1/traces"),
        ({"http_port": 8000, "tls_cert": Path("c"), "tls_key": Path("k"), "address": "0.0.0.0"}, "no TLS for HTTP"),
    ],
)
def test_insecure_settings_are_rejected(options, message):
    assert message in rows(**options)["settings"].problem


def test_a_key_that_other_users_can_read_is_rejected(certificates, tmp_path):
    path = tmp_path / "key"
    path.write_text("a-key-of-the-tests-0123456789")
    for mode, is_rejected in ((0o600, False), (0o440, False), (0o644, True), (0o604, True)):
        path.chmod(mode)
        problem = rows(admin_key_file=path)["admin key"].problem
        assert bool(problem) == is_rejected
        assert not problem or f"chmod o= {path}" in problem
    shutil.copy(certificates["server_key"], path)
    path.chmod(0o644)
    assert "chmod o=" in rows(tls_cert=certificates["server_cert"], tls_key=path)["TLS"].problem


def test_a_certificate_that_the_health_check_would_reject_is_reported(tmp_path):
    """Certificates for another name, of another authority than the clients', and expired."""
    authority, other = trustme.CA(), trustme.CA()
    other.cert_pem.write_to_path(str(tmp_path / "other.pem"))
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    files = {"tls_cert": tmp_path / "cert.pem", "tls_key": tmp_path / "cert.key"}

    def issue(*names, **options):
        certificate = authority.issue_cert(*names, **options)
        certificate.cert_chain_pems[0].write_to_path(str(files["tls_cert"]))
        certificate.private_key_pem.write_to_path(str(files["tls_key"]))
        files["tls_key"].chmod(0o600)

    issue("triton.example")
    problem = rows(**files)["TLS"].problem
    assert "127.0.0.1" in problem
    assert "--tls-name" in problem
    assert rows(**files, tls_name="triton.example")["TLS"].problem == ""
    assert rows(**files, tls_name="triton.example", tls_ca=tmp_path / "ca.pem")["TLS"].problem == ""
    assert (
        "other.pem rejects it" in rows(**files, tls_name="triton.example", tls_ca=tmp_path / "other.pem")["TLS"].problem
    )
    issue("::1")
    assert rows(**files, address="::")["TLS"].problem == ""
    issue("127.0.0.1", not_after=datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC))
    assert "expired: renew it" in rows(**files)["TLS"].problem


@pytest.mark.parametrize("missing", ["tls_cert", "tls_key"])
def test_incomplete_tls_files_are_rejected(certificates, missing):
    files = {
        "tls_cert": certificates["server_cert"],
        "tls_key": certificates["server_key"],
        "tls_ca": certificates["ca"],
    }
    assert rows(**files)["TLS"].problem == ""
    assert "needs both" in rows(**{**files, missing: None})["TLS"].problem
    assert "belong together" in rows(**{**files, missing: certificates["ca"]})["TLS"].problem


def test_hardware_without_its_gpu_or_triton_is_rejected(monkeypatch):
    monkeypatch.setattr(hosts, "gpus", list)
    checked = rows(hardware="h100", triton=Path("/opt/tritonserver"))
    assert "no GPU is visible" in checked["hardware"].problem
    monkeypatch.setattr(hosts, "gpus", lambda: [("NVIDIA H100 80GB HBM3", "9.0")])
    assert "needs NVIDIA's Triton" in rows(hardware="h100")["hardware"].problem
    assert (
        rows(hardware="auto", triton=Path("/opt/tritonserver"))["hardware"].result
        == "h100: NVIDIA H100 80GB HBM3 (9.0)"
    )
