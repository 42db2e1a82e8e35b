"""The health check of a container, against the session's real Triton and against none."""

import time

import pytest

from server import health, process
from server.errors import ServerError
from server.settings import Settings
from tests.conftest import ROOT, SERVER_PYTHON, free_port


@pytest.fixture
def python(monkeypatch):
    """`deep_check` calls the client beside its own interpreter: here that of the server's environment."""
    monkeypatch.setattr("sys.executable", str(SERVER_PYTHON))


@pytest.fixture
def stopped(monkeypatch):
    """Which servers were stopped; the session's Triton is for the other tests."""
    found = []
    monkeypatch.setattr(process, "stop", found.append)
    return found


def test_a_server_that_enhances_is_healthy(triton, tmp_path, python, stopped):
    settings = Settings(state=tmp_path, grpc_port=triton.grpc_port)
    health.check(settings)
    assert (tmp_path / "healthy").is_file()
    assert not stopped


def test_a_server_that_is_starting_is_left_alone(tmp_path, python, stopped):
    settings = Settings(state=tmp_path, grpc_port=free_port())
    with pytest.raises(ServerError, match="not healthy yet: "):
        health.check(settings, seconds=1)
    assert not stopped


def test_a_server_that_was_healthy_is_stopped(tmp_path, python, stopped):
    settings = Settings(state=tmp_path, grpc_port=free_port())
    (tmp_path / "healthy").touch()
    with pytest.raises(ServerError, match="no longer healthy, and stopped to be replaced: "):
        health.check(settings, seconds=1)
    assert stopped == [settings]


def test_a_failure_is_tried_again_until_the_deadline(tmp_path, python, stopped):
    """As under overload, where one try is rejected and the next gets through."""
    settings = Settings(state=tmp_path, grpc_port=free_port())
    began = time.monotonic()
    with pytest.raises(ServerError):
        health.check(settings, seconds=4)
    assert time.monotonic() - began >= 3


def test_the_deadline_is_longer_than_the_queues_of_the_three_steps():
    seconds = 0.0
    for model, config in (("preprocess", "config"), ("restormer", "configs/cpu"), ("postprocess", "config")):
        text = (ROOT / "model_repository" / model / f"{config}.pbtxt").read_text(encoding="utf-8")
        first = text.split("default_timeout_microseconds: ")[1].split()[0]  # the default level's comes first
        seconds += int(first) / 1e6
    assert 0 < seconds < health.SECONDS
