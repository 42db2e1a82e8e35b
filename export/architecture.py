"""What a Restormer looks like, read off the shapes of its weights.

A training team's ``architecture.json`` may be wrong or absent; the tensors cannot be. Every width is
therefore read per block (a feed-forward factor of 2.53 at width 48 is *not* 2.53 at width 384, because
each level truncates to an integer by itself). Nothing here needs PyTorch: a mapping from parameter names
to objects with a ``shape`` is enough.

Not checked here: that the numbers in the tensors are finite or trained (see ``export.package``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from export.errors import ExportError

#: The transformer stages, in the order a photograph passes them, with their level (0 is full resolution).
STAGES: dict[str, int] = {
    "encoder_level1": 0,
    "encoder_level2": 1,
    "encoder_level3": 2,
    "latent": 3,
    "decoder_level3": 2,
    "decoder_level2": 1,
    "decoder_level1": 0,
    "refinement": 0,
}


class Shaped(Protocol):
    """Anything with a shape: a torch tensor, a NumPy array, a safetensors slice."""

    @property
    def shape(self) -> tuple[int, ...]: ...


@dataclass(frozen=True, kw_only=True)
class Block:
    """One transformer block: ``width`` channels, ``heads`` attention heads, ``hidden`` feed-forward channels."""

    width: int
    heads: int
    hidden: int


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Every hyper-parameter of a Restormer (Zamir et al., CVPR 2022, arXiv 2111.09881).

    ``stages`` maps each name of `STAGES` to its blocks; only ``refinement`` may be empty.
    ``bias`` is the flag of all convolutions but the patch embedding, the down- and the up-convolutions, which
    never have one. ``bias_free_norm`` selects the LayerNorm without centring and bias. ``dual_pixel`` is the
    defocus variant: six input channels, a ``skip_conv``, and no global skip.
    """

    in_channels: int
    out_channels: int
    dim: int
    stages: Mapping[str, tuple[Block, ...]]
    bias: bool = False
    bias_free_norm: bool = False
    dual_pixel: bool = False

    @property
    def depth(self) -> int:
        """Number of transformer blocks in all stages."""
        return sum(len(blocks) for blocks in self.stages.values())

    def describe(self) -> str:
        """One line for people, for example ``dim 48 · blocks 4,6,6,8,6,6,4+4 · heads 1,2,4,8 · …``."""
        blocks = ",".join(str(len(self.stages[name])) for name in STAGES if name != "refinement")
        heads = ",".join(str(self.stages[name][0].heads) for name in list(STAGES)[:4])
        hidden = ",".join(str(self.stages[name][0].hidden) for name in list(STAGES)[:4])
        norm = "BiasFree" if self.bias_free_norm else "WithBias"
        return (
            f"dim {self.dim} · blocks {blocks}+{len(self.stages['refinement'])} · heads {heads} · "
            f"feed-forward {hidden} · {'bias' if self.bias else 'no bias'} · LayerNorm {norm}"
            f"{' · dual pixel' if self.dual_pixel else ''} · {self.in_channels}→{self.out_channels} channels"
        )


def restormer(
    *,
    dim: int = 48,
    blocks: tuple[int, int, int, int] = (4, 6, 6, 8),
    decoder_blocks: tuple[int, int, int] | None = None,
    refinement: int = 4,
    heads: tuple[int, int, int, int] = (1, 2, 4, 8),
    expansion: float = 2.66,
    in_channels: int = 3,
    out_channels: int = 3,
    bias: bool = False,
    bias_free_norm: bool = False,
    dual_pixel: bool = False,
) -> Architecture:
    """The architecture from the paper's own hyper-parameters; the defaults are its standard network.

    ``blocks`` and ``heads`` are for levels 1 to 4, ``decoder_blocks`` for decoder levels 1 to 3 (as the
    encoder when omitted). ``expansion`` is the feed-forward factor γ.
    """

    def stage(name: str, count: int) -> tuple[Block, ...]:
        level = STAGES[name]
        # The decoder's level 1 and the refinement work on the concatenation, twice the width.
        width = dim * 2 if name in ("decoder_level1", "refinement") else dim * 2**level
        return (Block(width=width, heads=heads[level], hidden=int(width * expansion)),) * count

    decoder = decoder_blocks or blocks[:3]
    counts = (*blocks, *reversed(decoder), refinement)
    return Architecture(
        in_channels=in_channels,
        out_channels=out_channels,
        dim=dim,
        stages={name: stage(name, count) for name, count in zip(STAGES, counts, strict=True)},
        bias=bias,
        bias_free_norm=bias_free_norm,
        dual_pixel=dual_pixel,
    )


def architecture_from_weights(weights: Mapping[str, Shaped]) -> Architecture:
    """Reads the architecture off a state dict (names as in the public checkpoints).

    Raises `ExportError` naming the first missing tensor if this is not a Restormer.
    """

    def shape(name: str) -> tuple[int, ...]:
        if name not in weights:
            raise ExportError(
                f"not a Restormer: tensor {name!r} is missing; is this the checkpoint of another network?"
            )
        found = tuple(weights[name].shape)
        rank = 3 if name.endswith("temperature") else 4
        if len(found) != rank or 0 in found:
            raise ExportError(f"not a Restormer: tensor {name!r} has shape {list(found)}, {rank} dimensions wanted")
        return found

    dim, in_channels = shape("patch_embed.proj.weight")[:2]
    stages = {name: tuple(_blocks(name, weights, shape)) for name in STAGES}
    for name, blocks in stages.items():
        if not blocks and name != "refinement":
            raise ExportError(f"not a Restormer: no block of stage {name!r} in the weights")
    first = "encoder_level1.0"
    return Architecture(
        in_channels=in_channels,
        out_channels=shape("output.weight")[0],
        dim=dim,
        stages=stages,
        bias=f"{first}.attn.qkv.bias" in weights,
        bias_free_norm=f"{first}.norm1.body.bias" not in weights,
        dual_pixel="skip_conv.weight" in weights,
    )


def _blocks(stage: str, weights: Mapping[str, Shaped], shape: Callable[[str], tuple[int, ...]]) -> Iterator[Block]:
    pattern = re.compile(rf"{stage}\.(\d+)\.")
    count = len({match[1] for name in weights if (match := pattern.match(name))})
    for index in range(count):
        name = f"{stage}.{index}"
        block = Block(
            width=shape(f"{name}.attn.project_out.weight")[0],
            heads=shape(f"{name}.attn.temperature")[0],
            hidden=shape(f"{name}.ffn.project_out.weight")[1],
        )
        if block.width % block.heads:
            raise ExportError(f"not a Restormer: {name} has {block.width} channels for {block.heads} heads")
        yield block
