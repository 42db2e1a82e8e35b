"""Where the time of the network goes, layer by layer, on this machine's processor (``make profile``).

The published ``cpu`` engine, with the settings its JSON states, in OpenVINO and its counters (PERF_COUNT); and the same
graph in ONNX Runtime and its profiler. ``--package`` and ``--standard`` (the paper's network, random weights) take the
graph that `make engine TARGET=cpu` would build instead.

A *layer* is what the runtime runs as one: often several nodes of the graph. It is named after the kind of the most
costly of them, so a convolution with its gelu is a convolution, and an attention product with its softmax a product.
*Reorder* is what the runtime itself put in, to lay a tensor out as the next layer wants it; *moves* are those of the
graph: transposes, concatenations, pixel shuffles. Megabytes are what a layer reads and writes at the least.

The counters cost time themselves: the table says what a run takes without them. Times are medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import torch

from benchmarks.circumstances import circumstances
from benchmarks.roofline import DEPTHWISE, KINDS
from export import cpu
from export.architecture import restormer
from export.build import MODEL
from export.errors import ExportError
from export.files import write_bytes
from export.graph import onnx_bytes, onnx_from_network
from export.names import INPUT
from export.network import Restormer
from export.package import network_from_package, package_from_folder
from export.precision import PRECISIONS, precision_from_name
from export.publish import versions
from export.rewrites import rewritten, split_projections
from imaging import SIDE

STANDARD_SIDE = 256  #: of the standard network, as the papers' figures are
PRODUCT, NORM, SOFTMAX, MOVES = (KINDS[each] for each in ("MatMul", "LayerNormalization", "Softmax", "Transpose"))
SUMS, ELEMENTWISE, REORDER = "attention norms", "elementwise", "reorder"
#: Of a layer made of several nodes the first kind that is in it counts.
RANK = ("3x3 convolution", "1x1 convolution", DEPTHWISE, PRODUCT, NORM, SOFTMAX, SUMS, ELEMENTWISE, MOVES, REORDER)
OPERATIONS = {
    "ReduceMean": NORM, "LayerNormalization": NORM, "Softmax": SOFTMAX, "ReduceSum": SUMS, "ReduceL2": SUMS,
    **dict.fromkeys(("Transpose", "Concat", "Gather", "Split", "Slice", "Reshape", "DepthToSpace", "SpaceToDepth"),
                    MOVES),
}  # fmt: skip
PRECISION = {"float": "f32", "float16": "f16", "bfloat16": "bf16"}  #: ONNX Runtime's names in OpenVINO's words
#: What OpenVINO makes of a LayerNormalization, under names of its own.
FROM_NORM = ("MVN", "ReduceMean", "Subtract", "RMS")


@dataclass(frozen=True)
class Node:
    """A node of the graph: its kind, its multiply-accumulates for one image, and the module its weights are of."""

    kind: str
    macs: int = 0
    module: str = ""


@dataclass(frozen=True)
class Layer:
    """What a runtime runs as one. ``ms``: median over the rounds; ``bytes``: read and written at the least;
    ``type``: the runtime's own word for it; ``precision``: what it computes in."""

    name: str
    kind: str
    ms: float
    type: str
    precision: str
    macs: int
    bytes: int
    module: str


def nodes(model: onnx.ModelProto) -> dict[str, Node]:
    """The graph's nodes by name, and by the name of their first output, which ONNX Runtime calls some after."""
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
        found = _node(node, shapes, weights)
        if found.kind == ELEMENTWISE:
            before = [made[name] for name in node.input if name in made]
            # What is made of a mean is LayerNorm's; what only a sum reads is the norm's of q or k.
            if any(each.kind == NORM and not each.module for each in before):
                found = Node(NORM)
            elif set(readers[node.output[0]]) and set(readers[node.output[0]]) <= {"ReduceSum", "ReduceL2"}:
                found = Node(SUMS)
        made[node.name] = made[node.output[0]] = found
    return made


def _node(node: onnx.NodeProto, shapes: dict[str, list[int]], weights: dict[str, list[int]]) -> Node:
    """A node by itself."""
    if node.op_type == "Conv":
        weight = weights.get(node.input[1]) or shapes[node.input[1]]
        group = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
        kind = DEPTHWISE if group > 1 else f"{weight[-1]}x{weight[-1]} convolution"
        return Node(kind, prod(shapes[node.output[0]]) * prod(weight[1:]), node.input[1].removesuffix(".weight"))
    if node.op_type in ("MatMul", "Gemm"):
        is_weight = next((name for name in node.input if name in weights), "")
        depth = (weights.get(node.input[0]) or shapes[node.input[0]])[-1]
        return Node("1x1 convolution" if is_weight else PRODUCT, prod(shapes[node.output[0]]) * depth, is_weight)
    # A whole LayerNormalization bears a module's name, so that what follows it is not counted to it.
    return Node(OPERATIONS.get(node.op_type, ELEMENTWISE), 0, node.name if node.op_type == "LayerNormalization" else "")


