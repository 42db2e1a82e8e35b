"""Read a training run's checkpoint file: load it safely and find the network's tensors in it.

Training code wraps networks in many ways (DDP, torch.compile, Lightning, EMA, a GAN's two networks in one file). The
network is recognised by its stages, under any key and any prefix; what else the file holds is reported, not loaded.
The file is loaded with ``weights_only=True``: a pickle that wants to run code is refused.
"""

from __future__ import annotations

import codecs
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from export.errors import ExportError
from export.network.architecture import Architecture, architecture_from_weights
from export.network.restormer import Restormer
from export.package.naming import Convention, convention_of, is_counter

#: NumPy scalars that a checkpoint may hold beside tensors (metrics), under the names of NumPy 1 and 2.
_SCALAR: Any = np.float64().__reduce__()[0]  # the function NumPy pickles a scalar with
_SAFE: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    np.dtype,
    *(type(np.dtype(name)) for name in ("float16", "float32", "float64", "int32", "int64", "bool")),
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]
#: What averaged (EMA) weights are called, as a part of a key or prefix.
_AVERAGED = re.compile(r"(?:^|[._])(?:ema|avg|averaged?|shadow|swa)(?:$|[._\d])", re.IGNORECASE)
#: Keys and prefixes of the plain weights where a file holds several networks, the first that is there wins.
_USUAL = (
    "model_state_dict", "state_dict", "model", "params", "module", "network", "net", "net_g", "netG", "generator", "G",
)  # fmt: skip
#: Segments that wrappers around a part of a network insert into names (torch.compile, FSDP, checkpointing, DP).
_WRAPPERS = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|module)\.")
#: First bytes of files that are found where a checkpoint should be, and what they are.
_NOT_CHECKPOINTS = (
    (rb"version https://git-lfs", "a pointer file of Git LFS: fetch the checkpoint itself with `git lfs pull`"),
    (rb"(?:\.\./)*\.?/?(?:\.git/)?annex/objects", "a pointer file of git-annex: fetch the file with `git annex get`"),
    (rb"\s*(?:<!doctype|<html|<\?xml)", "a web page, probably of a failed download: download the checkpoint again"),
    (rb"\s*\{\s*\"", "a JSON document: put the checkpoint in its place"),
)  # fmt: skip
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A network's tensors under internal names, how they were named and where they lay, and what lay beside them.

    ``place`` is the path of keys and prefix, empty for tensors at the top. ``scalars`` are the numbers and strings at
    the top of the file (epoch, losses). ``remarks`` name what was dropped or passed over.
    """

    weights: Mapping[str, Tensor]
    architecture: Architecture
    convention: Convention
    place: str
    scalars: Mapping[str, object]
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class _Candidate:
    """Tensors that look like a Restormer: the state dict they lie in, its keys in the file, and their prefix."""

    state: Mapping[str, Tensor]
    keys: tuple[str, ...]
    prefix: str

    @property
    def place(self) -> str:
        return ".".join((*self.keys, self.prefix.rstrip("."))).strip(".")

    @property
    def rank(self) -> int:
        """Averaged weights first, then those in the usual places, then the rest."""
        parts = [*self.keys, *self.prefix.split(".")]
        if any(_AVERAGED.search(part) for part in parts) or "n_averaged" in self.state:
            return 0
        usual = [_USUAL.index(part) for part in parts if part in _USUAL]
        return 1 + min(usual, default=len(_USUAL) if self.place else 0)

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {
            _WRAPPERS.sub("", n.removeprefix(self.prefix)): t
            for n, t in self.state.items()
            if n.startswith(self.prefix)
        }

    @property
    def outside(self) -> list[str]:
        """Names in the same state dict that do not have the prefix."""
        return [name for name in self.state if not name.startswith(self.prefix)]


def checkpoint_from_file(path: Path, eps: float | None = None) -> Checkpoint:
    """Read a checkpoint; ``eps`` replaces that of the naming convention.

    Raises `ExportError` in one line for a file that is not a checkpoint, or not one of a Restormer.
    """
    content = _loaded(path)
    if not isinstance(content, Mapping | list | tuple):
        raise ExportError(f"{path} holds a {type(content).__name__}, not a dictionary with weights")
    candidates = sorted(_candidates(content), key=lambda each: each.rank)
    if not candidates:
        raise ExportError(_why_none(path, content))
    try:
        return _first_complete(path, candidates, content, eps)
    except ExportError as error:
        raise ExportError(f"{path}: {error}") from error


def _first_complete(path: Path, candidates: list[_Candidate], content: Any, eps: float | None) -> Checkpoint:
    """The best candidate that holds the whole network; one that does not is passed over with a remark."""
    first, *others = candidates
    if rivals := [each.place for each in others if each.rank == first.rank]:
        raise ExportError(f"several networks fit: {', '.join((first.place, *rivals))}; save the one to serve alone")
    try:
        chosen = _checkpoint(first, content, eps)
    except ExportError as error:
        if not others:
            raise
        passed = _first_complete(path, others, content, eps)
        remark = f"the weights in {first.place} are left out: {error}"
        return replace(passed, remarks=(remark, *passed.remarks))
    if others:
        left = ", ".join(each.place or "the top of the file" for each in others)
        remark = f"{first.place} is taken; {left} holds weights of a Restormer too"
        return replace(chosen, remarks=(remark, *chosen.remarks))
    return chosen


def _checkpoint(candidate: _Candidate, content: Any, eps: float | None) -> Checkpoint:
    tensors = {name: tensor for name, tensor in candidate.tensors.items() if not is_counter(name)}
    if len(candidate.tensors) + len(candidate.outside) < len(candidate.state):
        raise ExportError(f"{candidate.place} holds tensors both with and without a wrapper's names; save one of them")
    convention = convention_of(tensors)
    weights = {str(convention.internal(name)): tensor for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        _require_convertible(name, tensor)
    architecture = architecture_from_weights(
        weights, eps=convention.eps if eps is None else eps, title=convention.external
    )
    _require_whole(weights, architecture, convention)
    return Checkpoint(
        weights=weights,
        architecture=architecture,
        convention=convention,
        place=candidate.place,
        scalars=_scalars(content),
        remarks=(*_dropped(candidate, len(tensors)), *_left_out(candidate)),
    )


def _dropped(candidate: _Candidate, kept: int) -> Iterator[str]:
    if count := len(candidate.tensors) - kept:
        yield f"{count} profiler counters (total_ops, total_params) are dropped"


def _left_out(candidate: _Candidate) -> Iterator[str]:
    if outside := candidate.outside:
        more = f" and {len(outside) - 1} more tensors" if outside[1:] else ""
        yield f"{outside[0]}{more} in the checkpoint are no part of the network and are left out"


def _require_convertible(name: str, tensor: Tensor) -> None:
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.dtype not in _DTYPES:
        kind = f"{tensor.dtype}, {tensor.layout}, on {tensor.device.type}".replace("torch.", "")
        raise ExportError(
            f"tensor {name!r} cannot be converted to float32 ({kind}): save dense float16, bfloat16 or float32 tensors"
        )
    if not bool(torch.isfinite(tensor).all()):
        raise ExportError(f"tensor {name!r} holds NaN or infinity: take the checkpoint of an earlier epoch")


def _require_whole(weights: Mapping[str, Tensor], architecture: Architecture, convention: Convention) -> None:
    """Compare names and shapes with those of the architecture that was read off them."""
    with torch.device("meta"):
        wanted = {name: tuple(tensor.shape) for name, tensor in Restormer(architecture).state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for name in sorted(wanted.keys() | found.keys()):
        title = convention.external(name)
        if name not in found:
            raise ExportError(f"weights do not fit a Restormer: tensor {title!r} is missing")
        if name not in wanted:
            raise ExportError(f"weights do not fit a Restormer: no place for tensor {title!r}")
        if found[name] != wanted[name]:
            shapes = f"has shape {list(found[name])}, {list(wanted[name])} expected"
            raise ExportError(f"weights do not fit a Restormer: tensor {title!r} {shapes}")


def _candidates(content: Any) -> Iterator[_Candidate]:
    """Every subtree with tensors under names of a stage, at any depth and under any prefix."""
    for keys, state in _states(content):
        prefixes = {match[1]: None for name in state if (match := _STAGE_NAME.match(name))}
        yield from (_Candidate(state, keys, prefix) for prefix in prefixes)


_STAGE_NAME = re.compile(r"((?:.*?\.)??)encoder_level1\.")


def _states(content: Any) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """The tensors of each dictionary and list in the file, with the keys that lead to it."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((), content)]
    seen: set[int] = set()  # a pickle may hold a dictionary within itself
    for keys, container in waiting:
        if id(container) in seen:
            continue
        seen.add(id(container))
        items = list(container.items() if isinstance(container, Mapping) else enumerate(container))
        yield keys, {str(name): value for name, value in items if isinstance(value, Tensor)}
        waiting += [((*keys, str(key)), value) for key, value in items if isinstance(value, Mapping | list | tuple)]


