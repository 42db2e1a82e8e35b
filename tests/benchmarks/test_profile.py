"""The kinds of layers: every multiply-accumulate of the graph counts once among the layers that a runtime ran."""

import argparse
import json
import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from benchmarks.network import kinds, profile
from export.network import coverage, int8
from export.network.architecture import restormer
from export.network.cpu_form import cpu_graph
from export.network.restormer import Restormer
from export.network.rewrites import rewrite_network
from export.targets import cpu
from tests.conftest import ROOT, bare_repository

SIDE = 32


@pytest.fixture(scope="module")
def graph():
    torch.manual_seed(0)
    network = Restormer(restormer(dim=8, blocks=(1, 1, 1, 1), refinement=0, heads=(1, 1, 1, 1))).eval()
    return cpu_graph(rewrite_network(network), side=SIDE)


def test_the_nodes_account_for_every_multiply_accumulate(graph):
    known = {id(node): node for node in kinds.graph_nodes(graph).values()}.values()
    convolutions = sum(node.macs for node in known if node.kind.endswith("convolution"))
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    copy.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    assert convolutions == sum(each.macs for each in coverage.convolutions(copy))
    # q·kᵀ, attention and projection, both with v; in seven blocks.
    assert sum(node.kind == kinds.PRODUCT for node in known) == 3 * 7
    assert sum(node.kind == kinds.NORM for node in known) >= 2 * 7 * 4
    assert sum(node.kind == kinds.SUMS for node in known) == 2 * 7  # of q and k


def test_an_int8_graph_has_the_same_convolutions_by_the_same_names(graph):
    def convolutions(model):
        return {
            (each.module, each.kind, each.macs) for each in kinds.graph_nodes(model).values() if "conv" in each.kind
        }

    taken = {"latent.0.attn.qkv": 1.0, "latent.0.ffn.project_in": 1.0}
    assert convolutions(int8.quantize_graph(graph, taken)) == convolutions(graph)


def test_the_standard_network_in_int8_has_every_convolution_behind_a_norm_in_int8(graph, monkeypatch):
    """With a small network in its place; the ranges come from another image."""
    network = Restormer(restormer(dim=8, blocks=(1, 1, 1, 1), refinement=0, heads=(1, 1, 1, 1))).eval()
    monkeypatch.setattr(profile, "standard_network", lambda: network)
    monkeypatch.setattr(cpu, "why_not", lambda precision: "")  # the graph is built here, but not run
    given = argparse.Namespace(standard=1, package=None, precision="int8", side=SIDE)
    model, _, about = profile.load_subject(given)
    found = coverage.convolutions(model)
    assert sum(layer.arithmetic == "INT8" for layer in found) == 5 * network.architecture.depth
    assert len(found) == len(coverage.convolutions(graph))
    assert (about["precision"], about["side"]) == ("int8", SIDE)


def test_the_nodes_of_a_written_out_norm_are_layer_norm():
    """x -> x - mean(x) -> / sqrt(mean of its squares) -> convolution -> + x."""
    weights = [
        numpy_helper.from_array(np.ones((4, 4, 1, 1), np.float32), "w"),
        numpy_helper.from_array(np.array([1], np.int64), "axis"),
    ]
    nodes = [
        helper.make_node("ReduceMean", ["x", "axis"], ["mean"], name="mean_"),
        helper.make_node("Sub", ["x", "mean"], ["centred"], name="sub"),
        helper.make_node("Mul", ["centred", "centred"], ["squares"], name="mul"),
        helper.make_node("ReduceMean", ["squares", "axis"], ["variance"], name="variance_"),
        helper.make_node("Sqrt", ["variance"], ["deviation"], name="sqrt"),
        helper.make_node("Div", ["centred", "deviation"], ["normed"], name="div"),
        helper.make_node("Conv", ["normed", "w"], ["c"], name="conv"),
        helper.make_node("Add", ["c", "x"], ["y"], name="add"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4, 2, 2]) for name in "xy"]
    model = helper.make_model(
        helper.make_graph(nodes, "norm", ends[:1], ends[1:], weights), opset_imports=[helper.make_opsetid("", 20)]
    )
    found = {name: node.kind for name, node in kinds.graph_nodes(model).items()}
    assert {found[name] for name in ("mean_", "sub", "mul", "variance_", "sqrt", "div")} == {kinds.NORM}
    assert found["conv"] == "1x1 convolution"
    assert found["add"] == kinds.ELEMENTWISE


def test_a_fused_layer_has_its_most_costly_kind_and_counts_each_node_once():
    known = {"conv": kinds.Node("1x1 convolution", 100, "a.b"), "gelu": kinds.Node(kinds.ELEMENTWISE)}
    rest = {"ms": 1.0, "type": "", "precision": "f32", "bytes": 0}
    found = kinds.layer_from_nodes("x", ["gelu", "conv/WithoutBiases", "conv", "unknown"], kinds.REORDER, known, **rest)
    assert (found.kind, found.macs, found.module) == ("1x1 convolution", 100, "a.b")
    assert kinds.layer_from_nodes("x", [""], kinds.REORDER, known, **rest).kind == kinds.REORDER


