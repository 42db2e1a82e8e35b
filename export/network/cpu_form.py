"""Rewrite the network into the form that a CPU runs fastest: the same function, with fewer passes over memory.

On a CPU the convolutions run near peak speed; the operations between them take the time. OpenVINO keeps maps
channels-last, as its convolutions need them, and copies the widest maps for any operation that needs another order (a
reshape into heads, a LayerNorm over a transposed view). Therefore

* LayerNorm is a set of reductions over the channel axis; its weight and bias are part of the next convolution
  (``export.network.rewrites.fold_norms``);
* q, k and v are multiplied as ``[pixels, channels]`` matrices of all heads at once, and a mask removes the products
  between heads. That multiplies more than needed, in the smallest of the products, and moves nothing;
* the output projection is multiplied into the attention matrix, W(Av) = (WA)v: two small matrices instead of a pass
  over the map;
* the feed-forward runs a group of hidden channels at a time where its maps are largest, and the groups are added up:
  the maps of one group stay in the cache, all of them together would not.

All are identities in real arithmetic. ``make benchmark-core`` measures the gain of each.

In INT8 the projections that follow a LayerNorm are quantized: q, k, v and the feed-forward's two. They are most of the
work, and one quantization of a narrow map serves two or three of them. The output projections are not: attention's is
not a convolution in this form, and the feed-forward's would need the product of two maps to be quantized, which saves a
twentieth of the time and costs several decibels.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional

from export.network import int8
from export.network.architecture import STAGES
from export.network.graph import onnx_from_network
from export.network.restormer import NORM_FLOOR, Attention, FeedForward, LayerNorm, Restormer, TransformerBlock
from export.network.rewrites import split_inputs, split_outputs, split_projections
from imaging import SIDE

_MASKED = -1e4  #: added to products between heads: softmax turns it into zero, and half precision can represent it
#: Bytes of a hidden map, two per number, above which it is computed in groups; and the minimum channels of a group.
#: Chosen by measurement in float32 on the owner's base (docs/decisions/cpu-engine.md).
CACHED, NARROWEST = 16 * 2**20, 32


def channels_last(network: Restormer, *, side: int = SIDE) -> Restormer:
    """Rewrite a network with folded norms (``export.network.rewrites``) for images of ``[N, 3, side, side]``."""
    return grouped_feed_forward(masked_attention(channel_norms(split_projections(network))), side=side)


def cpu_graph(network: Restormer, ranges: Mapping[str, float] | None = None, *, side: int = SIDE) -> onnx.ModelProto:
    """Export the CPU engine's graph of a network with folded norms, for images of ``[1, 3, side, side]``.

    ``ranges`` are the largest input magnitudes of an INT8 plan's modules; those of `cpu_ranges` are quantized.
    """
    model = onnx_from_network(channels_last(network, side=side), side=side)
    return model if ranges is None else int8.quantize_graph(model, cpu_ranges(ranges))


def cpu_ranges(ranges: Mapping[str, float]) -> dict[str, float]:
    """Select the part of a plan that the CPU's engine executes in INT8: convolutions that follow a LayerNorm."""
    return {name: largest for name, largest in ranges.items() if name.endswith((".attn.qkv", ".ffn.project_in"))}


def channel_norms(network: Restormer) -> Restormer:
    """Replace LayerNorm with `ChannelNorm`."""
    result = copy.deepcopy(network)
    for layer in result.modules():
        if isinstance(layer, TransformerBlock):
            layer.norm1, layer.norm2 = ChannelNorm(layer.norm1), ChannelNorm(layer.norm2)  # type: ignore[assignment]
    return result


def masked_attention(network: Restormer) -> Restormer:
    """Replace attention with `MaskedAttention`. The projections must be split."""
    result = copy.deepcopy(network)
    for layer in result.modules():
        if isinstance(layer, TransformerBlock):
            layer.attn = MaskedAttention(layer.attn)  # type: ignore[assignment]
    return result


