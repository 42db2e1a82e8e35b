"""The network as a CPU runs it fastest: the same function, with maps that stay channels-last and pass memory less.

On a CPU the convolutions run near the processor's peak; what costs is everything between them. OpenVINO keeps maps
channels-last, pixel by pixel, as its convolutions want them, and any operation that asks for another order (a reshape
into heads, a LayerNorm over a transposed view) is paid with copies of the widest maps. So here

* LayerNorm is reductions over the channel axis, in place, after its weight and bias went into the next convolution
  (``export.network.rewrites.fold_norms``);
* q, k and v meet as ``[pixels, channels]`` matrices, all heads at once: a mask leaves of the product what belongs to
  one head. That multiplies more than needed, on the smallest of the products, and moves nothing;
* the output projection is multiplied into the attention matrix, W(Av) = (WA)v: two small matrices instead of a pass
  over the map;
* the feed-forward goes a group of hidden channels at a time where its maps are largest, and what comes of the groups
  is added up: the maps of one group stay in the cache, where all of them would pass memory.

All are identities in real arithmetic. ``make benchmark-core`` says what each brings.

In INT8 it is the projections behind a LayerNorm that are quantized, q, k, v and the feed-forward's two: most of the
work, and one quantization of a narrow map serves two or three of them. The output projections stay: attention's is no
convolution here, and before the feed-forward's a product of two maps would have to be quantized, which brings a
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
from export.network.rewrites import by_inputs, by_outputs, split_projections
from imaging import SIDE

_MASKED = -1e4  #: added to what belongs to two heads: softmax makes zero of it, and half precision holds it
#: Bytes of a hidden map, two a number, that a cache holds beside its like: the third level's of server processors has
#: 16 MiB or more.
CACHED = 8 * 2**20
NARROWEST = 64  #: channels of a group: with fewer the convolutions lose more than the cache brings


def channels_last(network: Restormer, *, side: int = SIDE) -> Restormer:
    """The network as the CPU's engine is built from it, for images of ``[N, 3, side, side]``.

    Its norms have to be folded (``export.network.rewrites``).
    """
    return grouped_feed_forward(masked_attention(channel_norms(split_projections(network))), side=side)


def cpu_graph(network: Restormer, ranges: Mapping[str, float] | None = None, *, side: int = SIDE) -> onnx.ModelProto:
    """The CPU engine's graph of a network with folded norms, for images of ``[1, 3, side, side]``.

    ``ranges``: largest input magnitudes of an INT8 plan's modules, of which `quantized_here` are taken.
    """
    model = onnx_from_network(channels_last(network, side=side), side=side)
    return model if ranges is None else int8.quantized_graph(model, quantized_here(ranges))


def quantized_here(ranges: Mapping[str, float]) -> dict[str, float]:
    """The part of a plan that the CPU's engine executes in INT8: what comes behind a LayerNorm."""
    return {name: largest for name, largest in ranges.items() if name.endswith((".attn.qkv", ".ffn.project_in"))}


def channel_norms(network: Restormer) -> Restormer:
    """LayerNorm in the form of `ChannelNorm`."""
    result = copy.deepcopy(network)
    for layer in result.modules():
        if isinstance(layer, TransformerBlock):
            layer.norm1, layer.norm2 = ChannelNorm(layer.norm1), ChannelNorm(layer.norm2)  # type: ignore[assignment]
    return result


def masked_attention(network: Restormer) -> Restormer:
    """Attention in the form of `MaskedAttention`. The projections have to be split."""
    result = copy.deepcopy(network)
    for layer in result.modules():
        if isinstance(layer, TransformerBlock):
            layer.attn = MaskedAttention(layer.attn)  # type: ignore[assignment]
    return result


def grouped_feed_forward(network: Restormer, *, side: int) -> Restormer:
    """Feed-forward in the form of `GroupedFeedForward` where a map of it is beyond `CACHED`, for images of this side.

    The projections have to be split.
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
            raise ValueError("fold_norms first: this form has no weight and no bias")
        self.is_centred, self.eps = bias is not None, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        apart = x - x.mean(1, keepdim=True)
        deviation = torch.linalg.vector_norm(apart, dim=1, keepdim=True)
        scale = torch.rsqrt(deviation * deviation / x.shape[1] + self.eps)
        return (apart if self.is_centred else x) * scale


class MaskedAttention(nn.Module):
    """`Attention` over ``[N, pixels, channels]`` matrices, the output projection multiplied in."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        if not (isinstance(attention.qkv, nn.ModuleList) and isinstance(attention.qkv_dwconv, nn.ModuleList)):
            raise TypeError("split_projections first")
        self.qkv, self.qkv_dwconv = copy.deepcopy(attention.qkv), copy.deepcopy(attention.qkv_dwconv)
        weight, bias = attention.project_out.weight, attention.project_out.bias
        # In their final shapes, so that the graph holds them and no reshapes.
        self.projection = nn.Parameter(weight.detach().flatten(1))
        self.bias = None if bias is None else nn.Parameter(bias.detach()[:, None, None])
        head = torch.arange(len(weight)) // (len(weight) // attention.heads)
        self.mask: Tensor
        self.register_buffer("mask", torch.where(head[:, None] == head, 0.0, _MASKED))
        self.temperature = nn.Parameter(attention.temperature.detach()[head, :, 0])

    def forward(self, x: Tensor) -> Tensor:
        width, height, columns = x.shape[1:]
        maps = (deep(point(x)) for point, deep in zip(self.qkv, self.qkv_dwconv, strict=True))
        q, k, v = (each.permute(0, 2, 3, 1).reshape(-1, height * columns, width) for each in maps)
        lengths = [torch.linalg.vector_norm(each, dim=1) for each in (q, k)]
        products = (lengths[0][:, :, None] * lengths[1][:, None, :]).clamp_min(NORM_FLOOR**0.5)
        similarity = q.transpose(1, 2) @ k / products
        attention = (similarity * self.temperature + self.mask).softmax(-1)
        mixing = (self.projection @ attention).transpose(1, 2)
        mixed: Tensor = (v @ mixing).reshape(-1, height, columns, width).permute(0, 3, 1, 2)
        return mixed if self.bias is None else mixed + self.bias


class GroupedFeedForward(nn.Module):
    """`export.network.restormer.FeedForward` a group of hidden channels at a time, what comes of them added up."""

    def __init__(self, layer: FeedForward, groups: int) -> None:
        super().__init__()
        points, deeps, out = layer.project_in, layer.dwconv, layer.project_out
        if not (isinstance(points, nn.ModuleList) and isinstance(deeps, nn.ModuleList)):
            raise TypeError("split_projections first")
        width = 8 * math.ceil(out.in_channels / (8 * groups))

        def in_turns(halves: nn.ModuleList) -> nn.ModuleList:
            # In one list, whose name an INT8 plan knows.
            gate, value = (by_outputs(half, width) for half in halves)  # type: ignore[arg-type]
            return nn.ModuleList(each for pair in zip(gate, value, strict=True) for each in pair)

        self.project_in, self.dwconv = in_turns(points), in_turns(deeps)
        self.project_out = nn.ModuleList(by_inputs(out, width))

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor | None = None
        parts = list(zip(self.project_in, self.dwconv, strict=True))
        for (gate, deep_gate), (value, deep_value), out in zip(parts[::2], parts[1::2], self.project_out, strict=True):
            found = out(functional.gelu(deep_gate(gate(x))) * deep_value(value(x)))
            total = found if total is None else total + found
        assert total is not None
        return total
