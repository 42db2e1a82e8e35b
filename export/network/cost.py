"""Count the multiply-accumulates of a network, without data: it runs on PyTorch's meta device."""

import copy
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from export.network.architecture import Architecture
from export.network.coverage import Convolution
from export.network.restormer import Restormer

_CONVOLUTION, _PRODUCT = torch.ops.aten.convolution, torch.ops.aten.bmm


def multiply_accumulates(architecture: Architecture, side: int) -> tuple[int, int]:
    """Count those of one ``side`` x ``side`` image: in the convolutions, and in the attention products."""
    with torch.device("meta"):
        operations = _count_operations(Restormer(architecture), side)["Global"]
    return operations[_CONVOLUTION] // 2, operations[_PRODUCT] // 2


def network_convolutions(network: Restormer, side: int) -> list[Convolution]:
    """List the network's convolutions with their multiply-accumulates."""
    operations = _count_operations(copy.deepcopy(network).to("meta"), side)
    return [
        Convolution(name, layer.kernel_size[0], operations[f"Restormer.{name}"][_CONVOLUTION] // 2, "FLOAT", name)
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Conv2d)
    ]


def _count_operations(network: Restormer, side: int) -> dict[str, dict[Any, int]]:
    """Count additions and multiplications by module (``Global``: all of them) and kind of operation."""
    image = torch.empty(1, network.architecture.in_channels, side, side, device="meta")
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network(image)
    return counter.get_flop_counts()
