"""Classify the layers of a runtime by the nodes of the graph that they were made of.

A *layer* is what a runtime runs as one: often several nodes. Its kind is the most costly among them, so a convolution
with its gelu is a convolution, and an attention product with its softmax a product. *Reorder* is inserted by the
runtime to lay a tensor out for the next layer; *moves* are in the graph: transposes, concatenations, pixel shuffles.
Bytes are the minimum that a layer reads and writes.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import onnx

from benchmarks.network.peak import peak_of
from benchmarks.network.roofline import DEPTHWISE, KINDS
from export.errors import ExportError

PRODUCT, NORM, SOFTMAX, MOVES = (KINDS[each] for each in ("MatMul", "LayerNormalization", "Softmax", "Transpose"))
SUMS, ELEMENTWISE, REORDER = "attention norms", "elementwise", "reorder"
#: The first of these kinds among its nodes is the kind of a layer.
RANK = ("3x3 convolution", "1x1 convolution", DEPTHWISE, PRODUCT, NORM, SOFTMAX, SUMS, ELEMENTWISE, MOVES, REORDER)
OPERATIONS = {
    "ReduceMean": NORM, "LayerNormalization": NORM, "Softmax": SOFTMAX, "ReduceSum": SUMS, "ReduceL2": SUMS,
    **dict.fromkeys(("Transpose", "Concat", "Gather", "Split", "Slice", "Reshape", "DepthToSpace", "SpaceToDepth"),
                    MOVES),
}  # fmt: skip
#: OpenVINO's own names for the parts of a LayerNormalization.
FROM_NORM = ("MVN", "ReduceMean", "Subtract", "RMS")


@dataclass(frozen=True)
class Node:
    """A node of the graph: its kind, its multiply-accumulates for one image, and the module of its weights."""

    kind: str
    macs: int = 0
    module: str = ""


@dataclass(frozen=True)
class Layer:
    """What a runtime runs as one. ``ms``: median over the rounds; ``bytes``: minimum read and written; ``type``: the
    runtime's own name; ``precision``: the type it computes in."""

    name: str
    kind: str
    ms: float
    type: str
    precision: str
    macs: int
    bytes: int
    module: str


def graph_nodes(model: onnx.ModelProto) -> dict[str, Node]:
    """Return the nodes by name, and by the name of their first output."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    graph = onnx.shape_inference.infer_shapes(copy, strict_mode=True).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    shapes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values}
    weights = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    readers: dict[str, list[str]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node.op_type)
    made: dict[str, Node] = {}
    for node in graph.node:
        found = _classify(node, shapes, weights)
        if found.kind in (ELEMENTWISE, SUMS):
            before = [made[name] for name in node.input if name in made]
            following = set(readers[node.output[0]])
            # A node that reads a mean is part of LayerNorm; one that only a sum reads is part of the norm of q or k.
            if any(each.kind == NORM and not each.module for each in before):
                found = Node(NORM)
            elif found.kind == ELEMENTWISE and following and following <= {"ReduceSum", "ReduceL2"}:
                found = Node(SUMS)
        made[node.name] = made[node.output[0]] = found
    return made


def _classify(node: onnx.NodeProto, shapes: dict[str, list[int]], weights: dict[str, list[int]]) -> Node:
    """Classify a node without its neighbours."""
    if node.op_type == "Conv":
        weight = weights.get(node.input[1]) or shapes[node.input[1]]
        group = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
        kind = DEPTHWISE if group > 1 else f"{weight[-1]}x{weight[-1]} convolution"
        module = node.input[1].removesuffix("_dq").removesuffix(".weight")  # INT8 weights come through a node
        return Node(kind, prod(shapes[node.output[0]]) * prod(weight[1:]), module)
    if node.op_type in ("MatMul", "Gemm"):
        # A linear layer has its weights on the right; a small matrix on the left is multiplied into another.
        is_weight = node.input[1] if node.input[1] in weights else ""
        depth = (weights.get(node.input[0]) or shapes[node.input[0]])[-1]
        return Node("1x1 convolution" if is_weight else PRODUCT, prod(shapes[node.output[0]]) * depth, is_weight)
    # A whole LayerNormalization gets a module, so that the nodes after it do not count as parts of it.
    return Node(OPERATIONS.get(node.op_type, ELEMENTWISE), 0, node.name if node.op_type == "LayerNormalization" else "")


def layer_from_nodes(name: str, originals: Iterable[str], kind: str, known: dict[str, Node], **rest: Any) -> Layer:
    """Return a runtime's layer from the nodes it was made of. ``kind``: that of a layer without nodes of the graph."""
    # Runtimes name layers after a node, with a suffix behind a slash; a node counts once.
    parts = {original.partition("/")[0] for original in originals}
    members = [known[part] for part in sorted(parts) if part in known]
    if members:
        kind = min((member.kind for member in members), key=lambda each: RANK.index(each) if each in RANK else 0)
    module = next((member.module for member in members if member.macs and member.module), "")
    return Layer(name, kind, macs=sum(member.macs for member in members), module=module, **rest)


