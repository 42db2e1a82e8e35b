"""Test the Makefile in its own clone with a stub of Python: installing, the environment, and paths with spaces."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ROOT

#: Records its arguments and its environment, makes virtual environments of itself, and stands in for pip.
PYTHON = """#!/bin/sh
{ printf '%s|' "$@"; echo; } >>calls
env | grep -E '^(PYTHON.+|PIP_TARGET|PIP_USER)=' >>environment
case "$*" in
    "-m venv --clear "*) mkdir -p "$4/bin" && cp "$0" "$4/bin/python" ;;
    "-m pip install "*) if [ -e offline ]; then
        echo "WARNING: Retrying (Retry(total=4)) after connection broken: NewConnectionError"
        echo "ERROR: No matching distribution found for numpy==1.26.4" >&2
        exit 1
    fi ;;
esac
"""


@dataclass
class Clone:
    """Make a clone whose Python is a stub."""

    folder: Path

    def make(self, *arguments, **environment):
        """Run make; return the finished process and the stub's calls, each as a list of arguments."""
        (self.folder / "calls").write_text("")
        done = subprocess.run(
            ["make", f"PYTHON={self.folder / 'my python'}", *arguments],
            cwd=self.folder, env={**os.environ, **environment}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done, [line.split("|")[:-1] for line in (self.folder / "calls").read_text().splitlines()]


@pytest.fixture
def clone(tmp_path):
    folder = tmp_path / "my clone ä"
    (folder / "client").mkdir(parents=True)
    shutil.copytree(ROOT / "requirements", folder / "requirements")
    for name in ("Makefile", "pyproject.toml", "client/pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "my python").write_text(PYTHON)
    (folder / "my python").chmod(0o755)
    return Clone(folder)


def installs(calls):
    """Return the calls that install something."""
    return [" ".join(call) for call in calls if call[:2] in (["-m", "venv"], ["-m", "pip"])]


def test_environments_follow_the_content_of_their_lock_files(clone):
    done, calls = clone.make("serve")
    assert done.returncode == 0, done.stderr
    assert calls[-1][:2] == ["-m", "server"]
    packages = [call.split()[-1] for call in installs(calls)]
    assert packages[0].endswith("/server")
    assert packages[1].startswith("setuptools==")  # for the last one, without a network
    assert "--no-build-isolation -e . -e client" in installs(calls)[-1]

    for path in clone.folder.rglob("*.t*"):
        os.utime(path, (4e9, 4e9))
    assert installs(clone.make("serve")[1]) == []
    with (clone.folder / "client/pyproject.toml").open("a") as file:
        file.write("# changed")
    assert len(installs(clone.make("serve")[1])) == 1
    with (clone.folder / "requirements/server.txt").open("a") as file:
        file.write("# changed")
    assert len(installs(clone.make("serve")[1])) == 4


def test_a_moved_clone_is_installed_again(clone):
    """An editable install contains the path."""
    clone.make("serve")
    clone.folder = clone.folder.rename(clone.folder.with_name("moved"))
    assert len(installs(clone.make("serve")[1])) == 1


def test_a_failed_install_is_one_line_and_repeated(clone):
    (clone.folder / "offline").touch()
    done, _ = clone.make("serve")
    started, error, *rest = done.stderr.splitlines()
    assert (started, done.returncode) == ("installing the server ...", 2)
    assert error.startswith("error: cannot install the server: ERROR: No matching distribution found for numpy")
    assert [re.split(r"[:\[]", line)[0] for line in rest] == ["make"]  # make[1] below another make
    assert "Retrying" in (clone.folder / ".envs/install.log").read_text()
    (clone.folder / "offline").unlink()
    assert clone.make("serve")[0].returncode == 0


def test_the_users_python_variables_stay_outside(clone):
    users = ("PYTHONPATH", "PYTHONSAFEPATH", "PYTHONWARNINGS", "PYTHONHOME", "PYTHONOPTIMIZE", "PIP_TARGET")
    done, calls = clone.make("setup", **dict.fromkeys(users, "1"), PIP_USER="1", MAKEFLAGS="-j4")
    assert (done.returncode, len(installs(calls))) == (0, 7)
    assert set((clone.folder / "environment").read_text().splitlines()) == {"PIP_USER=0", "PYTHONDONTWRITEBYTECODE=1"}


@pytest.mark.parametrize(
    ("command", "variable"), [("rollback", "VERSION"), ("evaluate", "PAIRS"), ("tune", "SLO_P99_MS")]
)
def test_an_inherited_variable_is_not_a_setting(clone, command, variable):
    done, calls = clone.make(command, **{variable: "7"})
    assert done.returncode
    assert f"error: {variable} is not set" in done.stderr
    assert not [call for call in calls if command in call]


def test_clean_leaves_folders_alone_that_only_the_environment_names(clone):
    (clone.folder / "mine").mkdir()
    assert clone.make("clean", STATE="mine", OUTPUT="mine", ENVS="mine")[0].returncode == 0
    assert (clone.folder / "mine").is_dir()


def test_the_servers_variables_are_passed_on(clone):
    variables = {
        "ADDRESS": "::1",
        "GRPC_PORT": "9001",
        "METRICS_PORT": "9002",
        "HTTP_PORT": "9000",
        "STATE": "my state",
        "REPOSITORY": "my models",
        "ENVS": "other",
    }
    environment = {f"RESTORMER_{name}": value for name, value in variables.items()}
    _, calls = clone.make("serve", **environment)
    given = dict(zip(calls[-1][2:-1:2], calls[-1][3::2], strict=True))
    assert given == {
        "--address": "::1", "--grpc-port": "9001", "--metrics-port": "9002", "--http-port": "9000",
        "--state": "my state", "--repository": "my models",
    }  # fmt: skip
    assert (clone.folder / "other/server.done").is_file()
    assert "9003" in clone.make("serve", "HTTP_PORT=9003", **environment)[1][-1]


def test_settings_may_contain_spaces(clone):
    settings = {name: f"my {name}" for name in ("PACKAGE", "PHOTOS", "ENGINES", "REPOSITORY")}
    _, calls = clone.make("engine", *("=".join(setting) for setting in settings.items()))
    assert set(settings.values()) < set(calls[-1])
    done, _ = clone.make("serve", "ENVS=my environments")
    assert "cannot use a path with spaces" in done.stderr
