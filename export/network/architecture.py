"""Read the architecture of a Restormer from the names and shapes of its weights.

A training team's ``architecture.json`` may be wrong or absent; the tensors cannot be. Every width is therefore read per
block: a feed-forward factor of 2.53 at width 48 is not 2.53 at width 384, because each level truncates to an integer by
itself. Names are the internal ones of ``export.package.naming``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from export.errors import ExportError

if TYPE_CHECKING:
    from torch import Tensor

#: The transformer stages, in the order that a photograph passes them, with their level (0 is full resolution).
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


@dataclass(frozen=True, kw_only=True)
class Block:
    """One transformer block: ``width`` channels, ``heads`` attention heads, ``hidden`` feed-forward channels."""

    width: int
    heads: int
    hidden: int


#: Convolutions outside the transformer blocks that may have a bias; the down- and up-convolutions never do.
OPTIONAL_BIASES = (
    "patch_embed",
    "reduce_chan_level3",
    "reduce_chan_level2",
    "reduce_chan_level1",
    "skip_conv",
    "output",
)
PAPER_EPS = 1e-5
OWNER_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Every hyper-parameter of a Restormer (Zamir et al., CVPR 2022, arXiv 2111.09881) or of the owner's variant.

    ``stages`` maps each name of `STAGES` to its blocks; only ``refinement`` may be empty. ``bias`` is the flag of the
    convolutions inside the blocks, ``biased`` names those of `OPTIONAL_BIASES` that have a bias. ``bias_free_norm``
    selects the LayerNorm without centring and bias, ``eps`` is added to the variance in every LayerNorm.
    ``reduces_level1``: a 1x1 convolution ``reduce_chan_level1`` halves the concatenation before decoder level 1, as in
    the owner's network; in the paper's, that level and the refinement work at twice the width. ``dual_pixel`` is the
    defocus variant: six input channels, a ``skip_conv``, and no global skip.
    """

    in_channels: int
    out_channels: int
    dim: int
    stages: Mapping[str, tuple[Block, ...]]
    eps: float
    bias: bool = False
    biased: frozenset[str] = frozenset()
    bias_free_norm: bool = False
    reduces_level1: bool = False
    dual_pixel: bool = False

    @property
    def depth(self) -> int:
        """Number of transformer blocks in all stages."""
        return sum(len(blocks) for blocks in self.stages.values())

    @property
    def output_width(self) -> int:
        """Channels of decoder level 1, of the refinement and of the output convolution's input."""
        return self.stages["decoder_level1"][0].width

    def describe(self) -> str:
        """Describe it in one line, for example ``dim 48 · blocks 4,6,6,8,6,6,4+4 · heads 1,2,4,8 · …``."""
        blocks = ",".join(str(len(self.stages[name])) for name in STAGES if name != "refinement")
        heads = ",".join(str(self.stages[name][0].heads) for name in list(STAGES)[:4])
        hidden = ",".join(str(self.stages[name][0].hidden) for name in list(STAGES)[:4])
        norm = "BiasFree" if self.bias_free_norm else "WithBias"
        return (
            f"dim {self.dim} · blocks {blocks}+{len(self.stages['refinement'])} · heads {heads} · "
            f"feed-forward {hidden} · decoder level 1 {self.output_width} wide · "
            f"{'bias' if self.bias else 'no bias'} · LayerNorm {norm}, eps {self.eps:g}"
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
    reduces_level1: bool = False,
    eps: float = PAPER_EPS,
) -> Architecture:
    """Build the architecture from the paper's hyper-parameters; the defaults are its standard network.

    ``blocks`` and ``heads`` are for levels 1 to 4, ``decoder_blocks`` for decoder levels 1 to 3 (as the
    encoder when omitted). ``expansion`` is the feed-forward factor γ. With ``reduces_level1`` it is the owner's
    variant, whose ``bias`` covers the patch embedding too; see `owner_network`.
    """

    def stage(name: str, count: int) -> tuple[Block, ...]:
        level = STAGES[name]
        is_concatenated = name in ("decoder_level1", "refinement") and not reduces_level1
        width = dim * 2 if is_concatenated else dim * 2**level
        return (Block(width=width, heads=heads[level], hidden=int(width * expansion)),) * count

    absent = set() if reduces_level1 else {"patch_embed", "reduce_chan_level1"}
    absent |= set() if dual_pixel else {"skip_conv"}
    counts = (*blocks, *reversed(decoder_blocks or blocks[:3]), refinement)
    return Architecture(
        in_channels=in_channels,
        out_channels=out_channels,
        dim=dim,
        stages={name: stage(name, count) for name, count in zip(STAGES, counts, strict=True)},
        eps=eps,
        bias=bias,
        biased=frozenset(OPTIONAL_BIASES) - absent if bias else frozenset(),
        bias_free_norm=bias_free_norm,
        reduces_level1=reduces_level1,
        dual_pixel=dual_pixel,
    )


