"""INT8: candidates, the order of the plan, and a graph that computes what PyTorch measured."""

import math
from dataclasses import asdict

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from export.errors import ExportError
from export.fidelity import torch_runner
from export.metrics import psnr
from export.network import int8
from export.network.coverage import Convolution, convolutions, share_in_type
from export.network.graph import onnx_bytes, onnx_from_network
from export.network.rewrites import rewrite_network, split_projections, to_floating_type

SIDE = 64


@pytest.fixture(scope="module")
def network(tiny_network):
    return rewrite_network(tiny_network)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return {str(i): rng.random((1, 3, SIDE, SIDE), np.float32) for i in range(2)}


@pytest.fixture(scope="module")
def ranges(network, images):
    return int8.calibrate(network, images, "minmax")


@pytest.fixture(scope="module")
def graphs(network):
    """The network's graphs: fused for GPUs, in float32 and float16, and split for CPUs."""
    forms = {"fused": network, "half": to_floating_type(network, "fp16"), "split": split_projections(network)}
    return {name: onnx_from_network(form, side=SIDE) for name, form in forms.items()}


def run(model, image):
    session = onnxruntime.InferenceSession(onnx_bytes(model), providers=["CPUExecutionProvider"])
    return session.run(None, {"input": image})[0]


def test_candidates_are_the_pointwise_convolutions_of_the_blocks_and_nothing_else(network):
    actual = int8.candidates(network)
    assert len(actual) == 4 * network.architecture.depth
    assert {layer.kernel_size for layer in actual.values()} == {(1, 1)}
    assert not any("reduce_chan" in name or "patch_embed" in name or "output" in name for name in actual)


@pytest.mark.parametrize("split", [False, True], ids=["fused", "split"])
@pytest.mark.parametrize(
    "module", ["encoder_level1.0.attn.qkv", "latent.0.ffn.project_in", "decoder_level1.0.ffn.project_out"]
)
def test_the_graph_computes_what_the_plan_measured(network, graphs, images, ranges, module, split):
    """One layer at a time ONNX Runtime and PyTorch agree on the grid; over many, rounding either way adds up."""
    graph = graphs["split" if split else "fused"]
    image, chosen = images["0"], {module: ranges[module]}
    with torch.inference_mode():
        exact, grid = (n(torch.from_numpy(image)).numpy() for n in (network, int8.fake_quantize(network, chosen)))
    actual = run(int8.quantize_graph(graph, chosen), image)
    print(f"{psnr(actual, grid):.1f} dB from the grid, {psnr(actual, exact):.1f} dB from float32")
    assert psnr(actual, grid) > max(90, psnr(actual, exact) + 20)


@pytest.mark.parametrize("form", ["fused", "half"])
def test_only_the_chosen_convolutions_change(graphs, ranges, form):
    plain = graphs[form]
    chosen = dict(list(ranges.items())[:3])
    graph = int8.quantize_graph(plain, chosen)
    assert {c.module for c in convolutions(graph) if c.arithmetic == "INT8"} == set(chosen)
    others = {c.module: c for c in convolutions(plain) if c.module not in chosen}
    assert {c.module: c for c in convolutions(graph) if c.module not in chosen} == others
    kinds = [node.op_type for node in graph.graph.node]
    assert (kinds.count("QuantizeLinear"), kinds.count("DequantizeLinear")) == (3, 6)
    assert {t.data_type for t in graph.graph.initializer if t.name in {f"{m}.weight" for m in chosen}} == {
        onnx.TensorProto.INT8
    }


def test_the_float16_graph_computes_what_its_emulation_does(network, graphs, images, ranges):
    """The gate of a GPU's INT8 engine applies to the emulation: the graph is nearer to it than to float32."""
    module = "decoder_level1.0.ffn.project_out"
    image, chosen = images["0"], {module: ranges[module]}
    emulated = torch_runner(to_floating_type(int8.fake_quantize(network, chosen), "fp16"))(image)
    actual = run(int8.quantize_graph(graphs["half"], chosen), image)
    exact = torch_runner(network)(image)
    print(f"{psnr(actual, emulated):.1f} dB from the emulation, {psnr(actual, exact):.1f} dB from float32")
    assert psnr(actual, emulated) > psnr(actual, exact) + 3


def test_split_projections_share_one_pair(graphs, ranges):
    graph = int8.quantize_graph(graphs["split"], ranges)
    assert sum(node.op_type == "QuantizeLinear" for node in graph.graph.node) == len(ranges)
    assert share_in_type(convolutions(graph), "INT8") > 0.9


def test_errors_alone_leave_the_network_as_it_was(network, images, ranges):
    image = torch.from_numpy(images["0"])
    with torch.inference_mode():
        before = network(image)
        errors = int8.errors_alone(network, ranges, {"0": images["0"]})
        after = network(image)
    assert torch.equal(before, after)
    assert errors.keys() == ranges.keys()
    assert all(error > 0 for error in errors.values())


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_methods_cut_outliers_and_min_max_does_not(network, images, ranges, method):
    actual = int8.calibrate(network, images, method)
    assert actual.keys() == ranges.keys()
    assert all(0 < actual[name] <= ranges[name] * 1.001 for name in actual)
    assert any(actual[name] < ranges[name] for name in actual)


layer_costs = st.lists(st.tuples(st.integers(1, 1000), st.floats(1e-9, 1e-3)), min_size=1, max_size=40)


@given(layer_costs, st.floats(20, 80))
def test_the_plan_takes_most_work_for_least_error_until_the_budget_is_spent(costs, gate):
    layers = [Convolution(f"m{i}", 1, macs, "FLOAT", "") for i, (macs, _) in enumerate(costs)]
    errors = {f"m{i}": error for i, (_, error) in enumerate(costs)}
    plan = int8.make_plan(layers, dict.fromkeys(errors, 1.0), errors, gate, "minmax")
    prices = [layer.error / layer.macs for layer in plan.layers]
    assert prices == sorted(prices)
    spent = sum(layer.error for layer in plan.chosen)
    budget = 10 ** (-(gate + int8.MARGIN) / 10)
    assert spent <= budget * (1 + 1e-9)
    if plan.taken < len(plan.layers):
        assert spent + plan.layers[plan.taken].error > budget * (1 - 1e-9)
    assert plan.curve()[-1][0] == pytest.approx(1.0)
    assert len(plan.lines()) == 5


def test_a_plan_is_read_back_from_its_file(network, ranges, tmp_path):
    errors = dict.fromkeys(ranges, 1e-6)
    layers = [Convolution(name, 1, 100, "FLOAT", "") for name in ranges]
    plan = int8.make_plan(layers, ranges, errors, 38.0, "minmax")
    from export.publish import write_json

    write_json(tmp_path / "plan.json", asdict(plan))
    assert int8.plan_from_file(tmp_path / "plan.json") == plan


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"layers": [{"module": 1}]}'])
def test_a_file_without_a_plan_is_rejected(text, tmp_path):
    (tmp_path / "plan.json").write_text(text, encoding="utf-8")
    with pytest.raises(ExportError, match="is not an INT8 plan"):
        int8.plan_from_file(tmp_path / "plan.json")


def test_equal_pictures_have_infinite_psnr():
    assert int8.decibels(0.0) == math.inf
