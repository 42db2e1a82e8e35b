"""Write a model package with random weights in the owner's layout.

The command is ``python -m benchmarks.network.random_package FOLDER``.

Use it for builds and speed, where weights do not matter; fidelity against ground truth has no meaning on it. The
default is the owner's base network (25,437,220 parameters). The checkpoint has the keys and names of the owner's
training code with the optimizer's two moments (some 300 MB); the JSON files beside it are nested like the owner's.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from benchmarks.network.random_weights import randomize
from demo.package_files import architecture_document
from export.network.architecture import OWNER_SIZES, Architecture, owner_network
from export.network.restormer import Restormer
from export.package.naming import OWNER


def write_package(folder: Path, architecture: Architecture) -> Path:
    """Write a package of this architecture as a training run leaves it; return its checkpoint."""
    torch.manual_seed(0)
    network = randomize(Restormer(architecture))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    network(torch.rand(1, 3, 64, 64)).mean().backward()
    optimizer.step()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model_checkpoint.pt"
    torch.save(
        {
            "epoch": 1,
            "model_state_dict": {OWNER.external(name): tensor for name, tensor in network.state_dict().items()},
            "optimizer_state_dict": optimizer.state_dict(),
            "scheduler_state_dict": scheduler.state_dict(),
            "val_loss": 0.0,
            "val_l1": 0.0,
            "args": {"model": "restormer", "dim": architecture.dim, "resolution": 512, "pretrained": None},
        },
        path,
    )
    count = sum(parameter.numel() for parameter in network.parameters())
    for name, document in documents(architecture, count).items():
        (folder / name).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    (folder / "MANIFEST.txt").write_text(
        f"Restormer, random weights, {count / 1e6:.1f}M parameters\n", encoding="utf-8"
    )
    print(f"{path}: {count:,} parameters, {path.stat().st_size / 1e6:.0f} MB", file=sys.stderr)
    return path


def documents(architecture: Architecture, parameters: int) -> dict[str, object]:
    """Return the JSON files of a package, nested like the owner's."""
    return {
        "architecture.json": architecture_document(architecture, parameters, "random"),
        "config.json": {
            "training": {"resolution": 512},
            "input_output": {"input_range": [0, 1], "normalization": "none", "preprocessing": "resize_to_512x512"},
        },
        "training_info.json": {"epoch": 1, "val_l1": 0.0, "val_psnr": 0.0, "val_ssim": 0.0, "train_loss": 0.0},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=OWNER_SIZES, default="base", help="which of the owner's networks")
    arguments = parser.parse_args()
    write_package(arguments.folder, owner_network(arguments.size))


if __name__ == "__main__":
    main()
