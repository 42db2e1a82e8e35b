"""Enhance an encoded photograph by running the network over tiles of its full resolution.

Tiles go to ``restormer`` as requests of their own (asynchronous BLS), where they are batched with all others. At most
``tiles_in_flight`` of an instance wait there, and ``photographs_in_flight`` are decoded at a time. Threads process the
pixels, so that the event loop can go on sending tiles; a cancelled request sends no more.
"""

import asyncio
import time

import numpy as np
import triton_python_backend_utils as pb_utils

from adapters.requests import Cancelled, Overloaded, Step, answer_request, options_from_request
from imaging import core_from_file, decode, tiles
from imaging.options import SMALL
from imaging.pipeline import encode_by_options, look_between, require_finite, small_result

#: Tiles share restormer's queue with all other requests: a tile that is rejected there, or waits too long, is sent
#: again after ``PAUSE``, for ``PATIENCE`` seconds.
PATIENCE, PAUSE = 20.0, 0.05
OVERLOAD = ("xceeds maximum queue size", "Request timeout expired")


class TritonPythonModel:
    def initialize(self, args):
        self.step = Step(pb_utils, args)
        self.tiles_in_flight = int(self.step.parameters["tiles_in_flight"])
        self.photographs_in_flight = int(self.step.parameters["photographs_in_flight"])

    async def execute(self, requests):
        slots, decoding = asyncio.Semaphore(self.tiles_in_flight), asyncio.Semaphore(self.photographs_in_flight)
        return await asyncio.gather(*(self._response(request, slots, decoding) for request in requests))

    async def _response(self, request, slots, decoding):
        with answer_request(self.step) as answer:
            files = pb_utils.get_input_tensor_by_name(request, "IMAGE").as_numpy()
            options = options_from_request(request)
            done = []
            for file in files[:, 0]:
                async with decoding:
                    done.append([await self._enhanced(file, options, request, slots)])
            answer.outputs = [pb_utils.Tensor("ENHANCED", np.array(done, dtype=np.object_))]
        return answer.response

    async def _enhanced(self, file, options, request, slots):
        _stop_if_cancelled(request)
        limits = self.step.limits
        core = await asyncio.to_thread(core_from_file, file, limits)
        async with slots:
            restored = await self._restored(core, request)
        photograph = await asyncio.to_thread(decode, file, limits)
        if options.size == SMALL:
            return encode_by_options(small_result(photograph, core, restored, options), options)
        look = await asyncio.to_thread(look_between, photograph, core, restored, options)
        canvas = tiles.Canvas(photograph, look, strength=options.strength)
        for band in canvas.bands():
            # Wait for all tiles before raising an error: no tile may still use a request that has been answered.
            ends = await asyncio.gather(
                *(self._add(canvas, tile, request, slots) for tile in band), return_exceptions=True
            )
            if errors := [end for end in ends if end]:
                raise errors[0]
        return await asyncio.to_thread(encode_by_options, photograph, options)

    async def _add(self, canvas, tile, request, slots):
        async with slots:
            _stop_if_cancelled(request)
            core = await asyncio.to_thread(canvas.core_of, tile)
            restored = await self._restored(core, request)
            canvas.add(tile, await asyncio.to_thread(canvas.result_of, tile, core, restored))

    async def _restored(self, core, request):
        """Return the network's output for one core tensor."""
        deadline = time.monotonic() + PATIENCE
        while True:
            _stop_if_cancelled(request)
            call = pb_utils.InferenceRequest(
                model_name="restormer",
                requested_output_names=["output"],
                inputs=[pb_utils.Tensor("input", core[None])],
                preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU),
            )
            response = await call.async_exec()
            if not response.has_error():
                restored = pb_utils.get_output_tensor_by_name(response, "output").as_numpy()[0]
                require_finite(restored)
                return restored
            message = response.error().message()
            if not any(text in message for text in OVERLOAD):
                raise RuntimeError(message)
            if time.monotonic() > deadline:
                raise Overloaded(message)
            await asyncio.sleep(PAUSE)


def _stop_if_cancelled(request):
    if request.is_cancelled():
        raise Cancelled
