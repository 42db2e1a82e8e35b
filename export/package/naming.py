"""The naming conventions of Restormer checkpoints, and their mapping to the names of ``export.network.restormer``.

To support another convention, add a row to `CONVENTIONS`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from export.errors import ExportError
from export.network.architecture import OWNER_EPS, PAPER_EPS, STAGES


@dataclass(frozen=True, kw_only=True)
class Convention:
    """The names of tensors in a family of checkpoints, and the ``eps`` of its LayerNorm, which no tensor shows.

    ``{stage}`` and ``{index}`` in ``block`` are a stage and the number of a block, ``{index}`` in ``norm`` is 1 or 2.
    """

    title: str
    eps: float
    patch_embed: str = "patch_embed"
    block: str = "{stage}.{index}"
    norm: str = "norm{index}"

    def internal(self, name: str) -> str | None:
        """Map a name of this convention to the internal one; None if the convention does not have it."""
        block = self.block.replace(".", r"\.").format(stage=f"({_STAGE})", index=r"(\d+)")
        norm = self.norm.replace(".", r"\.").format(index="([12])")
        inner = re.sub(rf"^{re.escape(self.patch_embed)}\.", "patch_embed.", name)
        inner = re.sub(rf"\.{norm}\.", r".norm\1.", re.sub(rf"^{block}\.", r"\1.\2.", inner))
        return inner if _INTERNAL.fullmatch(inner) and self.external(inner) == name else None

    def external(self, name: str) -> str:
        """Map an internal name to the one of this convention."""
        name = re.sub(r"^patch_embed\.", f"{self.patch_embed}.", name)
        name = re.sub(rf"^({_STAGE})\.(\d+)\.", lambda m: self.block.format(stage=m[1], index=m[2]) + ".", name)
        return re.sub(r"\.norm([12])\.", lambda m: f".{self.norm.format(index=m[1])}.", name)


_STAGE = "|".join(STAGES)
_INTERNAL = re.compile(
    rf"(?:{_STAGE})\.\d+\.(?:attn\.temperature"
    r"|(?:norm[12]|attn\.(?:qkv|qkv_dwconv|project_out)|ffn\.(?:project_in|dwconv|project_out))\.(?:weight|bias))"
    r"|(?:down1_2|down2_3|down3_4|up4_3|up3_2|up2_1)\.body\.0\.weight"
    r"|(?:patch_embed|reduce_chan_level[123]|skip_conv|output)\.(?:weight|bias)"
)

PAPER = Convention(
    title="paper (public checkpoints)", eps=PAPER_EPS, patch_embed="patch_embed.proj", norm="norm{index}.body"
)
OWNER = Convention(title="owner, blocks under .blocks.", eps=OWNER_EPS, block="{stage}.blocks.{index}")
OWNER_OLD = Convention(title="owner, before December 2025", eps=OWNER_EPS)  #: the internal naming too
CONVENTIONS = (OWNER, OWNER_OLD, PAPER)


def detect_convention(names: Iterable[str]) -> Convention:
    """Return the convention that has all of these names.

    Raises `ExportError` naming a tensor that no convention has, or one of another convention.
    """
    tensors = sorted(names)
    nearest = max(CONVENTIONS, key=lambda each: sum(each.internal(name) is not None for name in tensors))
    unknown = next((name for name in tensors if not nearest.internal(name)), None)
    if unknown is None:
        return nearest
    if other := next((each for each in CONVENTIONS if each.internal(unknown)), None):
        raise ExportError(
            f"two naming conventions are mixed: most tensors are named as in {nearest.title!r}, "
            f"{unknown!r} as in {other.title!r}; save the state dict of one network"
        )
    raise ExportError(
        f"tensor {unknown!r} is unknown (the other names are those of {nearest.title!r}); "
        "save the network's own state dict, or add the naming to export/package/naming.py"
    )
