"""Test publish.sh with a stub of `kubectl exec` that runs the command locally on a folder."""

import os
import shutil
import subprocess

import pytest

from server.engines import check_engines
from tests.conftest import ROOT, bare_repository
from tests.kubernetes.test_manifests import kserve

KUBECTL = """#!/bin/sh
# Accepts only: kubectl exec -i -n restormer restormer-publisher -- COMMAND...
[ -e "$MODELS" ] || { echo "Error from server (NotFound): pods not found" >&2; exit 1; }
[ "$1 $2 $3 $4 $5 $6" = "exec -i -n restormer $PUBLISHER --" ] || { echo "unknown: $*" >&2; exit 1; }
shift 6
[ -e "$MODELS/full" ] && case "$3" in *mkdir*) head -c 10 | sh -c "$3"; exit 1 ;; esac
exec "$@"
"""


@pytest.fixture
def cluster(tmp_path):
    """Return a folder with a local model repository, an empty remote one and a `kubectl` stub."""
    shutil.copytree(bare_repository(tmp_path / "bare"), tmp_path / "here")
    for version in ("1", "2"):
        folder = tmp_path / "here/restormer" / version
        folder.mkdir()
        (folder / "model.onnx").write_bytes(version.encode())
        (folder / "__pycache__").mkdir()
    (tmp_path / "there").mkdir()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/kubectl").write_text(KUBECTL)
    (tmp_path / "bin/kubectl").chmod(0o755)
    return tmp_path


def publish(cluster, *arguments):
    environment = {
        **os.environ, "PATH": f"{cluster / 'bin'}:{os.environ['PATH']}", "MODELS": str(cluster / "there"),
        "REPOSITORY": str(cluster / "here"), "PUBLISHER": kserve()["Pod"]["metadata"]["name"],
    }  # fmt: skip
    command = ["sh", str(ROOT / "deploy/kubernetes/publish.sh"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def list_tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_the_first_version_copies_configs_and_adapters_and_later_ones_only_themselves(cluster):
    done = publish(cluster, "1")
    assert done.returncode == 0, done.stderr
    there = cluster / "there"
    assert list_tree(there) == sorted([*list_tree(cluster / "bare"), "restormer/1", "restormer/1/model.onnx"])
    (there / "enhance/config.pbtxt").write_text("as it is there")
    assert publish(cluster, "2").returncode == 0
    assert (there / "restormer/2/model.onnx").read_bytes() == b"2"
    assert (there / "enhance/config.pbtxt").read_text() == "as it is there"
    assert not list(there.glob("restormer/.*"))


def test_the_preflight_accepts_the_published_repository(cluster, repository):
    shutil.rmtree(cluster / "here")
    shutil.copytree(repository, cluster / "here")
    assert publish(cluster, "1").returncode == 0
    assert check_engines(cluster / "there").path == cluster / "there/restormer/1/model.onnx"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one version"), (["1", "2"], "one version"), (["../1"], "../1 is not a version"),
        (["7"], "make engine VERSION=7"),
    ],
)  # fmt: skip
def test_wrong_versions_exit_with_one_line(cluster, arguments, message):
    done = publish(cluster, *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert list_tree(cluster / "there") == []


def test_published_versions_are_not_replaced(cluster):
    assert publish(cluster, "1").returncode == 0
    (cluster / "here/restormer/1/model.onnx").write_bytes(b"another")
    done = publish(cluster, "1")
    assert done.returncode == 1
    assert "already exists" in done.stderr
    assert (cluster / "there/restormer/1/model.onnx").read_bytes() == b"1"


def test_interrupted_publishing_leaves_nothing_visible_and_can_be_repeated(cluster):
    assert publish(cluster, "1").returncode == 0
    (cluster / "there/full").touch()
    done = publish(cluster, "2")
    assert done.returncode == 1
    assert "not copied" in done.stderr
    assert not (cluster / "there/restormer/2").exists()
    (cluster / "there/full").unlink()
    assert publish(cluster, "2").returncode == 0
    assert (cluster / "there/restormer/2/model.onnx").read_bytes() == b"2"


def test_without_the_publisher_the_error_names_the_command(cluster):
    (cluster / "there").rmdir()
    done = publish(cluster, "1")
    assert done.returncode == 1
    assert "kubectl apply -n restormer -f deploy/kubernetes/publisher.yaml" in done.stderr
