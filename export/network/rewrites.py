"""Rewrite the network into a new one: three exact rewrites for speed, and the conversion to half precision.

Exact means an identity in real arithmetic. In float32 ``pad_feed_forward`` adds zeros to the same sums and
``split_projections`` computes each output channel from the same numbers, so they differ at most by the order in which a
convolution kernel adds; ``fold_norms`` multiplies in another order (the tests print and bound the difference).
"""

import copy

import torch
from torch import Tensor, nn

from export.network.restormer import Attention, FeedForward, LayerNorm, Projection, Restormer, TransformerBlock

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def rewrite_network(network: Restormer) -> Restormer:
    """Fold norms and pad the feed-forward: the form that every target starts from."""
    return pad_feed_forward(fold_norms(network))


def pad_feed_forward(network: Restormer) -> Restormer:
    """Pad feed-forward widths with zeros to a multiple of 8 (127, 255, 510, 1021 become 128, 256, 512, 1024).

    Padded channels stay exactly zero: their gate is gelu(0) = 0. Tensor cores and AVX need round widths.
    """
    result = copy.deepcopy(network)
    for layer in result.modules():
        if isinstance(layer, FeedForward) and (extra := -layer.project_out.in_channels % 8):
            out = layer.project_out
            layer.project_in, layer.dwconv = _pad_outputs(layer.project_in, extra), _pad_outputs(layer.dwconv, extra)
            layer.project_out = _convolution_with(out, nn.functional.pad(out.weight, (0, 0, 0, 0, 0, extra)), out.bias)
    return result


def split_projections(network: Restormer) -> Restormer:
    """Make qkv and gate projections separate convolutions, instead of one convolution and a split.

    On a CPU the ``Split`` is slow: OpenVINO runs it as a reference kernel.
    """
    result = copy.deepcopy(network)
    for layer in result.modules():
        if isinstance(layer, Attention):
            layer.qkv, layer.qkv_dwconv = _split(layer.qkv, 3), _split(layer.qkv_dwconv, 3)
        elif isinstance(layer, FeedForward):
            layer.project_in, layer.dwconv = _split(layer.project_in, 2), _split(layer.dwconv, 2)
    return result


def fold_norms(network: Restormer) -> Restormer:
    """Move LayerNorm's weight and bias into the 1x1 convolution that follows: W(n·w + b) = (W·w)n + Wb.

    This saves two passes over the widest maps for each LayerNorm. The convolutions gain a bias where LayerNorm has one.
    Every LayerNorm keeps ones and zeros, which the graph then holds once.
    """
    result = copy.deepcopy(network)
    for layer in result.modules():
        if isinstance(layer, TransformerBlock):
            layer.attn.qkv = _fold(layer.norm1, _convolution(layer.attn.qkv))
            layer.ffn.project_in = _fold(layer.norm2, _convolution(layer.ffn.project_in))
    return result


def to_floating_type(network: Restormer, precision: str) -> Restormer:
    """Convert the network to half precision for bf16 and fp16, except its float32 islands; else leave it unchanged.

    Not exact. Input, output and global skip stay float32; so do LayerNorm's statistics, the temperature, the q·kᵀ
    product and its norms, and softmax (see ``export.network.restormer``).
    """
    if precision not in HALVES:
        return network
    result = copy.deepcopy(network).to(HALVES[precision])
    for name, parameter in network.named_parameters():
        if name.endswith(".temperature"):
            result.get_parameter(name).data = parameter.detach().clone()
    return result


def split_outputs(convolution: nn.Conv2d, width: int) -> list[nn.Conv2d]:
    """Split a convolution, depthwise or not, into several of ``width`` output channels; the last may have fewer."""
    weights = torch.split(convolution.weight, width)
    biases = [None] * len(weights) if convolution.bias is None else torch.split(convolution.bias, width)
    return [_convolution_with(convolution, *part) for part in zip(weights, biases, strict=True)]


def split_inputs(convolution: nn.Conv2d, width: int) -> list[nn.Conv2d]:
    """Split a convolution into several of ``width`` input channels, whose outputs add up to its own."""
    weights = torch.split(convolution.weight, width, dim=1)
    biases = [convolution.bias, *[None] * (len(weights) - 1)]
    return [_convolution_with(convolution, *part) for part in zip(weights, biases, strict=True)]


def _fold(norm: LayerNorm, convolution: nn.Conv2d) -> nn.Conv2d:
    """Move the norm's weight and bias into the convolution; the norm keeps ones and zeros."""
    kernel, weight, bias = convolution.weight, norm.weight, norm.bias
    shift: Tensor | None = convolution.bias
    if bias is not None:
        moved = kernel.flatten(1) @ bias
        shift = moved if shift is None else moved + shift
        nn.init.zeros_(bias)
    result = _convolution_with(convolution, kernel * weight[:, None, None], shift)
    nn.init.ones_(weight)
    return result


def _pad_outputs(projection: Projection, extra: int) -> nn.Conv2d:
    """Append zeros to the gate's output channels and to the value's."""
    whole = _convolution(projection)

    def pad(rows: Tensor) -> Tensor:
        gate, value = rows.chunk(2)
        zeros = rows.new_zeros(extra, *rows.shape[1:])
        return torch.cat([gate, zeros, value, zeros])

    return _convolution_with(whole, pad(whole.weight), None if whole.bias is None else pad(whole.bias))


def _split(projection: Projection, parts: int) -> nn.ModuleList:
    whole = _convolution(projection)
    return nn.ModuleList(split_outputs(whole, whole.out_channels // parts))


def _convolution(projection: Projection) -> nn.Conv2d:
    if not isinstance(projection, nn.Conv2d):
        raise TypeError("the projections are already split: pad before splitting")
    return projection


def _convolution_with(like: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    """Make a convolution with these weights, "same" padding, and depthwise if ``like`` is."""
    groups = 1 if like.groups == 1 else len(weight)
    out_channels, in_channels, size = weight.shape[0], weight.shape[1] * groups, weight.shape[2]
    result = nn.Conv2d(in_channels, out_channels, size, padding=size // 2, groups=groups, bias=bias is not None)
    result.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        result.bias = nn.Parameter(bias.detach().clone())
    return result