def layer(name: str, originals: Iterable[str], kind: str, known: dict[str, Node], **rest: Any) -> Layer:
    """A runtime's layer, from the nodes it was made of. ``kind``: where it was made of none of the graph's."""
    # Runtimes name what they make of a node after it, with something behind a stroke; a node counts once.
    parts = {original.partition("/")[0] for original in originals}
    members = [known[part] for part in sorted(parts) if part in known]
    if members:
        kind = min((member.kind for member in members), key=lambda each: RANK.index(each) if each in RANK else 0)
    module = next((member.module for member in members if member.macs and member.module), "")
    return Layer(name, kind, macs=sum(member.macs for member in members), module=module, **rest)


class OpenVino:
    """The graph in OpenVINO, counted."""

    name = "OpenVINO"

    def __init__(self, graph: Path, known: dict[str, Node], settings: dict[str, str]) -> None:
        self._known = known
        self._plain = cpu.compiled(graph, settings)
        self._compiled = cpu.compiled(graph, {**settings, "PERF_COUNT": "YES"})
        self._request = self._compiled.create_infer_request()
        self._runs = 0
        self._before: dict[str, float] = {}
        self._rounds: list[dict[str, float]] = []

    def plain(self, image: np.ndarray) -> None:
        """A run without counters."""
        self._plain(image)

    def counted(self, image: np.ndarray) -> None:
        """A run with them."""
        self._request.infer([image])
        self._runs += 1
        # OpenVINO's counters are means over all runs so far, in microseconds.
        totals = {
            found.node_name: found.real_time.total_seconds() * 1e3 * self._runs
            for found in self._request.get_profiling_info()
            if found.status == openvino.ProfilingInfo.Status.EXECUTED
        }
        self._rounds.append({name: max(total - self._before.get(name, 0.0), 0.0) for name, total in totals.items()})
        self._before = totals

    def layers(self) -> list[Layer]:
        """The layers that ran, with the median of all rounds but the first."""
        types = {found.node_name: found.node_type for found in self._request.get_profiling_info()}
        made = []
        for node in self._compiled.get_runtime_model().get_ordered_ops():
            name = node.get_friendly_name()
            times = [turn[name] for turn in self._rounds[1:] if name in turn]
            if not times:
                continue
            info = {key: str(value.astype(str)) for key, value in node.get_rt_info().items()}
            kind = REORDER if info["layerType"] == "Reorder" else NORM if name.startswith(FROM_NORM) else ELEMENTWISE
            ports = (*node.inputs(), *node.outputs())
            made.append(
                layer(
                    name, info.get("originalLayersNames", "").split(","), kind, self._known,
                    ms=statistics.median(times), type=f"{types[name]} {info['primitiveType']}",
                    precision=info["runtimePrecision"],
                    bytes=sum(prod(port.get_shape()) * port.get_element_type().size for port in ports),
                )
            )  # fmt: skip
        return made


class OnnxRuntime:
    """The graph in ONNX Runtime, profiled."""

    name = "ONNX Runtime"

    def __init__(self, graph: Path, known: dict[str, Node], folder: Path) -> None:
        self._known = known
        options = onnxruntime.SessionOptions()
        options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
        self._plain = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def plain(self, image: np.ndarray) -> None:
        """A run without its profiler."""
        self._plain.run(None, {INPUT: image})

    def counted(self, image: np.ndarray) -> None:
        """A run with it."""
        self._session.run(None, {INPUT: image})

    def layers(self) -> list[Layer]:
        """The layers that ran, with the median of all rounds but the first."""
        events = json.loads(Path(self._session.end_profiling()).read_text(encoding="utf-8"))
        return layers_of_onnxruntime(events, self._known)


