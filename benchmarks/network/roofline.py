"""Calculate what a GPU's datasheet allows (``make roofline GPU=h100``). Nothing here was measured on a GPU.

The ONNX graph of an engine gives the operations of each layer and the fewest bytes that pass memory. A layer is not
faster than its operations at the datasheet's rate for their type, nor than its bytes at the datasheet's bandwidth (the
roofline model: Williams, Waterman and Patterson, "Roofline", 2009). Layers run one after another, so their times add
up, in three ways:

- *fused*: a layer is a convolution, product, LayerNorm or softmax with everything that follows it up to the next. It
  reads what other layers left, once, and writes what other layers need. An engine that does not join two convolutions
  cannot be much faster.
- *unfused*: every node is a layer, as in a runtime that fuses nothing.
- *blocks on chip*: a transformer block is one layer, as fused kernels could run it. It reads its input twice, because
  q·kᵀ is a sum over all pixels and has to be complete before attention is applied, and writes its output once.

Kernels do not reach either rate, so an engine takes longer than *fused*; TensorRT fuses, so it takes less than
*unfused*. Every tensor is counted as if it passed memory. The smallest maps of a batch may stay in a GPU's second-level
cache (50 MB in an H100); their layers, which take the least time, may be faster than calculated.
"""

from __future__ import annotations

import argparse
import copy
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import onnx
from torch import nn

from benchmarks.network.random_weights import standard_network
from benchmarks.report import tables
from export.errors import ExportError
from export.network import int8
from export.network.architecture import STAGES, Block
from export.network.cost import network_convolutions
from export.network.coverage import Convolution
from export.network.graph import onnx_from_network
from export.network.restormer import Restormer
from export.network.rewrites import rewrite_network, to_floating_type
from export.package.model_package import network_from_package, package_from_folder
from imaging import SIDE
from operations.recording import (
    add_record_option,
    describe_circumstances,
    exit_on_interrupt,
    finish_run,
    format_make_command,
    show_progress,
)

TERA = 1e12
DEPTHWISE = "depthwise convolution"


@dataclass(frozen=True)
class Gpu:
    """A datasheet's rates without sparsity: bytes a second, and operations a second (two a multiply-accumulate).

    ``tensor`` is by arithmetic type. ``vector`` is of the CUDA cores, which run depthwise convolutions, and float32
    products without TF32.
    """

    name: str
    bandwidth: float
    tensor: dict[str, float]
    vector: dict[str, float]
    source: str


def _gpu(
    name: str, terabytes: float, tf32: float, half: float, int8: float, fp32: float, fp16: float, bf16: float,
    source: str,
) -> Gpu:  # fmt: skip
    tensor = {"TF32": tf32, "FLOAT16": half, "BFLOAT16": half, "INT8": int8}
    vector = {"FLOAT": fp32, "TF32": fp32, "FLOAT16": fp16, "BFLOAT16": bf16, "INT8": fp16}
    rates = [{key: rate * TERA for key, rate in table.items()} for table in (tensor, vector)]
    return Gpu(name, terabytes * TERA, rates[0], rates[1], source)


