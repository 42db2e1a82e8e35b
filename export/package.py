"""Reads a model package: the folder a training team hands over.

The weights alone are enough, every hyper-parameter is read off them; what the JSON files claim is checked against
them and a difference is reported, never believed. The checkpoint is loaded with ``weights_only=True``: a pickle that
wants to run code is refused.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from export.architecture import Architecture, architecture_from_weights
from export.errors import ExportError
from export.files import checkpoint_path, sha256
from export.network import Restormer

#: Where training scripts keep averaged (EMA) weights, and plain ones, inside a checkpoint, in the order we look.
EMA_KEYS = ("params_ema", "ema_state_dict", "model_ema_state_dict", "model_ema", "ema")
WEIGHT_KEYS = ("model_state_dict", "state_dict", "model", "params")
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
#: What a checkpoint may hold beside tensors: NumPy scalars (metrics), under the names of NumPy 1 and 2.
_SCALAR: Any = np.float64().__reduce__()[0]  # the function NumPy pickles a scalar with
_SAFE: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    np.dtype,
    *(type(np.dtype(name)) for name in ("float16", "float32", "float64", "int32", "int64", "bool")),
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package read: its network's architecture and weights, and what did not agree on the way (``remarks``)."""

    folder: Path
    architecture: Architecture
    weights: Mapping[str, Tensor]
    training_info: Mapping[str, object]
    remarks: tuple[str, ...]

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(tensor.numel() for tensor in self.weights.values())


