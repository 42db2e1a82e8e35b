"""Check the build contexts of the images: all packaged and installed files, but no environments, keys or engines."""

import re
import subprocess
from pathlib import Path

import pytest
import tomllib

from tests.conftest import ROOT

DOCKERFILES = sorted(ROOT.glob("docker/*.Dockerfile"))


def expression_from_pattern(pattern):
    """Convert a line of a .dockerignore to a regular expression; it matches a folder with all its files."""
    replacements = {"**/": "(.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^]]*\])", pattern.strip("/"))
    return "".join(replacements.get(p, p if p.startswith("[") else re.escape(p)) for p in parts) + "(/.*)?"


def is_sent(path, patterns):
    """Return whether Docker sends a file: the last line that matches decides."""
    sent = True
    for pattern in patterns:
        if re.fullmatch(expression_from_pattern(pattern.removeprefix("!")), path):
            sent = pattern.startswith("!")
    return sent


def read_patterns(dockerfile):
    """Return the lines of the Dockerfile's own .dockerignore, or of the root's."""
    own = dockerfile.with_name(f"{dockerfile.name}.dockerignore")
    lines = (own if own.is_file() else ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def packaged_paths(folder):
    """Return the paths that a distribution is built from: its pyproject.toml and the paths in it."""
    project = tomllib.loads((ROOT / folder / "pyproject.toml").read_text(encoding="utf-8"))
    names = ["pyproject.toml", project["project"].get("readme"), *project["project"].get("license-files", [])]
    names += [package.replace(".", "/") for package in project["tool"]["setuptools"]["packages"]]
    return [str(Path(folder, name)) for name in names if name]


def tracked_files(paths):
    done = subprocess.run(["git", "ls-files", "--", *paths], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def requirement_files(dockerfile):
    """Return the lock files that a Dockerfile installs."""
    text = dockerfile.read_text(encoding="utf-8")
    return {path.removeprefix("/src/") for path in re.findall(r"(?:/src/)?requirements/[\w-]+\.txt", text)}


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_the_context_contains_all_files_that_the_image_installs(dockerfile):
    patterns = read_patterns(dockerfile)
    needed = tracked_files([*packaged_paths("."), *packaged_paths("client"), *requirement_files(dockerfile)])
    assert {"requirements", "adapters", "imaging", "client"} <= {path.split("/")[0] for path in needed}
    assert [path for path in needed if not is_sent(path, patterns)] == []


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_the_context_contains_no_environment_key_or_engine(dockerfile):
    private = [".envs/build/bin/python", ".git/config", ".run/admin.key", "docker/secrets/admin-key",
               "model_repository/restormer/1/model.onnx", "imaging/__pycache__/a.pyc", "out/a.jpg"]  # fmt: skip
    assert [path for path in private if is_sent(path, read_patterns(dockerfile))] == []


@pytest.mark.parametrize(
    ("patterns", "sent", "left_out"),
    [
        (["*", "!a", "!b/*.py"], ["a", "a/b/c", "b/x.py"], ["c", "b/x.txt", "b/c/x.py", "ab"]),
        (["**/__pycache__", "m/[0-9]*"], ["m/x/1", "x/pycache"], ["__pycache__/a", "x/y/__pycache__/a", "m/1/model"]),
    ],
)
def test_patterns_match_as_in_docker(patterns, sent, left_out):
    assert [is_sent(path, patterns) for path in sent] == [True] * len(sent)
    assert [is_sent(path, patterns) for path in left_out] == [False] * len(left_out)
