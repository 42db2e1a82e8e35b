"""The Python models on one batch of several requests, valid and invalid, as Triton passes them.

Triton itself decides which requests share a batch, so a stand-in replaces its module here. The models are the served
files; tests/client sends the same requests through a real server.
"""

import asyncio
import json
import runpy
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from restormer_client import errors

from adapters.metrics import OUTCOMES
from imaging import SIDE
from tests.photographs import encode_image, open_image, pixels
from traffic import loops

REPOSITORY = Path(__file__).parents[2] / "model_repository"
PARAMETERS = {
    "max_pixels": "100000000", "max_bytes": "200000000", "histogram_ms": "10 100 1000", "tiles_in_flight": "2",
    "photographs_in_flight": "1",
}  # fmt: skip


class Tensor:
    def __init__(self, name, array):
        self.name, self.array = name, array

    def as_numpy(self):
        return self.array


class TritonError(Exception):
    INVALID_ARG, CANCELLED, UNAVAILABLE, INTERNAL = 3, 6, 4, 1

    def __init__(self, message, code=None):
        super().__init__(message)
        self.code = code


class InferenceResponse:
    def __init__(self, tensors=(), error=None):
        self.tensors, self.error = tensors, error


class MetricFamily:
    """Metrics that keep what was counted; tests/watching reads those of a real server."""

    HISTOGRAM, COUNTER, GAUGE = "histogram", "counter", "gauge"

    def __init__(self, *, name, description, kind):
        self.name, self.kind = name, kind

    def Metric(self, labels, buckets=None):
        assert (buckets is not None) == (self.kind == self.HISTOGRAM)
        assert buckets is None or buckets == sorted(buckets)
        return Metric()


class Metric:
    def __init__(self):
        self.observed, self.value = [], 0

    def observe(self, value):
        self.observed.append(value)

    def increment(self, value):
        self.value += value

    def set(self, value):
        self.value = value


class Request(dict):
    """Tensors by name, and request parameters."""

    cancelled = False

    def __init__(self, tensors, parameters):
        super().__init__(tensors)
        self.given = parameters

    def is_cancelled(self):
        return self.cancelled

    def parameters(self):
        return json.dumps(self.given)


class Network:
    """A stand-in for restormer, as ``enhance_tiled`` calls it: returns its input, or an error."""

    error = None

    def __init__(self, **call):
        self.call = call

    async def async_exec(self):
        return NetworkResponse(self.call["inputs"][0].as_numpy(), self.error)


class NetworkResponse:
    def __init__(self, array, error):
        self.tensors, self.message = [Tensor("output", array)], error

    def has_error(self):
        return self.message is not None

    def error(self):
        return types.SimpleNamespace(message=lambda: self.message)


def request_for(file, **parameters):
    core = np.zeros((1, 3, SIDE, SIDE), np.float32)
    return Request({"IMAGE": np.array([[file]], dtype=np.object_), "PIXELS": core, "RESTORED": core}, parameters)


def outcomes(model):
    """Return how often a model counted each outcome, without the zeros."""
    return {name: metric.value for name, metric in model.step.metrics._outcomes.items() if metric.value}


def durations(model):
    return model.step.metrics._durations.observed


@pytest.fixture
def load(monkeypatch):
    """Load a model of the repository on a stand-in for Triton's module, with some parameters of its config."""
    module = types.ModuleType("triton_python_backend_utils")
    module.Tensor, module.TritonError, module.InferenceResponse = Tensor, TritonError, InferenceResponse
    module.MetricFamily = MetricFamily
    module.get_input_tensor_by_name = lambda request, name: Tensor(name, request[name])
    module.get_output_tensor_by_name = lambda response, name: response.tensors[0]
    module.PreferredMemory, module.TRITONSERVER_MEMORY_CPU = str, "CPU"
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", module)

    def loaded(name, **parameters):
        model = runpy.run_path(str(REPOSITORY / name / "1/model.py"))["TritonPythonModel"]()
        values = {key: {"string_value": value} for key, value in {**PARAMETERS, **parameters}.items()}
        config = json.dumps({"parameters": values})
        model.initialize({"model_name": name, "model_version": "1", "model_config": config})
        return model

    return loaded


@pytest.mark.parametrize("name", ["preprocess", "postprocess"])
def test_an_invalid_request_fails_alone_and_is_counted(load, name):
    good = encode_image(pixels(60, 80))
    model = load(name)
    responses = model.execute(
        [
            request_for(good), request_for(b"a letter"), request_for(b""), request_for(good, strength=2),
            request_for(good, strength="0.5"),
        ]
    )  # fmt: skip
    assert [response.error is None for response in responses] == [True, False, False, False, True]
    assert all(response.error.code == TritonError.INVALID_ARG for response in responses if response.error)
    assert outcomes(model) == {"done": 2, "invalid": 3}
    assert len(durations(model)) == 2
    assert all(0 < milliseconds < 300_000 for milliseconds in durations(model))


