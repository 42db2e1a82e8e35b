"""Parse a model's configuration and each request's parameters, and turn failures into error responses.

A request that fails gets an error response of its own: an exception would fail the whole batch.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

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


@dataclass
class Answer:
    """The answer to one request: ``outputs`` are set in the block of `answer_request`, ``response`` is set after it."""

    outputs: list[Any] = field(default_factory=list)
    response: Any = None


@contextmanager
def answer_request(step: Step) -> Iterator[Answer]:
    """Answer a request: an exception in the block becomes an error response, and the outcome is counted."""
    answer, started, pb_utils = Answer(), time.perf_counter(), step.pb_utils
    try:
        yield answer
        outcome, answer.response = "done", pb_utils.InferenceResponse(answer.outputs)
    except Exception as error:  # noqa: BLE001  the other requests of the batch go on
        outcome, code, message = _describe_failure(error, step)
        answer.response = pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
    step.metrics.count(outcome, started)


def _describe_failure(error: Exception, step: Step) -> tuple[str, int, str]:
    """Return the outcome, Triton's code and the message of an error."""
    codes = step.pb_utils.TritonError
    if isinstance(error, InvalidRequest):
        return "invalid", codes.INVALID_ARG, str(error)
    if isinstance(error, Cancelled):
        return "cancelled", codes.CANCELLED, f"{step.name}: the request was cancelled"
    if isinstance(error, Overloaded):
        return "overloaded", codes.UNAVAILABLE, f"{step.name}: {error}"
    return "internal", codes.INTERNAL, f"{step.name}: {type(error).__name__}: {error}"


def options_from_request(request: Any) -> Options:
    """Return the options in a request's parameters. Raises `imaging.InvalidOption`."""
    return Options.from_parameters(json.loads(request.parameters()))
