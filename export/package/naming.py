"""Naming conventions of Restormer checkpoints, as a table, and the internal naming they are mapped to.

Checkpoints of the same tensors differ in three places: the patch embedding, the blocks of a stage and the norms of a
block. A convention says how it writes these. Nothing behind the loader knows of conventions: it sees internal names,
which are those of ``export.network.restormer``. To support another convention, add a row to `CONVENTIONS`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from export.errors import ExportError
from export.network.architecture import OWNER_EPS, PAPER_EPS, STAGES


@dataclass(frozen=True, kw_only=True)
class Convention:
    """How a family of checkpoints names its tensors, and the ``eps`` of its LayerNorm, which no tensor shows.

    ``{stage}`` and ``{index}`` in ``block`` are a stage and the block's number, ``{index}`` in ``norm`` is 1 or 2.
    """

    title: str
    eps: float
    patch_embed: str = "patch_embed"
    block: str = "{stage}.{index}"
    norm: str = "norm{index}"

    def internal(self, name: str) -> str | None:
        """Map a name of this convention to the internal one; None if the convention does not know it."""
        if not (match := self._pattern.fullmatch(name)):
            return None
        found = match.groupdict()
        if found["embedding"]:
            return f"patch_embed.{found['embedding']}"
        if found["rest"]:
            return name
        inside = f"norm{found['norm']}.{found['parameter']}" if found["norm"] else found["inside"]
        return f"{found['stage']}.{found['block']}.{inside}"

    def external(self, name: str) -> str:
        """Map an internal name to the one of this convention."""
        name = re.sub(r"^patch_embed\.", f"{self.patch_embed}.", name)
        name = re.sub(rf"^({_STAGE})\.(\d+)\.", lambda m: self.block.format(stage=m[1], index=m[2]) + ".", name)
        return re.sub(r"\.norm([12])\.", lambda m: f".{self.norm.format(index=m[1])}.", name)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        embedding = rf"{re.escape(self.patch_embed)}\.(?P<embedding>weight|bias)"
        block = _filled(self.block, stage=f"(?P<stage>{_STAGE})", index=r"(?P<block>\d+)")
        norm = rf"{_filled(self.norm, index='(?P<norm>[12])')}\.(?P<parameter>weight|bias)"
        return re.compile(rf"{embedding}|{block}\.(?:{norm}|(?P<inside>{_INSIDE}))|(?P<rest>{_REST})")


_STAGE = "|".join(STAGES)
_INSIDE = (
    r"attn\.temperature|attn\.(?:qkv|qkv_dwconv|project_out)\.(?:weight|bias)"
    r"|ffn\.(?:project_in|dwconv|project_out)\.(?:weight|bias)"
)
_REST = (
    r"(?:down1_2|down2_3|down3_4|up4_3|up3_2|up2_1)\.body\.0\.weight"
    r"|(?:reduce_chan_level[123]|skip_conv|output)\.(?:weight|bias)"
)
#: Counters that profilers (thop and others) leave on modules.
_COUNTERS = re.compile(r"(?:.*\.)?total_(?:ops|params)")

PAPER = Convention(
    title="paper (public checkpoints)", eps=PAPER_EPS, patch_embed="patch_embed.proj", norm="norm{index}.body"
)
OWNER = Convention(title="owner, blocks under .blocks.", eps=OWNER_EPS, block="{stage}.blocks.{index}")
OWNER_OLD = Convention(title="owner, before December 2025", eps=OWNER_EPS)  #: the internal naming too
CONVENTIONS = (OWNER, OWNER_OLD, PAPER)


def is_counter(name: str) -> bool:
    """Whether a tensor is a profiler's counter and no part of the network."""
    return _COUNTERS.fullmatch(name) is not None


def convention_of(names: Iterable[str]) -> Convention:
    """Detect the convention that knows every one of these names.

    Raises `ExportError` naming a tensor that no convention knows, or two of different conventions.
    """
    wanted = sorted(names)
    for convention in CONVENTIONS:
        if all(convention.internal(name) for name in wanted):
            return convention
    nearest = max(CONVENTIONS, key=lambda each: sum(each.internal(name) is not None for name in wanted))
    stranger = next(name for name in wanted if not nearest.internal(name))
    others = [each for each in CONVENTIONS if each.internal(stranger)]
    if others:
        raise ExportError(
            f"two naming conventions are mixed: most tensors are named as in {nearest.title!r}, "
            f"{stranger!r} as in {others[0].title!r}; save the state dict of one network"
        )
    raise ExportError(
        f"tensor {stranger!r} belongs to no Restormer that is known here (naming {nearest.title!r}); "
        "save the network's own state dict, or add the naming to export/package/naming.py"
    )


def _filled(template: str, **values: str) -> str:
    """A template as a regular expression, its placeholders replaced by these expressions."""
    pattern = re.escape(template)
    for name, value in values.items():
        pattern = pattern.replace(re.escape(f"{{{name}}}"), value)
    return pattern
