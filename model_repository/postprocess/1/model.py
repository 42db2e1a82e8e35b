"""The look of the 512x512 result carried to the full-size photograph, and encoded as it came."""

import dataclasses

import numpy as np
import triton_python_backend_utils as pb_utils

from imaging import Frame, InvalidPhotograph, decode, encode, transfer, unframed


class TritonPythonModel:
    def execute(self, requests):
        return [self._response(request) for request in requests]

    def _response(self, request):
        names = ("IMAGE", "PIXELS", "RESTORED")
        batch = zip(*(pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in names), strict=True)
        try:
            files = [[enhanced(image[0], pixels, restored)] for image, pixels, restored in batch]
        except InvalidPhotograph as error:
            code = pb_utils.TritonError.INVALID_ARG
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), code))
        except Exception as error:  # noqa: BLE001  the edge of the process: raising would fail the neighbours in the batch
            return pb_utils.InferenceResponse(
                error=pb_utils.TritonError(f"postprocess: {type(error).__name__}: {error}")
            )
        return pb_utils.InferenceResponse([pb_utils.Tensor("ENHANCED", np.array(files, dtype=np.object_))])


def enhanced(file, pixels, restored):
    photograph = decode(file)
    frame = Frame.of(*photograph.pixels.shape[:2])
    result = transfer(photograph.pixels, unframed(pixels, frame), unframed(restored, frame))
    return encode(dataclasses.replace(photograph, pixels=result))
