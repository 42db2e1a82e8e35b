"""Parse a model's configuration and each request's parameters, and turn failures into error responses.

A request that fails gets an error response of its own: an exception would fail the whole batch.
"""

import json
import time
from types import TracebackType
from typing import Any, Self

from adapters.metrics import Metrics
from imaging import InvalidRequest, Limits, Options


class Cancelled(Exception):
    """The client has cancelled the request."""


class Overloaded(Exception):
    """The queue of the network stayed full for as long as the caller retried."""


class Step:
    """One model instance: its parameters, limits and metrics. ``args`` are those of ``initialize``."""

    def __init__(self, pb_utils: Any, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        self.parameters = {name: value["string_value"] for name, value in parameters.items()}
        self.limits = Limits(*(int(self.parameters[name]) for name in ("max_pixels", "max_bytes")))
        self.name = args["model_name"]
        labels = {"model": self.name, "version": args["model_version"]}
        self.metrics = Metrics(pb_utils.MetricFamily, labels, self.parameters["histogram_ms"])
        self.pb_utils = pb_utils


class Answer:
    """The answer to one request: set ``outputs`` in a ``with`` block, and return ``response`` after it.

    An exception in the block becomes an error response. The outcome is counted.
    """

    def __init__(self, step: Step) -> None:
        self._step, self._started = step, time.perf_counter()
        self.outputs: list[Any] = []
        self.response: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        if error is not None and not isinstance(error, Exception):
            return False  # KeyboardInterrupt or cancellation: the process or the event loop is ending
        pb_utils = self._step.pb_utils
        if error is None:
            outcome, self.response = "done", pb_utils.InferenceResponse(self.outputs)
        else:
            outcome, code, message = self._failure(error)
            self.response = pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
        self._step.metrics.count(outcome, self._started)
        return True

    def _failure(self, error: Exception) -> tuple[str, int, str]:
        """Return the outcome, Triton's code and the message of an error."""
        codes, name = self._step.pb_utils.TritonError, self._step.name
        if isinstance(error, InvalidRequest):
            return "invalid", codes.INVALID_ARG, str(error)
        if isinstance(error, Cancelled):
            return "cancelled", codes.CANCELLED, f"{name}: the request was cancelled"
        if isinstance(error, Overloaded):
            return "overloaded", codes.UNAVAILABLE, f"{name}: {error}"
        return "internal", codes.INTERNAL, f"{name}: {type(error).__name__}: {error}"


def options_from_request(request: Any) -> Options:
    """Return the options in a request's parameters. Raises `imaging.InvalidOption`."""
    return Options.from_parameters(json.loads(request.parameters()))
