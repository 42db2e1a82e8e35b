"""Read a training run's checkpoint file: load it safely and find the network's tensors in it.

Training code wraps networks in many ways (DDP, torch.compile, Lightning, EMA, a GAN's two networks in one file). The
network is recognised by its stages, under any key and any prefix; other contents are reported, not loaded. The file is
loaded with ``weights_only=True``, so a pickle that would run code is rejected.
"""

import codecs
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from export.errors import ExportError
from export.network.architecture import Architecture, architecture_from_weights
from export.network.restormer import Restormer
from export.package.naming import Convention, detect_convention

#: NumPy scalars that a checkpoint may hold beside tensors (metrics), under the names of NumPy 1 and 2.
_SCALAR: Any = np.float64().__reduce__()[0]  # the function NumPy pickles a scalar with
_SAFE: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    np.dtype,
    *(type(np.dtype(name)) for name in ("float16", "float32", "float64", "int32", "int64", "bool")),
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]
#: Names of averaged (EMA) weights, as a part of a key or prefix.
_AVERAGED = re.compile(r"(?:^|[._])(?:ema|avg|averaged?|shadow|swa)(?:$|[._\d])", re.IGNORECASE)
#: Keys and prefixes of the plain weights where a file holds several networks, in order of preference.
_USUAL = (
    "model_state_dict", "state_dict", "model", "params", "module", "network", "net", "net_g", "netG", "generator", "G",
)  # fmt: skip
#: Segments that wrappers around a part of a network insert into names (torch.compile, FSDP, checkpointing, DP).
_WRAPPERS = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|module)\.")
#: Counters that profilers (thop and others) leave on modules.
_COUNTERS = re.compile(r"(?:.*\.)?total_(?:ops|params)")
#: First bytes of other files that end up in place of a checkpoint, and what they are.
_NOT_CHECKPOINTS = (
    (rb"version https://git-lfs", "a pointer file of Git LFS: fetch the checkpoint itself with `git lfs pull`"),
    (rb"(?:\.\./)*\.?/?(?:\.git/)?annex/objects", "a pointer file of git-annex: fetch the file with `git annex get`"),
    (rb"\s*(?:<!doctype|<html|<\?xml)", "a web page, probably of a failed download: download the checkpoint again"),
    (rb"\s*\{\s*\"", "a JSON document: put the checkpoint in its place"),
)  # fmt: skip
_ZIP, _PICKLE = b"PK\3\4", b"\x80"  #: first bytes of what torch.save writes, and wrote before PyTorch 1.6
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A network's tensors under internal names, with their naming convention and their location in the file.

    ``location`` is the path of keys and prefix, empty for tensors at the top. ``scalars`` are the numbers and strings
    at the top of the file (epoch, losses). ``remarks`` name what was dropped or left out.
    """

    weights: Mapping[str, Tensor]
    architecture: Architecture
    convention: Convention
    location: str
    scalars: Mapping[str, object]
    remarks: tuple[str, ...]

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(tensor.numel() for tensor in self.weights.values())


@dataclass(frozen=True)
class _Candidate:
    """Tensors that look like a Restormer: their state dict, its keys in the file, and their prefix."""

    state: Mapping[str, Tensor]
    keys: tuple[str, ...]
    prefix: str

    @property
    def path(self) -> str:
        return ".".join((*self.keys, self.prefix.rstrip("."))).strip(".")

    @property
    def title(self) -> str:
        return self.path or "the top of the file"

    @property
    def rank(self) -> int:
        """Averaged weights come first, then those under usual keys, then the rest."""
        parts = [*self.keys, *self.prefix.split(".")]
        if any(_AVERAGED.search(part) for part in parts) or "n_averaged" in self.state:
            return 0
        usual = [_USUAL.index(part) for part in parts if part in _USUAL]
        return 1 + min(usual, default=len(_USUAL) if self.path else 0)


def checkpoint_from_file(path: Path, eps: float | None = None) -> Checkpoint:
    """Read a checkpoint; ``eps`` replaces that of the naming convention.

    Raises `ExportError` for a file that is not a checkpoint of a Restormer.
    """
    content = _load(path)
    if not isinstance(content, Mapping | list | tuple):
        raise ExportError(f"{path} holds a {type(content).__name__}, not a dictionary with weights")
    candidates = sorted(_candidates(content), key=lambda each: each.rank)
    if not candidates:
        raise ExportError(_explain_none(path, content))
    try:
        return _choose(candidates, content, eps)
    except ExportError as error:
        raise ExportError(f"{path}: {error}") from error


def _choose(candidates: list[_Candidate], content: Any, eps: float | None) -> Checkpoint:
    """Read the candidate of the highest rank that holds the whole network; mention the others in remarks."""
    complete, incomplete = [], []
    for rank, group in groupby(candidates, key=lambda each: each.rank):
        for candidate in group:
            try:
                complete.append((candidate.title, _checkpoint(candidate, content, eps)))
            except ExportError as error:
                incomplete.append((candidate.title, error))
        if complete:
            others = [each.title for each in candidates if each.rank > rank]
            break
    else:
        raise incomplete[0][1]
    if len(complete) > 1:
        titles = ", ".join(title for title, _ in complete)
        raise ExportError(f"several networks fit: {titles}; save the one to serve alone")
    [(title, checkpoint)] = complete
    remarks = [f"the weights in {other} are left out: {error}" for other, error in incomplete]
    if others:
        remarks.append(f"{title} is used; {', '.join(others)} holds weights of a Restormer too")
    return replace(checkpoint, remarks=(*remarks, *checkpoint.remarks))


def _checkpoint(candidate: _Candidate, content: Any, eps: float | None) -> Checkpoint:
    inside = [name for name in candidate.state if name.startswith(candidate.prefix)]
    outside = [name for name in candidate.state if not name.startswith(candidate.prefix)]
    named = {_WRAPPERS.sub("", name.removeprefix(candidate.prefix)): candidate.state[name] for name in inside}
    if len(named) < len(inside):
        raise ExportError(f"{candidate.title} holds tensors both with and without a wrapper's names; save one of them")
    tensors = {name: tensor for name, tensor in named.items() if not _COUNTERS.fullmatch(name)}
    convention = detect_convention(tensors)
    weights = {str(convention.internal(name)): tensor for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        _require_convertible(name, tensor)
    architecture = architecture_from_weights(
        weights, eps=convention.eps if eps is None else eps, title=convention.external
    )
    _require_whole(weights, architecture, convention)
    remarks = []
    if count := len(named) - len(tensors):
        remarks.append(f"{count} profiler counters (total_ops, total_params) are dropped")
    if outside:
        more = f" and {len(outside) - 1} more tensors" if outside[1:] else ""
        remarks.append(f"{outside[0]}{more} in the checkpoint are not part of the network and are left out")
    return Checkpoint(
        weights=weights,
        architecture=architecture,
        convention=convention,
        location=candidate.path,
        scalars=_scalars(content),
        remarks=tuple(remarks),
    )


def _require_convertible(name: str, tensor: Tensor) -> None:
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.dtype not in _DTYPES:
        kind = f"{tensor.dtype}, {tensor.layout}, on {tensor.device.type}".replace("torch.", "")
        raise ExportError(
            f"tensor {name!r} cannot be converted to float32 ({kind}): save dense float16, bfloat16 or float32 tensors"
        )
    if not bool(torch.isfinite(tensor).all()):
        raise ExportError(f"tensor {name!r} holds NaN or infinity: use the checkpoint of an earlier epoch")


def _require_whole(weights: Mapping[str, Tensor], architecture: Architecture, convention: Convention) -> None:
    """Compare names and shapes with those of the architecture that was read from them."""
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in Restormer(architecture).state_dict().items()}
    present = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for name in sorted(expected.keys() | present.keys()):
        title = convention.external(name)
        if name not in present:
            raise ExportError(f"weights do not fit a Restormer: tensor {title!r} is missing")
        if name not in expected:
            raise ExportError(f"weights do not fit a Restormer: tensor {title!r} is unknown")
        if present[name] != expected[name]:
            shapes = f"has shape {list(present[name])}, {list(expected[name])} expected"
            raise ExportError(f"weights do not fit a Restormer: tensor {title!r} {shapes}")


def _candidates(content: Any) -> Iterator[_Candidate]:
    """Yield every subtree with tensors under names of a stage, at any depth and under any prefix."""
    for keys, state in _states(content):
        prefixes = {match[1]: None for name in state if (match := _STAGE_NAME.match(name))}
        yield from (_Candidate(state, keys, prefix) for prefix in prefixes)


_STAGE_NAME = re.compile(r"((?:.*?\.)??)encoder_level1\.")


def _states(content: Any) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Yield the tensors of each dictionary and list in the file, with the keys that lead to it."""
    queue: list[tuple[tuple[str, ...], Any]] = [((), content)]
    seen: set[int] = set()  # a pickle may hold a dictionary within itself
    for keys, container in queue:
        if id(container) in seen:
            continue
        seen.add(id(container))
        items = list(container.items() if isinstance(container, Mapping) else enumerate(container))
        yield keys, {str(name): value for name, value in items if isinstance(value, Tensor)}
        queue += [((*keys, str(key)), value) for key, value in items if isinstance(value, Mapping | list | tuple)]


