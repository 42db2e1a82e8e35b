"""Apply the network's look to the full-size photograph and encode it (`imaging.file_from_core`)."""

import numpy as np
import triton_python_backend_utils as pb_utils

from adapters.requests import Step, answer_request, options_from_request
from imaging import file_from_core


class TritonPythonModel:
    def initialize(self, args):
        self.step = Step(pb_utils, args)

    def execute(self, requests):
        return [self._response(request) for request in requests]

    def _response(self, request):
        with answer_request(self.step) as answer:
            ((file,),), (core,), (restored,) = (
                pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in ("IMAGE", "PIXELS", "RESTORED")
            )
            enhanced = file_from_core(file, core, restored, options_from_request(request), self.step.limits)
            answer.outputs = [pb_utils.Tensor("ENHANCED", np.array([[enhanced]], dtype=np.object_))]
        return answer.response
