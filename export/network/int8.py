"""INT8: choose convolutions, calibrate their ranges, and place Q/DQ nodes in the graph.

Candidates are the 1x1 convolutions of the blocks; everything else stays in floating point. Weights are symmetric for
each output channel, activations symmetric for each tensor, as TensorRT requires. docs/decisions/int8-calibration.md
says why the tools of ONNX Runtime and NVIDIA do not do this.
"""

import contextlib
import copy
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor, nn

from export.errors import ExportError
from export.network.coverage import Convolution
from export.network.restormer import Restormer, TransformerBlock
from export.progress import track

PERCENTILE = 99.999
LEVELS = 127  #: the largest INT8 magnitude used; -128 is not used, so that the grid is symmetric
MARGIN = 1.0  #: dB that the plan stays above its gate: the errors of layers add up only approximately
Images = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Layer:
    """A convolution of the plan: its work, the mean squared error of quantizing it alone, and its input's range."""

    module: str
    macs: int
    error: float
    largest: float


@dataclass(frozen=True)
class Plan:
    """All candidates, most work for the least error first, and how many of them are quantized (``taken``).

    It is saved as JSON beside the engine, and can be used again with ``--plan``.
    """

    layers: tuple[Layer, ...]
    taken: int
    pointwise_macs: int
    method: str

    @property
    def chosen(self) -> tuple[Layer, ...]:
        """The layers that execute in INT8."""
        return self.layers[: self.taken]

    @property
    def ranges(self) -> dict[str, float]:
        """Largest input magnitude of each chosen module."""
        return {layer.module: layer.largest for layer in self.chosen}

    def curve(self) -> list[tuple[float, float]]:
        """Return the share of the 1x1 work and the fidelity (dB) that the errors add up to, after each layer."""
        work = np.cumsum([layer.macs for layer in self.layers]) / self.pointwise_macs
        errors = np.cumsum([layer.error for layer in self.layers])
        return [(float(share), decibels(float(error))) for share, error in zip(work, errors, strict=True)]

    def lines(self) -> list[str]:
        """Summarize the plan: what is quantized, what is not, and the curve in tenths of the work."""
        curve = self.curve()
        reached = curve[self.taken - 1] if self.taken else (0.0, math.inf)
        lines = [
            f"{self.taken} of {len(self.layers)} candidates in INT8: {reached[0]:.0%} of the 1x1 convolutions' work, "
            f"{reached[1]:.1f} dB expected",
            f"left in floating point: {', '.join(layer.module for layer in self.layers[self.taken :]) or 'none'}",
            "share of the 1x1 work -> dB expected:",
        ]
        tenths = [next((db for share, db in curve if share >= tenth / 10), None) for tenth in range(1, 11)]
        lines.append("  ".join(f"{t * 10}% {db:.1f}" for t, db in enumerate(tenths, 1) if db is not None))
        costliest = sorted(self.layers, key=lambda layer: -layer.error)[:5]
        lines.append("costliest: " + ", ".join(f"{c.module} {decibels(c.error):.1f} dB alone" for c in costliest))
        return lines