def _explain_none(path: Path, content: Any) -> str:
    names = [name for _, state in _states(content) for name in state]
    if not names:
        return f"{path} holds no weights: a state dict of tensors is needed"
    return (
        f"{path} is not a Restormer: it has no tensor 'encoder_level1.…' (its first is {names[0]!r}); "
        "is this the checkpoint of another network?"
    )


def _scalars(content: Any) -> dict[str, object]:
    """Return the numbers and strings at the top of the file."""
    items = content.items() if isinstance(content, Mapping) else ()
    plain = {str(key): value.item() if isinstance(value, np.generic) else value for key, value in items}
    return {key: value for key, value in plain.items() if isinstance(value, str | bool | int | float)}


def _load(path: Path) -> object:
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
    except Exception as error:  # a damaged file makes the unpickler raise many types, IndexError included
        if name := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise ExportError(
                f"{path} is rejected: it asks for {name[1]}, which could run code; save tensors only"
            ) from error
        if isinstance(error, pickle.UnpicklingError) and head.startswith((_ZIP, _PICKLE)):
            reason = "it is not a checkpoint of tensors; save the state dict only"
            raise ExportError(f"{path} is rejected: {reason}") from error
        raise ExportError(f"{path} cannot be read as a checkpoint: {_describe_damage(path, head, error)}") from error


def _describe_damage(path: Path, head: bytes, error: Exception) -> str:
    """Say what is wrong with a file that PyTorch or safetensors cannot read."""
    again = "copy or download it again"
    if not head:
        return f"it is empty: {again}"
    if path.suffix == ".safetensors" or head.startswith(_PICKLE) or (head.startswith(_ZIP) and not is_zipfile(path)):
        return f"it is cut off or damaged: {again}"
    if head.startswith(_ZIP):
        return f"{' '.join(str(error).split())[:120]}; was it written by torch.save?"
    return "it is not a zip archive, which torch.save writes: give the checkpoint itself"
