"""One encoded photograph in, the enhanced one out, the network run over tiles of its full resolution.

Tiles go to ``restormer`` as requests of their own (asynchronous BLS), where they are batched with everybody else's. At
most ``tiles_in_flight`` of an instance wait there, and ``photographs_in_flight`` are decoded at a time. Pixels are
worked on in threads, so that the loop goes on sending tiles; a request that was cancelled stops asking for more.
"""

import asyncio
import json
import time

import numpy as np
import triton_python_backend_utils as pb_utils

from imaging import InvalidRequest, Limits, Options, decode, prepared, tiles
from imaging.pipeline import encoded, look_of, require_finite, small
from imaging.watch import Watch

#: Tiles share restormer's queue with everybody: a tile that finds it full, or waits in it in vain, comes back, for this
#: long, in seconds.
PATIENCE, PAUSE = 20.0, 0.05
OVERLOAD = ("xceeds maximum queue size", "Request timeout expired")


class Cancelled(Exception):
    """The client has gone away."""


class Overloaded(Exception):
    """restormer's queue stayed full."""


class TritonPythonModel:
    def initialize(self, args):
        self.limits = Limits.parsed(args["model_config"])
        self.watch = Watch(pb_utils.MetricFamily, args)
        parameters = json.loads(args["model_config"])["parameters"]
        self.tiles_in_flight, self.photographs_in_flight = (
            int(parameters[f"{what}_in_flight"]["string_value"]) for what in ("tiles", "photographs")
        )

    async def execute(self, requests):
        slots, desks = asyncio.Semaphore(self.tiles_in_flight), asyncio.Semaphore(self.photographs_in_flight)
        return await asyncio.gather(*(self._response(request, slots, desks) for request in requests))

    async def _response(self, request, slots, desks):
        started = time.perf_counter()
        try:
            files = pb_utils.get_input_tensor_by_name(request, "IMAGE").as_numpy()
            options = Options.parsed(json.loads(request.parameters()))
            done = []
            for file in files[:, 0]:
                async with desks:
                    done.append([await self._enhanced(file, options, request, slots)])
        except InvalidRequest as error:
            self.watch.ended("refused", started)
            return _failed(str(error), pb_utils.TritonError.INVALID_ARG)
        except Cancelled:
            self.watch.ended("cancelled", started)
            return _failed("enhance_tiled: the request was cancelled", pb_utils.TritonError.CANCELLED)
        except Overloaded as error:
            self.watch.ended("overloaded", started)
            return _failed(f"enhance_tiled: {error}", pb_utils.TritonError.UNAVAILABLE)
        except Exception as error:  # noqa: BLE001  the edge of the process: raising would fail the neighbours in the batch
            self.watch.ended("internal", started)
            return _failed(f"enhance_tiled: {type(error).__name__}: {error}", pb_utils.TritonError.INTERNAL)
        self.watch.ended("done", started)
        return pb_utils.InferenceResponse([pb_utils.Tensor("ENHANCED", np.array(done, dtype=np.object_))])

    async def _enhanced(self, file, options, request, slots):
        _stop_if_cancelled(request)
        core = await asyncio.to_thread(prepared, file, self.limits)
        async with slots:
            restored = await self._restored(core, request)
        photograph = await asyncio.to_thread(decode, file, self.limits)
        if options.size == "512":
            return encoded(small(photograph, core, restored, options), options)
        look = await asyncio.to_thread(look_of, photograph, core, restored, options)
        canvas = tiles.Canvas(photograph, look, strength=options.strength)
        for band in canvas.bands():
            # All of them end before an error goes up: none may outlive its request.
            ends = await asyncio.gather(
                *(self._add(band, index, request, slots) for index in range(len(band))), return_exceptions=True
            )
            if errors := [end for end in ends if end]:
                raise errors[0]
            band.finish()
        return await asyncio.to_thread(encoded, photograph, options)

    async def _add(self, band, index, request, slots):
        async with slots:
            _stop_if_cancelled(request)
            tile = await asyncio.to_thread(band.cut, index)
            restored = await self._restored(tile.core, request)
            band.add(tile, await asyncio.to_thread(band.canvas.result_of, tile, restored))

    async def _restored(self, core, request):
        """The network's output for one core tensor."""
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
            if not any(words in message for words in OVERLOAD):
                raise RuntimeError(message)
            if time.monotonic() > deadline:
                raise Overloaded(message)
            await asyncio.sleep(PAUSE)


def _stop_if_cancelled(request):
    if request.is_cancelled():
        raise Cancelled


def _failed(message, code):
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
