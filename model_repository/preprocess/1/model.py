"""Encoded photographs in, core tensors out. The work is ``imaging``'s; a bad photograph fails its own request."""

import json
import time

import numpy as np
import triton_python_backend_utils as pb_utils

from imaging import InvalidRequest, Limits, Options, prepared
from imaging.watch import Watch


class TritonPythonModel:
    def initialize(self, args):
        self.limits = Limits.parsed(args["model_config"])
        self.watch = Watch(pb_utils.MetricFamily, args)

    def execute(self, requests):
        return [self._response(request) for request in requests]

    def _response(self, request):
        started = time.perf_counter()
        try:
            files = pb_utils.get_input_tensor_by_name(request, "IMAGE").as_numpy()
            Options.parsed(json.loads(request.parameters()))  # postprocess uses them; a wrong one fails before the work
            cores = [prepared(file, self.limits) for file in files[:, 0]]
            pixels = cores[0][None] if len(cores) == 1 else np.stack(cores)  # one a request as a rule: no copy
        except InvalidRequest as error:
            self.watch.ended("refused", started)
            code = pb_utils.TritonError.INVALID_ARG
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), code))
        except Exception as error:  # noqa: BLE001  the edge of the process: raising would fail the neighbours in the batch
            self.watch.ended("internal", started)
            return pb_utils.InferenceResponse(
                error=pb_utils.TritonError(f"preprocess: {type(error).__name__}: {error}")
            )
        self.watch.ended("done", started)
        return pb_utils.InferenceResponse([pb_utils.Tensor("PIXELS", pixels)])