def grouped_feed_forward(network: Restormer, *, side: int) -> Restormer:
    """Replace feed-forward with `GroupedFeedForward` where its maps exceed `CACHED`, for images of this side.

    The projections must be split.
    """
    result = copy.deepcopy(network)
    for stage, level in STAGES.items():
        for layer in result.get_submodule(stage).modules():
            if isinstance(layer, TransformerBlock):
                hidden = layer.ffn.project_out.in_channels
                groups = min(math.ceil(2 * hidden * (side >> level) ** 2 / CACHED), hidden // NARROWEST)
                if groups > 1:
                    layer.ffn = GroupedFeedForward(layer.ffn, groups)  # type: ignore[assignment]
    return result


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of every pixel, NCHW in and out, without weight and bias."""

    def __init__(self, norm: LayerNorm) -> None:
        super().__init__()
        weight, bias = norm.weight, norm.bias
        if not torch.all(weight == 1) or (bias is not None and torch.any(bias != 0)):
            raise ValueError("fold_norms first: this form has neither weight nor bias")
        self.is_centred, self.eps = bias is not None, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        deviation = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
        scale = torch.rsqrt(deviation * deviation / x.shape[1] + self.eps)
        return (centred if self.is_centred else x) * scale


class MaskedAttention(nn.Module):
    """`Attention` over ``[N, pixels, channels]`` matrices, with the output projection multiplied in."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        if not (isinstance(attention.qkv, nn.ModuleList) and isinstance(attention.qkv_dwconv, nn.ModuleList)):
            raise TypeError("split_projections first")
        self.qkv, self.qkv_dwconv = copy.deepcopy(attention.qkv), copy.deepcopy(attention.qkv_dwconv)
        weight, bias = attention.project_out.weight, attention.project_out.bias
        # In their final shapes, so that the graph needs no reshapes.
        self.projection = nn.Parameter(weight.detach().flatten(1))
        self.bias = None if bias is None else nn.Parameter(bias.detach()[:, None, None])
        head = torch.arange(len(weight)) // (len(weight) // attention.heads)
        self.mask: Tensor
        self.register_buffer("mask", torch.where(head[:, None] == head, 0.0, _MASKED))
        self.temperature = nn.Parameter(attention.temperature.detach()[head, :, 0])

    def forward(self, x: Tensor) -> Tensor:
        width, height, columns = x.shape[1:]
        maps = (depthwise(pointwise(x)) for pointwise, depthwise in zip(self.qkv, self.qkv_dwconv, strict=True))
        q, k, v = (each.permute(0, 2, 3, 1).reshape(-1, height * columns, width) for each in maps)
        lengths = [torch.linalg.vector_norm(each, dim=1) for each in (q, k)]
        products = (lengths[0][:, :, None] * lengths[1][:, None, :]).clamp_min(NORM_FLOOR**0.5)
        similarity = q.transpose(1, 2) @ k / products
        attention = (similarity * self.temperature + self.mask).softmax(-1)
        mixing = (self.projection @ attention).transpose(1, 2)
        mixed: Tensor = (v @ mixing).reshape(-1, height, columns, width).permute(0, 3, 1, 2)
        return mixed if self.bias is None else mixed + self.bias


class GroupedFeedForward(nn.Module):
    """The sum of `export.network.restormer.FeedForward` over groups of hidden channels."""

    def __init__(self, layer: FeedForward, groups: int) -> None:
        super().__init__()
        pointwise, depthwise, out = layer.project_in, layer.dwconv, layer.project_out
        if not (isinstance(pointwise, nn.ModuleList) and isinstance(depthwise, nn.ModuleList)):
            raise TypeError("split_projections first")
        width = 8 * math.ceil(out.in_channels / (8 * groups))

        def interleave(halves: nn.ModuleList) -> nn.ModuleList:
            # In one list, under the name that an INT8 plan uses.
            gate, value = (split_outputs(half, width) for half in halves)  # type: ignore[arg-type]
            return nn.ModuleList(each for pair in zip(gate, value, strict=True) for each in pair)

        self.project_in, self.dwconv = interleave(pointwise), interleave(depthwise)
        self.project_out = nn.ModuleList(split_inputs(out, width))

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor | None = None
        projected = (depthwise(pointwise(x)) for pointwise, depthwise in zip(self.project_in, self.dwconv, strict=True))
        for out in self.project_out:
            part = out(functional.gelu(next(projected)) * next(projected))
            total = part if total is None else total + part
        assert total is not None
        return total
