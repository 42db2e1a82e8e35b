"""Run the network on a CPU host: OpenVINO in Triton's Python backend.

Publishing an engine copies this file to ``<version>/model.py``. It loads ``model.onnx`` with the settings in its JSON.
"""

import json
import os
from pathlib import Path

import numpy as np
import openvino
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        # A lower priority than preprocess and postprocess: the network takes every core for a second, they need a
        # twentieth of that. OpenVINO's threads, created below, inherit it.
        os.nice(10)
        folder = Path(__file__).parent
        settings = json.loads((folder / "model.onnx.json").read_text(encoding="utf-8"))["runtime"]["settings"]
        config, cores = json.loads(args["model_config"]), len(os.sched_getaffinity(0))
        threads = max(1, cores // config["instance_group"][0]["count"])
        if share := config.get("parameters", {}).get("threads"):  # from the server, which respects a container's quota
            threads = int(share["string_value"])
        if threads < cores:
            # Not pinned: each instance and container would pin its threads to the same first cores.
            settings |= {"INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}
        core = openvino.Core()
        wanted = {"f32": "FP32", "bf16": "BF16", "f16": "FP16"}[settings["INFERENCE_PRECISION_HINT"]]
        if wanted not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise RuntimeError(
                f"the engine wants {wanted}, which this CPU does not execute: make engine PRECISION=fp32 TARGET=cpu"
            )
        model = core.read_model(folder / "model.onnx")
        model.reshape([1, *list(model.input(0).partial_shape)[1:]])  # a fixed shape compiles to faster code
        self._network = core.compile_model(model, "CPU", settings)

    def execute(self, requests):
        return [self._response(request) for request in requests]

    def _response(self, request):
        # An exception of OpenVINO is not caught: Triton then counts it as a failure of the engine (BACKEND), as on a
        # GPU. An error response would count as a success. Requests run one at a time, so no other request fails.
        images = pb_utils.get_input_tensor_by_name(request, "input").as_numpy()
        outputs = np.concatenate([self._network(image[None])[0] for image in images])
        return pb_utils.InferenceResponse([pb_utils.Tensor("output", outputs)])
