"""Packages as they come: good, odd, broken and hostile."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from export.__main__ import main
from export.architecture import OWNER_EPS, restormer
from export.errors import ExportError
from export.network import Restormer
from export.package import network_from_package, package_from_folder
from export.report import multiply_accumulates

TINY = restormer(dim=8, blocks=(1, 1, 1, 1), refinement=0, heads=(1, 1, 1, 1), reduces_level1=True, eps=OWNER_EPS)


@pytest.fixture
def weights():
    torch.manual_seed(0)
    return Restormer(TINY).state_dict()


def package_with(folder: Path, checkpoint: object) -> Path:
    folder.mkdir(exist_ok=True)
    torch.save(checkpoint, folder / "model_checkpoint.pt")
    return folder


@pytest.mark.parametrize("key", ["model_state_dict", "state_dict", "model", "params", None])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "net."])
def test_weights_are_found_under_the_usual_keys_and_prefixes(tmp_path, weights, key, prefix):
    named = {prefix + name: tensor for name, tensor in weights.items()}
    package = package_from_folder(package_with(tmp_path, {key: named, "epoch": 3} if key else named))
    assert package.architecture == TINY
    loaded = network_from_package(package).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items())


class RunsCode:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExportError, match=r"refused: it asks for (posix|os)\.system, which could run code"):
        package_from_folder(package_with(tmp_path / "package", {"model": RunsCode()}))
    assert not (tmp_path / "pwned").exists()


def test_averaged_weights_are_preferred_and_that_is_said(tmp_path, weights):
    plain = {name: tensor + 1 for name, tensor in weights.items()}
    package = package_from_folder(package_with(tmp_path, {"params": plain, "params_ema": weights}))
    assert torch.equal(package.weights["output.weight"], weights["output.weight"])
    (remark,) = package.remarks
    assert "params_ema is taken" in remark
    assert "params holds" in remark


@pytest.mark.parametrize("scalar", [np.float64(0.5), np.float32(0.5), np.int64(3), np.bool_(True)])
def test_numpy_scalars_among_the_metrics_are_no_reason_to_refuse(tmp_path, weights, scalar):
    package = package_from_folder(package_with(tmp_path, {"model_state_dict": weights, "metrics": {"psnr": scalar}}))
    assert package.architecture == TINY


def test_safetensors_are_accepted(tmp_path, weights):
    save_file(weights, tmp_path / "model.safetensors")
    package = package_from_folder(tmp_path)
    assert all(torch.equal(package.weights[name], tensor) for name, tensor in weights.items())


def test_a_boast_of_another_size_is_reported(tmp_path, weights):
    package_with(tmp_path, weights)
    (tmp_path / "MANIFEST.txt").write_text("Restormer Base, 25.4M parameters\n")
    (remark,) = package_from_folder(tmp_path).remarks
    assert remark.startswith("MANIFEST.txt says 25.4M parameters, the tensors hold 0.")


def test_the_cost_of_the_standard_network_is_the_known_one():
    convolutions, products = multiply_accumulates(restormer(), 256)
    assert round(convolutions / 1e9, 2) == 140.99
    assert round((convolutions + products) / 1e9, 2) == 154.88


def test_inspect_prints_what_is_there_and_what_does_not_agree(tmp_path, weights, capsys):
    package_with(tmp_path, weights)
    (tmp_path / "architecture.json").write_text('{"dim": 48}')
    (tmp_path / "training_info.json").write_text('{"epoch": 7}')
    assert main(["inspect", "--package", str(tmp_path)]) == 0
    page = capsys.readouterr().out
    assert "model_checkpoint.pt" in page
    assert "epoch                7" in page
    assert "encoder_level1" in page
    assert "dim = 48, the tensors say 8" in page


def broken_packages(tmp_path, weights):
    """Name of the trouble, package folder, what the message must say."""
    yield "absent", tmp_path / "nowhere", "no model package at"
    (tmp_path / "empty").mkdir()
    yield "without a checkpoint", tmp_path / "empty", "holds no model_checkpoint.pt"
    (tmp_path / "text").mkdir()
    (tmp_path / "text/model_checkpoint.pt").write_text("these are no weights")
    yield "text", tmp_path / "text", "refused|cannot be read"
    yield "without weights", package_with(tmp_path / "bare", {"epoch": 1}), "holds no weights"
    yield "another network", package_with(tmp_path / "other", {"conv1.weight": torch.ones(1)}), "not a Restormer"
    poisoned = {**weights, "output.weight": weights["output.weight"] * float("nan")}
    yield "NaN", package_with(tmp_path / "nan", poisoned), "NaN or infinity"
    bent = {**weights, "latent.0.attn.qkv.weight": torch.ones(7, 7, 1, 1)}
    yield "wrong shape", package_with(tmp_path / "bent", bent), "do not fit"
    whole = package_with(tmp_path / "cut", weights) / "model_checkpoint.pt"
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    yield "truncated", tmp_path / "cut", "cannot be read"


def test_broken_packages_end_in_one_line_and_publish_nothing(tmp_path, weights, capsys):
    repository = tmp_path / "repository"
    shutil.copytree("model_repository", repository, ignore=shutil.ignore_patterns("[0-9]*"))
    before = sorted(repository.rglob("*"))
    for trouble, folder, message in broken_packages(tmp_path, weights):
        code = main(["engine", "--package", str(folder), "--repository", str(repository)])
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert code == 1, trouble
        assert len(lines) == 1, trouble
        assert any(part in lines[0] for part in message.split("|")), (trouble, lines)
    assert sorted(repository.rglob("*")) == before


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("patch_embed.weight", (8,), "4 dimensions wanted"),
        ("output.weight", (), "4 dimensions wanted"),
        ("latent.0.attn.temperature", (3, 1, 1), "64 channels for 3 heads"),
        ("latent.0.attn.temperature", (0, 1, 1), "3 dimensions wanted"),
        ("latent.0.ffn.project_out.weight", (64,), "4 dimensions wanted"),
    ],
)
def test_tensors_of_impossible_shapes_are_named(tmp_path, weights, name, shape, message):
    with pytest.raises(ExportError, match=message):
        package_from_folder(package_with(tmp_path, {**weights, name: torch.ones(shape)}))


def test_false_claims_are_reported_with_both_values(tmp_path, weights):
    package_with(tmp_path, weights)
    claims = {"dim": 48, "parameters": 25_400_000, "num_blocks": [4, 6, 6, 8], "heads": [1, 1, 1, 1]}
    claims |= {"ffn_expansion_factor": 2.53, "LayerNorm_type": "BiasFree"}
    (tmp_path / "architecture.json").write_text(json.dumps(claims))
    (tmp_path / "MANIFEST.txt").write_text("Restormer\n" + "0" * 64 + "  model_checkpoint.pt\n")
    remarks = " / ".join(package_from_folder(tmp_path).remarks)
    assert "dim = 48, the tensors say 8" in remarks
    assert "parameters = 25,400,000, the tensors hold " in remarks
    assert "num_blocks = [4, 6, 6, 8], the tensors say [1, 1, 1, 1]" in remarks
    assert "LayerNorm_type = BiasFree, the tensors say WithBias" in remarks
    assert "ffn_expansion_factor = 2.53, widths [20, 40, 80, 161]" in remarks
    assert "heads" not in remarks
    assert "model_checkpoint.pt: SHA-256" in remarks


@pytest.mark.parametrize("name", ["architecture.json", "training_info.json", "config.json"])
def test_broken_json_is_named(tmp_path, weights, name):
    package_with(tmp_path, weights)
    (tmp_path / name).write_text("{")
    with pytest.raises(ExportError, match=f"{name} is not valid JSON"):
        package_from_folder(tmp_path)
