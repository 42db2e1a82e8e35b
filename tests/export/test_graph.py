"""The ONNX graph: the same function, few nodes, the same bytes from anywhere."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from export.cpu import rewritten
from export.graph import onnx_bytes, onnx_from_network
from tests.export.test_network import network_of

ROOT = Path(__file__).parents[2]
SIDE = 64
MAKE_GRAPH = """
import sys, hashlib
sys.path.insert(0, ".")
import torch
from export.graph import onnx_bytes, onnx_from_network
from tests.export.test_network import network_of
print(hashlib.sha256(onnx_bytes(onnx_from_network(network_of().float(), side=64))).hexdigest())
"""


@pytest.fixture(scope="module")
def network():
    return network_of().float()


@pytest.fixture(scope="module")
def model(network):
    return onnx_from_network(rewritten(network), side=SIDE)


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
    assert nodes["Cast"] == 0  # the float32 islands cost nothing in a float32 network
    assert len(model.graph.node) / network.architecture.depth < 45


def test_same_bytes_twice_and_from_another_folder(network, tmp_path):
    here = hashlib.sha256(onnx_bytes(onnx_from_network(network, side=SIDE))).hexdigest()
    for folder in ("export", "imaging", "tests"):
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


def test_names_no_folder_of_this_machine(model):
    assert str(ROOT).encode() not in onnx_bytes(model)
