"""The CPU's form of the network: the same function, in a graph without slow operations."""

import numpy as np
import onnxruntime
import pytest
import torch

from export.network import cpu_form as channels
from export.network import int8
from export.network.architecture import STAGES, restormer
from export.network.coverage import convolutions
from export.network.cpu_form import (
    GroupedFeedForward,
    channels_last,
    cpu_graph,
    grouped_feed_forward,
    masked_attention,
)
from export.network.graph import onnx_bytes, onnx_from_network
from export.network.restormer import Restormer
from export.network.rewrites import fold_norms, rewrite_network, split_projections
from tests.export.test_network import VARIANTS, image_for, network_of


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_computes_the_same_function(variant):
    network = network_of(**variant)
    image = image_for(network)
    with torch.inference_mode():
        expected, actual = network(image), channels_last(rewrite_network(network))(image)
    error = (actual - expected).abs().max() / expected.abs().max()
    print(f"largest relative error {error:.1e}")
    assert error < 1e-5  # the network computes long sums in float32, this form in the network's type


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("narrowest", [8, 16])
def test_the_grouped_feed_forward_computes_the_same_function(variant, narrowest, monkeypatch):
    """With a cache of one byte, so the maximum of groups; 176 channels do not divide evenly."""
    monkeypatch.setattr(channels, "CACHED", 1)
    monkeypatch.setattr(channels, "NARROWEST", narrowest)
    network = rewrite_network(network_of(**variant))
    image = image_for(network)
    made = channels_last(network, side=image.shape[-1])
    groups = [len(layer.project_out) for layer in made.modules() if isinstance(layer, GroupedFeedForward)]
    assert max(groups) == 176 // narrowest
    assert narrowest > 8 or len(groups) == network.architecture.depth
    with torch.inference_mode():
        expected, actual = network(image), made(image)
    assert (actual - expected).abs().max() < 1e-5 * expected.abs().max()


def test_maps_that_exceed_the_cache_are_grouped():
    """The owner's widths: at 512 the first two levels."""
    architecture = restormer(blocks=(1, 1, 1, 1), refinement=1, reduces_level1=True)
    network = split_projections(rewrite_network(Restormer(architecture)))

    def groups(side):
        made = grouped_feed_forward(network, side=side)
        ffns = {name.partition(".")[0]: layer for name, layer in made.named_modules() if name.endswith(".ffn")}
        return [len(list(ffns[stage].project_out.children())) or 1 for stage in STAGES]

    assert groups(256) == [1] * 8
    assert groups(512) == [4, 2, 1, 1, 1, 2, 4, 4]


def test_a_map_of_zeros_gives_finite_values():
    made, image = channels_last(rewrite_network(network_of())).float(), torch.zeros(1, 3, 16, 16)
    with torch.inference_mode():
        assert made(image).isfinite().all()


def test_the_graph_takes_any_batch_and_holds_no_layer_normalization():
    graph = onnx_from_network(channels_last(rewrite_network(network_of())).float(), side=32)
    assert "LayerNormalization" not in {node.op_type for node in graph.graph.node}
    session = onnxruntime.InferenceSession(onnx_bytes(graph), providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).random((3, 3, 32, 32), np.float32)
    together = session.run(None, {"input": images})[0]
    alone = np.concatenate([session.run(None, {"input": image[None]})[0] for image in images])
    assert np.abs(together - alone).max() < 1e-5 * np.abs(alone).max()


@pytest.mark.parametrize("in_groups", [False, True])
def test_int8_covers_the_convolutions_after_a_norm(in_groups, monkeypatch):
    """Other layers of the plan read the widest maps, or are not convolutions in this form."""
    monkeypatch.setattr(channels, "CACHED", 1 if in_groups else 2**30)
    monkeypatch.setattr(channels, "NARROWEST", 64)
    network = rewrite_network(network_of()).float()
    plan = dict.fromkeys(int8.candidates(network), 3.0)
    actual = convolutions(cpu_graph(network, plan, side=32))
    taken = {layer.module for layer in actual if layer.arithmetic == "INT8"}
    parts = (("attn.qkv", 3), ("ffn.project_in", 2))
    names = {name for name in plan if name.endswith(tuple(part for part, _ in parts))}
    wanted = {f"{name}.{i}" for name in names for part, count in parts if name.endswith(part) for i in range(count)}
    assert len(wanted) == 5 * network.architecture.depth
    if in_groups:  # the latent blocks' 176 channels make two groups of 64 or more, the others one
        wanted |= {f"{name}.{i}" for name in names if "latent" in name and "ffn" in name for i in (2, 3)}
    assert taken == wanted
    assert {layer.arithmetic for layer in convolutions(cpu_graph(network, side=32))} == {"FLOAT"}


def test_norms_must_be_folded_and_projections_split_first():
    with pytest.raises(ValueError, match="fold_norms first"):
        channels_last(network_of())
    with pytest.raises(TypeError, match="split_projections first"):
        masked_attention(fold_norms(network_of()))
    with pytest.raises(TypeError, match="split_projections first"):
        GroupedFeedForward(fold_norms(network_of()).latent[0].ffn, 2)
    masked_attention(split_projections(network_of()))
