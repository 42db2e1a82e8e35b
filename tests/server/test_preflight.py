"""What stands in the way of a start is said in one line, with what to do; nothing is left running."""

import datetime
import hashlib
import json
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

import pytest
import trustme

from imaging import FRAME
from server import host as machine
from server import preflight, settings
from server.errors import ServerError
from server.settings import Settings
from tests.conftest import ROOT, SERVER_PYTHON, bare_repository, free_port, server_command


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


def test_an_environment_without_tritons_schema_is_named_with_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "tritonclient", None)
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)
    monkeypatch.setitem(sys.modules, "tritonclient.grpc.model_config_pb2", None)
    found = rows(repository=ROOT / "model_repository")
    for row in ("client", "shared memory"):
        assert "tritonclient" in found[row].mend
        assert "make setup" in found[row].mend


def test_a_python_without_any_package_is_checked():
    """As `make` does it before there is an environment."""
    command = [SERVER_PYTHON, "-S", "-m", "server", "check-python"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


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
    assert re.match(r"error: Triton ended with code \d+: failed to load 'restormer' version 1", errors[0]), errors[0]
    assert not (tmp_path / "state/server.json").exists()


@pytest.mark.parametrize("content", ["[]", "{}", "no json", '{"sha256": 1}'])
def test_a_broken_engine_json_is_one_line(tmp_path, repository, content):
    copy = tmp_path / "copy"
    shutil.copytree(repository, copy)
    (copy / "restormer/1/model.onnx.json").write_text(content)
    with pytest.raises(ServerError, match="make engine"):
        preflight.check_engines(copy)


def test_the_server_and_the_engines_name_the_same_frame(repository):
    document = json.loads((repository / "restormer/1/model.onnx.json").read_text())
    assert preflight.FRAME == FRAME == document["frame"] == document["origin"]["frame"]


@pytest.mark.parametrize("frame", [{}, {"frame": "letterbox-512"}], ids=["none recorded", "another"])
def test_an_engine_of_another_frame_is_rejected_with_the_command_that_builds_it(tmp_path, repository, frame):
    copy = tmp_path / "copy"
    shutil.copytree(repository, copy)
    path = copy / "restormer/1/model.onnx.json"
    document = json.loads(path.read_text())
    del document["frame"]
    path.write_text(json.dumps({**document, **frame}))
    with pytest.raises(ServerError, match=f"{FRAME}.*: {re.escape(document['command'])}$"):
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


A100, H100 = ("NVIDIA A100-SXM4-80GB", "8.0"), ("NVIDIA H100 80GB HBM3", "9.0")


@pytest.fixture
def plans(tmp_path):
    """A repository with a plan for an A100 and one for an H100, as far as their JSON tells."""

    def publish(version, capability, **changes):
        folder = tmp_path / "restormer" / str(version)
        folder.mkdir(parents=True, exist_ok=True)
        plan = folder / f"model.sm{capability.replace('.', '')}.plan"
        plan.write_bytes(f"plan for {capability}".encode())
        document = {
            "sha256": hashlib.sha256(plan.read_bytes()).hexdigest(),
            "frame": preflight.FRAME,
            "machine": {"gpu_compute_capability": capability},
            "options": {"compatibility": "none"},
            "runtime": {"name": "tensorrt", "version": "11.4.1.5"},
            **changes,
        }
        plan.with_name(f"{plan.name}.json").write_text(json.dumps(document))
        return plan

    publish(1, "8.0")
    publish(1, "9.0")
    return publish


def test_a_plan_that_fits_is_taken(plans, tmp_path):
    assert preflight.check_engines(tmp_path, [H100], tensorrt="11.4.1").path.name == "model.sm90.plan"
    assert preflight.check_engines(tmp_path, [A100, H100], tensorrt="").path.name == "model.sm80.plan"


def test_every_gpu_needs_its_plan(plans, tmp_path):
    with pytest.raises(
        ServerError, match=r"no model\.sm89\.plan for NVIDIA L40S .* make engine TARGET=tensorrt VERSION=1"
    ):
        preflight.check_engines(tmp_path, [H100, ("NVIDIA L40S", "8.9")], tensorrt="")


def test_a_plan_of_another_tensorrt_is_refused(plans, tmp_path):
    with pytest.raises(ServerError, match=r"built by TensorRT 11\.4\.1\.5, here is 11\.3\.0"):
        preflight.check_engines(tmp_path, [H100], tensorrt="11.3.0")


def test_a_plan_under_the_wrong_name_is_refused_unless_it_is_portable(plans, tmp_path):
    plans(2, "9.0", machine={"gpu_compute_capability": "8.0"})
    with pytest.raises(ServerError, match=r"built for compute capability 8\.0, NVIDIA H100 80GB HBM3 has 9\.0"):
        preflight.check_engines(tmp_path, [H100], tensorrt="")
    plans(2, "9.0", machine={"gpu_compute_capability": "8.0"}, options={"compatibility": "ampere_plus"})
    assert preflight.check_engines(tmp_path, [H100], tensorrt="").path.parent.name == "2"


def test_a_tensorrt_that_is_not_found_is_said_to_be_not_compared(plans, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "gpus", lambda: (H100, H100))
    asked = {"repository": tmp_path, "hardware": "h100", "triton": tmp_path}
    monkeypatch.setattr(machine, "tensorrt", lambda: "")
    assert "TensorRT not compared: no libnvinfer in /usr/lib" in rows(**asked)["engine"].found
    monkeypatch.setattr(machine, "tensorrt", lambda: "11.4.1")
    assert rows(**asked)["engine"].found.endswith(", TensorRT 11.4.1")


def test_only_what_is_served_has_to_fit_and_the_rest_is_told(plans, tmp_path, monkeypatch):
    """Version 1 has no plan for the L40S; 2, which is served, has one."""
    card = ("NVIDIA L40S", "8.9")
    monkeypatch.setattr(machine, "gpus", lambda: (card,))
    monkeypatch.setattr(machine, "tensorrt", lambda: "11.4.1")
    plans(2, "8.9")
    assert preflight.check_engines(tmp_path, [card], tensorrt="11.4.1").path.parent.name == "2"
    row = rows(repository=tmp_path, hardware="gpu", triton=tmp_path)["engine"]
    assert row.mend == ""
    assert "one that is not served: version 1 has no model.sm89.plan" in row.found
    assert (
        "version 1 has no" in rows(repository=tmp_path, hardware="gpu", triton=tmp_path, versions=(1,))["engine"].mend
    )


def test_an_engine_is_read_once(plans, tmp_path, monkeypatch):
    reads = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, name: reads.append(file.name) or digest(file, name))
    for _ in range(3):
        preflight.check_engines(tmp_path, [H100] * 8, tensorrt="")
    assert len(reads) == 1


