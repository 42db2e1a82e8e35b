"""Start, find and stop the server's process."""

import fcntl
import json
import mmap
import os
import queue
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc

from server import assemble, process
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
        if b"python_backend_stub" in command and os.path.samefile(path.with_name("cwd"), state):
            pids.append(int(path.parent.name))
    return pids


def test_a_start_after_a_killed_server_kills_its_stubs_and_serves(repository, tmp_path):
    """From folders whose names a shell would split and expand: Triton starts its stubs through one, without quotes."""
    state, models = tmp_path / "l'état; of $HOME (1) & more", tmp_path / "my models"
    models.symlink_to(repository)
    command = server_command("start", repository=models, state=state, grpc_port=free_port(), metrics_port=free_port())
    subprocess.run(command, cwd=ROOT, check=True)
    orphans = stubs(state)
    assert len(orphans) >= 5
    os.kill(json.loads((state / "server.json").read_text())["pid"], signal.SIGKILL)
    try:
        subprocess.run(command, cwd=ROOT, check=True)
        assert not set(orphans) & set(stubs(state))
        assert len(stubs(state)) == len(orphans)
    finally:
        subprocess.run([*command[:-1], "stop"], cwd=ROOT, check=True)
    assert stubs(state) == []
    assert list(Path("/dev/shm").glob(f"{Settings(state=state).shm_prefix}*")) == []


def test_stubs_import_from_a_folder_with_non_ascii_letters(tmp_path, monkeypatch):
    """They read paths as ASCII; the folder of the backends is relative to the one that they run in."""
    package = tmp_path / "ä/imaging"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.delitem(sys.modules, "imaging")
    process.assemble_backends(Settings(state=tmp_path, wheel=ROOT / ".envs/triton"))
    assert (tmp_path / "backends/python/imaging").samefile(package)
    assert not (tmp_path / "backends/python/adapters").exists()


def test_sigterm_during_a_start_stops_the_triton_that_loads(repository, tmp_path):
    port = free_port()
    command = server_command(
        "start", repository=repository, state=tmp_path, grpc_port=port, metrics_port=free_port(), exit_timeout=5
    )
    start = subprocess.Popen(command, cwd=ROOT)
    record = tmp_path / "server.json"
    while not record.exists() or not record.read_text():
        assert start.poll() is None
        time.sleep(0.05)
    triton = json.loads(record.read_text())["pid"]
    start.terminate()
    try:
        assert start.wait(60) == 128 + signal.SIGTERM
        assert not Path(f"/proc/{triton}").exists()
        assert not record.exists()
        assert stubs(tmp_path) == []
    finally:
        subprocess.run([*command[:-1], "stop"], cwd=ROOT, check=True)
    commands = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert f"127.0.0.1:{port}" not in commands  # the client that waits for the first photograph


def test_a_stub_that_does_not_start_is_reported_within_seconds(repository, tmp_path):
    bash = tmp_path / "bin/bash"
    bash.parent.mkdir()
    bash.write_text("#!/bin/sh\necho 'bash: line 1: exec: /my: not found' >&2\nexit 127\n")
    bash.chmod(0o755)
    command = server_command(
        "start", repository=repository, state=tmp_path, grpc_port=free_port(), metrics_port=free_port()
    )
    environment = {**os.environ, "PATH": f"{bash.parent}:{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "Python stub does not start: bash: line 1: exec: /my: not found" in done.stderr


def test_a_warning_of_bash_or_the_loader_is_not_a_failed_start():
    warnings = (
        b"bash: warning: setlocale: LC_ALL: cannot change locale (xx_XX)",
        b"backends/python/triton_python_backend_stub: /opt/libz.so.1: no version information available (required by x)",
        b"2026-11-29T10:00:00Z I 1 pb_stub.cc:1] started",
    )
    assert not process._STUB_FAILURE.search(b"\n".join(warnings))
    for failure in (
        b"bash: Zeile 1: /x: Keine Berechtigung",
        b"/x y/triton_python_backend_stub: error while loading shared libraries: libpython3.11.so.1.0: cannot open",
        b"Fatal Python error: init_fs_encoding: failed to get the Python codec of the filesystem encoding",
    ):
        assert process._STUB_FAILURE.search(b"\n".join((*warnings, failure, b"")))[0] == failure


def test_stop_removes_the_shared_memory_of_killed_servers(tmp_path, monkeypatch):
    shared = tmp_path / "shm"
    shared.mkdir()
    monkeypatch.setattr(process.host, "SHM", shared)
    settings, running, killed = (Settings(state=tmp_path / name) for name in "abc")
    regions = [shared / f"{each.shm_prefix}0" for each in (settings, running, killed)]
    for region in regions:
        region.write_bytes(bytes(8192))
    with ExitStack() as stack:
        for region in regions[:2]:  # a stub of ours may still be exiting
            file = stack.enter_context(region.open("r+b"))
            stack.enter_context(mmap.mmap(file.fileno(), 0))
        monkeypatch.setattr(os, "getuid", lambda: -1)
        assert process.host.leftover_regions(settings.shm_prefix) == {}  # another user's
        monkeypatch.undo()
        monkeypatch.setattr(process.host, "SHM", shared)
        assert process.host.leftover_regions(settings.shm_prefix) == {regions[0]: 8192, regions[2]: 8192}
        assert not process.stop(settings)
        assert list(shared.iterdir()) == [regions[1]]


def test_a_served_copy_in_a_lower_layer_of_an_overlay_is_replaced(repository, tmp_path, lower_layer):
    settings = Settings(repository=repository, state=tmp_path, hardware="cpu")
    assemble.assemble_repository(settings)
    with lower_layer(tmp_path):
        assemble.assemble_repository(settings)
    assert (settings.served / "restormer/1/model.onnx").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["served"]


def test_the_stubs_of_another_state_folder_are_left_alone(tmp_path, triton):
    before = stubs(triton.state)
    kill_orphans(Settings(state=tmp_path))
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
