"""Restormer in PyTorch, written from the paper (Zamir et al., CVPR 2022, arXiv 2111.09881, section 3).

One class serves the paper's network and the owner's variant of it. Tensors are NCHW. Three choices make the graph
cheap, and safe in half precision, without changing the function:

* q and k are normalised *after* their product, ``(q kᵀ) / sqrt(|q|² |k|²ᵀ)``: a c x c matrix is divided instead of
  two c x hw ones.
* LayerNorm over channels is one ``layer_norm`` call on the channels-last view, hence one ONNX node. Its statistics are
  float32 in every type: PyTorch sums half precision that way, and ONNX has ``stash_type`` 1 for it.
* The other long sums (the q·kᵀ product and its norms over all pixels, softmax) are cast to float32. In a float32
  network these casts leave no node.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from export.network.architecture import Architecture, Block

NORM_FLOOR = 1e-36  #: minimum |q|²|k|²: a zero vector attends to all channels equally instead of dividing by zero

#: A projection is one convolution whose output is split into parts, or (see ``rewrites``) one for each part.
Projection = nn.Conv2d | nn.ModuleList


def project(x: Tensor, pointwise: Projection, depthwise: Projection, parts: int, shape: Sequence[int]) -> list[Tensor]:
    """Apply a 1x1 and a 3x3 depthwise convolution; split the result along the channels into parts ``[N, *shape]``."""
    if isinstance(pointwise, nn.ModuleList) and isinstance(depthwise, nn.ModuleList):
        return [outer(inner(x)).reshape(-1, *shape) for inner, outer in zip(pointwise, depthwise, strict=True)]
    # Not `chunk`: under a dynamic batch TensorRT's parser makes twelve layers of a Split, and one of an index.
    stacked: Tensor = depthwise(pointwise(x)).reshape(-1, parts, *shape)
    return [stacked[:, part] for part in range(parts)]


class LayerNorm(nn.Module):
    """LayerNorm over the channels of every pixel (NCHW in and out), statistics in float32.

    ``eps`` is added to the variance, which is divided by the number of channels. ``bias_free`` divides x, not
    x - mean, by the deviation, and adds nothing.
    """

    def __init__(self, width: int, *, bias_free: bool, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = None if bias_free else nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        last, weight = x.permute(0, 2, 3, 1), self.weight
        if self.bias is not None:
            return functional.layer_norm(last, weight.shape, weight, self.bias, self.eps).permute(0, 3, 1, 2)
        exact = last.float()
        variance = exact.var(dim=-1, keepdim=True, unbiased=False)
        return (exact * torch.rsqrt(variance + self.eps) * weight.float()).to(x.dtype).permute(0, 3, 1, 2)


class Attention(nn.Module):
    """Multi-Dconv head transposed attention: channels attend to channels (paper, section 3.1, equation 1)."""

    def __init__(self, block: Block, *, bias: bool) -> None:
        super().__init__()
        width = block.width
        self.heads = block.heads
        self.temperature = nn.Parameter(torch.ones(block.heads, 1, 1))
        self.qkv: Projection = nn.Conv2d(width, width * 3, 1, bias=bias)
        self.qkv_dwconv: Projection = nn.Conv2d(width * 3, width * 3, 3, padding=1, groups=width * 3, bias=bias)
        self.project_out = nn.Conv2d(width, width, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        width, height, columns = x.shape[1:]
        shape = (self.heads, width // self.heads, height * columns)
        q, k, v = project(x, self.qkv, self.qkv_dwconv, 3, shape)
        q, k = q.float(), k.float().transpose(-2, -1)
        squares = (q * q).sum(-1, keepdim=True) * (k * k).sum(-2, keepdim=True)
        similarity = (q @ k) / squares.clamp_min(NORM_FLOOR).sqrt()
        attention = (similarity * self.temperature[None].float()).softmax(dim=-1).to(v.dtype)
        mixed = (attention @ v).reshape(-1, width, height, columns)
        result: Tensor = self.project_out(mixed)
        return result


class FeedForward(nn.Module):
    """Gated-Dconv feed-forward network (paper, section 3.2, equation 2)."""

    def __init__(self, block: Block, *, bias: bool) -> None:
        super().__init__()
        width, hidden = block.width, block.hidden
        self.project_in: Projection = nn.Conv2d(width, hidden * 2, 1, bias=bias)
        self.dwconv: Projection = nn.Conv2d(hidden * 2, hidden * 2, 3, padding=1, groups=hidden * 2, bias=bias)
        self.project_out = nn.Conv2d(hidden, width, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = project(x, self.project_in, self.dwconv, 2, (self.project_out.in_channels, *x.shape[2:]))
        result: Tensor = self.project_out(functional.gelu(gate) * value)
        return result


class TransformerBlock(nn.Module):
    """``x + attention(norm(x))``, then ``x + feed_forward(norm(x))``."""

    def __init__(self, block: Block, architecture: Architecture) -> None:
        super().__init__()
        bias_free, eps = architecture.bias_free_norm, architecture.eps
        self.norm1 = LayerNorm(block.width, bias_free=bias_free, eps=eps)
        self.attn = Attention(block, bias=architecture.bias)
        self.norm2 = LayerNorm(block.width, bias_free=bias_free, eps=eps)
        self.ffn = FeedForward(block, bias=architecture.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        result: Tensor = x + self.ffn(self.norm2(x))
        return result


class _Resample(nn.Module):
    """A 3x3 convolution, then a pixel (un)shuffle by two: half the size and twice the width, or the reverse."""

    def __init__(self, width: int, *, down: bool) -> None:
        super().__init__()
        out = width // 2 if down else width * 2
        self.body = nn.Sequential(nn.Conv2d(width, out, 3, padding=1, bias=False))
        self.shuffle: Callable[[Tensor], Tensor] = nn.PixelUnshuffle(2) if down else _pixel_shuffle

    def forward(self, x: Tensor) -> Tensor:
        return self.shuffle(self.body(x))


def _pixel_shuffle(x: Tensor) -> Tensor:
    """Do PixelShuffle(2) with two reshapes and a transpose: TensorRT's parser makes ten layers of a DepthToSpace."""
    width, height, columns = x.shape[1] // 4, *x.shape[2:]
    interleaved = x.reshape(-1, width, 2, 2, height, columns).permute(0, 1, 4, 2, 5, 3)
    return interleaved.reshape(-1, width, height * 2, columns * 2)


