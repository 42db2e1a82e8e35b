"""The CPU's form of the network: the same function, and a graph without what it was written to avoid."""

import numpy as np
import onnxruntime
import pytest
import torch

from export import int8
from export.channels import channels_last, cpu_graph, masked_attention
from export.coverage import convolutions
from export.graph import onnx_bytes, onnx_from_network
from export.rewrites import fold_norms, rewritten, split_projections
from tests.export.test_network import VARIANTS, image_for, network_of


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_is_the_same_function(variant):
    network = network_of(**variant)
    image = image_for(network)
    with torch.inference_mode():
        expected, found = network(image), channels_last(rewritten(network))(image)
    error = (found - expected).abs().max() / expected.abs().max()
    print(f"largest relative error {error:.1e}")
    assert error < 1e-5  # the network takes its long sums in float32, this form all in the network's type


def test_a_map_of_zeros_gives_numbers():
    made, image = channels_last(rewritten(network_of())).float(), torch.zeros(1, 3, 16, 16)
    with torch.inference_mode():
        assert made(image).isfinite().all()


def test_the_graph_takes_any_batch_and_holds_no_layer_normalization():
    graph = onnx_from_network(channels_last(rewritten(network_of())).float(), side=32)
    assert "LayerNormalization" not in {node.op_type for node in graph.graph.node}
    session = onnxruntime.InferenceSession(onnx_bytes(graph), providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).random((3, 3, 32, 32), np.float32)
    together = session.run(None, {"input": images})[0]
    alone = np.concatenate([session.run(None, {"input": image[None]})[0] for image in images])
    assert np.abs(together - alone).max() < 1e-5 * np.abs(alone).max()


def test_int8_is_what_comes_behind_a_norm():
    """Of a plan for the whole network; what reads the widest maps stays, and so does what is no convolution here."""
    network = rewritten(network_of()).float()
    plan = dict.fromkeys(int8.candidates(network), 3.0)
    found = convolutions(cpu_graph(network, plan, side=32))
    taken = {layer.module for layer in found if layer.arithmetic == "INT8"}
    parts = (("attn.qkv", 3), ("ffn.project_in", 2))
    names = {name for name in plan if name.endswith(tuple(part for part, _ in parts))}
    assert taken == {
        f"{name}.{i}" for name in names for part, count in parts if name.endswith(part) for i in range(count)
    }
    assert len(taken) == 5 * network.architecture.depth
    assert {layer.arithmetic for layer in convolutions(cpu_graph(network, side=32))} == {"FLOAT"}


def test_norms_have_to_be_folded_and_projections_split_before():
    with pytest.raises(ValueError, match="fold_norms first"):
        channels_last(network_of())
    with pytest.raises(TypeError, match="split_projections first"):
        masked_attention(fold_norms(network_of()))
    masked_attention(split_projections(network_of()))
