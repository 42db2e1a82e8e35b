"""Restormer once more, straight from the paper's equations and as plainly as can be: the tests' yardstick.

Shares no code with ``export.network``: a function of a state dict and an image, every step as the paper writes it
(q and k normalised before their product, LayerNorm spelled out, pixel shuffles by index). Slow, and meant to be.
"""

import math
import re

import torch
import torch.nn.functional as F


def restormer(weights, image):
    """``weights``: state dict; ``image``: [N, C, H, W]. Works in the type of both (the tests use float64)."""

    def convolution(name, x, groups=1):
        weight = weights[f"{name}.weight"]
        return F.conv2d(x, weight, weights.get(f"{name}.bias"), padding=weight.shape[-1] // 2, groups=groups)

    def depthwise(name, x):
        return convolution(name, x, groups=x.shape[1])

    def layer_norm(name, x):
        mean = x.mean(dim=1, keepdim=True)
        variance = ((x - mean) ** 2).mean(dim=1, keepdim=True)
        weight, bias = weights[f"{name}.body.weight"], weights.get(f"{name}.body.bias")
        if bias is None:
            return x / torch.sqrt(variance + 1e-5) * weight[:, None, None]
        return (x - mean) / torch.sqrt(variance + 1e-5) * weight[:, None, None] + bias[:, None, None]

    def unit(rows):
        return rows / rows.pow(2).sum(dim=-1, keepdim=True).sqrt()

    def attention(name, x):
        n, c, h, w = x.shape
        temperature = weights[f"{name}.temperature"]
        heads = temperature.shape[0]
        qkv = depthwise(f"{name}.qkv_dwconv", convolution(f"{name}.qkv", x))
        q, k, v = (qkv[:, i * c : (i + 1) * c].reshape(n, heads, c // heads, h * w) for i in range(3))
        scores = torch.einsum("nhcp,nhdp->nhcd", unit(q), unit(k)) * temperature
        exponentials = torch.exp(scores - scores.amax(dim=-1, keepdim=True))
        shares = exponentials / exponentials.sum(dim=-1, keepdim=True)
        mixed = torch.einsum("nhcd,nhdp->nhcp", shares, v).reshape(n, c, h, w)
        return convolution(f"{name}.project_out", mixed)

    def feed_forward(name, x):
        both = depthwise(f"{name}.dwconv", convolution(f"{name}.project_in", x))
        half = both.shape[1] // 2
        gate, value = both[:, :half], both[:, half:]
        gelu = gate * 0.5 * (1 + torch.erf(gate / math.sqrt(2)))
        return convolution(f"{name}.project_out", gelu * value)

    def stage(name, x):
        count = len({m[1] for key in weights if (m := re.match(rf"{name}\.(\d+)\.", key))})
        for i in range(count):
            block = f"{name}.{i}"
            x = x + attention(f"{block}.attn", layer_norm(f"{block}.norm1", x))
            x = x + feed_forward(f"{block}.ffn", layer_norm(f"{block}.norm2", x))
        return x

    def down(name, x):
        x = convolution(f"{name}.body.0", x)
        phases = [x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)]
        return torch.stack(phases, dim=2).flatten(1, 2)

    def up(name, x):
        x = convolution(f"{name}.body.0", x)
        n, c, h, w = x.shape
        result = x.new_zeros(n, c // 4, h * 2, w * 2)
        for i in (0, 1):
            for j in (0, 1):
                result[:, :, i::2, j::2] = x[:, i * 2 + j :: 4]
        return result

    shallow = convolution("patch_embed.proj", image)
    level1 = stage("encoder_level1", shallow)
    level2 = stage("encoder_level2", down("down1_2", level1))
    level3 = stage("encoder_level3", down("down2_3", level2))
    x = stage("latent", down("down3_4", level3))
    x = stage("decoder_level3", convolution("reduce_chan_level3", torch.cat([up("up4_3", x), level3], 1)))
    x = stage("decoder_level2", convolution("reduce_chan_level2", torch.cat([up("up3_2", x), level2], 1)))
    x = stage("decoder_level1", torch.cat([up("up2_1", x), level1], 1))
    x = stage("refinement", x)
    if "skip_conv.weight" in weights:
        return convolution("output", x + convolution("skip_conv", shallow))
    return convolution("output", x) + image
