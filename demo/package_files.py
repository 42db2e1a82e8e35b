"""Write a model package in the owner's format: checkpoint, three JSON files, manifest.

The figures that the package claims are measured on the pairs of demo/test.jsonl, with the owner's metrics.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from export.evaluate import TORCH, EvaluationRequest, evaluate
from export.network.architecture import STAGES, Architecture
from imaging import SIDE

TEST_PAIRS = Path(__file__).parent / "test.jsonl"
EXPANSION = 2.66
Figures = Mapping[str, Mapping[str, float]]


def write_package(
    folder: Path, checkpoint: dict[str, Any], architecture: Architecture, config: dict[str, object]
) -> None:
    """Write the package; ``config`` describes the training, for ``config.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("architecture.json", "config.json", "training_info.json", "MANIFEST.txt"):
        (folder / name).unlink(missing_ok=True)
    torch.save(checkpoint, folder / "model_checkpoint.pt")
    with tempfile.TemporaryDirectory() as output:
        request = EvaluationRequest(package=folder, pairs=TEST_PAIRS, repository=Path(output), output=Path(output))
        figures = evaluate(request)["stages"][TORCH]
    parameters = sum(tensor.numel() for tensor in checkpoint["model_state_dict"].values())
    documents = {
        "architecture.json": architecture_document(architecture, parameters, "demo"),
        "config.json": {**config, **_performance(checkpoint, figures)},
        # The owner's training code writes zeros for values that it did not measure.
        "training_info.json": {
            "epoch": checkpoint["epoch"], "val_l1": checkpoint["val_l1"],
            "val_psnr": 0.0, "val_ssim": 0.0, "train_loss": 0.0,
        },
    }  # fmt: skip
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    (folder / "MANIFEST.txt").write_text(_manifest(checkpoint, figures, parameters), encoding="utf-8")


def architecture_document(architecture: Architecture, parameters: int, variant: str) -> dict[str, object]:
    """Describe a network as the owner's ``architecture.json`` does."""
    encoder = [architecture.stages[name] for name in list(STAGES)[:4]]
    return {
        "architecture": "Restormer",
        "variant": variant,
        "parameters": {"total": parameters, "trainable": parameters, "size_mb": round(parameters * 4 / 2**20, 2)},
        "model_structure": {
            "encoder_decoder": {
                "num_blocks": [len(blocks) for blocks in encoder],
                "num_heads": [blocks[0].heads for blocks in encoder],
                "channels": [blocks[0].width for blocks in encoder],
                "num_refinement_blocks": len(architecture.stages["refinement"]),
                "expansion_factor": EXPANSION,
                "bias": architecture.bias,
                "LayerNorm_type": "WithBias",
            }
        },
        "input_output_specs": {
            "input_shape": [3, SIDE, SIDE],
            "input_range": [0, 1],
            "requires_clamping": True,
            "clamp_range": [0, 1],
        },
        "implementation_details": {
            "attention": "channels attend to channels (MDTA)",
            "feed_forward": "gated, depthwise (GDFN)",
            "residual": "output + image",
        },
    }


def _performance(checkpoint: dict[str, Any], figures: Figures) -> dict[str, object]:
    return {
        "performance": {
            "validation": {"l1": round(checkpoint["val_l1"], 4)},
            "test": {
                "l1": round(figures["l1"]["mean"], 4),
                "psnr": round(figures["psnr"]["mean"], 2),
                "ssim": round(figures["ssim_windowed"]["mean"], 4),
            },
        },
        "input_output": {
            "input_range": [0, 1],
            "normalization": "none",
            "preprocessing": f"resize_to_{SIDE}x{SIDE}",
        },
    }


def _manifest(checkpoint: dict[str, Any], figures: Figures, parameters: int) -> str:
    l1, psnr, ssim = (figures[name] for name in ("l1", "psnr", "ssim_windowed"))
    return f"""Restormer, demo: one exposure in, exposure fusion out
{parameters / 1e6:.2f}M parameters, epoch {checkpoint["epoch"]}

Test set (demo/test.jsonl), at {SIDE}x{SIDE}:
L1={l1["mean"]:.4f}, PSNR={psnr["mean"]:.2f}, SSIM={ssim["mean"]:.4f} (windowed)
± {l1["deviation"]:.4f}, ± {psnr["deviation"]:.2f} dB, ± {ssim["deviation"]:.4f} over the images

Input should be resized to {SIDE}x{SIDE} without keeping the aspect ratio, RGB in [0, 1]; clamp the output.
Trained on stretched views of 128 to 256 pixels, because the panoramas are 512x256.

Files:
model_checkpoint.pt   weights, AdamW with its moments, scheduler, history
architecture.json     structure of the network
config.json           training, losses, performance
training_info.json    the epoch; zeros are placeholders, not measurements
"""