def test_openvino_runs_all_convolutions_of_the_graph(graph, monkeypatch):
    known = kinds.graph_nodes(graph)
    monkeypatch.setattr(profile, "measured_peaks", lambda: {"float32_gflops": 100.0})
    wanted = sum({id(node): node.macs for node in known.values() if node.kind.endswith("convolution")}.values())
    found = profile.profile_graph(graph, {"INFERENCE_PRECISION_HINT": "f32"}, SIDE, 2)
    assert found["total_ms"] > 0
    assert sum(each["macs"] for each in found["layers"] if each["kind"].endswith("convolution")) == wanted
    assert {each["kind"] for each in found["layers"]} <= set(kinds.RANK)
    assert {"1x1 convolution", kinds.DEPTHWISE, kinds.PRODUCT} <= {each["kind"] for each in found["kinds"]}
    assert sum(row["share"] for row in found["kinds"]) == pytest.approx(1)
    multiplying = [row for row in found["kinds"] if row["gflop"]]
    assert all(set(row["precisions"]) == {"f32"} for row in multiplying)
    assert all(row["least_ms"] == pytest.approx(10 * row["gflop"]) for row in multiplying)  # at 100 GFLOP/s


def test_a_kind_in_two_precisions_is_compared_with_both_peaks_if_both_were_measured():
    rest = {"name": "", "kind": "1x1 convolution", "ms": 3.0, "type": "", "bytes": 0, "module": ""}
    two = [kinds.Layer(precision=precision, macs=10**9, **rest) for precision in ("bf16", "u8")]
    peak = {"bfloat16_gflops": 1000.0, "int8_gops": 2000.0}
    (row,) = kinds.summarize_kinds(two, peak)
    assert row["precisions"] == {"bf16": 1, "u8": 1}
    assert row["least_ms"] == pytest.approx(2 + 1)
    assert kinds.summarize_kinds(two, peak | {"int8_gops": None})[0]["least_ms"] is None
    assert kinds.summarize_kinds(two, {})[0]["least_ms"] is None


def trtexec(folder, graph, datatype="DataType"):
    """Write files like trtexec's: names of the plan's layers, and the graph's nodes in a layer's metadata.

    ``datatype`` is the key of a tensor's type.
    """
    conv = next(node.name for node in graph.graph.node if node.op_type == "Conv")
    profile = [
        {"count": 10},
        {"name": "fused", "timeMs": 30.0, "averageMs": 3.0, "medianMs": 2.5, "percentage": 75.0},
        {
            "name": "Reformatting CopyNode for Input",
            "timeMs": 10.0,
            "averageMs": 1.0,
            "medianMs": 1.0,
            "percentage": 25.0,
        },
    ]
    metadata = f"[ONNX Layer: {conv}]\x1f[ONNX Layer: unknown_node]"
    outputs = [{"Name": "y", datatype: "Half"}]
    info = {"Layers": [{"Name": "fused", "LayerType": "CaskConvolution", "Metadata": metadata, "Outputs": outputs}]}
    for name, content in (("profile", profile), ("layers", info)):
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    (folder / "graph.onnx").write_bytes(graph.SerializeToString())
    return [str(folder / name) for name in ("profile.json", "layers.json", "graph.onnx")]


def main(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["profile", *map(str, arguments)])
    profile.main()


@pytest.mark.parametrize("datatype", ["Format/Datatype", "DataType"], ids=["TensorRT 10", "TensorRT 11"])
def test_figures_of_trtexec_become_the_same_record(graph, tmp_path, monkeypatch, capsys, datatype):
    record = tmp_path / "profile.json.recorded"
    main(monkeypatch, "--trtexec", *trtexec(tmp_path, graph, datatype), "--record", record)
    document = json.loads(record.read_text(encoding="utf-8"))
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == document
    assert [(each["kind"], each["ms"], each["precision"]) for each in document["layers"]] == [
        ("3x3 convolution", 2.5, "Half"),
        (kinds.REORDER, 1.0, ""),
    ]
    assert document["layers"][0]["macs"] == 3 * 8 * 9 * SIDE * SIDE  # the first convolution, 3 to 8 channels
    assert document["total_ms"] == 3.5


def test_a_plan_without_the_names_of_its_nodes_is_rejected(graph, tmp_path, monkeypatch):
    files = trtexec(tmp_path, graph)
    (tmp_path / "layers.json").write_text(json.dumps({"Layers": ["fused"]}), encoding="utf-8")
    with pytest.raises(SystemExit, match="--profilingVerbosity=detailed"):
        main(monkeypatch, "--trtexec", *files)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--repository", "{bare}"], "build one with --precision fp32 --target cpu"),
        (["--engine", "{bare}/nothing.onnx"], "no engine with its JSON at"),
        (["--engine", "{bare}/damaged.onnx"], "damaged.onnx or the JSON beside it is damaged .*: build it again"),
        (["--standard", "--side", "100"], "must be a multiple of 8"),
        (["--package", "demo/package", "--precision", "int8"], "needs --standard|VNNI"),
        (["--package", "{bare}"], "holds no model_checkpoint.pt"),
        (["--trtexec", "README.md", "README.md", "README.md"], "these are not trtexec's"),
    ],
)
def test_bad_input_fails_in_one_line_that_names_what_to_do(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    bare = bare_repository(tmp_path / "models")
    (bare / "damaged.onnx").touch()
    (bare / "damaged.onnx.json").write_text('{"target": "cpu"}', encoding="utf-8")
    with pytest.raises(SystemExit, match=message) as ended:
        main(monkeypatch, *(each.format(bare=bare) for each in arguments))
    assert str(ended.value).startswith("error: ")
    assert "\n" not in str(ended.value)
