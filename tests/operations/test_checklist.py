"""Test that commands of the GPU checklist name verbs, settings and services that exist, and that minutes add up."""

import re
import subprocess

import pytest
import yaml

from server.__main__ import _VERBS
from server.settings import Settings
from tests.conftest import ROOT

PAGE = (ROOT / "docs/gpu-checklist.md").read_text(encoding="utf-8").replace("\\|", "|")
ROWS = re.findall(r"^\| (?!check )(.+?) \| (\[?\d+\]?) \| (.+?)$", PAGE, re.MULTILINE)
COMMANDS = sorted({command for *_, cells in ROWS for command in re.findall(r"`([^`]+)`", cells)})
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
COMPOSE = {path: path.read_text(encoding="utf-8") for path in ROOT.glob("docker/*.yaml")}
SERVICES = yaml.safe_load(COMPOSE[ROOT / "docker/compose.yaml"])["services"]


def find(pattern):
    """Return the groups of every match in a command."""
    return sorted({match.groups() for command in COMMANDS for match in re.finditer(pattern, command)})


def test_the_minutes_add_up_to_less_than_two_hours():
    total = sum(int(minutes) for _, minutes, _ in ROWS if minutes.isdecimal())
    assert len(ROWS) == PAGE.count("\n| ") - PAGE.count("\n| check ")
    assert f"{total} in all" in PAGE
    assert total <= 120


MAKE = r'(?:^|builder |=\S+ )(make [a-z][\w-]*(?: \w+=(?:"[^"]*"|\$\([^)]*\)|\S+))*)'


@pytest.mark.parametrize("command", [command for (command,) in find(MAKE)])
def test_every_make_command_exists(command):
    """Make expands them without running them."""
    done = subprocess.run(f"{command} --dry-run", shell=True, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [name for name in re.findall(r" (\w+)=", command) if f"$({name})" not in MAKEFILE] == []


@pytest.mark.parametrize(("module", "options"), find(r"python -m ([\w.]+)(.*)"))
def test_every_module_has_the_flags(module, options):
    path = ROOT / module.replace(".", "/")
    source = (path / "__main__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")
    assert [flag for flag in re.findall(r" (--[\w-]+)", options) if f'"{flag}"' not in source] == []


def test_every_service_verb_and_variable_exists():
    for (words,) in find(r"docker compose ((?:run|up|exec|build|top) .*)"):
        names = re.sub(r" -\S*(?: sh(?= ))?", "", words).split()[1:]
        assert names[0] in SERVICES, words
        assert words.startswith("run") is False or names[:1] != ["triton"] or "sh" in words or names[1] in _VERBS, words
    for (name,) in find(r"\bRESTORMER_([A-Z_]+)="):
        assert name.lower() in Settings.__dataclass_fields__
    for (name,) in find(r"\b([A-Z]+_GPUS?)="):
        assert any(f"${{{name}:-" in text for text in COMPOSE.values())
