"""Export the ONNX graph of a network: one fixed size, any batch, the same bytes every time.

``torch.onnx.export`` writes source lines and file paths of the machine into every node's metadata; they are removed, so
that the same package gives the same file from any folder and its SHA-256 is meaningful.
"""

import logging
import warnings

import numpy as np
import onnx
import torch

from export.names import INPUT, OUTPUT
from export.network.restormer import Restormer
from imaging import SIDE

_BATCH = 2  # of the example that the network is traced with; 1 would let shapes collapse


def onnx_from_network(network: Restormer, *, side: int = SIDE) -> onnx.ModelProto:
    """Export ``[N, in_channels, side, side] -> [N, out_channels, side, side]``, with the network's types.

    A bfloat16 ``Conv`` is valid ONNX only from opset 22; every runtime takes the exporter's default of 20.
    """
    is_bfloat16 = network.output.weight.dtype == torch.bfloat16
    example = torch.rand(_BATCH, network.architecture.in_channels, side, side)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns that torchvision is absent
    with warnings.catch_warnings(action="ignore"), torch.inference_mode():  # of deprecations inside PyTorch
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=22 if is_bfloat16 else 20,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    _strip(model)
    _open_batch(model.graph)
    _share_constants(model.graph)
    onnx.checker.check_model(model, full_check=True)
    return model


def onnx_bytes(model: onnx.ModelProto) -> bytes:
    """Serialize the graph, with map entries in a fixed order."""
    return bytes(model.SerializeToString(deterministic=True))


def _strip(model: onnx.ModelProto) -> None:
    graph = model.graph
    graph.ClearField("value_info")
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def _open_batch(graph: onnx.GraphProto) -> None:
    """Allow any batch: the first axis is the batch throughout, and only reshapes state its size.

    This is twice as fast as exporting with a symbolic batch, which PyTorch reasons about at every node.
    """
    targets = {node.input[1] for node in graph.node if node.op_type == "Reshape"}
    for tensor in graph.initializer:
        if tensor.name in targets:
            shape = onnx.numpy_helper.to_array(tensor).copy()
            assert shape[0] in (-1, _BATCH), f"a reshape whose first axis is not the batch: {shape}"
            shape[0] = -1
            tensor.CopyFrom(onnx.numpy_helper.from_array(shape, tensor.name))
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"


def _share_constants(graph: onnx.GraphProto) -> None:
    """Share equal LayerNorm parameters and indices as one tensor, the output of an ``Identity``.

    TensorRT's parser makes a constant layer for every use of an initializer, and a broadcast for every LayerNorm
    parameter whose rank differs from its input's: 300 layers of the standard network that compute nothing.
    """
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    shared: dict[bytes, str] = {}
    identities = []
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name not in initializers or (node.op_type, position) not in _SHARED_INPUTS:
                continue
            values = onnx.numpy_helper.to_array(initializers[name])
            is_index = node.op_type == "Gather"
            tensor = onnx.numpy_helper.from_array(values.astype(np.int32) if is_index else values[None, None, None])
            key = tensor.SerializeToString(deterministic=True)
            if key not in shared:
                shared[key] = f"shared_{len(shared)}"
                tensor.name = f"{shared[key]}_value"
                graph.initializer.append(tensor)
                identities.append(onnx.helper.make_node("Identity", [tensor.name], [shared[key]], name=shared[key]))
            node.input[position] = shared[key]
    nodes = [*identities, *graph.node]
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)


_SHARED_INPUTS = {("LayerNormalization", 1), ("LayerNormalization", 2), ("Gather", 1)}
