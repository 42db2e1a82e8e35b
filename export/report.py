"""One page about a model package: its files, its training, its architecture and cost, and what does not agree."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from export.architecture import Architecture
from export.files import sha256
from export.network import Attention, Restormer
from export.package import Package
from imaging import SIDE


def report(package: Package) -> str:
    """The page, as text."""
    convolutions, products = multiply_accumulates(package.architecture, SIDE)
    lines = [f"model package {package.folder}", "", "files"]
    lines += [_file_line(path) for path in sorted(package.folder.iterdir()) if path.is_file()]
    lines += ["", "training"]
    lines += [f"  {name:<20} {value}" for name, value in package.training_info.items()] or ["  no training_info.json"]
    lines += ["", "architecture", f"  {package.architecture.describe()}"]
    lines += [f"  {line}" for line in _stage_lines(package.architecture)]
    lines += [
        "",
        "cost",
        f"  parameters           {package.parameters:,}",
        f"  at {SIDE}x{SIDE}           {convolutions / 1e9:.2f} GMACs in convolutions, "
        f"{(convolutions + products) / 1e9:.2f} with the attention products",
        "",
        "what does not agree",
    ]
    lines += [f"  {remark}" for remark in package.remarks] or ["  nothing"]
    return "\n".join(lines)


def multiply_accumulates(architecture: Architecture, side: int) -> tuple[int, int]:
    """Multiply-accumulates of one ``side`` x ``side`` image: in the convolutions, and in the attention products.

    Counted on the network itself, run without data on PyTorch's meta device.
    """
    counts = {"convolutions": 0, "products": 0}

    def convolution(layer: nn.Conv2d, inputs: tuple[Tensor], output: Tensor) -> None:
        counts["convolutions"] += output.numel() * layer.weight[0].numel()

    def attention(layer: Attention, inputs: tuple[Tensor], output: Tensor) -> None:
        _, width, height, columns = inputs[0].shape
        counts["products"] += 2 * width * (width // layer.heads) * height * columns

    with torch.device("meta"), torch.inference_mode():
        network = Restormer(architecture)
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d):
                layer.register_forward_hook(convolution)
            elif isinstance(layer, Attention):
                layer.register_forward_hook(attention)
        network(torch.empty(1, architecture.in_channels, side, side))
    return counts["convolutions"], counts["products"]


def _file_line(path: Path) -> str:
    return f"  {path.name:<28} {path.stat().st_size:>12,} bytes  {sha256(path)}"


def _stage_lines(architecture: Architecture) -> list[str]:
    lines = [f"{'stage':<16} {'blocks':>6} {'width':>6} {'heads':>6} {'feed-forward':>13}"]
    for name, blocks in architecture.stages.items():
        row = [sorted({getattr(block, field) for block in blocks}) for field in ("width", "heads", "hidden")]
        width, heads, hidden = ("/".join(map(str, values)) or "–" for values in row)
        lines.append(f"{name:<16} {len(blocks):>6} {width:>6} {heads:>6} {hidden:>13}")
    return lines
