"""One page about a model package: its files, training, network and cost, its claims, and what does not agree."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from export.files import sha256
from export.network.architecture import Architecture
from export.network.coverage import Convolution
from export.network.restormer import Attention, Restormer
from export.package.claims import claims_from_folder
from export.package.model_package import Package
from imaging import SIDE


def report(package: Package) -> str:
    """Write the page, as text."""
    convolutions, products = multiply_accumulates(package.architecture, SIDE)
    lines = [f"model package {package.folder}", "", "files"]
    lines += [_file_line(path) for path in sorted(package.folder.iterdir()) if path.is_file()]
    lines += ["", "training"]
    lines += [_training_line(*item) for item in package.training_info.items()] or ["  no training_info.json"]
    lines += [
        "",
        "network",
        f"  weights              {package.place or 'at the top of the checkpoint'}",
        f"  naming               {package.convention.title}",
        f"  eps                  {package.architecture.eps:g}",
        f"  frame of training    {package.frame.text}",
        f"  {package.architecture.describe()}",
    ]
    lines += [f"  {line}" for line in _stage_lines(package.architecture)]
    claims = claims_from_folder(package.folder)
    lines += ["", "claims (make evaluate measures them)"]
    lines += [
        f"  {claim.split + ' ' + claim.metric.upper():<20} {claim}  ({claim.source})" for claim in claims.claims
    ] or ["  none"]
    lines += [
        "",
        "cost",
        f"  parameters           {package.parameters:,}",
        f"  at {SIDE}x{SIDE}           {convolutions / 1e9:.2f} GMACs in convolutions, "
        f"{(convolutions + products) / 1e9:.2f} with the attention products",
        "",
        "what does not agree",
    ]
    lines += [f"  {remark}" for remark in (*package.remarks, *claims.remarks)] or ["  nothing"]
    return "\n".join(lines)


def multiply_accumulates(architecture: Architecture, side: int) -> tuple[int, int]:
    """Multiply-accumulates of one ``side`` x ``side`` image: in the convolutions, and in the attention products."""
    with torch.device("meta"):
        layers, products = _work(Restormer(architecture), side)
    return sum(layer.macs for layer in layers), products


def convolutions(network: Restormer, side: int) -> list[Convolution]:
    """The network's convolutions with their multiply-accumulates."""
    return _work(copy.deepcopy(network).to("meta"), side)[0]


def _work(ghost: Restormer, side: int) -> tuple[list[Convolution], int]:
    """Counted on a network on PyTorch's meta device, run without data."""
    found: list[Convolution] = []
    products = 0

    def convolution(name: str, layer: nn.Conv2d, inputs: tuple[Tensor], output: Tensor) -> None:
        macs = output.numel() * layer.weight[0].numel()
        found.append(Convolution(name, layer.kernel_size[0], macs, "FLOAT", name))

    def attention(layer: Attention, inputs: tuple[Tensor], output: Tensor) -> None:
        nonlocal products
        _, width, height, columns = inputs[0].shape
        products += 2 * width * (width // layer.heads) * height * columns

    for name, layer in ghost.named_modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(partial(convolution, name))
        elif isinstance(layer, Attention):
            layer.register_forward_hook(attention)
    with torch.inference_mode():
        ghost(torch.empty(1, ghost.architecture.in_channels, side, side, device="meta"))
    return found, products


def _training_line(name: str, value: object) -> str:
    """A figure of the training; zeros in place of losses and scores are placeholders of the training code."""
    is_placeholder = value == 0 and not isinstance(value, bool) and name != "epoch"
    return f"  {name:<20} {'not measured' if is_placeholder else value}"


def _file_line(path: Path) -> str:
    return f"  {path.name:<28} {path.stat().st_size:>12,} bytes  {sha256(path)}"


def _stage_lines(architecture: Architecture) -> list[str]:
    lines = [f"{'stage':<16} {'blocks':>6} {'width':>6} {'heads':>6} {'feed-forward':>13}"]
    for name, blocks in architecture.stages.items():
        row = [sorted({getattr(block, field) for block in blocks}) for field in ("width", "heads", "hidden")]
        width, heads, hidden = ("/".join(map(str, values)) or "–" for values in row)
        lines.append(f"{name:<16} {len(blocks):>6} {width:>6} {heads:>6} {hidden:>13}")
    return lines
