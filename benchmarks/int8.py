"""Who should calibrate and place Q/DQ: ours, ONNX Runtime's ``quantize_static``, or ModelOpt (``make
benchmark-int8``).

The same float32 graph, the same candidate convolutions, the same four calibration photographs (ONNX Runtime's
calibrators keep every tensor of every photograph in memory); decibels against PyTorch float32 on the demo
photographs, all run by ONNX Runtime. ModelOpt takes part where it is installed (``pip install nvidia-modelopt
onnx-graphsurgeon onnxslim lief``; it is in no lock of ours, because its ``[onnx]`` extra pins older versions of onnx
and onnxruntime-gpu); its two rows are with our nodes and as it comes.

What to expect: the ranges decide, and they are the same family of methods everywhere, so rows of one method lie close
together when the nodes are the same; what a tool adds by itself (quantized outputs, biases, residuals) costs
decibels.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from export import fidelity, int8, ort
from export.build import CALIBRATORS
from export.coverage import convolutions
from export.graph import onnx_bytes, onnx_from_network
from export.names import INPUT
from export.package import network_from_package, package_from_folder
from export.rewrites import rewritten

PHOTOGRAPHS = 4
Images = dict[str, np.ndarray]


class Reader(CalibrationDataReader):
    """ONNX Runtime's way of asking for photographs."""

    def __init__(self, images: Images) -> None:
        self._left: Iterator[np.ndarray] = iter(images.values())

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self._left, None)
        return None if image is None else {INPUT: image}


def candidates(package: Path, images: Images, folder: Path) -> Iterator[tuple[str, Callable[[], onnx.ModelProto]]]:
    """A name, and what makes the quantized graph."""
    network = rewritten(network_from_package(package_from_folder(package)))
    graph = onnx_from_network(network)
    chosen = int8.candidates(network)
    nodes = [layer.node for layer in convolutions(graph) if layer.module in chosen]
    source, target = folder / "source.onnx", folder / "quantized.onnx"

    def ours(method: str) -> onnx.ModelProto:
        return int8.quantized_graph(graph, int8.calibrated(network, images, method, lambda: None))

    def onnx_runtime(method: CalibrationMethod) -> onnx.ModelProto:
        source.write_bytes(onnx_bytes(graph))
        quantize_static(
            source, target, Reader(images), quant_format=QuantFormat.QDQ, per_channel=True, calibrate_method=method,
            activation_type=QuantType.QInt8, weight_type=QuantType.QInt8, nodes_to_quantize=nodes,
            extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
        )  # fmt: skip
        return onnx.load(target)

    def model_optimizer(method: str, only: list[str] | None) -> onnx.ModelProto:
        from modelopt.onnx.quantization import quantize

        source.write_bytes(onnx_bytes(graph))  # it rewrites its source
        quantize(
            str(source), calibration_data={INPUT: np.concatenate(list(images.values()))}, calibration_method=method,
            calibration_eps=["cpu"], nodes_to_quantize=only, high_precision_dtype="fp32", output_path=str(target),
            log_level="ERROR", opset=20,
        )  # fmt: skip
        return onnx.load(target)

    for method in CALIBRATORS:
        yield f"ours, {method}", lambda method=method: ours(method)
    for known in (CalibrationMethod.MinMax, CalibrationMethod.Percentile, CalibrationMethod.Entropy):
        yield f"ONNX Runtime, {known.name.lower()}", lambda known=known: onnx_runtime(known)
    if importlib.util.find_spec("modelopt") is None:
        return
    for method in ("max", "entropy"):
        yield f"ModelOpt, {method}, our nodes", lambda method=method: model_optimizer(method, nodes)
    yield "ModelOpt, entropy, as it comes", lambda: model_optimizer("entropy", None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path, default=Path("demo/package"))
    parser.add_argument("--only", default="", help="rows whose name contains this")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    every = fidelity.core_tensors(Path("demo/calibration"), 100)
    images = dict(list(every.items())[:: len(every) // PHOTOGRAPHS][:PHOTOGRAPHS])
    network = network_from_package(package_from_folder(arguments.package))
    yardstick = fidelity.yardstick(network, Path("demo/photos"))
    print(f"{'INT8 on ' + str(len(images)) + ' photographs':<36} {'PSNR dB':>8} {'max error':>10} {'seconds':>8}")
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, make in candidates(arguments.package, images, Path(folder)):
            if arguments.only not in name:
                continue
            started = time.monotonic()
            try:
                model = make()
                seconds = time.monotonic() - started
                run, _ = ort.session(onnx_bytes(model))
                found = yardstick.measure(name, "", run)
            except Exception as error:  # noqa: BLE001 - a tool that fails is a row of the table too
                print(f"{name:<36} failed: {str(error).splitlines()[0][:80]}")
                continue
            figures[name] = {"psnr": found.psnr, "max_error": found.max_error, "seconds": seconds}
            print(f"{name:<36} {found.psnr:8.1f} {found.max_error:10.2e} {seconds:8.1f}", flush=True)
    print(json.dumps({"photographs": len(images), "int8": figures}))


if __name__ == "__main__":
    sys.exit(main())
