"""The look of the 512x512 result carried to the full-size photograph, and encoded as it came or as asked for."""

import json
import time

import numpy as np
import triton_python_backend_utils as pb_utils

from imaging import InvalidRequest, Limits, Options, finished
from imaging.watch import Watch


class TritonPythonModel:
    def initialize(self, args):
        self.limits = Limits.parsed(args["model_config"])
        self.watch = Watch(pb_utils.MetricFamily, args)

    def execute(self, requests):
        return [self._response(request) for request in requests]

    def _response(self, request):
        started, names = time.perf_counter(), ("IMAGE", "PIXELS", "RESTORED")
        try:
            batch = zip(*(pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in names), strict=True)
            options = Options.parsed(json.loads(request.parameters()))
            files = [[finished(image[0], pixels, restored, options, self.limits)] for image, pixels, restored in batch]
        except InvalidRequest as error:
            self.watch.ended("refused", started)
            code = pb_utils.TritonError.INVALID_ARG
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), code))
        except Exception as error:  # noqa: BLE001  the edge of the process: raising would fail the neighbours in the batch
            self.watch.ended("internal", started)
            return pb_utils.InferenceResponse(
                error=pb_utils.TritonError(f"postprocess: {type(error).__name__}: {error}")
            )
        self.watch.ended("done", started)
        return pb_utils.InferenceResponse([pb_utils.Tensor("ENHANCED", np.array(files, dtype=np.object_))])
