"""One encoded photograph in, the enhanced one out, the network run over tiles of its full resolution.

Tiles go to ``restormer`` as requests of their own (asynchronous BLS), where they are batched with everybody else's. At
most ``tiles_in_flight`` of an instance wait there; a request that was cancelled stops asking for more.
"""

import asyncio
import json

import numpy as np
import triton_python_backend_utils as pb_utils

from imaging import InvalidRequest, Limits, Options, tiles
from imaging.codec import decode
from imaging.pipeline import encoded, look_of, prepared, require_finite, small


class Cancelled(Exception):
    """The client has gone away."""


class TritonPythonModel:
    def initialize(self, args):
        self.limits = Limits.parsed(args["model_config"])
        parameters = json.loads(args["model_config"])["parameters"]
        self.tiles_in_flight = int(parameters["tiles_in_flight"]["string_value"])

    async def execute(self, requests):
        slots = asyncio.Semaphore(self.tiles_in_flight)
        return await asyncio.gather(*(self._response(request, slots) for request in requests))

    async def _response(self, request, slots):
        files = pb_utils.get_input_tensor_by_name(request, "IMAGE").as_numpy()
        try:
            options = Options.parsed(json.loads(request.parameters()))
            done = [[await self._enhanced(file, options, request, slots)] for file in files[:, 0]]
        except InvalidRequest as error:
            return _failed(str(error), pb_utils.TritonError.INVALID_ARG)
        except Cancelled:
            return _failed("enhance_tiled: the request was cancelled", pb_utils.TritonError.CANCELLED)
        except Exception as error:  # noqa: BLE001  the edge of the process: raising would fail the neighbours in the batch
            return _failed(f"enhance_tiled: {type(error).__name__}: {error}", pb_utils.TritonError.INTERNAL)
        return pb_utils.InferenceResponse([pb_utils.Tensor("ENHANCED", np.array(done, dtype=np.object_))])

    async def _enhanced(self, file, options, request, slots):
        core = prepared(file, self.limits)
        async with slots:
            restored = await self._restored(core)
        photograph = decode(file, self.limits)
        if options.size == "512":
            return encoded(small(photograph, core, restored, options), options)
        look = look_of(photograph, core, restored, options)
        for band in tiles.Canvas(photograph, look, strength=options.strength).bands():
            # All of them end before an error goes up: none may outlive its request.
            ends = await asyncio.gather(
                *(self._add(band, index, request, slots) for index in range(len(band))), return_exceptions=True
            )
            if errors := [end for end in ends if end]:
                raise errors[0]
            band.finish()
        return encoded(photograph, options)

    async def _add(self, band, index, request, slots):
        async with slots:
            if request.is_cancelled():
                raise Cancelled
            tile = band.cut(index)
            band.add(tile, await self._restored(tile.core))

    async def _restored(self, core):
        """The network's output for one core tensor."""
        call = pb_utils.InferenceRequest(
            model_name="restormer",
            requested_output_names=["output"],
            inputs=[pb_utils.Tensor("input", core[None])],
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU),
        )
        response = await call.async_exec()
        if response.has_error():
            raise RuntimeError(response.error().message())
        restored = pb_utils.get_output_tensor_by_name(response, "output").as_numpy()[0]
        require_finite(restored)
        return restored


def _failed(message, code):
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