#: Terabytes a second; tera-operations of tensor cores in TF32, half and INT8; of CUDA cores in fp32, fp16 and bf16.
GPUS = {
    "a100": _gpu("A100 SXM 80 GB", 2.039, 156, 312, 624, 19.5, 78, 39,
                 "NVIDIA A100 datasheet (2021); half on CUDA cores: Ampere architecture whitepaper"),
    "h100": _gpu("H100 SXM 80 GB", 3.35, 494.7, 989.4, 1978.9, 66.9, 133.8, 133.8,
                 "NVIDIA H100 datasheet (2024), halved where it counts sparsity; CUDA cores: Hopper whitepaper"),
    "h200": _gpu("H200 SXM 141 GB", 4.8, 494.7, 989.4, 1978.9, 66.9, 133.8, 133.8,
                 "NVIDIA H200 datasheet (2024), halved where it counts sparsity; CUDA cores as of H100, the same die"),
    "b200": _gpu("B200, HGX", 7.7, 1100, 2250, 4500, 75, 150, 150,
                 "NVIDIA HGX B200 datasheet (2025), halved where it counts sparsity; half on CUDA cores: 2x float32"),
}  # fmt: skip
#: In the names of boards that are slower than the one of that name above.
OTHER_BOARDS = ("pcie", "nvl", "40gb", "64gb")
PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "int8")
EXPORTED = ("fp32", "fp16", "bf16")  #: the other precisions are made of these
BATCHES = (1, 8, 32)  #: of the comparison of GPUs
#: Photographs a second that the owner's optimization guide expects of a TensorRT engine: from, to.
GUIDE = {
    ("a100", "fp16"): (180, 180),
    ("a100", "int8"): (350, 350),
    ("h100", "fp16"): (300, 400),
    ("h200", "fp16"): (400, 500),
}
#: The type of tensors in memory, by precision. INT8 engines keep them in half precision.
TYPES = {"fp32": "FLOAT", "tf32": "TF32", "fp16": "FLOAT16", "bf16": "BFLOAT16", "int8": "FLOAT16"}
ELEMENT = {"FLOAT": 4, "TF32": 4, "FLOAT16": 2, "BFLOAT16": 2}  #: bytes
#: Nodes that begin a layer in the fused count.
ANCHORS = ("Conv", "MatMul", "LayerNormalization", "Softmax")
#: Nodes that only rename their first input. Of a quantized tensor the eight bits pass memory.
ALIASES = ("Reshape", "Identity", "DequantizeLinear")
#: The kind of a layer by its first node, other than convolutions.
KINDS = {"MatMul": "attention product", "LayerNormalization": "LayerNorm", "Softmax": "softmax",
         "Transpose": "moves", "Gather": "moves", "Concat": "moves"}  # fmt: skip


def gpu_from_name(name: str) -> Gpu | None:
    """Return the datasheet of a GPU by its driver's name ("NVIDIA H100 80GB HBM3"), or None for another board."""
    words = re.findall(r"[a-z0-9]+", name.lower())
    if any(word in OTHER_BOARDS for word in words):
        return None
    return next((GPUS[word] for word in words if word in GPUS), None)


@dataclass
class Layer:
    """Nodes that run as one, for one image: multiply-accumulates, their type, and the bytes that pass memory.

    ``weights``: bytes that pass once a batch; ``read`` and ``written``: bytes that pass once an image.
    """

    kind: str
    arithmetic: str
    macs: int = 0
    weights: int = 0
    read: int = 0
    written: int = 0

    def seconds(self, gpu: Gpu, batch: int) -> tuple[float, float]:
        """Return the minimum times for one image of a batch: of its arithmetic, and of its bytes."""
        # Tensor cores cannot run a depthwise convolution.
        rates = gpu.vector if self.kind == DEPTHWISE else {**gpu.vector, **gpu.tensor}
        return 2 * self.macs / rates[self.arithmetic] if self.macs else 0.0, self.bytes(batch) / gpu.bandwidth

    def is_bound_by_memory(self, gpu: Gpu, batch: int) -> bool:
        """Return whether its bytes take longer than its arithmetic."""
        arithmetic, memory = self.seconds(gpu, batch)
        return memory > arithmetic

    def bytes(self, batch: int) -> float:
        """Return the bytes that pass memory for one image of a batch."""
        return self.read + self.written + self.weights / batch


def typed_graphs(
    network: Restormer, *, side: int = SIDE, ranges: Mapping[str, float] | None = None
) -> dict[str, onnx.ModelProto]:
    """Return the graph of a TensorRT engine by precision, for images of ``[N, 3, side, side]``.

    INT8 takes every convolution that a plan may take (a real plan may leave some out for fidelity). ``ranges`` are
    those of their inputs; without them the graph is only good for counting.
    """
    ready = rewrite_network(network)
    made = {name: onnx_from_network(to_floating_type(ready, name), side=side) for name in EXPORTED}
    quantized = int8.quantize_graph(made["fp16"], ranges or dict.fromkeys(int8.candidates(ready), 1.0))
    return {**made, "tf32": made["fp32"], "int8": quantized}


