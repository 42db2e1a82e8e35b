"""The look of the 512x512 result carried to the full-size photograph, and encoded as it came or as asked for."""

import json
import time

import numpy as np
import triton_python_backend_utils as pb_utils

from imaging import InvalidRequest, Limits, Options, finished


class TritonPythonModel:
    def initialize(self, args):
        self.limits = Limits.parsed(args["model_config"])
        buckets = json.loads(args["model_config"])["parameters"]["histogram_ms"]["string_value"]
        # The family is kept too: its metrics die with it.
        self.family = pb_utils.MetricFamily(
            name="restormer_photograph_ms",
            description="Time a step worked on a photograph, in ms",
            kind=pb_utils.MetricFamily.HISTOGRAM,
        )
        labels = {"model": args["model_name"], "version": args["model_version"]}
        self.worked = self.family.Metric(labels=labels, buckets=[float(edge) for edge in buckets.split()])

    def execute(self, requests):
        return [self._response(request) for request in requests]

    def _response(self, request):
        started, names = time.perf_counter(), ("IMAGE", "PIXELS", "RESTORED")
        try:
            batch = zip(*(pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in names), strict=True)
            options = Options.parsed(json.loads(request.parameters()))
            files = [[finished(image[0], pixels, restored, options, self.limits)] for image, pixels, restored in batch]
        except InvalidRequest as error:
            code = pb_utils.TritonError.INVALID_ARG
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), code))
        except Exception as error:  # noqa: BLE001  the edge of the process: raising would fail the neighbours in the batch
            return pb_utils.InferenceResponse(
                error=pb_utils.TritonError(f"postprocess: {type(error).__name__}: {error}")
            )
        self.worked.observe((time.perf_counter() - started) * 1000)
        return pb_utils.InferenceResponse([pb_utils.Tensor("ENHANCED", np.array(files, dtype=np.object_))])
