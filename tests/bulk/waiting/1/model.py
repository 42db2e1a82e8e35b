"""A stand-in for ``enhance`` that returns the photograph unchanged after a short delay."""

import time

import triton_python_backend_utils as pb_utils

SECONDS = 0.05


class TritonPythonModel:
    def execute(self, requests):
        time.sleep(SECONDS * len(requests))
        photographs = [pb_utils.get_input_tensor_by_name(request, "IMAGE").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("ENHANCED", each)]) for each in photographs]
