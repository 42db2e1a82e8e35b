"""Test the canary: compare two versions through a real server; reject wrong options with one line."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from operations import canary
from tests.conftest import ROOT


def test_equal_versions_give_equal_results(repository, tmp_path):
    """With a proxy in the environment, which does not serve loopback addresses, and settings of another server."""
    copy = tmp_path / "models"
    shutil.copytree(repository, copy)
    shutil.copytree(copy / "restormer/1", copy / "restormer/2")
    photos = tmp_path / "photos"
    photos.mkdir()
    shutil.copy(ROOT / "demo/photos/balcony.jpg", photos)
    command = [sys.executable, "-m", "operations.canary", "--repository", str(copy), "--photos", str(photos)]
    command += ["--repeat", "1", "--at-least", "100", "--record", str(tmp_path / "canary.json")]
    environment = {**os.environ, "http_proxy": "http://127.0.0.1:9", "no_proxy": "", "RESTORMER_CORE_BATCH": "99"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "canary.json").read_text())["photographs"]
    assert row["between"] == 200
    assert row["truth"]["1"] == row["truth"]["2"] > 20
    assert "balcony" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--photos", "docs/nothing"], "docs/nothing holds 0 photographs"),
        (["--candidate", "1"], "two versions"),
        (["--candidate", "77"], "version 77 is not published"),
        (["--url", "127.0.0.1:9"], "error: "),
    ],
)
def test_wrong_options_exit_with_one_line(options, message, repository):
    command = [sys.executable, "-m", "operations.canary", "--repository", str(repository), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_the_table_shows_missing_ground_truth():
    row = {"name": "a", "between": 50.0, "truth": {"1": None, "2": 30.0}, "ms": {"1": 10.0, "2": 20.0}}
    assert [cell.strip() for cell in canary.format_table([row], ("1", "2")).splitlines()[-1].split("|")[1:-1]] == [
        "a", "50.0", "–", "30.00", "10", "20",
    ]  # fmt: skip