def test_a_changed_plan_is_refused(plans, tmp_path):
    plans(1, "9.0").write_bytes(b"another")
    with pytest.raises(ServerError, match="not the file its JSON describes"):
        preflight.check_engines(tmp_path, [H100], tensorrt="")


def test_a_version_that_is_asked_for_has_to_be_there(plans, tmp_path):
    with pytest.raises(ServerError, match=r"version 3, 4 is not published .* make engines"):
        preflight.check_engines(tmp_path, [H100], (1, 3, 4), tensorrt="")


def rows(**options):
    return {row.what: row for row in preflight.rows(Settings(**options))}


def test_the_table_has_a_line_for_everything(repository, tmp_path):
    command = server_command(
        "preflight", repository=repository, state=tmp_path, grpc_port=free_port(), metrics_port=free_port()
    )
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    assert all(line.startswith("ok  ") for line in lines)
    assert len(lines) == 12
    assert "model.onnx, fp32" in done.stdout
    assert not (tmp_path / "served").exists()


def test_the_table_shows_everything_that_is_wrong_at_once(tmp_path):
    command = server_command("preflight", repository=tmp_path, wheel=tmp_path, state=tmp_path, hardware="h100")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    wrong = [line for line in done.stdout.splitlines() if line.startswith("NO")]
    assert done.returncode == 1
    assert [line.split()[1] for line in wrong][:3] == ["Triton", "hardware", "engine"]
    assert "Traceback" not in done.stderr


def test_shared_memory_that_is_too_small_is_refused(monkeypatch, repository):
    monkeypatch.setattr(machine, "shared_memory", lambda: 64 << 20)  # what Docker gives
    mend = rows(repository=repository, hardware="cpu", preprocess_instances=2, postprocess_instances=3)[
        "shared memory"
    ].mend
    assert "has 64 MiB, and 256 are needed" in mend
    assert "--shm-size=256m" in mend


