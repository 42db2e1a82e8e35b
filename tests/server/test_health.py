"""The health check of a container, with the session's real Triton and without a server."""

import asyncio
import json
import os
import re
import subprocess
import threading
import time
from pathlib import Path

import pytest
import tritonclient.grpc as grpc
from restormer_client import errors

from server import health, process
from server.errors import ServerError
from server.settings import Settings
from tests.conftest import ROOT, SERVER_PYTHON, free_port, server_command
from tests.photographs import encode_image, pixels
from tests.server.test_secured import enhance
from traffic import loops
from traffic import server as traffic_server


@pytest.fixture
def python(monkeypatch):
    """Let `deep_check_command` find the client of the server's environment."""
    monkeypatch.setattr("sys.executable", str(SERVER_PYTHON))


@pytest.fixture
def stopped(monkeypatch):
    """Record the servers to be stopped, without stopping the session's Triton."""
    stops = []
    monkeypatch.setattr(process, "stop", lambda settings, **options: stops.append((settings, options)))
    return stops


def test_a_server_that_enhances_is_healthy(triton, tmp_path, python, stopped):
    settings = Settings(state=tmp_path, grpc_port=triton.grpc_port)
    health.check(settings)
    assert (tmp_path / "healthy").is_file()
    assert not stopped


def test_a_starting_server_is_left_alone(tmp_path, python, stopped):
    settings = Settings(state=tmp_path, grpc_port=free_port())
    with pytest.raises(ServerError, match="not healthy yet: "):
        health.check(settings, seconds=1)
    assert not stopped


def test_a_server_that_was_healthy_is_stopped(tmp_path, python, stopped):
    settings = Settings(state=tmp_path, grpc_port=free_port())
    (tmp_path / "healthy").touch()
    with pytest.raises(ServerError, match="no longer healthy, and stopped to be replaced: "):
        health.check(settings, seconds=1)
    assert stopped == [(settings, {"at_most": health.STOP_AT_MOST})]


def test_a_server_that_was_never_healthy_is_stopped_after_its_start_time(tmp_path, python, stopped):
    settings = Settings(state=tmp_path, grpc_port=free_port())
    record = process.record_path(settings)
    record.touch()
    with pytest.raises(ServerError, match="not healthy yet: "):
        health.check(settings, seconds=1)
    os.utime(record, (0, time.time() - health.START_SECONDS))
    with pytest.raises(ServerError, match="not healthy 300 s after its start, and stopped"):
        health.check(settings, seconds=1)
    assert len(stopped) == 1


def test_the_start_time_is_longer_than_composes_start_period():
    compose = (ROOT / "docker/compose.yaml").read_text(encoding="utf-8")
    assert 2 * int(re.search(r"start_period: (\d+)s", compose)[1]) <= health.START_SECONDS


def test_composes_timeout_covers_a_check_that_stops_the_server():
    compose = (ROOT / "docker/compose.yaml").read_text(encoding="utf-8")
    allowed = int(re.search(r"server\", \"health\"\].*?timeout: (\d+)s", compose, re.DOTALL)[1])
    assert allowed > health.SECONDS + health.STOP_AT_MOST + process.STOP_SECONDS


def test_a_stop_can_wait_for_less_than_the_exit_timeout(tmp_path, monkeypatch):
    """With a real process that ignores SIGTERM in place of the server."""
    command = ["sh", "-c", "trap '' TERM; echo ready; sleep 60 & wait; wait"]
    child = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, text=True)
    with child.stdout as output:
        assert output.readline() == "ready\n"
    server = process.RunningServer(pid=child.pid, url="", engine="", engine_sha256="", chosen={})
    entry = Path(f"/proc/{child.pid}")
    monkeypatch.setattr(process, "running_server", lambda settings: server if entry.exists() else None)
    monkeypatch.setattr(process, "STOP_SECONDS", 0.5)
    began = time.monotonic()
    assert process.stop(Settings(state=tmp_path, exit_timeout=600), at_most=1)
    assert not entry.exists()
    assert time.monotonic() - began < 60


OVERLOADED = "error: 127.0.0.1:8001 is overloaded: [request id: <id_unknown>] Exceeds maximum queue size"


