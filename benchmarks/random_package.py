"""Writes a model package of any size with random weights: ``python -m benchmarks.random_package FOLDER``.

For builds and speed, where weights do not matter; fidelity against ground truth means nothing on it. The default is
the paper's standard network (26,126,644 parameters); ``--expansion 2.53`` is the size of the owner's (25,396,996).
Optimizer and scheduler state are saved too, as a training run leaves them (some 300 MB).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from export.architecture import Architecture, restormer
from export.network import Restormer


def written(folder: Path, architecture: Architecture) -> Path:
    """A package of this architecture, random weights and what a training run leaves beside them; its checkpoint."""
    torch.manual_seed(0)
    network = Restormer(architecture)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    network(torch.rand(1, 3, 64, 64)).mean().backward()
    optimizer.step()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model_checkpoint.pt"
    state = {"model_state_dict": network, "optimizer_state_dict": optimizer, "scheduler_state_dict": scheduler}
    torch.save({"epoch": 1, **{name: part.state_dict() for name, part in state.items()}}, path)
    count = sum(parameter.numel() for parameter in network.parameters())
    print(f"{path}: {count:,} parameters, {path.stat().st_size / 1e6:.0f} MB", file=sys.stderr)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--expansion", type=float, default=2.66, help="feed-forward factor")
    arguments = parser.parse_args()
    written(arguments.folder, restormer(expansion=arguments.expansion))


if __name__ == "__main__":
    main()
