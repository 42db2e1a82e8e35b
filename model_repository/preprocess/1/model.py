"""Encoded photographs in, core tensors out. The work is ``imaging``'s; a bad photograph fails its own request."""

import json
import time

import numpy as np
import triton_python_backend_utils as pb_utils

from imaging import InvalidRequest, Limits, Options, prepared


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
        started = time.perf_counter()
        try:
            files = pb_utils.get_input_tensor_by_name(request, "IMAGE").as_numpy()
            Options.parsed(json.loads(request.parameters()))  # postprocess uses them; a wrong one fails before the work
            cores = [prepared(file, self.limits) for file in files[:, 0]]
            pixels = cores[0][None] if len(cores) == 1 else np.stack(cores)  # one a request as a rule: no copy
        except InvalidRequest as error:
            code = pb_utils.TritonError.INVALID_ARG
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), code))
        except Exception as error:  # noqa: BLE001  the edge of the process: raising would fail the neighbours in the batch
            return pb_utils.InferenceResponse(
                error=pb_utils.TritonError(f"preprocess: {type(error).__name__}: {error}")
            )
        self.worked.observe((time.perf_counter() - started) * 1000)
        return pb_utils.InferenceResponse([pb_utils.Tensor("PIXELS", pixels)])
