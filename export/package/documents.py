"""Read the files beside a package's checkpoint, and compare what they claim with the tensors.

Each training team nests ``architecture.json``, ``config.json`` and ``training_info.json`` in its own way; a claim is
found by the end of its path (``num_blocks``, ``parameters.total``) at any depth. ``MANIFEST.txt`` is prose, or holds
SHA-256 sums. A claim that contradicts the tensors becomes a remark; only invalid JSON is rejected.
"""

import codecs
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from export.errors import ExportError
from export.files import sha256
from export.network.architecture import Architecture
from imaging import SIDE

#: Relative tolerance of a parameter count: the owner's own file is 0.05 % off.
COUNT_TOLERANCE = 1e-3
Flat = Mapping[str, object]  # values by dotted path; lists of scalars are values


@dataclass(frozen=True, kw_only=True)
class Documents:
    """The JSON files as flat mappings from dotted path to value, and the manifest's text; empty where absent."""

    architecture: Flat = field(default_factory=dict)
    config: Flat = field(default_factory=dict)
    training_info: Flat = field(default_factory=dict)
    manifest: str = ""
    remarks: tuple[str, ...] = ()

    @property
    def eps(self) -> float | None:
        """The LayerNorm's epsilon in architecture.json, if it is a positive number."""
        names = ("eps", "epsilon", "norm_eps", "layer_norm_eps", "LayerNorm_eps")
        values = (value for _, value in find_claims(self.architecture, names))
        return next((value for value in values if isinstance(value, float) and 0 < value < 1), None)


def documents_from_folder(folder: Path) -> Documents:
    """Read the documents of a package. Raises `ExportError` for JSON that cannot be parsed."""
    remarks: list[str] = []
    flat = {name: _flat_json(folder / f"{name}.json", remarks) for name in ("architecture", "config", "training_info")}
    manifest = text_from_file(folder / "MANIFEST.txt")
    return Documents(**flat, manifest=manifest, remarks=(*remarks, *_checksum_remarks(folder, manifest)))


def find_claims(document: Flat, names: tuple[str, ...]) -> Iterator[tuple[str, object]]:
    """Yield path and value of claims whose path is one of the names, or ends with one."""
    for path, value in document.items():
        if any(path == name or path.endswith(f".{name}") for name in names):
            yield path, value


def compare_claims(documents: Documents, architecture: Architecture, parameters: int) -> Iterator[str]:
    """Yield where architecture.json and MANIFEST.txt contradict the tensors."""
    for names, fact in _facts(architecture).items():
        for path, claim in find_claims(documents.architecture, names):
            if _is_comparable(claim, fact) and claim != fact:
                yield f"architecture.json says {path} = {claim}, the tensors say {fact}"
    for path, factor in find_claims(documents.architecture, ("expansion", "expansion_factor", "ffn_expansion_factor")):
        encoder = [stage[0] for name, stage in architecture.stages.items() if name.startswith(("encoder", "latent"))]
        hidden = [block.hidden for block in encoder]
        if isinstance(factor, int | float) and (claimed := [int(block.width * factor) for block in encoder]) != hidden:
            yield f"architecture.json says {path} = {factor}, widths {claimed}; the tensors say {hidden}"
    for path, claim in find_claims(documents.architecture, ("parameters", "parameters.total", "total_parameters")):
        if isinstance(claim, int | float) and abs(claim - parameters) > COUNT_TOLERANCE * parameters:
            yield f"architecture.json says {path} = {claim:,}, the tensors hold {parameters:,}"
    for claim in re.findall(r"(\d+(?:\.\d+)?) ?M parameters", documents.manifest):
        if abs(float(claim) - parameters / 1e6) > 0.05:
            yield f"MANIFEST.txt says {claim}M parameters, the tensors hold {parameters / 1e6:.2f}M"


def _facts(architecture: Architecture) -> dict[tuple[str, ...], object]:
    stages = architecture.stages
    encoder = [stages[name] for name in ("encoder_level1", "encoder_level2", "encoder_level3", "latent")]
    return {
        ("dim",): architecture.dim,
        ("in_channels", "inp_channels"): architecture.in_channels,
        ("out_channels",): architecture.out_channels,
        ("blocks", "num_blocks"): [len(blocks) for blocks in encoder],
        ("refinement", "num_refinement_blocks"): len(stages["refinement"]),
        ("heads", "num_heads"): [blocks[0].heads for blocks in encoder],
        ("channels",): [blocks[0].width for blocks in encoder],
        ("bias",): architecture.bias,
        ("layer_norm", "LayerNorm_type"): "BiasFree" if architecture.bias_free_norm else "WithBias",
        ("input_shape",): [architecture.in_channels, SIDE, SIDE],
    }


def _is_comparable(claim: object, fact: object) -> bool:
    """Return whether the claim has the type of the fact; a text about a number, for example, cannot be compared."""
    if isinstance(fact, bool) or isinstance(claim, bool):
        return isinstance(claim, bool) and isinstance(fact, bool)
    return isinstance(claim, int | float) if isinstance(fact, int) else isinstance(claim, type(fact))


def _flat_json(path: Path, remarks: list[str]) -> dict[str, object]:
    """Read a JSON file as dotted paths; NaN and Infinity are left out with a remark."""
    if not path.is_file():
        return {}
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{path} is not valid JSON ({error}): fix or remove it") from error
    if not isinstance(document, dict):
        raise ExportError(f"{path} must hold a JSON object, not a {type(document).__name__}")
    flat = {}
    for name, value in _leaves(document):
        if any(isinstance(v, float) and not math.isfinite(v) for v in (value if isinstance(value, list) else [value])):
            remarks.append(f"{path.name}: {name} is {value}, which is not a number: ignored")
        else:
            flat[name] = value
    return flat


def _leaves(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(inner, f"{path}.{name}" if path else name)
    else:
        yield path, _parse_text(value)


def _parse_text(value: object) -> object:
    """Convert text that holds a number or a list of numbers; return other values unchanged."""
    if isinstance(value, str) and re.fullmatch(r"[-+.\deE, ]+", value):
        try:
            return json.loads(f"[{value}]" if "," in value else value)
        except ValueError:
            return value
    return value


def text_from_file(path: Path) -> str:
    """Read a text file in UTF-8 or, with a byte order mark, UTF-16; empty if there is none."""
    data = path.read_bytes() if path.is_file() else b""
    is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if is_utf16 else "utf-8-sig", errors="replace")


#: A line of sha256sum (text or binary mode), or of BSD's and OpenSSL's tools.
_CHECKSUM = re.compile(
    r"\s*(?:(?P<digest>[0-9a-f]{64})\s+\*?(?P<name>\S.*?)|SHA(?:2-)?256\s?\((?P<bsd_name>.+)\)\s?=\s?(?P<bsd>[0-9a-f]{64}))\s*",
    re.IGNORECASE,
)


def _checksum_remarks(folder: Path, manifest: str) -> Iterator[str]:
    """Yield the files whose SHA-256 differs from MANIFEST.txt. Lines without one are prose."""
    for line in manifest.splitlines():
        if not (match := _CHECKSUM.fullmatch(line)):
            continue
        name, digest = match["name"] or match["bsd_name"], (match["digest"] or match["bsd"]).lower()
        if not (folder / name).is_file():
            yield f"MANIFEST.txt names {name}, which does not exist"
        elif (actual := sha256(folder / name)) != digest:
            yield f"{name}: SHA-256 is {actual[:12]}…, MANIFEST.txt says {digest[:12]}…"
