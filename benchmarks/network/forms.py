"""Compare forms of a transformer block for the CPU engine, level by level: ``python -m benchmarks.network.forms``.

Two blocks of each level of the owner's base (random weights) run between two 1x1 convolutions, in the engine's runtime
and precision, at the size that they have in a 512x512 photograph. Forms take turns, in alternating order.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.network.random_weights import standard_network
from export.markdown import table
from export.network import cpu_form
from export.network.cpu_form import ChannelNorm, GroupedFeedForward, MaskedAttention
from export.network.restormer import NORM_FLOOR, TransformerBlock
from export.network.rewrites import rewrite_network, split_projections
from export.precision import precision_from_name
from export.targets import cpu
from imaging import SIDE

LEVELS = {"encoder_level1": 0, "encoder_level2": 1, "encoder_level3": 2, "latent": 3}
ROUNDS = 11


class HeadAttention(MaskedAttention):
    """`MaskedAttention` with a product for each head instead of a mask."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__(attention)  # type: ignore[arg-type]
        self.heads = attention.heads
        self.each = nn.Parameter(attention.temperature.detach()[None])  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        width, height, columns = x.shape[1:]
        pixels, part = height * columns, width // self.heads
        maps = (depthwise(pointwise(x)) for pointwise, depthwise in zip(self.qkv, self.qkv_dwconv, strict=True))
        q, k, v = (each.permute(0, 2, 3, 1).reshape(-1, pixels, width) for each in maps)
        lengths = [torch.linalg.vector_norm(each, dim=1).reshape(-1, self.heads, part) for each in (q, k)]
        products = (lengths[0][..., :, None] * lengths[1][..., None, :]).clamp_min(NORM_FLOOR**0.5)
        q, k = (each.reshape(-1, pixels, self.heads, part) for each in (q, k))
        similarity = q.permute(0, 2, 3, 1) @ k.permute(0, 2, 1, 3) / products
        attention = (similarity * self.each).softmax(-1)
        projection = self.projection.reshape(width, self.heads, part).permute(1, 0, 2)[None]
        mixing = (projection @ attention).permute(0, 2, 1, 3).reshape(-1, width, width).transpose(1, 2)
        return (v @ mixing).reshape(-1, height, columns, width).permute(0, 3, 1, 2)


class PlanarAttention(MaskedAttention):
    """`MaskedAttention` over ``[N, channels, pixels]``."""

    def forward(self, x: Tensor) -> Tensor:
        width, height, columns = x.shape[1:]
        maps = (depthwise(pointwise(x)) for pointwise, depthwise in zip(self.qkv, self.qkv_dwconv, strict=True))
        q, k, v = (each.reshape(-1, width, height * columns) for each in maps)
        lengths = [torch.linalg.vector_norm(each, dim=2) for each in (q, k)]
        products = (lengths[0][:, :, None] * lengths[1][:, None, :]).clamp_min(NORM_FLOOR**0.5)
        attention = (q @ k.transpose(1, 2) / products * self.temperature + self.mask).softmax(-1)
        return ((self.projection @ attention) @ v).reshape(-1, width, height, columns)


class MeanNorm(ChannelNorm):
    """`ChannelNorm` with the variance as a mean of squares instead of a length."""

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        scale = torch.rsqrt((centred * centred).mean(1, keepdim=True) + self.eps)
        return (centred if self.is_centred else x) * scale


def change(
    block: TransformerBlock, side: int, *, norm: type | None = ChannelNorm, attention: type | None = MaskedAttention,
    cached: int = cpu_form.CACHED, narrowest: int = cpu_form.NARROWEST,
) -> None:  # fmt: skip
    """Change a block with split projections in place."""
    hidden = block.ffn.project_out.in_channels
    groups = min(-(-2 * hidden * side**2 // cached), hidden // narrowest)
    if norm:
        block.norm1, block.norm2 = norm(block.norm1), norm(block.norm2)
    if attention:
        block.attn = attention(block.attn)
    if groups > 1:
        block.ffn = GroupedFeedForward(block.ffn, groups)  # type: ignore[assignment]


FORMS: dict[str, Callable[[TransformerBlock, int], None]] = {
    "the engine": change,
    "the engine again": change,
    "feed-forward not in groups": partial(change, cached=2**60),
    "groups above 16 MiB, of 64 channels": partial(change, narrowest=64),
    "groups above 8 MiB, of 64 channels: the engine before": partial(change, cached=2**23, narrowest=64),
    "groups above 4 MiB, of 32 channels": partial(change, cached=2**22),
    "attention by heads": partial(change, attention=HeadAttention),
    "attention over [channels, pixels]": partial(change, attention=PlanarAttention),
    "attention as in the network": partial(change, attention=None),
    "LayerNorm by a mean of squares": partial(change, norm=MeanNorm),
    "LayerNorm as one node": partial(change, norm=None),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", default="fp32")
    settings = cpu.settings(precision_from_name(parser.parse_args().precision))
    network = split_projections(rewrite_network(standard_network()))
    rows: dict[str, list[str]] = {name: [] for name in FORMS}
    with tempfile.TemporaryDirectory() as folder:
        for stage, level in LEVELS.items():
            blocks, side = network.get_submodule(stage)[:2], SIDE >> level  # type: ignore[index]
            width = 48 << level
            image = np.random.default_rng(0).standard_normal((1, width, side, side), np.float32)
            edges = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
            times: dict[str, list[float]] = {name: [] for name in FORMS}
            runs = {}
            for name, form in FORMS.items():
                changed = copy.deepcopy(blocks)
                for block in changed:
                    form(block, side)
                path = Path(folder, "blocks.onnx")
                module = nn.Sequential(edges[0], changed, edges[1]).eval()
                torch.onnx.export(module, (torch.from_numpy(image),), str(path), verbose=False)
                runs[name] = cpu.compile_engine(path, settings)
                runs[name](image)
            for turn in range(ROUNDS):
                for name in FORMS if turn % 2 else reversed(FORMS):
                    began = time.perf_counter()
                    runs[name](image)
                    times[name].append(1e3 * (time.perf_counter() - began))
            for name, found in times.items():
                rows[name].append(f"{statistics.median(found):.0f} ({min(found):.0f}–{max(found):.0f})")
            print(table(("two blocks, ms (min–max)", *LEVELS), [[name, *cells] for name, cells in rows.items()]))


if __name__ == "__main__":
    main()
