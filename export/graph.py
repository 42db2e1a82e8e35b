"""The ONNX graph of a network: one fixed size, any batch, the same bytes every time.

``torch.onnx.export`` leaves the source lines and file paths of the machine in every node's metadata; they are removed,
so that the same package gives the same file from any folder, and its SHA-256 means something.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import onnx
import torch

from export.network import Restormer
from imaging import SIDE

INPUT, OUTPUT = "input", "output"  #: names of the core tensors, in ONNX and in the configs alike


def onnx_from_network(network: Restormer, *, side: int = SIDE) -> onnx.ModelProto:
    """The graph ``[N, in_channels, side, side] -> [N, out_channels, side, side]``, typed as the network is.

    A bfloat16 ``Conv`` is valid ONNX only from opset 22; the exporter's own 20 is what every runtime takes.
    """
    is_bfloat16 = network.output.weight.dtype == torch.bfloat16
    example = torch.rand(2, network.architecture.in_channels, side, side)
    with _quiet(), torch.inference_mode():
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=22 if is_bfloat16 else 20,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    _strip(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def onnx_bytes(model: onnx.ModelProto) -> bytes:
    """The file's bytes, map entries in a fixed order."""
    return bytes(model.SerializeToString(deterministic=True))


def _strip(model: onnx.ModelProto) -> None:
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.graph.value_info[:]
    model.doc_string = model.graph.doc_string = ""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's chatter (torchvision is absent, deprecations inside torch) off the user's screen."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
