"""The ONNX graph: the same function, few nodes, the same bytes in every folder."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from export.metrics import psnr
from export.network import int8
from export.network.graph import onnx_bytes, onnx_from_network
from export.network.rewrites import rewrite_network, split_projections, to_floating_type
from export.package.model_package import network_from_package, package_from_folder
from imaging import core_from_file
from tests.export.test_network import network_of

ROOT = Path(__file__).parents[2]
SIDE = 64
MAKE_GRAPH = """
import sys, hashlib
sys.path.insert(0, ".")
import torch
from export.network.graph import onnx_bytes, onnx_from_network
from tests.export.test_network import network_of
print(hashlib.sha256(onnx_bytes(onnx_from_network(network_of().float(), side=64))).hexdigest())
"""


@pytest.fixture(scope="module")
def network():
    return network_of().float()


@pytest.fixture(scope="module")
def model(network):
    return onnx_from_network(split_projections(rewrite_network(network)), side=SIDE)


@pytest.mark.parametrize("batch", [1, 3])
def test_computes_what_torch_computes(network, model, batch):
    image = np.random.default_rng(0).random((batch, 3, SIDE, SIDE), np.float32)
    session = onnxruntime.InferenceSession(onnx_bytes(model), providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        expected = network(torch.from_numpy(image)).numpy()
    error = np.abs(session.run(None, {"input": image})[0] - expected).max() / np.abs(expected).max()
    print(f"largest relative error {error:.1e}")
    assert error < 1e-5


def test_has_one_node_a_layer_norm_and_no_split(network, model):
    nodes = Counter(node.op_type for node in model.graph.node)
    assert nodes["LayerNormalization"] == 2 * network.architecture.depth
    assert nodes["Split"] == 0
    assert nodes["Cast"] == 0  # the float32 islands add no node to a float32 network
    assert len(model.graph.node) / network.architecture.depth < 45


@pytest.mark.parametrize(("precision", "opset"), [("fp16", 20), ("bf16", 22)])
def test_the_typed_graph_states_every_type(network, precision, opset):
    """TensorRT 11 takes precision from the graph alone: convolutions in half, the islands in float32."""
    graph = onnx_from_network(to_floating_type(network, precision), side=SIDE)  # passes the full onnx.checker inside
    assert graph.opset_import[0].version == opset
    types = typed_outputs(graph)
    half = onnx.helper.np_dtype_to_tensor_dtype(np.dtype("float16")) if opset == 20 else onnx.TensorProto.BFLOAT16
    kinds = {"Conv": half, "LayerNormalization": half, "Softmax": onnx.TensorProto.FLOAT}
    for kind, expected in kinds.items():
        assert {types[node.output[0]] for node in graph.graph.node if node.op_type == kind} == {expected}
    norms = [node for node in graph.graph.node if node.op_type == "LayerNormalization"]
    assert {a.i for node in norms for a in node.attribute if a.name == "stash_type"} <= {onnx.TensorProto.FLOAT}
    products = [types[node.output[0]] for node in graph.graph.node if node.op_type == "MatMul"]
    blocks = network.architecture.depth
    assert sorted(products) == sorted([half, onnx.TensorProto.FLOAT] * blocks)  # attention·v in half, q·kᵀ not
    casts = sum(node.op_type == "Cast" for node in graph.graph.node)
    assert casts == 3 * blocks + 2  # three in each attention, one at each end
    assert {types[graph.graph.input[0].name], types[graph.graph.output[0].name]} == {onnx.TensorProto.FLOAT}


@pytest.mark.parametrize("precision", ["bf16", "fp16", "int8"])
def test_the_inputs_of_every_float32_product_are_casts_of_halves(network, precision):
    """So that TF32, which builds turn on for these precisions, rounds nothing."""
    graph = onnx_from_network(to_floating_type(network, "bf16" if precision == "bf16" else "fp16"), side=SIDE)
    if precision == "int8":
        graph = int8.quantize_graph(graph, dict.fromkeys(int8.candidates(network), 3.0))
    types, makers = typed_outputs(graph), {name: node for node in graph.graph.node for name in node.output}
    products = [
        node
        for node in graph.graph.node
        if node.op_type in ("Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul")
        and types[node.output[0]] == onnx.TensorProto.FLOAT
    ]
    assert len(products) == network.architecture.depth  # q·kᵀ of each block
    for source in (name for node in products for name in node.input):
        while (maker := makers[source]).op_type in ("Reshape", "Split", "Squeeze", "Transpose", "Unsqueeze"):
            source = maker.input[0]
        assert maker.op_type == "Cast"
        assert types[maker.input[0]] in (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)


def typed_outputs(model):
    """Return the element type of every value, by ONNX's inference."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = (*inferred.value_info, *inferred.input, *inferred.output)
    return {value.name: value.type.tensor_type.elem_type for value in values}


@pytest.mark.parametrize(("precision", "gate"), [("fp16", 55.0), ("bf16", 45.0)])
def test_half_precision_of_the_demo_network_is_near_float32(precision, gate):
    """Emulated by PyTorch with half precision tensors on a CPU, on a small version of a photograph."""
    network = network_from_package(package_from_folder(ROOT / "demo/package"))
    image = torch.from_numpy(core_from_file((ROOT / "demo/photos/coffee-table.jpg").read_bytes(), side=128))[None]
    with torch.inference_mode():
        expected, actual = network(image), to_floating_type(network, precision)(image)
    assert actual.dtype == torch.float32
    decibels = psnr(actual.numpy(), expected.numpy())
    print(f"{decibels:.1f} dB")
    assert decibels > gate


def test_the_bytes_do_not_depend_on_the_folder(network, tmp_path):
    here = hashlib.sha256(onnx_bytes(onnx_from_network(network, side=SIDE))).hexdigest()
    for folder in ("benchmarks", "export", "imaging", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / "elsewhere" / folder)
    there = subprocess.run(
        [sys.executable, "-c", MAKE_GRAPH],
        cwd=tmp_path / "elsewhere",
        env={**os.environ, "PYTHONPATH": str(tmp_path / "elsewhere")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert there.stdout.strip().splitlines()[-1] == here


def test_the_graph_contains_no_path_of_this_machine(model):
    assert str(ROOT).encode() not in onnx_bytes(model)
