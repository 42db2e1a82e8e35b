"""Rewrites of the network, each a new network: three exact ones for speed, and the one that decides its type.

What is exact: in real arithmetic they are identities. In float32 ``pad_feed_forward`` adds zeros to the same sums and
``split_projections`` computes each output channel from the same numbers, so they differ by no more than the order in
which a convolution kernel happens to add; ``fold_norms`` multiplies in another order (the tests print and bound it).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from export.network.restormer import Attention, FeedForward, LayerNorm, Projection, Restormer, TransformerBlock

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def rewritten(network: Restormer) -> Restormer:
    """The network as every target takes it: norms folded, feed-forward padded."""
    return pad_feed_forward(fold_norms(network))


def pad_feed_forward(network: Restormer, multiple: int = 8) -> Restormer:
    """Feed-forward widths rounded up to a multiple (127, 255, 510, 1021 become 128, 256, 512, 1024), with zeros.

    Padded channels stay exactly zero: their gate is gelu(0) = 0. Tensor cores and AVX want round widths.
    """
    result = copy.deepcopy(network)
    for layer in result.modules():
        if isinstance(layer, FeedForward):
            _pad(layer, multiple)
    return result


def split_projections(network: Restormer) -> Restormer:
    """qkv and gate projections as separate convolutions instead of one and a cut.

    On the CPU it is the ``Split`` that costs: OpenVINO runs it as a reference kernel.
    """
    result = copy.deepcopy(network)
    for layer in result.modules():
        if isinstance(layer, Attention):
            layer.qkv, layer.qkv_dwconv = _split(layer.qkv, 3), _split(layer.qkv_dwconv, 3)
        elif isinstance(layer, FeedForward):
            layer.project_in, layer.dwconv = _split(layer.project_in, 2), _split(layer.dwconv, 2)
    return result


def fold_norms(network: Restormer) -> Restormer:
    """LayerNorm's weight and bias inside the 1x1 convolution that follows: W(n·w + b) = (W·w)n + Wb.

    Two passes over the widest maps less for each LayerNorm. The convolutions gain a bias where LayerNorm has one.
    Every LayerNorm is left with ones and zeros, which the graph then holds once.
    """
    result = copy.deepcopy(network)
    for layer in result.modules():
        if isinstance(layer, TransformerBlock):
            layer.attn.qkv = _folded(layer.norm1, _convolution(layer.attn.qkv))
            layer.ffn.project_in = _folded(layer.norm2, _convolution(layer.ffn.project_in))
    return result


def typed(network: Restormer, dtype: torch.dtype) -> Restormer:
    """The network in half precision (``torch.float16`` or ``torch.bfloat16``), its float32 islands kept.

    Not exact: that is what fidelity is measured for. Input, output and global skip stay float32; so do LayerNorm's
    statistics, the temperature, the q·kᵀ product and its norms, and softmax (see ``export.network.restormer``).
    """
    result = copy.deepcopy(network).to(dtype)
    for name, parameter in network.named_parameters():
        if name.endswith(".temperature"):
            result.get_parameter(name).data = parameter.detach().clone()
    return result


def in_floating_type(network: Restormer, name: str) -> Restormer:
    """Return the network in the floating-point type of a precision; in float32 it is the network itself."""
    return typed(network, HALVES[name]) if name in HALVES else network


def by_outputs(convolution: nn.Conv2d, width: int) -> list[nn.Conv2d]:
    """A convolution, depthwise or not, as several of so many output channels each; the last may have fewer."""
    parts = [slice(at, at + width) for at in range(0, convolution.out_channels, width)]
    weights = [convolution.weight[part] for part in parts]
    biases = [None if convolution.bias is None else convolution.bias[part] for part in parts]
    return [
        _with_weights(convolution, weight, bias, groups=1 if convolution.groups == 1 else len(weight))
        for weight, bias in zip(weights, biases, strict=True)
    ]


def by_inputs(convolution: nn.Conv2d, width: int) -> list[nn.Conv2d]:
    """A convolution as several of so many input channels each, whose outputs add up to its own."""
    starts = range(0, convolution.in_channels, width)
    biases = [convolution.bias, *[None] * (len(starts) - 1)]
    return [
        _with_weights(convolution, convolution.weight[:, at : at + width], bias)
        for at, bias in zip(starts, biases, strict=True)
    ]


def _folded(norm: LayerNorm, convolution: nn.Conv2d) -> nn.Conv2d:
    """The convolution with the norm's weight and bias inside; the norm keeps ones and zeros."""
    kernel, weight, bias = convolution.weight, norm.weight, norm.bias
    shift = convolution.bias
    if bias is not None:
        pushed = kernel.flatten(1) @ bias
        shift = nn.Parameter(pushed if shift is None else pushed + shift)
        nn.init.zeros_(bias)
    result = _with_weights(convolution, kernel * weight[:, None, None], shift)
    nn.init.ones_(weight)
    return result


def _pad(layer: FeedForward, multiple: int) -> None:
    hidden = layer.project_out.in_channels
    extra = -hidden % multiple
    if not extra:
        return
    width = hidden + extra
    point, deep, out = _convolution(layer.project_in), _convolution(layer.dwconv), layer.project_out
    layer.project_in = _with_weights(point, _padded_halves(point.weight, extra), _padded_bias(point, extra))
    layer.dwconv = _with_weights(deep, _padded_halves(deep.weight, extra), _padded_bias(deep, extra), groups=width * 2)
    layer.project_out = _with_weights(out, nn.functional.pad(out.weight, (0, 0, 0, 0, 0, extra)), out.bias)


def _padded_halves(weight: Tensor, extra: int) -> Tensor:
    """Zeros after the gate's rows and after the value's rows: both halves grow."""
    halves = weight.chunk(2)
    zeros = weight.new_zeros(extra, *weight.shape[1:])
    return torch.cat([halves[0], zeros, halves[1], zeros])


def _padded_bias(convolution: nn.Conv2d, extra: int) -> Tensor | None:
    return None if convolution.bias is None else _padded_halves(convolution.bias, extra)


def _split(projection: Projection, parts: int) -> nn.ModuleList:
    whole = _convolution(projection)
    return nn.ModuleList(by_outputs(whole, whole.out_channels // parts))


def _convolution(projection: Projection) -> nn.Conv2d:
    if not isinstance(projection, nn.Conv2d):
        raise TypeError("the projections are split already: pad before you split")
    return projection


def _with_weights(like: nn.Conv2d, weight: Tensor, bias: Tensor | None, *, groups: int | None = None) -> nn.Conv2d:
    """A convolution of the same kernel size and "same" padding as ``like``, with these weights."""
    groups = like.groups if groups is None else groups
    out_channels, in_channels, size = weight.shape[0], weight.shape[1] * groups, weight.shape[2]
    result = nn.Conv2d(in_channels, out_channels, size, padding=size // 2, groups=groups, bias=bias is not None)
    result.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        result.bias = nn.Parameter(bias.detach().clone())
    return result
