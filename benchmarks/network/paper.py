"""Restormer written from the paper's equations, as plainly as possible: the reference of tests and of speed.

It shares no code with ``export.network.restormer`` or ``export.package.naming``: it is a function of a state dict, with
the checkpoint's names, and an image. Every step is as in the paper (q and k are normalised before their product, one
convolution a projection), with PyTorch's own function where there is one. It reads the paper's names and the owner's,
whose network also has ``reduce_chan_level1`` and another ``eps``.

LayerNorm is written out, because PyTorch's normalises the last axes and the paper's the channels of NCHW: moving the
channels there and back would change the memory layout of everything that follows.
"""

import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.network.restormer import Restormer


class Plain(nn.Module):
    """`restormer` with the weights of a network, as a module for the ONNX exporter."""

    def __init__(self, network: Restormer) -> None:
        super().__init__()
        self.network, self.architecture = network, network.architecture

    @property
    def output(self) -> nn.Conv2d:
        """Return the last convolution."""
        return self.network.output

    def forward(self, image: Tensor) -> Tensor:
        return restormer(dict(self.network.named_parameters()), image, eps=self.architecture.eps)


def restormer(weights: Mapping[str, Tensor], image: Tensor, *, eps: float) -> Tensor:
    """Run the network on ``image`` [N, C, H, W] with the state dict ``weights``, in their type (tests use float64)."""
    body = ".body" if "encoder_level1.0.norm1.body.weight" in weights else ""
    blocks = ".blocks" if "encoder_level1.blocks.0.norm1.weight" in weights else ""
    embedding = "patch_embed.proj" if "patch_embed.proj.weight" in weights else "patch_embed"

    def convolution(name: str, x: Tensor, groups: int = 1) -> Tensor:
        weight = weights[f"{name}.weight"]
        return F.conv2d(x, weight, weights.get(f"{name}.bias"), padding=weight.shape[-1] // 2, groups=groups)

    def depthwise(name: str, x: Tensor) -> Tensor:
        return convolution(name, x, groups=x.shape[1])

    def layer_norm(name: str, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, dim=1, keepdim=True, unbiased=False)
        weight, bias = weights[f"{name}{body}.weight"], weights.get(f"{name}{body}.bias")
        if bias is None:
            return x / torch.sqrt(variance + eps) * weight[:, None, None]
        return (x - mean) / torch.sqrt(variance + eps) * weight[:, None, None] + bias[:, None, None]

    def unit(x: Tensor) -> Tensor:
        length: Tensor = x.norm(dim=-1, keepdim=True)
        return x / length.clamp_min(1e-12)  # F.normalize, whose Expand hides the shape from ONNX

    def attention(name: str, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        temperature = weights[f"{name}.temperature"]
        heads = temperature.shape[0]
        qkv = depthwise(f"{name}.qkv_dwconv", convolution(f"{name}.qkv", x))
        q, k, v = (qkv[:, i * c : (i + 1) * c].reshape(n, heads, c // heads, h * w) for i in range(3))
        scores = unit(q) @ unit(k).transpose(-2, -1) * temperature
        mixed = (scores.softmax(dim=-1) @ v).reshape(n, c, h, w)
        return convolution(f"{name}.project_out", mixed)

    def feed_forward(name: str, x: Tensor) -> Tensor:
        both = depthwise(f"{name}.dwconv", convolution(f"{name}.project_in", x))
        half = both.shape[1] // 2
        gate, value = both[:, :half], both[:, half:]
        return convolution(f"{name}.project_out", F.gelu(gate) * value)

    def stage(name: str, x: Tensor) -> Tensor:
        count = len({m[1] for key in weights if (m := re.match(rf"{name}{blocks}\.(\d+)\.", key))})
        for i in range(count):
            block = f"{name}{blocks}.{i}"
            x = x + attention(f"{block}.attn", layer_norm(f"{block}.norm1", x))
            x = x + feed_forward(f"{block}.ffn", layer_norm(f"{block}.norm2", x))
        return x

    def down(name: str, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(convolution(f"{name}.body.0", x), 2)

    def up(name: str, x: Tensor) -> Tensor:
        return F.pixel_shuffle(convolution(f"{name}.body.0", x), 2)

    shallow = convolution(embedding, image)
    level1 = stage("encoder_level1", shallow)
    level2 = stage("encoder_level2", down("down1_2", level1))
    level3 = stage("encoder_level3", down("down2_3", level2))
    x = stage("latent", down("down3_4", level3))
    x = stage("decoder_level3", convolution("reduce_chan_level3", torch.cat([up("up4_3", x), level3], 1)))
    x = stage("decoder_level2", convolution("reduce_chan_level2", torch.cat([up("up3_2", x), level2], 1)))
    x = torch.cat([up("up2_1", x), level1], 1)
    x = convolution("reduce_chan_level1", x) if "reduce_chan_level1.weight" in weights else x
    x = stage("refinement", stage("decoder_level1", x))
    if "skip_conv.weight" in weights:
        return convolution("output", x + convolution("skip_conv", shallow))
    return convolution("output", x) + image
