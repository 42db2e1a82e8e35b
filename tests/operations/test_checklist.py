"""Test the GPU checklist: its minutes add up, and a dry run with stubs goes through it from top to bottom."""

import os
import re
import shlex
import subprocess
import sys

import pytest

from server.settings import Settings
from tests.conftest import ROOT
from tests.operations import checklist_stubs

PAGE = (ROOT / "docs/gpu-checklist.md").read_text(encoding="utf-8")
CELL = r"((?:[^|\n]|\\\|)+?)"
ROWS = [
    (name, minutes, command.replace("\\|", "|"))
    for name, minutes, command in re.findall(rf"^\| (?!check ){CELL} \| {CELL} \| {CELL} \| ", PAGE, re.MULTILINE)
]
PLACEHOLDERS = {"<NN>": "90", "<version>": "1", r"\bPHOTOS\b": "demo/photos", r"\bN\b": "16", "…": "1"}
VARIABLES = r"(?:\w+=\S+ )*"
PROGRAM = re.compile(rf"{VARIABLES}(?:test -s|mkdir|(?:\S*/)?({'|'.join(checklist_stubs.PROGRAMS)})) ")


def commands(cell):
    """Return the shell commands of a cell with values for their placeholders."""
    for quoted in re.findall(r"`([^`]+)`", cell):
        for placeholder, value in PLACEHOLDERS.items():
            quoted = re.sub(placeholder, value, quoted)
        if PROGRAM.match(quoted):
            yield quoted


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """Return a GPU host's clone, and its PATH: a stub for each program of the checklist."""
    clone, path = (tmp_path_factory.mktemp(name) for name in ("clone", "bin"))
    for entry in ROOT.iterdir():
        if entry.name not in (".envs", "out"):
            (clone / entry.name).symlink_to(entry)
    stubs = [path / name for name in checklist_stubs.PROGRAMS]
    stubs += [
        clone / f".envs/{env}/bin/{name}" for env in ("build", "server", "bulk") for name in ("python", "polygraphy")
    ]
    for stub in stubs:
        stub.parent.mkdir(parents=True, exist_ok=True)
        stub.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, checklist_stubs.__file__, stub.name])} "$@"\n')
        stub.chmod(0o755)
    return clone, {**os.environ, "PATH": f"{path}:/usr/bin:/bin"}


def test_the_minutes_add_up_to_less_than_two_hours():
    total = sum(int(minutes) for _, minutes, _ in ROWS if minutes.isdecimal())
    assert len(ROWS) == PAGE.count("\n| ") - PAGE.count("\n| check ")
    assert f"{total} in all" in PAGE
    assert total <= 120


@pytest.mark.parametrize(("name", "cell"), [(name, cell) for name, _, cell in ROWS])
def test_a_dry_run_goes_through_the_row(host, name, cell):
    clone, environment = host
    for command in commands(cell):
        done = subprocess.run(
            ["sh", "-ec", command], cwd=clone, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"


@pytest.mark.parametrize(
    "command",
    [
        "docker compose up -d tritons",
        "docker compose run --rm triton preflights",
        "docker compose exec triton sh -c 'kill $(pgrep'",
        "RESTORMER_CACHE=1 docker compose up triton",
        "make engines-of-all",
        "make engine PRECISION_OF=fp16",
        "python -m operations.served_fidelity --minimum 55",
        "kubectl apply -k deploy/kubernetes/overlays/gpus",
    ],
)
def test_the_dry_run_rejects(host, command):
    clone, environment = host
    assert subprocess.run(
        ["sh", "-ec", command], cwd=clone, env=environment, capture_output=True, check=False
    ).returncode


def test_loose_settings_exist():
    """Settings that are quoted without their command."""
    files = ("Makefile", "docker/compose.yaml", "docker/gpus.yaml")
    known = "".join((ROOT / path).read_text(encoding="utf-8") for path in files)
    known += " ".join(f"(RESTORMER_{name.upper()})" for name in Settings.__dataclass_fields__)
    for _, _, cell in ROWS:
        for name in re.findall(r"\b(?!COMPOSE_)([A-Z][A-Z_]+)=", cell):
            assert re.search(rf"[{{(]{name}\b|- {name}\b", known), name
