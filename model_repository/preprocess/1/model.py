"""Encoded photographs in, core tensors out. The work is ``imaging``'s; a bad photograph fails its own request."""

import numpy as np
import triton_python_backend_utils as pb_utils

from imaging import InvalidPhotograph, decode_small, framed


class TritonPythonModel:
    def execute(self, requests):
        return [self._response(request) for request in requests]

    def _response(self, request):
        files = pb_utils.get_input_tensor_by_name(request, "IMAGE").as_numpy()
        try:
            pixels = np.stack([framed(decode_small(file)) for file in files[:, 0]])
        except InvalidPhotograph as error:
            code = pb_utils.TritonError.INVALID_ARG
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), code))
        except Exception as error:  # noqa: BLE001  the edge of the process: raising would fail the neighbours in the batch
            return pb_utils.InferenceResponse(
                error=pb_utils.TritonError(f"preprocess: {type(error).__name__}: {error}")
            )
        return pb_utils.InferenceResponse([pb_utils.Tensor("PIXELS", pixels)])