def layers_of_onnxruntime(events: Sequence[dict[str, Any]], known: dict[str, Node]) -> list[Layer]:
    """The layers of a profile as ONNX Runtime writes it: one event a node and run, in microseconds."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            found[event["name"].removesuffix("_kernel_time") + " " + event["args"]["node_index"]].append(event)
    made = []
    for turns in found.values():
        name, of = turns[0]["name"].removesuffix("_kernel_time"), turns[0]["args"]
        operation = of["op_name"]
        kind = REORDER if operation.startswith("Reorder") else OPERATIONS.get(operation, ELEMENTWISE)
        sizes = [prod(shape) * _width(each) for key in ("input_type_shape", "output_type_shape")
                 for typed in of[key] for each, shape in typed.items()]  # fmt: skip
        written = next((each for typed in of["output_type_shape"] for each in typed), "")
        made.append(
            layer(
                name, [] if kind == REORDER else [name, name.removesuffix("_nchwc")], kind, known,
                ms=statistics.median(turn["dur"] for turn in turns[1:] or turns) / 1e3, type=operation,
                precision=PRECISION.get(written, written), bytes=sum(sizes),
            )
        )  # fmt: skip
    return made


def _width(name: str) -> int:
    """Bytes of an element as ONNX Runtime names its type."""
    return {"double": 8, "int64": 8, "float16": 2, "bfloat16": 2, "int8": 1, "uint8": 1, "bool": 1}.get(name, 4)


def by_kind(layers: Sequence[Layer]) -> list[dict[str, Any]]:
    """The kinds, the costliest first: how many, milliseconds, share of all, GFLOP/s, GB/s."""
    kinds: dict[str, list[Layer]] = defaultdict(list)
    for each in layers:
        kinds[each.kind].append(each)
    total = sum(each.ms for each in layers) or 1.0
    rows = []
    for kind, members in kinds.items():
        ms = sum(each.ms for each in members)
        rows.append(
            {
                "kind": kind,
                "count": len(members),
                "ms": ms,
                "share": ms / total,
                "gflop": 2 * sum(each.macs for each in members) / 1e9,
                "megabytes": sum(each.bytes for each in members) / 1e6,
                "gflop_s": 2 * sum(each.macs for each in members) / 1e6 / ms if ms else 0.0,
                "gb_s": sum(each.bytes for each in members) / 1e6 / ms if ms else 0.0,
            }
        )
    return sorted(rows, key=lambda row: -row["ms"])


def profiled(runtime: OpenVino | OnnxRuntime, image: np.ndarray, rounds: int) -> dict[str, Any]:
    """A runtime's figures, as the JSON has them. With counters and without take turns; the first round is a warm-up."""
    seconds: dict[str, list[float]] = {"plain": [], "counted": []}
    for turn in range(rounds + 1):
        print(f"\r  {runtime.name}: round {turn}/{rounds}", end="", file=sys.stderr, flush=True)
        for what, run in (("plain", runtime.plain), ("counted", runtime.counted)):
            began = time.perf_counter()
            run(image)
            seconds[what].append(time.perf_counter() - began)
    print(file=sys.stderr)
    plain, counted = ([second * 1e3 for second in seconds[what][1:]] for what in ("plain", "counted"))
    layers = sorted(runtime.layers(), key=lambda each: -each.ms)
    return {
        "runtime": runtime.name,
        "rounds": rounds,
        "total_ms": sum(each.ms for each in layers),
        "counted_ms": statistics.median(counted),
        "plain_ms": statistics.median(plain),
        "least_ms": min(plain),
        "most_ms": max(plain),
        "kinds": by_kind(layers),
        "layers": [asdict(each) for each in layers],
    }


def lines(document: dict[str, Any], top: int) -> list[str]:
    """The tables."""
    made = [f"{document['network']}, {document['side']}x{document['side']}, {document['precision']}"]
    for found in (document, *document["others"]):
        made += [
            "",
            f"{found['runtime']}: {found['plain_ms']:.0f} ms a run ({found['least_ms']:.0f} to "
            f"{found['most_ms']:.0f}), {found['counted_ms']:.0f} with counters; "
            f"its layers together {found['total_ms']:.0f} ms",
            f"  {'kind':<24} {'layers':>6} {'ms':>9} {'share':>6} {'GFLOP/s':>8} {'GB/s':>6}",
        ]
        for row in found["kinds"]:
            rate = f"{row['gflop_s']:8.0f}" if row["gflop"] else f"{'–':>8}"
            made.append(
                f"  {row['kind']:<24} {row['count']:6} {row['ms']:9.2f} {row['share']:6.1%} {rate} {row['gb_s']:6.1f}"
            )
        made += ["", f"  {'the costliest layers':<44} {'ms':>9}  {'kind':<22} {'runs as'}"]
        for each in found["layers"][:top]:
            title = each["module"] or each["name"]
            made.append(f"  {title[-44:]:<44} {each['ms']:9.2f}  {each['kind']:<22} {each['type']}")
    return made


def cpu_graph(network: Restormer, side: int) -> onnx.ModelProto:
    """The graph that ``make engine TARGET=cpu PRECISION=fp32`` (or bf16) builds of a network."""
    return onnx_from_network(split_projections(rewritten(network)), side=side)


def published(repository: Path) -> Path:
    """The engine file of the highest version; `ExportError` if there is none for a CPU."""
    found = versions(repository / MODEL)
    engine = repository / MODEL / str(found[-1] if found else 1) / "model.onnx"
    if not engine.is_file():
        raise ExportError(f"no cpu engine at {engine}: make engine PRECISION=fp32 TARGET=cpu")
    return engine


