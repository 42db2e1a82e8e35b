"""Turn an encoded photograph into a core tensor (`imaging.core_from_file`)."""

import triton_python_backend_utils as pb_utils

from adapters.requests import Step, answer_request, options_from_request
from imaging import core_from_file


class TritonPythonModel:
    def initialize(self, args):
        self.step = Step(pb_utils, args)

    def execute(self, requests):
        return [self._response(request) for request in requests]

    def _response(self, request):
        with answer_request(self.step) as answer:
            ((file,),) = pb_utils.get_input_tensor_by_name(request, "IMAGE").as_numpy()
            options_from_request(request)  # postprocess uses them; invalid ones fail before the work
            core = core_from_file(file, self.step.limits)
            answer.outputs = [pb_utils.Tensor("PIXELS", core[None])]
        return answer.response
