"""Packages: good, odd, broken and hostile."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from export.__main__ import main
from export.errors import ExportError
from export.files import sha256
from export.network.architecture import OWNER_EPS, owner_network, restormer
from export.network.cost import multiply_accumulates
from export.network.restormer import Restormer
from export.package import naming
from export.package.model_package import network_from_package, package_from_folder
from export.package.naming import CONVENTIONS, PAPER
from export.package.trained_frame import require_frame

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


def test_a_pickle_that_would_run_code_is_rejected(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExportError, match=r"rejected: it asks for (posix|os)\.system, which could run code"):
        package_from_folder(package_with(tmp_path / "package", {"model": RunsCode()}))
    assert not (tmp_path / "pwned").exists()


def test_averaged_weights_are_preferred_with_a_remark(tmp_path, weights):
    plain = {name: tensor + 1 for name, tensor in weights.items()}
    package = package_from_folder(package_with(tmp_path, {"params": plain, "params_ema": weights}))
    assert torch.equal(package.weights["output.weight"], weights["output.weight"])
    (remark,) = package.remarks
    assert "params_ema is used" in remark
    assert "params holds" in remark


@pytest.mark.parametrize("scalar", [np.float64(0.5), np.float32(0.5), np.int64(3), np.bool_(True)])
def test_numpy_scalars_among_the_metrics_are_accepted(tmp_path, weights, scalar):
    package = package_from_folder(package_with(tmp_path, {"model_state_dict": weights, "metrics": {"psnr": scalar}}))
    assert package.architecture == TINY


def test_safetensors_are_accepted(tmp_path, weights):
    save_file(weights, tmp_path / "model.safetensors")
    package = package_from_folder(tmp_path)
    assert all(torch.equal(package.weights[name], tensor) for name, tensor in weights.items())


def test_another_size_in_the_manifest_is_reported(tmp_path, weights):
    package_with(tmp_path, weights)
    (tmp_path / "MANIFEST.txt").write_text("Restormer Base, 25.4M parameters\n")
    (remark,) = package_from_folder(tmp_path).remarks
    assert remark.startswith("MANIFEST.txt says 25.4M parameters, the tensors hold 0.")


@pytest.mark.parametrize(
    ("architecture", "side", "convolutions", "total"),
    [(restormer(), 256, 140.99, 154.88), (owner_network(), 512, 383.64, 410.21)],
)
def test_the_cost_is_the_published_one(architecture, side, convolutions, total):
    inside, products = multiply_accumulates(architecture, side)
    assert round(inside / 1e9, 2) == convolutions
    assert round((inside + products) / 1e9, 2) == total


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
    """Yield the problem, a package folder with it, and a keyword of the message."""
    yield "absent", tmp_path / "nowhere", "is not a folder"
    (tmp_path / "empty").mkdir()
    yield "without a checkpoint", tmp_path / "empty", "holds no model_checkpoint.pt"
    (tmp_path / "text").mkdir()
    (tmp_path / "text/model_checkpoint.pt").write_text("these are no weights")
    yield "text", tmp_path / "text", "rejected|cannot be read"
    yield "without weights", package_with(tmp_path / "bare", {"epoch": 1}), "holds no weights"
    yield "another network", package_with(tmp_path / "other", {"conv1.weight": torch.ones(1)}), "not a Restormer"
    poisoned = {**weights, "output.weight": weights["output.weight"] * float("nan")}
    yield "NaN", package_with(tmp_path / "nan", poisoned), "NaN or infinity"
    bent = {**weights, "latent.0.attn.qkv.weight": torch.ones(7, 7, 1, 1)}
    yield "wrong shape", package_with(tmp_path / "bent", bent), "do not fit"
    whole = package_with(tmp_path / "cut", weights) / "model_checkpoint.pt"
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    yield "truncated", tmp_path / "cut", "cannot be read"


def test_broken_packages_print_one_error_line(tmp_path, weights, capsys):
    repository = tmp_path / "repository"
    shutil.copytree("model_repository", repository, ignore=shutil.ignore_patterns("[0-9]*"))
    before = sorted(repository.rglob("*"))
    for problem, folder, message in broken_packages(tmp_path, weights):
        code = main(["engine", "--package", str(folder), "--repository", str(repository)])
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert code == 1, problem
        assert len(lines) == 1, problem
        assert any(part in lines[0] for part in message.split("|")), (problem, lines)
    (repository / "restormer/.lock").unlink()
    assert sorted(repository.rglob("*")) == before


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("patch_embed.weight", (8,), "4 dimensions expected"),
        ("output.weight", (), "4 dimensions expected"),
        ("latent.0.attn.temperature", (3, 1, 1), "64 channels for 3 heads"),
        ("latent.0.attn.temperature", (0, 1, 1), "3 dimensions expected"),
        ("latent.0.ffn.project_out.weight", (64,), "4 dimensions expected"),
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


KINDS = {
    "lightning, a loss beside it": lambda w: {"state_dict": {**prefixed("net.", w), "loss.vgg.0.weight": w["x"]}},
    "a GAN's generator": lambda w: {"generator": prefixed("module.", w), "discriminator": {"0.weight": w["x"]}},
    "inside two keys": lambda w: {"checkpoint": {"network": prefixed("", w)}},
    "compiled block by block": lambda w: {n.replace("0.attn", "0._orig_mod.attn"): w[n] for n in prefixed("", w)},
    "in a list": lambda w: {"models": [prefixed("", w)]},
    "a wrapper around a stage": lambda w: {n.replace("latent.", "latent.module."): w[n] for n in prefixed("", w)},
    "half precision": lambda w: {name: tensor.bfloat16() for name, tensor in prefixed("", w).items()},
}  # fmt: skip


def prefixed(prefix, weights):
    return {prefix + name: tensor for name, tensor in weights.items() if name != "x"}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("convention", CONVENTIONS, ids=lambda convention: convention.title)
def test_the_network_is_found_in_any_wrapping_and_naming(tmp_path, weights, convention, kind):
    named = {convention.external(name): tensor for name, tensor in weights.items()}
    content = kind({**named, "x": torch.zeros(3)})
    package = package_from_folder(package_with(tmp_path, content))
    assert (package.convention, package.architecture.eps) == (convention, convention.eps)
    loaded = network_from_package(package).state_dict()
    assert all(torch.allclose(loaded[name], tensor, atol=1e-2) for name, tensor in weights.items())


def test_a_new_naming_convention_is_one_row(tmp_path, weights, monkeypatch):
    row = naming.Convention(
        title="another team", eps=1e-6, patch_embed="embed.conv", block="{stage}.layers.{index}", norm="ln_{index}"
    )
    named = {row.external(name): tensor for name, tensor in weights.items()}
    with pytest.raises(ExportError, match="unknown"):
        package_from_folder(package_with(tmp_path, named))
    monkeypatch.setattr(naming, "CONVENTIONS", (*CONVENTIONS, row))
    package = package_from_folder(package_with(tmp_path, named))
    assert package.convention is row
    assert all(torch.equal(package.weights[name], tensor) for name, tensor in weights.items())


def test_incomplete_averaged_weights_are_left_out(tmp_path, weights):
    partial = {name: tensor + 1 for name, tensor in weights.items() if not name.startswith("latent")}
    package = package_from_folder(package_with(tmp_path, {"model": weights, "model_ema": partial}))
    assert torch.equal(package.weights["output.weight"], weights["output.weight"])
    assert any("model_ema" in remark and "latent" in remark for remark in package.remarks)


def test_an_incomplete_network_of_equal_rank_is_left_out(tmp_path, weights):
    partial = {name: tensor + 1 for name, tensor in weights.items() if not name.startswith("latent")}
    package = package_from_folder(package_with(tmp_path / "one", {"a": {"x": partial}, "b": {"y": weights}}))
    assert torch.equal(package.weights["output.weight"], weights["output.weight"])
    assert any("a.x" in remark and "latent" in remark for remark in package.remarks)
    with pytest.raises(ExportError, match=r"several networks fit: a\.x, b\.y"):
        package_from_folder(package_with(tmp_path / "two", {"a": {"x": weights}, "b": {"y": dict(weights)}}))
    with pytest.raises(ExportError, match="latent"):
        package_from_folder(package_with(tmp_path / "three", {"a": {"x": partial}, "b": {"y": dict(partial)}}))


UNCONVERTIBLE = {
    "float8": lambda t: t.to(torch.float8_e4m3fn),
    "integers": lambda t: t.to(torch.int8),
    "complex": lambda t: t.to(torch.complex64),
    "sparse": lambda t: t.to_sparse(),
    "without data": lambda t: t.to("meta"),
}


@pytest.mark.parametrize("convert", UNCONVERTIBLE.values(), ids=UNCONVERTIBLE)
def test_a_tensor_that_cannot_be_converted_is_named(tmp_path, weights, convert):
    with pytest.raises(ExportError, match=r"'output\.weight' cannot be converted"):
        package_from_folder(package_with(tmp_path, {**weights, "output.weight": convert(weights["output.weight"])}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent.0.attn.relative_bias": torch.zeros(1)}, r"'latent\.0\.attn\.relative_bias'"),
        ({"latent.0.norm1.body.weight": torch.zeros(64)}, "two naming conventions are mixed"),
        ({"encoder_level1.blocks.0.norm1.weight": torch.zeros(8)}, "two naming conventions are mixed"),
        ({"reduce_chan_level2.bias": torch.zeros(99)}, r"'reduce_chan_level2\.bias' has shape"),
        ({"latent.0.attn.qkv.bias": torch.zeros(192)}, r"'latent\.0\.attn\.qkv\.bias'"),
    ],
)
def test_an_unknown_tensor_is_named(tmp_path, weights, change, message):
    with pytest.raises(ExportError, match=message):
        package_from_folder(package_with(tmp_path, {**weights, **change}))


def test_counters_of_profilers_are_dropped_with_a_remark(tmp_path, weights):
    counters = {"total_ops": torch.zeros(1), "latent.0.attn.total_params": torch.zeros(1)}
    (remark,) = package_from_folder(package_with(tmp_path, {**weights, **counters})).remarks
    assert remark.startswith("2 profiler counters")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\xef\xbb\xbf<!DOCTYPE html><html></html>", "web page"),
        (b"/annex/objects/MD5E-s1--0.pt\n", "git annex get"),
        (b'{"error": "not found"}', "JSON"),
        (b"", "empty"),
        (b"hello world\n", "not a zip archive"),
        (b"123\n", "not a zip archive"),
        (b"PK\3\4half of one", "cut off"),
    ],
)
def test_files_that_are_not_checkpoints_are_named(tmp_path, content, message):
    (tmp_path / "model_checkpoint.pt").write_bytes(content)
    with pytest.raises(ExportError, match=message):
        package_from_folder(tmp_path)


def test_a_dictionary_within_itself_does_not_hang(tmp_path, weights):
    content = {"model": weights}
    content["self"] = content
    assert package_from_folder(package_with(tmp_path, content)).architecture == TINY


OWNERS = {
    "variant": "base",
    "parameters": {"total": 25_423_939, "trainable": 25_423_939, "size_mb": 97.0},
    "model_structure": {"encoder_decoder": {
        "num_blocks": [1, 1, 1, 1], "num_heads": "1,1,1,1", "channels": [8, 16, 32, 64], "num_refinement_blocks": 0,
        "expansion_factor": 2.66, "bias": False, "LayerNorm_type": "WithBias",
    }},
    "input_output_specs": {"input_shape": [3, 512, 512], "requires_clamping": True},
    "implementation_details": {"bias": "none in convolutions", "heads": "one"},
}  # fmt: skip


def test_nested_claims_are_compared_with_a_tolerance_for_counts(tmp_path, weights):
    package_with(tmp_path, weights)
    count = sum(tensor.numel() for tensor in weights.values())
    for total, agrees in ((round(count * 1.0005), True), (round(count * 1.01), False)):
        claims = {**OWNERS, "parameters": {**OWNERS["parameters"], "total": total}}
        (tmp_path / "architecture.json").write_text(json.dumps(claims))
        remarks = package_from_folder(tmp_path).remarks
        assert len(remarks) == (0 if agrees else 1), remarks
    structure = {"encoder_decoder": {"num_heads": [1, 2, 4, 8], "expansion_factor": float("nan")}}
    (tmp_path / "architecture.json").write_text(json.dumps({"model_structure": structure}))
    remarks = " / ".join(package_from_folder(tmp_path).remarks)
    assert "num_heads = [1, 2, 4, 8]" in remarks
    assert "expansion_factor is nan" in remarks


@pytest.mark.parametrize(
    ("config", "remark", "refused"),
    [
        ({"input_output": {"preprocessing": "resize_to_512x512"}, "training": {"resolution": 512}}, "", False),
        ({}, "", False),
        ({"training": {"resolution": "7MP (3296x2192 typical)"},
          "input_output": {"preprocessing": "none (native resolution)"}}, "enhance_tiled", False),
        ({"input_output": {"preprocessing": "resize_to_768x768"}}, "768x768", True),
        ({"training": {"resolution": 384}}, "384x384", True),
        ({"training": {"resolution": [512, 768]}}, "512x768", True),
        ({"input_output": {"preprocessing": "letterbox_512"}}, "letterbox_512", False),
    ],
)  # fmt: skip
def test_the_frame_in_training_is_checked(tmp_path, weights, config, remark, refused):
    package_with(tmp_path, weights)
    (tmp_path / "config.json").write_text(json.dumps(config))
    package = package_from_folder(tmp_path)
    assert len(package.remarks) == bool(remark)
    assert all(remark in each for each in package.remarks)
    require_frame(package.frame, 512)
    if refused:
        with pytest.raises(ExportError, match=remark):
            require_frame(package.frame, None)
    else:
        require_frame(package.frame, None)


def test_a_paper_package_without_a_config_has_an_unknown_frame(tmp_path, weights):
    named = {PAPER.external(name): tensor for name, tensor in weights.items()}
    (remark,) = package_from_folder(package_with(tmp_path, named)).remarks
    assert "enhance_tiled" in remark


@pytest.mark.parametrize("style", ["{}  {}", "{} *{}", "SHA256 ({1}) = {0}", "SHA2-256({1})= {0}"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("upper", [False, True])
def test_checksums_are_read_in_every_style(tmp_path, weights, style, encoding, upper):
    path = package_with(tmp_path, weights) / "model_checkpoint.pt"
    for digest, count in ((sha256(path), 0), ("0" * 64, 1)):
        line = style.format(digest.upper() if upper else digest, path.name)
        (tmp_path / "MANIFEST.txt").write_bytes(f"Restormer\r\n{line}\r\n".encode(encoding))
        assert len(package_from_folder(tmp_path).remarks) == count


def test_zeros_are_not_measurements(tmp_path, weights, capsys):
    package_with(tmp_path, weights)
    (tmp_path / "training_info.json").write_text('{"epoch": 0, "val_l1": 0.05, "val_psnr": 0.0}')
    assert main(["inspect", "--package", str(tmp_path)]) == 0
    page = capsys.readouterr().out
    for name, value in (("epoch", "0"), ("val_l1", "0.05"), ("val_psnr", "not measured")):
        assert re.search(rf"^  {name} +{value}$", page, re.MULTILINE), page
