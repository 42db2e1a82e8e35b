"""Start, find and stop the server's process."""

import fcntl
import json
import os
import queue
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc

from server import process
from server.process import kill_orphans, running_server
from server.settings import Settings
from tests.conftest import ROOT, free_port, server_command
from tests.photographs import encode_image, pixels


def test_a_second_start_is_rejected_and_the_first_server_goes_on(triton):
    done = subprocess.run(triton.command("start"), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "already running" in done.stderr
    assert subprocess.run(triton.command("status"), cwd=ROOT, capture_output=True, check=False).returncode == 0


def test_status_prints_the_address_of_the_running_server(triton):
    """The record of the start counts, not the flags of the call."""
    command = [part if part != str(triton.grpc_port) else "9555" for part in triton.command("status")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["url"] == triton.url
    assert json.loads(done.stdout)["engine"] == str(triton.repository / "restormer/1/model.onnx")


def test_a_reused_process_id_is_not_the_server(tmp_path):
    record = {"pid": 1, "url": "127.0.0.1:8001", "engine": "model.onnx", "engine_sha256": "", "chosen": {}}
    (tmp_path / "server.json").write_text(json.dumps(record))
    assert running_server(Settings(state=tmp_path)) is None


def test_the_triton_of_another_state_folder_is_not_the_server(triton, tmp_path):
    """Even if its process id is recorded here. A symbolic link to its own folder finds it."""
    record = (triton.state / "server.json").read_text()
    (tmp_path / "server.json").write_text(record)
    assert running_server(Settings(state=tmp_path)) is None
    (tmp_path / "alias").symlink_to(triton.state)
    assert running_server(Settings(state=tmp_path / "alias")).url == triton.url


def test_refresh_uses_the_settings_of_the_start(triton, tmp_path):
    before = (triton.state / "served/preprocess/config.pbtxt").read_text()
    done = subprocess.run(
        [*triton.command("refresh")[:-1], "--preprocess-instances", "7", "--versions", "9", "refresh"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (triton.state / "served/preprocess/config.pbtxt").read_text() == before


def test_a_command_waits_while_another_has_the_lock_of_the_state_folder(tmp_path):
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refresh = subprocess.Popen(server_command("refresh", state=tmp_path), cwd=ROOT, stderr=subprocess.PIPE)
        with pytest.raises(subprocess.TimeoutExpired):
            refresh.wait(2)
    assert refresh.wait(30) == 1
    assert b"no server is running" in refresh.stderr.read()
    refresh.stderr.close()


def test_a_start_forgets_that_the_last_server_was_healthy(repository, tmp_path):
    (tmp_path / "healthy").write_text("{}")
    command = process.prepare(
        Settings(repository=repository, state=tmp_path, hardware="cpu", wheel=ROOT / ".envs/triton")
    )
    assert not (tmp_path / "healthy").exists()
    assert "--rate-limit-resource=cores:1" in command


def test_a_stop_without_a_server_succeeds(tmp_path, triton):
    command = [str(tmp_path) if part == str(triton.state) else part for part in triton.command("stop")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "no server was running" in done.stderr


def stubs(state):
    """Return the process ids of the Python stubs that serve from this state folder."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
        except OSError:
            continue
        if b"python_backend_stub" in command and f"{state}/served/".encode() in command:
            pids.append(int(path.parent.name))
    return pids


def test_a_start_after_a_killed_server_kills_its_stubs_and_serves(repository, tmp_path):
    command = server_command(
        "start", repository=repository, state=tmp_path, grpc_port=free_port(), metrics_port=free_port()
    )
    subprocess.run(command, cwd=ROOT, check=True)
    orphans = stubs(tmp_path)
    assert len(orphans) >= 5
    os.kill(json.loads((tmp_path / "server.json").read_text())["pid"], signal.SIGKILL)
    try:
        subprocess.run(command, cwd=ROOT, check=True)
        assert not set(orphans) & set(stubs(tmp_path))
        assert len(stubs(tmp_path)) == len(orphans)
    finally:
        subprocess.run([*command[:-1], "stop"], cwd=ROOT, check=True)
    assert stubs(tmp_path) == []
    assert list(Path("/dev/shm").glob(f"{Settings(state=tmp_path).shm_prefix}*")) == []


def test_stop_removes_the_shared_memory_of_a_killed_server(tmp_path, monkeypatch):
    shared = tmp_path / "shm"
    shared.mkdir()
    monkeypatch.setattr(process.host, "SHM", shared)
    settings, other = Settings(state=tmp_path / "a"), Settings(state=tmp_path / "b")
    for each in (settings, other):
        (shared / f"{each.shm_prefix}0").touch()
    assert not process.stop(settings)
    assert [path.name for path in shared.iterdir()] == [f"{other.shm_prefix}0"]


def test_the_stubs_of_another_state_folder_are_left_alone(tmp_path, triton):
    before = stubs(triton.state)
    assert kill_orphans(Settings(state=tmp_path)) == 0
    assert stubs(triton.state) == before


def test_a_stop_answers_every_request_in_flight(repository, tmp_path):
    """Triton finishes the running step and rejects the next one of the ensemble, with an error that can be retried."""
    port = free_port()
    command = server_command(
        "start", repository=repository, state=tmp_path, grpc_port=port, metrics_port=free_port(), exit_timeout=120
    )
    subprocess.run(command, cwd=ROOT, check=True)
    done = queue.SimpleQueue()
    image = grpc.InferInput("IMAGE", [1, 1], "BYTES")
    image.set_data_from_numpy(np.array([[encode_image(pixels(48, 64))]], dtype=np.object_))
    channel = [("grpc.enable_http_proxy", 0)]
    try:
        with grpc.InferenceServerClient(f"127.0.0.1:{port}", channel_args=channel) as client:
            for _ in range(3):
                client.async_infer("enhance", [image], lambda result, error: done.put(error))
            assert done.get(timeout=120) is None  # the first is answered, so the others have arrived
            subprocess.run([*command[:-1], "stop"], cwd=ROOT, check=True)
            for error in [done.get(timeout=10) for _ in range(2)]:
                assert error is None or ("UNAVAILABLE" in error.status() and "Server is stopping" in error.message())
    finally:
        subprocess.run([*command[:-1], "stop"], cwd=ROOT, check=True)