def graph_layers(model: onnx.ModelProto, *, fused: bool, tf32: bool = False) -> list[Layer]:
    """Return the layers of a graph for one image. ``tf32``: float32 is computed in TF32."""
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    tensors = {value.name: value.type.tensor_type for value in (*graph.input, *graph.value_info, *graph.output)}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    roots = {node.output[0]: node.input[0] for node in graph.node if node.op_type in ALIASES}
    home: dict[str, int] = {graph.input[0].name: -1}  # the layer that made each tensor
    found: list[Layer] = []
    reads: list[set[str]] = []

    def root(name: str) -> str:
        while name in roots:
            name = roots[name]
        return name

    for node in graph.node:
        inputs = {root(name) for name in node.input if name}
        made = inputs - weights.keys()
        if node.op_type in ALIASES or not made:
            continue  # another name, or a constant
        layer = max(home[name] for name in made)
        if not fused or node.op_type in ANCHORS or layer < 0:
            layer = len(found)
            found.append(_layer_from_node(node, root, weights, tensors, tf32=tf32))
            reads.append(set())
        found[layer].weights += sum(_bytes(weights[name].dims, weights[name].data_type) for name in inputs - made)
        reads[layer] |= {name for name in made if home[name] != layer}
        home |= dict.fromkeys(node.output, layer)
    wanted = set().union(*reads) | {root(graph.output[0].name)}
    for name, layer in home.items():
        size = _bytes([dim.dim_value for dim in tensors[name].shape.dim], tensors[name].elem_type)
        if layer >= 0 and name in wanted:
            found[layer].written += size
        for reader, names in zip(found, reads, strict=True):
            reader.read += size if name in names else 0
    return found


def _layer_from_node(
    node: onnx.NodeProto, root: Callable[[str], str], weights: dict[str, Any], tensors: dict[str, Any], *, tf32: bool
) -> Layer:
    """Return the layer that a node begins, without its bytes."""
    output = [dim.dim_value for dim in tensors[node.output[0]].shape.dim]
    kind, macs, typed_by = KINDS.get(node.op_type, "elementwise, sums, casts"), 0, tensors[node.output[0]].elem_type
    if node.op_type == "Conv":
        weight = weights[root(node.input[1])]
        group = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
        kind = DEPTHWISE if group > 1 else f"{weight.dims[-1]}x{weight.dims[-1]} convolution"
        macs, typed_by = prod(output) * prod(weight.dims[1:]), weight.data_type
    elif node.op_type == "MatMul":
        first = tensors[node.input[0]]
        macs, typed_by = prod(output) * first.shape.dim[-1].dim_value, first.elem_type
    arithmetic = onnx.TensorProto.DataType.Name(typed_by)
    return Layer(kind, "TF32" if tf32 and arithmetic == "FLOAT" else arithmetic, macs)


def _bytes(dimensions: Iterable[int], element: int) -> int:
    return prod(dimensions) * int(onnx.helper.tensor_dtype_to_np_dtype(element).itemsize)


def minimum_ms(found: Iterable[Layer], gpu: Gpu, batch: int) -> float:
    """Return the minimum time of these layers for one image of a batch."""
    return sum(max(layer.seconds(gpu, batch)) for layer in found) * 1e3


def layers_by_kind(found: Iterable[Layer], gpu: Gpu, batch: int) -> dict[str, dict[str, float]]:
    """Return by kind of layer: how many, GMAC, megabytes, minimum time, and how many of them memory bounds."""
    kinds: dict[str, list[Layer]] = defaultdict(list)
    for layer in found:
        kinds[layer.kind].append(layer)
    rows = {
        kind: {
            "layers": len(members),
            "gmacs": sum(layer.macs for layer in members) / 1e9,
            "megabytes": sum(layer.bytes(batch) for layer in members) / 1e6,
            "ms": minimum_ms(members, gpu, batch),
            "bound_by_memory": sum(member.is_bound_by_memory(gpu, batch) for member in members),
        }
        for kind, members in kinds.items()
    }
    return dict(sorted(rows.items(), key=lambda item: -item[1]["ms"]))


