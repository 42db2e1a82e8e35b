"""What is sent to the builds of images: each needs what pyproject.toml packages, and what its Dockerfile names."""

import re
import subprocess
from pathlib import Path

import pytest
import tomllib

from tests.conftest import ROOT

DOCKERFILES = sorted(ROOT.glob("docker/*.Dockerfile"))


def expression(pattern):
    """Of a line of a .dockerignore, which takes a folder with all that is in it."""
    parts = {"**/": "(.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    words = re.split(r"(\*\*/|\*\*|\*|\?|\[[^]]*\])", pattern.strip("/"))
    return "".join(parts.get(w, w if w.startswith("[") else re.escape(w)) for w in words) + "(/.*)?"


def is_sent(path, patterns):
    """Docker's rule: the last line that matches decides."""
    sent = True
    for pattern in patterns:
        if re.fullmatch(expression(pattern.removeprefix("!")), path):
            sent = pattern.startswith("!")
    return sent


def patterns_of(dockerfile):
    """Of the Dockerfile's own .dockerignore, or else the root's."""
    own = dockerfile.with_name(f"{dockerfile.name}.dockerignore")
    lines = (own if own.is_file() else ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def packaged(folder):
    """What a distribution is built from: its pyproject.toml and the files that this names."""
    project = tomllib.loads((ROOT / folder / "pyproject.toml").read_text(encoding="utf-8"))
    names = ["pyproject.toml", project["project"].get("readme"), *project["project"].get("license-files", [])]
    names += [package.replace(".", "/") for package in project["tool"]["setuptools"]["packages"]]
    return [str(Path(folder, name)) for name in names if name]


def tracked(paths):
    done = subprocess.run(["git", "ls-files", "--", *paths], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def named(dockerfile):
    """The files of the project that a Dockerfile copies or reads by name."""
    text = dockerfile.read_text(encoding="utf-8")
    return {word.removeprefix("/src/") for word in re.findall(r"(?:/src/)?requirements/[\w-]+\.txt", text)}


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_gets_what_it_installs(dockerfile):
    patterns = patterns_of(dockerfile)
    wanted = tracked([*packaged("."), *packaged("client"), *named(dockerfile)])
    assert {"requirements", "adapters", "imaging", "client"} <= {path.split("/")[0] for path in wanted}
    assert [path for path in wanted if not is_sent(path, patterns)] == []


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_gets_no_environment_key_or_engine(dockerfile):
    private = [".envs/build/bin/python", ".git/config", ".run/admin.key", "docker/secrets/admin-key",
               "model_repository/restormer/1/model.onnx", "imaging/__pycache__/a.pyc", "out/a.jpg"]  # fmt: skip
    assert [path for path in private if is_sent(path, patterns_of(dockerfile))] == []


@pytest.mark.parametrize(
    ("patterns", "sent", "left_out"),
    [
        (["*", "!a", "!b/*.py"], ["a", "a/b/c", "b/x.py"], ["c", "b/x.txt", "b/c/x.py", "ab"]),
        (["**/__pycache__", "m/[0-9]*"], ["m/x/1", "x/pycache"], ["__pycache__/a", "x/y/__pycache__/a", "m/1/model"]),
    ],
)
def test_patterns_are_read_as_docker_reads_them(patterns, sent, left_out):
    assert [is_sent(path, patterns) for path in sent] == [True] * len(sent)
    assert [is_sent(path, patterns) for path in left_out] == [False] * len(left_out)
