"""The count of a long step, on a terminal and in a log."""

import io
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from export import progress
from export.fidelity import Reference
from export.progress import step, track


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def test_a_log_gets_a_line_a_minute(clock, capsys):
    with step("reading"):
        for _ in track(range(5)):
            clock.seconds += 40
    lines = [line.split() for line in capsys.readouterr().err.splitlines()]
    assert lines == [["reading", "..."], ["2/5,", "120", "s", "left"], ["4/5,", "40", "s", "left", "200.0", "s"]]


def test_a_terminal_shows_each_photograph_of_a_stage(clock, monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", screen)
    images = {name: np.zeros((1, 3, 16, 16), np.float32) for name in "abc"}
    with step("fidelity"):
        Reference(images, images, {}).measure("engine", "float32", lambda image: image)
    assert [part.split(",")[0] for part in screen.getvalue().split("... ")[1:]] == ["1/3", "2/3", "3/3"]
