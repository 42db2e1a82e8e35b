"""Test the check for processes and shared memory that a test leaves behind."""

import subprocess

import pytest

from server import host
from tests.acceptance import leftovers


def test_a_process_that_outlives_the_test_is_reported(monkeypatch):
    monkeypatch.setattr(leftovers, "PATIENCE", 0.5)
    with pytest.raises(SystemExit, match="sleep 60"), leftovers.expect_no_leftovers():
        process = subprocess.Popen(["sleep", "60"])
    process.kill()
    process.wait()


def test_unused_shared_memory_is_reported(monkeypatch, tmp_path):
    monkeypatch.setattr(leftovers, "PATIENCE", 0.5)
    monkeypatch.setattr(host, "SHM", tmp_path)
    (tmp_path / "restormer_before").touch()
    with leftovers.expect_no_leftovers():
        (tmp_path / "of_another_program").touch()
    with pytest.raises(SystemExit, match="restormer_after"), leftovers.expect_no_leftovers():
        (tmp_path / "restormer_after").touch()
