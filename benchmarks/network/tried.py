"""Rewrites of the CPU engine's network that were tried and left out (docs/decisions/cpu-engine.md)."""

from __future__ import annotations

import copy

from torch import nn

from export.network.cpu_form import MaskedAttention
from export.network.restormer import TransformerBlock


def without_temperature(network: nn.Module) -> nn.Module:
    """Return the engine's form without the temperature: another function, to see what the multiplication costs.

    A temperature that is folded into q would still have to be taken out of q's length, which divides the product.
    """
    result = copy.deepcopy(network)
    for layer in result.modules():
        if isinstance(layer, MaskedAttention):
            del layer.temperature
            setattr(layer, "temperature", 1.0)  # noqa: B010  a number in the place of a parameter
    return result


def fold_centring(network: nn.Module) -> nn.Module:
    """Return the engine's form with LayerNorm's centring in the next convolutions: W(x - mean x) = (W - row means)x."""
    result = copy.deepcopy(network)
    for block in result.modules():
        if isinstance(block, TransformerBlock):
            for norm, layers in ((block.norm1, block.attn.qkv), (block.norm2, block.ffn.project_in)):
                convolutions = [layer for layer in layers.modules() if isinstance(layer, nn.Conv2d)]
                for convolution in convolutions if norm.is_centred else ():
                    convolution.weight.data -= convolution.weight.data.mean(1, keepdim=True)
                norm.is_centred = False  # type: ignore[assignment]
    return result