def test_more_processes_need_more_shared_memory(repository):
    few, many = (
        preflight.shared_memory_need(Settings(repository=repository, preprocess_instances=n, postprocess_instances=n))
        for n in (1, 8)
    )
    assert many[0] - few[0] == 14 * 32 << 20
    assert few[0] < few[1] < many[1]


def test_a_state_folder_that_cannot_be_written_is_named(repository, tmp_path):
    (tmp_path / "file").write_text("")
    assert "--state=..." in rows(repository=repository, state=tmp_path / "file/state")["state folder"].mend


@pytest.mark.parametrize("content", ["", "short", "with a space in it 0123456789", "ümlaut-0123456789-0123456789"])
def test_a_key_that_is_none_is_refused(tmp_path, content):
    path = tmp_path / "key"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(ServerError, match="has to hold one key|admin-key-file"):
        preflight.admin_key(Settings(admin_key_file=path))


def test_a_key_file_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(ServerError, match="--admin-key-file: .*No such file"):
        preflight.admin_key(Settings(admin_key_file=tmp_path / "nothing"))


def test_a_made_key_is_new_every_time_and_its_owners_alone(tmp_path):
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
        ({"http_port": 8000, "tls_cert": Path("c"), "tls_key": Path("k"), "address": "0.0.0.0"}, "no TLS over HTTP"),
    ],
)
def test_settings_that_open_a_door_are_refused(options, message):
    assert message in rows(**options)["settings"].mend


def test_a_key_that_others_may_read_is_refused(certificates, tmp_path):
    path = tmp_path / "key"
    path.write_text("a-key-of-the-tests-0123456789")
    for mode, is_refused in ((0o600, False), (0o440, False), (0o644, True), (0o604, True)):
        path.chmod(mode)
        mend = rows(admin_key_file=path)["admin key"].mend
        assert bool(mend) == is_refused
        assert not mend or f"chmod o= {path}" in mend
    shutil.copy(certificates["server_key"], path)
    path.chmod(0o644)
    assert "chmod o=" in rows(tls_cert=certificates["server_cert"], tls_key=path)["TLS"].mend


def test_a_certificate_that_the_health_check_would_refuse_is_known_before(tmp_path):
    """One for triton.example only, one that has expired, and one of an authority that is not the clients'."""
    authority, other = trustme.CA(), trustme.CA()
    other.cert_pem.write_to_path(str(tmp_path / "other.pem"))
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    files = {"tls_cert": tmp_path / "cert.pem", "tls_key": tmp_path / "cert.key"}

    def issue(*names, **options):
        made = authority.issue_cert(*names, **options)
        made.cert_chain_pems[0].write_to_path(str(files["tls_cert"]))
        made.private_key_pem.write_to_path(str(files["tls_key"]))
        files["tls_key"].chmod(0o600)

    issue("triton.example")
    assert "asks for 127.0.0.1" in (mend := rows(**files)["TLS"].mend)
    assert "--tls-name" in mend
    assert rows(**files, tls_name="triton.example")["TLS"].mend == ""
    assert rows(**files, tls_name="triton.example", tls_ca=tmp_path / "ca.pem")["TLS"].mend == ""
    assert "does not let in" in rows(**files, tls_name="triton.example", tls_ca=tmp_path / "other.pem")["TLS"].mend
    issue("::1")
    assert rows(**files, address="::")["TLS"].mend == ""
    issue("127.0.0.1", not_after=datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC))
    assert "expired: renew it" in rows(**files)["TLS"].mend


@pytest.mark.parametrize("missing", ["tls_cert", "tls_key"])
def test_half_of_tls_is_refused(certificates, missing):
    files = {
        "tls_cert": certificates["server_cert"],
        "tls_key": certificates["server_key"],
        "tls_ca": certificates["ca"],
    }
    assert rows(**files)["TLS"].mend == ""
    assert "needs both" in rows(**{**files, missing: None})["TLS"].mend
    assert "belong together" in rows(**{**files, missing: certificates["ca"]})["TLS"].mend


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(machine, "gpus", lambda: ())
    assert "no GPU is visible" in rows(hardware="h100")["hardware"].mend
    monkeypatch.setattr(machine, "gpus", lambda: (H100,))
    assert "needs NVIDIA's Triton" in rows(hardware="h100")["hardware"].mend
    assert (
        rows(hardware="auto", triton=Path("/opt/tritonserver"))["hardware"].found == "h100: NVIDIA H100 80GB HBM3 (9.0)"
    )
