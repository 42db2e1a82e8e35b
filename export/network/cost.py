"""Count the multiply-accumulates of a network, without data: it runs on PyTorch's meta device."""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import Tensor, nn

from export.network.architecture import Architecture
from export.network.coverage import Convolution
from export.network.restormer import Attention, Restormer


def multiply_accumulates(architecture: Architecture, side: int) -> tuple[int, int]:
    """Count those of one ``side`` x ``side`` image: in the convolutions, and in the attention products."""
    with torch.device("meta"):
        layers, products = _count(Restormer(architecture), side)
    return sum(layer.macs for layer in layers), products


def network_convolutions(network: Restormer, side: int) -> list[Convolution]:
    """List the network's convolutions with their multiply-accumulates."""
    return _count(copy.deepcopy(network).to("meta"), side)[0]


def _count(network: Restormer, side: int) -> tuple[list[Convolution], int]:
    layers: list[Convolution] = []
    products = 0

    def count_convolution(name: str, layer: nn.Conv2d, inputs: tuple[Tensor], output: Tensor) -> None:
        macs = output.numel() * layer.weight[0].numel()
        layers.append(Convolution(name, layer.kernel_size[0], macs, "FLOAT", name))

    def count_attention(layer: Attention, inputs: tuple[Tensor], output: Tensor) -> None:
        nonlocal products
        _, width, height, columns = inputs[0].shape
        products += 2 * width * (width // layer.heads) * height * columns

    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(partial(count_convolution, name))
        elif isinstance(layer, Attention):
            layer.register_forward_hook(count_attention)
    with torch.inference_mode():
        network(torch.empty(1, network.architecture.in_channels, side, side, device="meta"))
    return layers, products
