"""Render the manifests of deploy/kubernetes with kubectl or kustomize; skip the calling test where there is neither."""

import functools
import shutil
import subprocess

import pytest
import yaml

from tests.conftest import ROOT

FOLDER = ROOT / "deploy/kubernetes"
OVERLAYS = ("cpu", "gpu")


def render(folder):
    """Return the documents of a kustomization."""
    commands = {"kubectl": ["kubectl", "kustomize"], "kustomize": ["kustomize", "build"]}
    command = next((parts for name, parts in commands.items() if shutil.which(name)), None)
    if command is None:
        pytest.skip("rendering the manifests needs kubectl or kustomize on PATH")
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@functools.cache
def documents(overlay):
    return render(FOLDER / "overlays" / overlay)


def one(overlay, kind):
    """Return the only document of a kind."""
    (document,) = (each for each in documents(overlay) if each["kind"] == kind)
    return document
