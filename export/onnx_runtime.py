"""ONNX Runtime: the stage of the ladder between PyTorch and the engine, and the cross-check on a GPU host."""

import re
import tempfile
from collections import Counter
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from export.errors import ExportError
from export.names import INPUT
from export.network.coverage import describe_shares

Runner = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def require_one() -> None:
    """Raise `ExportError` if two variants of ONNX Runtime are installed: they overwrite each other's files."""
    installed = {d.metadata["Name"].lower() for d in metadata.distributions() if d.metadata["Name"]}
    if {"onnxruntime", "onnxruntime-gpu"} <= installed:
        raise ExportError(
            "onnxruntime and onnxruntime-gpu are both installed and share a folder: "
            "pip uninstall both, then install one"
        )


CPU, CUDA, TENSORRT = (f"{name}ExecutionProvider" for name in ("CPU", "CUDA", "Tensorrt"))


def runner_from_graph(model: bytes, provider: str = CPU, *, tf32: bool = False) -> tuple[Runner, str]:
    """Return a function that runs the graph, and the types its convolutions execute in after ONNX Runtime's rewrites.

    ``provider`` is one of ONNX Runtime's execution providers. Raises `ExportError` with ONNX Runtime's reason if it
    rejects the graph.
    """
    import onnxruntime

    if provider not in onnxruntime.get_available_providers():
        raise ExportError(f"ONNX Runtime has no {provider} here")
    if provider != CPU:  # CUDA and cuDNN from their wheels, unless PyTorch has loaded them
        onnxruntime.preload_dlls()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    settings = {"use_tf32": str(int(tf32))} if provider == CUDA else {}
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        if provider != TENSORRT:  # whose compiled nodes cannot be written
            options.optimized_model_filepath = str(optimized)
        try:
            ready = onnxruntime.InferenceSession(model, options, providers=[(provider, settings)])
        except Exception as error:
            missing = re.search(r"Could not find an implementation for (\S+) node", str(error))
            reason = f"it has no {missing[1]} kernel here" if missing else str(error).splitlines()[0]
            raise ExportError(reason) from error
        if provider not in ready.get_providers():
            raise ExportError(f"{provider} is installed, but its libraries do not load")
        executes = describe_shares(_executed_shares(onnx.load(optimized))) if optimized.is_file() else "not reported"

    def run(image: NDArray[np.float32]) -> NDArray[np.float32]:
        try:
            output: NDArray[np.float32] = ready.run(None, {INPUT: image})[0]
        except Exception as error:
            raise ExportError(f"ONNX Runtime ({provider}) fails on the graph: {str(error).splitlines()[0]}") from error
        return output

    return run, executes


def _executed_shares(optimized: onnx.ModelProto) -> dict[str, float]:
    """Return the share of the convolutions in each type, in the graph as ONNX Runtime rewrote it.

    On a CPU it casts around operators that it has no kernel for: a float16 graph runs in float32.
    """
    weights = {tensor.name: tensor.data_type for tensor in optimized.graph.initializer}
    counts: Counter[str] = Counter()
    for node in optimized.graph.node:
        if "Conv" in node.op_type:
            is_integer = "QLinear" in node.op_type or "Integer" in node.op_type
            kinds = [weights[name] for name in node.input if name in weights]
            plain = onnx.TensorProto.DataType.Name(kinds[0]) if kinds else "FLOAT"
            counts["INT8" if is_integer else plain] += 1
    return {name: count / counts.total() for name, count in counts.items()}
