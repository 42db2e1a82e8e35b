"""Measure which share of a graph's work executes in which type, in multiply-accumulates of its convolutions."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

import onnx


@dataclass(frozen=True)
class Convolution:
    """One ``Conv`` node: its module's name, kernel size, multiply-accumulates per image, and the type it executes in.

    The type is that of the weights, or INT8 where both the weights and the input come out of a ``DequantizeLinear``.
    """

    module: str
    kernel: int
    macs: int
    arithmetic: str
    node: str


def convolutions(model: onnx.ModelProto) -> list[Convolution]:
    """List the convolutions of a graph, in order."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    shapes = {value.name: value.type.tensor_type.shape.dim for value in (*graph.value_info, *graph.output)}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    quantized = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    layers = []
    for node in graph.node:
        if node.op_type != "Conv":
            continue
        name = node.input[1]
        is_int8 = name in quantized and node.input[0] in quantized
        weight = weights[quantized[name].input[0] if name in quantized else name]
        pixels = prod(dim.dim_value for dim in list(shapes[node.output[0]])[2:])
        arithmetic = "INT8" if is_int8 else onnx.TensorProto.DataType.Name(weight.data_type)
        module = weight.name.removesuffix(".weight")
        layers.append(Convolution(module, weight.dims[-1], prod(weight.dims) * pixels, arithmetic, node.name))
    return layers


def shares(layers: Iterable[Convolution]) -> dict[str, float]:
    """Return the share of the multiply-accumulates in each type, for example ``{"FLOAT16": 1.0}``."""
    macs: defaultdict[str, int] = defaultdict(int)
    for layer in layers:
        macs[layer.arithmetic] += layer.macs
    total = sum(macs.values())
    return {name: count / total for name, count in sorted(macs.items())}


def share_in_type(layers: Iterable[Convolution], arithmetic: str) -> float:
    """Return the share that a precision has a minimum for; in INT8 it is the share of the 1x1 convolutions."""
    return shares(layer for layer in layers if arithmetic != "INT8" or layer.kernel == 1).get(arithmetic, 0.0)


def describe_shares(types: dict[str, float]) -> str:
    """Describe shares of types, for example ``bfloat16 99 %, float32 1 %``."""
    names = {"FLOAT": "float32", "FLOAT16": "float16", "BFLOAT16": "bfloat16"}
    ordered = sorted(types.items(), key=lambda item: -item[1])
    return ", ".join(names.get(name, name) + (f" {share:.0%}" if share < 0.995 else "") for name, share in ordered)