def layers_from_trtexec(profile: Sequence[dict[str, Any]], info: dict[str, Any], known: dict[str, Node]) -> list[Layer]:
    """Return the layers that trtexec timed (``--exportProfile``), by the nodes in its ``--exportLayerInfo``.

    Raises `ExportError` if the plan does not have its nodes. Bytes are unknown.
    """
    rows = {row["Name"]: row for row in info["Layers"] if isinstance(row, dict)}
    if not rows:
        raise ExportError("this plan does not have the names of its nodes: give trtexec --profilingVerbosity=detailed")
    made = []
    for timed in profile[1:]:  # the first is the number of runs
        name, of = timed["name"], rows.get(timed["name"], {})
        kind = REORDER if "reformat" in name.lower() else ELEMENTWISE
        # TensorRT 11 states the type separately from the format.
        stated = (tensor.get("DataType") or tensor.get("Format/Datatype") for tensor in of.get("Outputs", []))
        written = {str(each) for each in stated if each}
        made.append(
            layer_from_nodes(
                name, re.findall(r"\[ONNX Layer: ([^\]]+)\]", of.get("Metadata", "")), kind, known,
                ms=timed.get("medianMs", timed["averageMs"]), type=of.get("LayerType", ""),
                precision=", ".join(sorted(written)), bytes=0,
            )
        )  # fmt: skip
    return made


def summarize_kinds(layers: Sequence[Layer], peak: Mapping[str, float | None]) -> list[dict[str, Any]]:
    """Return the kinds, the costliest first: how many, milliseconds, share of all, GFLOP and GB/s.

    Kinds that multiply also have their precisions and ``least_ms``, their time at a matrix product's speed (``peak``),
    or None if that was not measured.
    """
    kinds: dict[str, list[Layer]] = defaultdict(list)
    for each in layers:
        kinds[each.kind].append(each)
    total = sum(each.ms for each in layers) or 1.0
    rows = []
    for kind, members in kinds.items():
        ms = sum(each.ms for each in members)
        multiplying = [each for each in members if each.macs]
        tops = [peak_of(peak, each.precision) for each in multiplying]
        least = [2 * each.macs / 1e6 / top for each, top in zip(multiplying, tops, strict=True) if top]
        rows.append(
            {
                "kind": kind,
                "count": len(members),
                "precisions": dict(Counter(each.precision for each in multiplying)),
                "least_ms": sum(least) if least and all(tops) else None,
                "ms": ms,
                "share": ms / total,
                "gflop": 2 * sum(each.macs for each in members) / 1e9,
                "gb_s": sum(each.bytes for each in members) / 1e6 / ms if ms else 0.0,
            }
        )
    return sorted(rows, key=lambda row: -row["ms"])