#: The sizes that the owner's code offers: width, blocks of levels 1 to 4, refinement blocks.
OWNER_SIZES: dict[str, tuple[int, tuple[int, int, int, int], int]] = {
    "tiny": (24, (2, 3, 3, 4), 2),
    "small": (32, (3, 4, 4, 6), 3),
    "base": (48, (4, 6, 6, 8), 4),
    "large": (64, (6, 8, 8, 12), 6),
}


def owner_network(size: str = "base") -> Architecture:
    """Build the owner's network in one of `OWNER_SIZES`; the base is the one in service."""
    dim, blocks, refinement = OWNER_SIZES[size]
    return restormer(dim=dim, blocks=blocks, refinement=refinement, reduces_level1=True, eps=OWNER_EPS)


def architecture_from_weights(
    weights: Mapping[str, Tensor], *, eps: float, title: Callable[[str], str] = str
) -> Architecture:
    """Read the architecture from a state dict with internal names; ``eps``, which no tensor holds, is given.

    Raises `ExportError` naming the first missing tensor if this is not a Restormer; ``title`` returns a tensor's name
    in the checkpoint for that message.
    """

    def shape(name: str) -> tuple[int, ...]:
        if name not in weights:
            raise ExportError(
                f"not a Restormer: tensor {title(name)!r} is missing; is this the checkpoint of another network?"
            )
        actual = tuple(weights[name].shape)
        rank = 3 if name.endswith("temperature") else 4
        if len(actual) != rank or 0 in actual:
            raise ExportError(
                f"not a Restormer: tensor {title(name)!r} has shape {list(actual)}, {rank} dimensions expected"
            )
        return actual

    def block(name: str) -> Block:
        width, heads = shape(f"{name}.attn.project_out.weight")[0], shape(f"{name}.attn.temperature")[0]
        if width % heads:
            raise ExportError(f"not a Restormer: {name} has {width} channels for {heads} heads")
        return Block(width=width, heads=heads, hidden=shape(f"{name}.ffn.project_out.weight")[1])

    dim, in_channels = shape("patch_embed.weight")[:2]
    stages = {}
    for stage in STAGES:
        indices = {match[1] for name in weights if (match := re.match(rf"{stage}\.(\d+)\.", name))}
        if not indices and stage != "refinement":
            raise ExportError(f"not a Restormer: no block of stage {stage!r} in the weights")
        stages[stage] = tuple(block(f"{stage}.{index}") for index in range(len(indices)))
    first = "encoder_level1.0"
    return Architecture(
        in_channels=in_channels,
        out_channels=shape("output.weight")[0],
        dim=dim,
        stages=stages,
        eps=eps,
        bias=f"{first}.attn.qkv.bias" in weights,
        biased=frozenset(name for name in OPTIONAL_BIASES if f"{name}.bias" in weights),
        bias_free_norm=f"{first}.norm1.bias" not in weights,
        reduces_level1="reduce_chan_level1.weight" in weights,
        dual_pixel="skip_conv.weight" in weights,
    )