@pytest.mark.parametrize("name", ["preprocess", "postprocess"])
def test_an_unexpected_error_fails_its_own_request_alone(load, name):
    good = encode_image(pixels(60, 80))
    model = load(name)
    broken = Request({**request_for(good), "IMAGE": np.array([[7]])}, {})
    first, second = model.execute([request_for(good), broken])
    assert first.error is None
    assert second.error.code == TritonError.INTERNAL
    assert str(second.error).startswith(f"{name}: TypeError: ")
    assert outcomes(model) == {"done": 1, "internal": 1}


def test_a_limit_of_the_config_is_enforced(load):
    (response,) = load("preprocess", max_pixels="4799").execute([request_for(encode_image(pixels(60, 80)))])
    assert "80x60 pixels; at most 4,799" in str(response.error)


def test_preprocess_returns_a_core_tensor(load):
    (response,) = load("preprocess").execute([request_for(encode_image(pixels(60, 80)))])
    core = response.tensors[0].as_numpy()
    assert (core.shape, core.dtype) == ((1, 3, SIDE, SIDE), np.float32)


def test_postprocess_returns_a_photograph(load):
    (response,) = load("postprocess").execute([request_for(encode_image(pixels(60, 80)))])
    assert open_image(response.tensors[0].as_numpy()[0, 0]).size == (80, 60)


def test_a_signal_that_ends_the_process_is_not_turned_into_a_response(load, monkeypatch):
    model = load("preprocess")
    monkeypatch.setitem(type(model)._response.__globals__, "core_from_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.execute([request_for(encode_image(pixels(60, 80)))])


def interrupted(*_):
    raise KeyboardInterrupt


def tiled(load, monkeypatch, *requests, error=None):
    """Run ``enhance_tiled`` on some requests, with a network that answers ``error``."""
    model = load("enhance_tiled")
    sys.modules["triton_python_backend_utils"].InferenceRequest = type("Calls", (Network,), {"error": error})
    monkeypatch.setitem(type(model)._restored.__globals__, "PATIENCE", 0.05)
    return model, asyncio.run(model.execute(requests))


def test_enhance_tiled_counts_the_outcome_of_each_request(load, monkeypatch):
    good, cancelled = encode_image(pixels(60, 80)), request_for(encode_image(pixels(60, 80)))
    cancelled.cancelled = True
    model, responses = tiled(load, monkeypatch, request_for(good), request_for(b"a letter"), cancelled)
    assert [response.error and response.error.code for response in responses] == [
        None, TritonError.INVALID_ARG, TritonError.CANCELLED
    ]  # fmt: skip
    assert outcomes(model) == {"done": 1, "invalid": 1, "cancelled": 1}
    assert len(durations(model)) == 1


def test_enhance_tiled_takes_as_many_photographs_a_request_as_its_config_allows(load, monkeypatch):
    pair = request_for(encode_image(pixels(60, 80)))
    pair["IMAGE"] = np.concatenate([pair["IMAGE"], [[encode_image(pixels(40, 50))]]])
    _, (response,) = tiled(load, monkeypatch, pair)
    assert [open_image(file).size for (file,) in response.tensors[0].as_numpy()] == [(80, 60), (50, 40)]


@pytest.mark.parametrize(
    ("error", "outcome", "code"),
    [
        ("Exceeds maximum queue size", "overloaded", TritonError.UNAVAILABLE),
        ("Request timeout expired", "overloaded", TritonError.UNAVAILABLE),
        ("CUDA error", "internal", TritonError.INTERNAL),
    ],
)
def test_enhance_tiled_distinguishes_overload_from_a_broken_engine(load, monkeypatch, error, outcome, code):
    model, (response,) = tiled(load, monkeypatch, request_for(encode_image(pixels(60, 80))), error=error)
    assert response.error.code == code
    assert outcomes(model) == {outcome: 1}


def test_all_rooms_recognize_overload_by_the_same_text(load):
    texts = type(load("enhance_tiled"))._restored.__globals__["OVERLOAD"]
    assert texts == (loops.REJECTED, loops.EXPIRED)
    for text in texts:
        details = f"[request id: <id_unknown>] E{text}"
        error = errors.error_from_failure("UNAVAILABLE", details, url="here", model="enhance", attempts=1)
        assert isinstance(error, errors.Overloaded)


def test_every_outcome_has_a_counter_from_the_start(load):
    assert tuple(load("preprocess").step.metrics._outcomes) == OUTCOMES
