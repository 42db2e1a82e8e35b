"""Fixtures for quick real builds: a tiny package (28 k parameters, default initialisation)."""

import shutil
from pathlib import Path

import pytest
import torch

from export.build import build
from export.network.architecture import OWNER_EPS, restormer
from export.network.restormer import Restormer
from export.package.naming import OWNER
from export.request import Request
from tests.conftest import ROOT, bare_repository

TINY = restormer(dim=8, blocks=(1, 1, 1, 1), refinement=0, heads=(1, 1, 1, 1), reduces_level1=True, eps=OWNER_EPS)


def save_package(folder: Path, network: Restormer) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    weights = {OWNER.external(name): tensor for name, tensor in network.state_dict().items()}
    torch.save({"model_state_dict": weights}, folder / "model_checkpoint.pt")
    return folder


@pytest.fixture(scope="session")
def tiny_network() -> Restormer:
    torch.manual_seed(0)
    return Restormer(TINY).eval()


@pytest.fixture(scope="session")
def tiny(tiny_network, tmp_path_factory) -> dict:
    """Settings of a request for the tiny package: one photograph, eight for calibration."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "photos").mkdir()
    shutil.copy(ROOT / "demo/photos/coffee-table.jpg", folder / "photos")
    (folder / "calibration").mkdir()
    for path in sorted((ROOT / "demo/calibration").glob("*.jpg"))[::3]:
        shutil.copy(path, folder / "calibration")
    return {
        "package": save_package(folder / "package", tiny_network),
        "photos": folder / "photos",
        "calibration": folder / "calibration",
    }


@pytest.fixture(scope="session")
def published(tiny, tmp_path_factory) -> dict:
    """Build the tiny package in every precision that needs no GPU."""
    folder = tmp_path_factory.mktemp("published")
    folders = {"repository": bare_repository(folder / "model_repository"), "engines": folder / "engines"}
    for version, precision in enumerate(("fp32", "tf32", "bf16", "fp16", "int8"), 1):
        build(Request(**tiny, **folders, precision=precision, version=version, target="rtx"))
    return folders