def plan_from_file(path: Path) -> Plan:
    """Read a plan. Raises `ExportError` if the file does not hold one."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        layers = tuple(Layer(**layer) for layer in document.pop("layers"))
        return Plan(layers=layers, **document)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ExportError(
            f"--plan {path} is not an INT8 plan ({error}): give the .int8.json beside an engine"
        ) from error


def decibels(error: float) -> float:
    """Convert a mean squared error to PSNR, peak 1."""
    return -10 * math.log10(error) if error > 0 else math.inf


def candidates(network: Restormer) -> dict[str, nn.Conv2d]:
    """Return the 1x1 convolutions that may run in INT8, by name, in the order a photograph passes them."""
    layers: dict[str, nn.Conv2d] = {}
    for name, block in network.named_modules():
        if isinstance(block, TransformerBlock):
            for inner in ("attn.qkv", "attn.project_out", "ffn.project_in", "ffn.project_out"):
                layer = block.get_submodule(inner)
                assert isinstance(layer, nn.Conv2d), "the projections are split: plan on the fused network"
                layers[f"{name}.{inner}"] = layer
    return layers


def calibrate(network: Restormer, images: Images, method: str) -> dict[str, float]:
    """Return the largest input magnitude that INT8 represents for each candidate, from photographs ``[1, 3, S, S]``.

    ``method``: ``minmax`` takes the largest seen, ``percentile`` cuts the outermost 0.001 %, ``entropy`` loses the
    least information (ONNX Runtime's implementations).
    """
    from onnxruntime.quantization.calibrate import HistogramCollector

    layers = candidates(network)
    largest = dict.fromkeys(layers, 0.0)
    collector = HistogramCollector(method if method != "minmax" else "percentile", True, 2048, 128, PERCENTILE, "same")

    def collect(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        largest[name] = max(largest[name], float(inputs[0].abs().max()))
        if method != "minmax":
            collector.collect({name: inputs[0].numpy()})

    with contextlib.ExitStack() as stack, torch.inference_mode():
        stack.enter_context(contextlib.redirect_stdout(None))  # the collector prints
        for name, layer in layers.items():
            stack.enter_context(layer.register_forward_pre_hook(partial(collect, name)))
        for image in track(images.values()):
            network(torch.from_numpy(image))
        if method != "minmax":
            limits = collector.compute_collection_result()
            largest = {name: float(max(abs(low), abs(high))) for name, (low, high, *_) in limits.items()}
    return largest


def errors_alone(network: Restormer, ranges: Mapping[str, float], images: Images) -> dict[str, float]:
    """Measure, for each candidate, the mean squared error of the output when it alone is quantized."""
    inputs = [torch.from_numpy(image) for image in images.values()]
    with torch.inference_mode():
        references = [network(image) for image in inputs]
    errors = {}
    for name in track(candidates(network)):
        candidate = fake_quantize(network, {name: ranges[name]})
        with torch.inference_mode():
            squares = [(candidate(x) - y).square().mean() for x, y in zip(inputs, references, strict=True)]
        errors[name] = float(torch.stack(squares).mean())
    return errors


def make_plan(
    layers: Iterable[Convolution], ranges: Mapping[str, float], errors: Mapping[str, float], gate: float, method: str
) -> Plan:
    """Take candidates in order of work per error until the errors add up to the gate plus `MARGIN`."""
    pointwise = {layer.module: layer.macs for layer in layers if layer.kernel == 1}
    ordered = sorted(errors, key=lambda name: errors[name] / pointwise[name])
    spent = np.cumsum([errors[name] for name in ordered])
    taken = int(np.searchsorted(spent, 10 ** (-(gate + MARGIN) / 10), side="right"))
    rows = tuple(Layer(name, pointwise[name], errors[name], ranges[name]) for name in ordered)
    return Plan(rows, taken, sum(pointwise.values()), method)


def fake_quantize(network: Restormer, ranges: Mapping[str, float]) -> Restormer:
    """Round the chosen convolutions' weights and inputs to the INT8 grid, in a copy that stays in float."""
    result = copy.deepcopy(network)
    for name, largest in ranges.items():
        _quantize(result.get_submodule(name), largest)
    return result


def quantize_graph(model: onnx.ModelProto, ranges: Mapping[str, float]) -> onnx.ModelProto:
    """Insert Q/DQ pairs before the chosen convolutions and make their weights INT8, in a copy of the graph.

    Modules are identified by their weights' names; with split projections ``qkv`` covers ``qkv.0`` to ``qkv.2``.
    """
    result = copy.deepcopy(model)
    graph = result.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    shared: dict[tuple[str, float], str] = {}
    for node in graph.node:
        name = node.input[1] if node.op_type == "Conv" else ""
        module = name.removesuffix(".weight")
        largest = ranges.get(module, ranges.get(module.rpartition(".")[0])) if name.endswith(".weight") else None
        if largest is not None:
            weight, key = numpy_helper.to_array(weights[name]), (node.input[0], largest)
            if key not in shared:  # split projections read the same tensor and share one pair
                shared[key], quantized = f"{module}.input_dequantized", f"{module}.input_int8"
                grid = _add_constants(graph, f"{module}.input", np.asarray(_scale(largest), weight.dtype), np.int8(0))
                nodes += [
                    helper.make_node("QuantizeLinear", [key[0], *grid], [quantized], f"{module}.q"),
                    helper.make_node("DequantizeLinear", [quantized, *grid], [shared[key]], f"{module}.dq"),
                ]
            integers, scales = _integer_weights(weight)
            weights[name].CopyFrom(numpy_helper.from_array(integers, name))
            grid = _add_constants(graph, f"{module}.weight", scales, np.zeros(len(scales), np.int8))
            node.input[0], node.input[1] = shared[key], f"{module}.weight_dq"
            nodes.append(helper.make_node("DequantizeLinear", [name, *grid], [node.input[1]], f"{module}.wdq", axis=0))
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(result, full_check=True)
    return result


def _quantize(layer: nn.Module, largest: float) -> None:
    """Round a convolution's weights and inputs to the INT8 grid."""
    assert isinstance(layer, nn.Conv2d)
    scale = _scale(largest)
    integers, scales = _integer_weights(layer.weight.detach().numpy())
    layer.weight.data = torch.from_numpy(integers * scales.reshape(-1, 1, 1, 1))

    def round_input(module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        x = inputs[0]
        return ((x.float() / scale).round().clamp(-LEVELS, LEVELS) * scale).to(x.dtype)

    layer.register_forward_pre_hook(round_input)


def _integer_weights(weight: NDArray[Any]) -> tuple[NDArray[np.int8], NDArray[Any]]:
    """Return INT8 weights and the scale of each output channel, in the weights' type."""
    largest = np.abs(weight.astype(np.float32)).reshape(len(weight), -1).max(1)
    scales = (np.maximum(largest, 1e-5) / LEVELS).astype(weight.dtype)
    ratio = weight.astype(np.float32) / scales.astype(np.float32).reshape(-1, 1, 1, 1)
    return np.clip(np.round(ratio), -LEVELS, LEVELS).astype(np.int8), scales


def _scale(largest: float) -> float:
    return max(largest, 1e-5) / LEVELS


def _add_constants(graph: onnx.GraphProto, name: str, scale: NDArray[Any], zero: Any) -> list[str]:
    """Add the scale and the zero point of a tensor to the graph; return their names."""
    values = {f"{name}_scale": scale, f"{name}_zero": np.asarray(zero)}
    graph.initializer.extend(numpy_helper.from_array(value, key) for key, value in values.items())
    return list(values)
