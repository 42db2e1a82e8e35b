"""The calculation of what a GPU allows, compared with counts from elsewhere."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from benchmarks.network import roofline
from benchmarks.report import tables
from export.network import int8
from export.network.architecture import restormer
from export.network.cost import multiply_accumulates, network_convolutions
from export.network.restormer import Restormer
from imaging import SIDE

BATCH = 8


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return Restormer(restormer(dim=16, blocks=(1, 1, 1, 1), refinement=1)).eval()


@pytest.fixture(scope="module")
def graphs(network):
    return roofline.typed_graphs(network)


def block() -> onnx.ModelProto:
    """x -> 1x1 convolution (8 to 16) -> gelu -> 1x1 convolution (16 to 8) -> + x, on 4x4 pixels in float32."""
    weights = [numpy_helper.from_array(np.ones(shape, np.float32), name)
               for name, shape in (("a", (16, 8, 1, 1)), ("b", (8, 16, 1, 1)))]  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["wide"]),
        helper.make_node("Gelu", ["wide"], ["activated"]),
        helper.make_node("Conv", ["activated", "b"], ["narrow"]),
        helper.make_node("Add", ["narrow", "x"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 8, 4, 4]) for name in "xy"]
    graph = helper.make_graph(nodes, "block", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def test_fused_layers_read_and_write_only_what_passes_between_them():
    found = roofline.graph_layers(block(), fused=True)
    x, wide, weight, macs = 8 * 16 * 4, 16 * 16 * 4, 8 * 16 * 4, 8 * 16 * 16
    assert [(layer.read, layer.written, layer.weights, layer.macs) for layer in found] == [
        (x, wide, weight, macs),
        (wide + x, x, weight, macs),
    ]


def test_unfused_layers_pass_every_tensor_through_memory():
    found = roofline.graph_layers(block(), fused=False)
    x, wide = 8 * 16 * 4, 16 * 16 * 4
    assert [(layer.read, layer.written) for layer in found] == [(x, wide), (wide, wide), (wide, x), (2 * x, x)]


def test_a_layer_takes_the_longer_of_its_two_times():
    gpu = roofline.GPUS["h100"]
    layer = roofline.Layer("1x1 convolution", "FLOAT16", macs=10**12, weights=8 * 10**9, read=10**9, written=10**9)
    arithmetic, memory = layer.seconds(gpu, BATCH)
    assert arithmetic == pytest.approx(2e12 / 989.4e12)
    assert memory == pytest.approx(3e9 / 3.35e12)
    assert roofline.minimum_ms([layer], gpu, BATCH) == pytest.approx(max(arithmetic, memory) * 1e3)


def test_the_work_equals_the_count_of_the_package_report(network, graphs):
    counted = sum(layer.macs for layer in roofline.graph_layers(graphs["fp32"], fused=True))
    convolutions = network_convolutions(roofline.rewrite_network(network), SIDE)
    _, products = multiply_accumulates(network.architecture, SIDE)
    assert counted == sum(layer.macs for layer in convolutions) + products


def test_types_come_from_the_graph(network, graphs):
    found = {name: roofline.graph_layers(graphs[name], fused=True) for name in ("fp32", "fp16", "int8")}
    of_convolutions = {
        name: {layer.arithmetic for layer in made if "convolution" in layer.kind} for name, made in found.items()
    }
    assert of_convolutions == {"fp32": {"FLOAT"}, "fp16": {"FLOAT16"}, "int8": {"FLOAT16", "INT8"}}
    quantized = [layer for layer in found["int8"] if layer.arithmetic == "INT8"]
    assert len(quantized) == len(int8.candidates(network))
    moved = {name: sum(layer.bytes(BATCH) for layer in made) for name, made in found.items()}
    assert moved["int8"] < moved["fp16"] < 0.7 * moved["fp32"]


@pytest.mark.parametrize("gpu", roofline.GPUS.values(), ids=roofline.GPUS)
def test_fused_layers_take_less_time(graphs, gpu):
    for graph in (graphs[name] for name in ("fp32", "fp16", "int8")):
        fused, unfused = (
            roofline.minimum_ms(roofline.graph_layers(graph, fused=each), gpu, BATCH) for each in (True, False)
        )
        assert fused < unfused


def test_a_block_on_chip_does_the_work_of_the_graph_and_moves_three_maps(network):
    ready, gpu = roofline.rewrite_network(network), roofline.GPUS["h100"]
    rows = roofline.blocks_on_chip(ready, gpu, BATCH, "fp16")
    outside = roofline.layers_outside_blocks(ready, "fp16")
    inside = sum(row["blocks"] * row["gmacs"] * 1e9 for row in rows.values())
    convolutions = sum(layer.macs for layer in network_convolutions(ready, SIDE))
    _, products = multiply_accumulates(network.architecture, SIDE)
    assert inside + sum(layer.macs for layer in outside) == pytest.approx(convolutions + products)
    first = network.architecture.stages["encoder_level1"][0]
    assert rows["encoder_level1"]["megabytes"] == pytest.approx(3 * first.width * SIDE**2 * 2 / 1e6, rel=1e-3)
    one = rows["encoder_level1"]
    assert one["ms"] == pytest.approx(max(one["arithmetic_ms"], one["memory_ms"]))


def test_each_way_to_fuse_more_takes_less_time(network, graphs):
    on_chip = roofline.on_chip_limits(roofline.rewrite_network(network), BATCH)
    for key, row in roofline.limits_of_gpus(graphs, [BATCH]).items():
        for precision in ("fp16", "int8"):
            fused = row["fused_ms"][precision][str(BATCH)]
            assert on_chip[key][precision] < fused < row["unfused_ms"][precision][str(BATCH)]


def test_the_guide_table_names_the_limits_that_are_exceeded():
    gpu = {"name": "H100", "fused_ms": {"fp16": {"8": 5.0}}, "unfused_ms": {"fp16": {"8": 10.0}}}
    document = {"batch": 8, "gpus": {"h100": gpu}, "on_chip_ms": {"h100": {"fp16": 2.0}},
                "guide": [{"gpu": "h100", "precision": "fp16", "rates": [300, 400]}]}  # fmt: skip
    *_, row = tables.guide_table(document).splitlines()
    assert [cell.strip() for cell in row.strip("|").split("|")][2:] == [
        "300–400",
        "100",
        "200",
        "500",
        "unfused, fused",
    ]


def test_more_bandwidth_is_not_slower(graphs):
    every = roofline.limits_of_gpus(graphs, [1, BATCH])
    assert list(every) == list(roofline.GPUS)
    for precision in roofline.PRECISIONS:
        for batch in ("1", str(BATCH)):
            assert every["h200"]["fused_ms"][precision][batch] <= every["h100"]["fused_ms"][precision][batch]
        assert every["h100"]["fused_ms"][precision][str(BATCH)] < every["h100"]["fused_ms"][precision]["1"]


@pytest.mark.parametrize(
    ("name", "gpu"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA A100-SXM4-40GB", None),
        ("NVIDIA A100 80GB PCIe", None),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA L4", None),
    ],
)
def test_a_board_has_its_own_datasheet_or_none(name, gpu):
    assert roofline.gpu_from_name(name) is (roofline.GPUS[gpu] if gpu else None)


def test_the_rates_are_those_of_the_datasheets():
    """In tera: bandwidth; TF32, half and INT8 of tensor cores, dense; fp32, fp16 and bf16 of CUDA cores."""
    found = {
        name: [gpu.bandwidth, *(gpu.tensor[key] for key in ("TF32", "FLOAT16", "BFLOAT16", "INT8")),
               *(gpu.vector[key] for key in ("FLOAT", "FLOAT16", "BFLOAT16"))]
        for name, gpu in roofline.GPUS.items()
    }  # fmt: skip
    assert {name: [round(figure / 1e12, 3) for figure in figures] for name, figures in found.items()} == {
        "a100": [2.039, 156, 312, 312, 624, 19.5, 78, 39],
        "h100": [3.35, 494.7, 989.4, 989.4, 1978.9, 66.9, 133.8, 133.8],
        "h200": [4.8, 494.7, 989.4, 989.4, 1978.9, 66.9, 133.8, 133.8],
        "b200": [7.7, 1100, 2250, 2250, 4500, 75, 150, 150],
    }