def _why_none(path: Path, content: Any) -> str:
    names = [name for _, state in _states(content) for name in state]
    if not names:
        return f"{path} holds no weights: a state dict of tensors is needed"
    return (
        f"{path} is not a Restormer: it has no tensor 'encoder_level1.…' (its first is {names[0]!r}); "
        "is this the checkpoint of another network?"
    )


def _scalars(content: Any) -> dict[str, object]:
    """Numbers and strings at the top of the file."""
    items = content.items() if isinstance(content, Mapping) else ()
    plain = {str(key): value.item() if isinstance(value, np.generic) else value for key, value in items}
    return {key: value for key, value in plain.items() if isinstance(value, str | bool | int | float)}


def _loaded(path: Path) -> object:
    with path.open("rb") as file:
        head = file.read(512).removeprefix(codecs.BOM_UTF8)
    for pattern, what in _NOT_CHECKPOINTS:
        if re.match(pattern, head, re.IGNORECASE):
            raise ExportError(f"{path} is not a checkpoint but {what}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(_SAFE):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if name := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise ExportError(
                f"{path} is refused: it asks for {name[1]}, which could run code; save tensors only"
            ) from error
        raise ExportError(f"{path} is refused: it is not a checkpoint of tensors; save the state dict only") from error
    except Exception as error:  # a damaged file makes the unpickler raise anything, IndexError included
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ExportError(f"{path} cannot be read as a checkpoint ({reason}); is the file whole?") from error
