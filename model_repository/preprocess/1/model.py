"""Encoded photographs in, core tensors out. The work is ``imaging``'s; a bad photograph fails its own request."""

import json
import time

import numpy as np
import triton_python_backend_utils as pb_utils

from imaging import InvalidRequest, Limits, Options, prepared
from imaging.pace import Pace
from imaging.watch import Watch


class TritonPythonModel:
    def initialize(self, args):
        self.limits = Limits.parsed(args["model_config"])
        self.watch = Watch(pb_utils.MetricFamily, args)
        ahead = json.loads(args["model_config"])["parameters"].get("ahead")  # on a CPU host
        self.ahead = int(ahead["string_value"]) if ahead else None
        self.pace = Pace.beside(args["model_repository"]) if ahead else None

    def execute(self, requests):
        # Each is sent off at once, so that this process can rest with nobody in its hands.
        for request in requests:
            if self.pace:
                self.pace.pause(self.ahead)
            response = self._response(request)
            if self.pace and not response.has_error():
                self.pace.prepared()
            request.get_response_sender().send(response, pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        if self.pace:
            self.pace.rest(self.ahead)

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