def subject(arguments: argparse.Namespace) -> tuple[onnx.ModelProto, dict[str, str], dict[str, Any]]:
    """What is profiled: its graph, OpenVINO's settings, and what the JSON says of it."""
    if arguments.standard or arguments.package:
        precision = precision_from_name(arguments.precision or "fp32")
        cpu.require_precision(precision)
        if precision.name == "int8":
            raise ExportError("an INT8 graph comes of a plan: make engine PRECISION=int8 TARGET=cpu, then make profile")
        side = arguments.side or (STANDARD_SIDE if arguments.standard else SIDE)
        if side < 8 or side % 8:
            raise ExportError(f"--side {side}: the network halves an image three times: give a multiple of 8")
        if arguments.standard:
            torch.manual_seed(0)
            name, network = "standard, 26.1 M, random weights", Restormer(restormer()).eval()
        else:
            package = package_from_folder(arguments.package)
            name, network = str(arguments.package), network_from_package(package)
        print("  exporting the graph ...", file=sys.stderr)
        return cpu_graph(network, side), cpu.settings(precision), {
            "network": name, "side": side, "precision": precision.name,
        }  # fmt: skip
    engine = arguments.engine or published(arguments.repository)
    beside = engine.with_name(f"{engine.name}.json")
    if not engine.is_file() or not beside.is_file():
        raise ExportError(f"no engine with its JSON at {engine}: make engine PRECISION=fp32 TARGET=cpu")
    if arguments.precision or arguments.side:
        raise ExportError("an engine has a precision and a side of its own: --precision and --side go with a network")
    stated = json.loads(beside.read_text(encoding="utf-8"))
    if stated["target"] != "cpu":
        raise ExportError(f"{engine} is for {stated['target']}: make engine PRECISION=fp32 TARGET=cpu")
    name = f"{stated['package']['folder']}, {stated['network']['parameters']:,} parameters"
    cpu.require_precision(PRECISIONS[stated["precision"]])
    return onnx.load(engine), stated["runtime"]["settings"], {
        "network": name, "side": stated["profile"]["compiled"][-1], "precision": stated["precision"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--engine", type=Path, help="an engine file, its JSON beside it (default: the published one)")
    which.add_argument("--package", type=Path, help="a model package")
    which.add_argument("--standard", action="store_true", help="the paper's network, 26.1 M parameters, random weights")
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--precision", help="of a package or the standard network: fp32, bf16 or fp16")
    parser.add_argument("--side", type=int, help="of a package or the standard network: pixels, a multiple of 8")
    parser.add_argument("--runtime", choices=("both", "openvino", "onnxruntime"), default="both")
    parser.add_argument("--setting", action="append", default=[], metavar="NAME=VALUE", help="one more of OpenVINO's")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--top", type=int, default=15, help="how many layers the table lists")
    parser.add_argument("--record", type=Path, help="JSON file that keeps the figures")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.top < 0:
        parser.error("--rounds wants 1 or more, --top 0 or more")
    if wrong := [each for each in arguments.setting if "=" not in each]:
        parser.error(f"--setting {wrong[0]}: write NAME=VALUE")
    try:
        model, settings, document = subject(arguments)
        document = {
            "circumstances": circumstances(),
            **document,
            **measured(model, settings, document["side"], arguments),
        }
    except ExportError as error:
        raise SystemExit(f"error: {error}") from None
    print("\n".join(lines(document, arguments.top)))
    if arguments.record:
        write_bytes(arguments.record, (json.dumps(document, indent=2) + "\n").encode())
    print(json.dumps(document))


def measured(
    model: onnx.ModelProto, settings: dict[str, str], side: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """The first runtime's figures, and beside them those of the others."""
    settings = {**settings, **dict(each.split("=", 1) for each in arguments.setting)}
    known = nodes(model)
    image = np.random.default_rng(0).random((1, 3, side, side), np.float32)
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder, "model.onnx")
        graph.write_bytes(onnx_bytes(model))
        makers: dict[str, Callable[[], OpenVino | OnnxRuntime]] = {
            "openvino": lambda: OpenVino(graph, known, settings),
            "onnxruntime": lambda: OnnxRuntime(graph, known, Path(folder)),
        }
        wanted = [make for name, make in makers.items() if arguments.runtime in ("both", name)]
        try:
            # One after the other, so that neither finds the other's threads or tensors in its caches.
            found = [profiled(make(), image, arguments.rounds) for make in wanted]
        except RuntimeError as error:  # OpenVINO knows a setting or does not
            raise ExportError(
                f"the graph does not compile with {settings}: {str(error).strip().splitlines()[-1]}"
            ) from error
    return {"settings": settings, **found[0], "others": found[1:]}


if __name__ == "__main__":
    main()