class Restormer(nn.Module):
    """The network of an `Architecture`.

    ``forward`` takes RGB ``[N, in_channels, H, W]`` in [0, 1], H and W multiples of 8, and returns
    ``[N, out_channels, H, W]`` in the image's type, *not* clamped: the end of the pipeline clamps. A network in
    half precision takes and returns float32 too, and its global skip is added in float32.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        dim, out = architecture.dim, architecture.output_width

        def stage(name: str) -> nn.Sequential:
            return nn.Sequential(*(TransformerBlock(block, architecture) for block in architecture.stages[name]))

        def convolution(name: str, inputs: int, outputs: int, size: int) -> nn.Conv2d:
            return nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=name in architecture.biased)

        self.patch_embed = convolution("patch_embed", architecture.in_channels, dim, 3)
        self.encoder_level1 = stage("encoder_level1")
        self.down1_2 = _Resample(dim, down=True)
        self.encoder_level2 = stage("encoder_level2")
        self.down2_3 = _Resample(dim * 2, down=True)
        self.encoder_level3 = stage("encoder_level3")
        self.down3_4 = _Resample(dim * 4, down=True)
        self.latent = stage("latent")
        self.up4_3 = _Resample(dim * 8, down=False)
        self.reduce_chan_level3 = convolution("reduce_chan_level3", dim * 8, dim * 4, 1)
        self.decoder_level3 = stage("decoder_level3")
        self.up3_2 = _Resample(dim * 4, down=False)
        self.reduce_chan_level2 = convolution("reduce_chan_level2", dim * 4, dim * 2, 1)
        self.decoder_level2 = stage("decoder_level2")
        self.up2_1 = _Resample(dim * 2, down=False)
        if architecture.reduces_level1:
            self.reduce_chan_level1 = convolution("reduce_chan_level1", dim * 2, out, 1)
        self.decoder_level1 = stage("decoder_level1")
        self.refinement = stage("refinement")
        if architecture.dual_pixel:
            self.skip_conv = convolution("skip_conv", dim, out, 1)
        self.output = convolution("output", out, architecture.out_channels, 3)

    def forward(self, image: Tensor) -> Tensor:
        embedded = self.patch_embed(image.to(self.output.weight.dtype))
        level1 = self.encoder_level1(embedded)
        level2 = self.encoder_level2(self.down1_2(level1))
        level3 = self.encoder_level3(self.down2_3(level2))
        features = self.latent(self.down3_4(level3))
        features = self.decoder_level3(self.reduce_chan_level3(torch.cat([self.up4_3(features), level3], 1)))
        features = self.decoder_level2(self.reduce_chan_level2(torch.cat([self.up3_2(features), level2], 1)))
        features = torch.cat([self.up2_1(features), level1], 1)
        if self.architecture.reduces_level1:
            features = self.reduce_chan_level1(features)
        features = self.refinement(self.decoder_level1(features))
        if self.architecture.dual_pixel:
            result: Tensor = self.output(features + self.skip_conv(embedded)).to(image.dtype)
            return result
        restored: Tensor = self.output(features).to(image.dtype) + image
        return restored