def layers_of_block(found: list[Convolution], block: Block, stage: str, precision: str) -> list[Layer]:
    """Return the arithmetic of a block of a stage, for one image: its convolutions and its two attention products.

    ``found``: the convolutions of the network.
    """
    pixels, kind = (SIDE >> STAGES[stage]) ** 2, TYPES[precision]
    pointwise = "INT8" if precision == "int8" else kind
    layers = []
    for each in found:
        if each.module.startswith(f"{stage}.0."):
            is_depthwise = each.kernel > 1
            weights = 0 if is_depthwise else each.macs // pixels * ELEMENT[kind]
            name = DEPTHWISE if is_depthwise else "1x1 convolution"
            layers.append(Layer(name, kind if is_depthwise else pointwise, each.macs, weights))
    product = block.width * (block.width // block.heads) * pixels
    exact = "FLOAT" if precision == "fp32" else "TF32"
    return [*layers, Layer("q·kᵀ", exact, product), Layer("attention·v", kind, product)]


def blocks_on_chip(network: Restormer, gpu: Gpu, batch: int, precision: str) -> dict[str, dict[str, float]]:
    """Return, by stage, the limits of a block whose inner maps stay on the chip, for one image of a batch.

    It reads its input twice and writes its output once; the weights pass once a batch.
    """
    rows, found = {}, network_convolutions(network, SIDE)
    for stage, blocks in network.architecture.stages.items():
        if not blocks:
            continue
        layers, side = layers_of_block(found, blocks[0], stage, precision), SIDE >> STAGES[stage]
        moved = 3 * blocks[0].width * side**2 * ELEMENT[TYPES[precision]] + sum(each.weights for each in layers) / batch
        arithmetic, memory = sum(each.seconds(gpu, batch)[0] for each in layers), moved / gpu.bandwidth
        rows[stage] = {
            "blocks": len(blocks),
            "width": blocks[0].width,
            "side": side,
            "gmacs": sum(each.macs for each in layers) / 1e9,
            "megabytes": moved / 1e6,
            "arithmetic_ms": arithmetic * 1e3,
            "memory_ms": memory * 1e3,
            "ms": len(blocks) * max(arithmetic, memory) * 1e3,
        }
    return rows


def layers_outside_blocks(network: Restormer, precision: str) -> list[Layer]:
    """Return the fused layers of the network without its blocks. None of them is in INT8."""
    bare = copy.deepcopy(network)
    for stage in STAGES:
        setattr(bare, stage, nn.Identity())
    model = onnx_from_network(to_floating_type(bare, "fp16" if precision == "int8" else precision))
    return graph_layers(model, fused=True, tf32=precision != "fp32")


def on_chip_limits(network: Restormer, batch: int) -> dict[str, dict[str, float]]:
    """Return the minimum time in milliseconds with blocks on chip, by GPU and by the precisions of `GUIDE`."""
    limits: dict[str, dict[str, float]] = defaultdict(dict)
    for precision in dict.fromkeys(precision for _, precision in GUIDE):
        rest = layers_outside_blocks(network, precision)
        for key, gpu in GPUS.items():
            rows = blocks_on_chip(network, gpu, batch, precision)
            limits[key][precision] = minimum_ms(rest, gpu, batch) + sum(row["ms"] for row in rows.values())
    return limits


def limits_of_gpus(made: dict[str, onnx.ModelProto], batches: Iterable[int]) -> dict[str, dict[str, Any]]:
    """Return the minimum time of a photograph on each GPU by precision and batch, fused and unfused, and the source
    of its rates."""
    layers = {
        key: {name: graph_layers(made[name], fused=key == "fused_ms", tf32=name != "fp32") for name in PRECISIONS}
        for key in ("fused_ms", "unfused_ms")
    }

    def times(found: list[Layer], gpu: Gpu) -> dict[str, float]:
        return {str(batch): minimum_ms(found, gpu, batch) for batch in batches}

    return {
        key: {"name": gpu.name, "source": gpu.source, "bandwidth": gpu.bandwidth}
        | {how: {name: times(found, gpu) for name, found in by_name.items()} for how, by_name in layers.items()}
        for key, gpu in GPUS.items()
    }


def limits_of_precisions(
    made: dict[str, onnx.ModelProto], gpu: Gpu, batch: int, price: float | None
) -> dict[str, dict[str, Any]]:
    """Return the limits of one GPU by precision, with the cores beside it and the price of a thousand photographs.

    The cores prepare and finish 12-megapixel photographs, by the record of ``make benchmark-imaging``.
    """
    found: dict[str, dict[str, Any]] = {}
    imaging = tables.load_record("imaging")
    core_ms = sum(imaging["sizes"]["12"][part] for part in ("preprocess", "postprocess")) if imaging else None
    for precision in PRECISIONS:
        model, tf32 = made[precision], precision != "fp32"
        fused, unfused = (graph_layers(model, fused=each, tf32=tf32) for each in (True, False))
        ms = minimum_ms(fused, gpu, batch)
        of_memory = minimum_ms((each for each in fused if each.is_bound_by_memory(gpu, batch)), gpu, batch)
        found[precision] = {
            "fused_ms": ms,
            "unfused_ms": minimum_ms(unfused, gpu, batch),
            "memory_share": of_memory / ms,
            "cores": core_ms and core_ms / ms,
            "cost_per_thousand": price / 3600 * ms if price else None,
            "kinds": layers_by_kind(fused, gpu, batch),
        }
    return found


def record(network: Restormer, arguments: argparse.Namespace, command: str) -> dict[str, Any]:
    """Calculate everything for one network."""
    gpu, batch = GPUS[arguments.gpu], arguments.batch
    show_progress("exporting the graphs ...")
    made = typed_graphs(network)
    ready = rewrite_network(network)
    return {
        "circumstances": describe_circumstances(command),
        "gpu": gpu.name,
        "source": gpu.source,
        "network": str(arguments.package or "the owner's base network, random weights"),
        "parameters": sum(each.numel() for each in network.parameters()),
        "side": SIDE,
        "batch": batch,
        "calculation": True,
        "price_an_hour": arguments.price,
        "precisions": limits_of_precisions(made, gpu, batch, arguments.price),
        "gpus": limits_of_gpus(made, sorted({*BATCHES, batch})),
        "guide": [{"gpu": gpu, "precision": name, "rates": rates} for (gpu, name), rates in GUIDE.items()],
        "blocks": blocks_on_chip(ready, gpu, batch, "fp16"),
        "on_chip_ms": on_chip_limits(ready, batch),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", choices=GPUS, default="h100")
    parser.add_argument("--package", type=Path, help="model package (default: the owner's base network)")
    parser.add_argument("--batch", type=int, default=8, help="images that share one reading of the weights")
    parser.add_argument("--price", type=float, help="of the GPU an hour; prints the cost of a thousand photographs")
    add_record_option(parser)
    arguments = parser.parse_args()
    if arguments.batch < 1:
        parser.error("--batch must be 1 or more")
    if arguments.price is not None and not arguments.price > 0:
        parser.error("--price must be above 0")
    try:
        package = arguments.package and package_from_folder(arguments.package)
        network = network_from_package(package) if package else standard_network()
        document = record(network, arguments, format_make_command("roofline", parser, arguments, "record"))
    except (ExportError, tables.RecordError) as error:
        raise SystemExit(f"error: {error}") from None
    print(f"{document['gpu']}, batch {document['batch']}, {SIDE}x{SIDE}: A CALCULATION from a datasheet, not measured.")
    print(f"{document['source']}\n\n{tables.limits_table(document)}")
    for precision in ("fp16", "int8"):
        print(f"\n{tables.layer_limits_table(document, precision)}")
    for made in (tables.rates_table, tables.guide_table, tables.blocks_table):
        print(f"\n{made(document)}")
    finish_run(document, arguments.record)


if __name__ == "__main__":
    exit_on_interrupt(main)