def package_from_folder(folder: Path) -> Package:
    """Reads and checks a package. Raises `ExportError` in one line for anything that is wrong with it."""
    path = checkpoint_path(folder)
    found, key_remarks = _weights_in(_loaded(path), path)
    weights = _stripped(found)
    broken = [name for name, tensor in weights.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise ExportError(f"{path}: tensor {broken[0]!r} holds NaN or infinity ({len(broken)} such tensors)")
    architecture = architecture_from_weights(weights)
    parameters = sum(tensor.numel() for tensor in weights.values())
    return Package(
        folder=folder,
        architecture=architecture,
        weights=weights,
        training_info=_json(folder / "training_info.json"),
        remarks=(
            *key_remarks,
            *_manifest_remarks(folder),
            *_size_remarks(folder, parameters),
            *_architecture_remarks(folder, architecture, parameters),
        ),
    )


def network_from_package(package: Package) -> Restormer:
    """The network with the package's weights, float32, in evaluation mode."""
    network = Restormer(package.architecture)
    try:
        network.load_state_dict({name: tensor.float() for name, tensor in package.weights.items()})
    except RuntimeError as error:
        detail = str(error).splitlines()[-1].strip()
        raise ExportError(f"{package.folder}: weights do not fit a Restormer: {detail}") from error
    return network.eval()


def _loaded(path: Path) -> object:
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
        raise ExportError(f"{path} is refused: it is no checkpoint of tensors; save the state dict only") from error
    except Exception as error:  # a damaged file makes the unpickler raise anything, IndexError included
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ExportError(f"{path} cannot be read as a checkpoint ({reason}); is the file whole?") from error


def _weights_in(checkpoint: object, path: Path) -> tuple[Mapping[str, Tensor], list[str]]:
    """The weights inside a checkpoint, averaged ones first, and a remark where there was a choice."""
    if not isinstance(checkpoint, Mapping):
        raise ExportError(f"{path} holds a {type(checkpoint).__name__}, not a dictionary with weights")
    averaged = [key for key in EMA_KEYS if _tensors(checkpoint.get(key))]
    plain = [key for key in WEIGHT_KEYS if _tensors(checkpoint.get(key))]
    chosen = next(iter(averaged + plain), None)
    weights = _tensors(checkpoint if chosen is None else checkpoint[chosen])
    if not weights:
        raise ExportError(f"{path} holds no weights: none of {', '.join(WEIGHT_KEYS)}, and no tensors at the top")
    choice = (
        [f"both {averaged[0]} and {plain[0]} hold weights: the averaged ones are taken"] if averaged and plain else []
    )
    return weights, choice


def _tensors(state: object) -> dict[str, Tensor]:
    """The tensors of a state dict; empty if it is none."""
    if not isinstance(state, Mapping):
        return {}
    return {str(name): tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}


def _stripped(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefixes that wrappers (DDP, torch.compile, Lightning) put before every name."""
    names = list(weights)
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in names)), ""):
        names = [name.removeprefix(prefix) for name in names]
    return dict(zip(names, weights.values(), strict=True))


def _json(path: Path) -> dict[str, object]:
    if not path.is_file():
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ExportError(f"{path} is not valid JSON ({error}): mend or remove it") from error
    if not isinstance(document, dict):
        raise ExportError(f"{path} must hold a JSON object, not a {type(document).__name__}")
    return document


def _manifest_remarks(folder: Path) -> list[str]:
    """Files whose SHA-256 is not the one MANIFEST.txt states. A line that is no checksum is prose, and skipped."""
    manifest = folder / "MANIFEST.txt"
    remarks = []
    for line in manifest.read_text(encoding="utf-8", errors="replace").splitlines() if manifest.is_file() else []:
        digest, _, name = line.partition("  ")
        if len(digest) != 64 or not name:
            continue
        if not (folder / name).is_file():
            remarks.append(f"MANIFEST.txt names {name}, which is not there")
        elif (found := sha256(folder / name)) != digest:
            remarks.append(f"{name}: SHA-256 is {found[:12]}…, MANIFEST.txt says {digest[:12]}…")
    return remarks


def _size_remarks(folder: Path, parameters: int) -> list[str]:
    """The size the manifest boasts of ("25.4M parameters"), if it is off by more than 0.05 M."""
    manifest = folder / "MANIFEST.txt"
    prose = manifest.read_text(encoding="utf-8", errors="replace") if manifest.is_file() else ""
    claims = [float(number) for number in re.findall(r"(\d+(?:\.\d+)?) ?M parameters", prose)]
    return [
        f"MANIFEST.txt says {claim:g}M parameters, the tensors hold {parameters / 1e6:.2f}M"
        for claim in claims
        if abs(claim - parameters / 1e6) > 0.05
    ]


def _architecture_remarks(folder: Path, architecture: Architecture, parameters: int) -> list[str]:
    """What architecture.json claims and the tensors do not show."""
    claims = _json(folder / "architecture.json")
    _json(folder / "config.json")  # nothing in it is needed, but broken JSON is worth a word before a build
    stages = architecture.stages
    encoder = [stages[name] for name in ("encoder_level1", "encoder_level2", "encoder_level3", "latent")]
    facts: dict[tuple[str, ...], object] = {
        ("dim",): architecture.dim,
        ("in_channels", "inp_channels"): architecture.in_channels,
        ("out_channels",): architecture.out_channels,
        ("blocks", "num_blocks"): [len(blocks) for blocks in encoder],
        ("refinement", "num_refinement_blocks"): len(stages["refinement"]),
        ("heads",): [blocks[0].heads for blocks in encoder],
        ("bias",): architecture.bias,
        ("layer_norm", "LayerNorm_type"): "BiasFree" if architecture.bias_free_norm else "WithBias",
        ("parameters",): parameters,
    }
    remarks = [
        f"architecture.json says {name} = {claims[name]}, the tensors say {fact}"
        for names, fact in facts.items()
        for name in names
        if name in claims and claims[name] != fact
    ]
    for name in ("expansion", "ffn_expansion_factor"):
        factor = claims.get(name)
        if isinstance(factor, int | float):
            claimed = [int(blocks[0].width * factor) for blocks in encoder]
            found = [blocks[0].hidden for blocks in encoder]
            if claimed != found:
                remarks.append(f"architecture.json says {name} = {factor}, widths {claimed}; the tensors say {found}")
    return remarks