def test_an_overloaded_server_that_enhances_is_not_stopped(triton, tmp_path, stopped, monkeypatch):
    """The client's message is fixed; the counters are the real server's, which rise shortly after an answer."""
    monkeypatch.setattr(health, "_try_until_deadline", lambda settings, seconds: OVERLOADED)
    settings = Settings(state=tmp_path, grpc_port=triton.grpc_port, metrics_port=triton.metrics_port)
    healthy = tmp_path / "healthy"
    healthy.write_text(json.dumps(_counts_at_rest(settings)))
    with grpc.InferenceServerClient(triton.url, channel_args=[("grpc.enable_http_proxy", 0)]) as connection:
        for _ in range(2):
            enhance(connection, encode_image(pixels(48, 64)))
            _counts_at_rest(settings)
            health.check(settings)
    assert not stopped
    with pytest.raises(ServerError, match="no longer healthy, and stopped .*overloaded"):
        health.check(settings)  # nothing was enhanced since
    assert len(stopped) == 1


def _counts_at_rest(settings, *, seconds=2):
    """Return the server's counters once they stay the same: no request is in flight."""
    before = health._read_counters(settings)
    while True:
        time.sleep(seconds)
        counts = health._read_counters(settings)
        if counts and counts == before:
            return counts
        before = counts


@pytest.mark.parametrize(
    ("finished", "failed", "restored", "moved"),
    [(1, 0, 1, True), (1, 9, 9, True), (0, 0, 0, False), (0, 0, 5, True), (0, 5, 5, False), (0, 5, 0, False)],
)
def test_finished_photographs_are_progress(finished, failed, restored, moved):
    """Direct calls of the network count; a last step that only fails does not."""
    now = {"finished": 10.0 + finished, "failed": 10.0 + failed, "restored": 10.0 + restored}
    assert health.has_progressed(dict.fromkeys(now, 10.0), now) == moved


def test_the_clients_messages_for_a_busy_server_are_recognized():
    busy = (errors.Overloaded, errors.DeadlineExceeded)
    assert all(phrase in errors._SENTENCES[kind] for kind, phrase in zip(busy, health.BUSY, strict=True))
    others = [sentence for kind, sentence in errors._SENTENCES.items() if kind not in busy]
    assert not [sentence for sentence in others if health._is_busy(sentence)]


def check_repeatedly(settings, times):
    for _ in range(times):
        health.check(settings, seconds=6)


def test_overload_does_not_stop_a_server_but_a_killed_stub_does(repository, tmp_path, python):
    ports = {"grpc_port": free_port(), "metrics_port": free_port()}
    command = server_command("start", repository=repository, state=tmp_path, exit_timeout=2, **ports)
    subprocess.run(command, cwd=ROOT, check=True)
    settings = Settings(state=tmp_path, exit_timeout=2, **ports)
    try:
        health.check(settings)
        load = loops.run_closed_loop(settings.url, [encode_image(pixels(48, 64))], workers=24, seconds=50, priority=1)
        answers = []
        flood = threading.Thread(target=lambda: answers.extend(asyncio.run(load)))
        flood.start()
        time.sleep(5)
        check_repeatedly(settings, 3)
        server = traffic_server.Server(process.running_server(settings).pid, *ports.values(), [], settings.log)
        for stub in server.list_stubs("restormer"):
            traffic_server.kill_process(stub)
        with pytest.raises(ServerError, match="no longer healthy, and stopped to be replaced"):
            check_repeatedly(settings, 2)  # the first may still see photographs finished before the kill
        assert process.running_server(settings) is None
        flood.join()
        assert loops.count_outcomes(answers)["rejected"] > 10
    finally:
        subprocess.run([*command[:-1], "stop"], cwd=ROOT, check=True)


def test_a_failure_is_retried_until_the_deadline(tmp_path, python, stopped):
    settings = Settings(state=tmp_path, grpc_port=free_port())
    began = time.monotonic()
    with pytest.raises(ServerError):
        health.check(settings, seconds=4)
    assert time.monotonic() - began >= 3


def test_the_deadline_is_longer_than_the_queue_timeouts_of_the_three_steps():
    seconds = 0.0
    for model, config in (("preprocess", "configs/cpu"), ("restormer", "configs/cpu"), ("postprocess", "config")):
        text = (ROOT / "model_repository" / model / f"{config}.pbtxt").read_text(encoding="utf-8")
        first = text.split("default_timeout_microseconds: ")[1].split()[0]  # the default level comes first
        seconds += int(first) / 1e6
    assert 0 < seconds < health.SECONDS
