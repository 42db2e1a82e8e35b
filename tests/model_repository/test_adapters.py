"""The adapters on one batch of several requests, good and bad, as Triton hands them over.

Triton decides by itself which requests meet in a batch, so this is the one place where its module is stood in for; the
adapters' code is the one that is served, and tests/client sends the same through the real server.
"""

import json
import runpy
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from imaging import SIDE
from tests.photographs import encoded, opened, pixels

REPOSITORY = Path(__file__).parents[2] / "model_repository"
LIMITS = {
    "max_pixels": {"string_value": "100000000"}, "max_bytes": {"string_value": "200000000"},
    "histogram_ms": {"string_value": "10 100 1000"},
}  # fmt: skip


class Tensor:
    def __init__(self, name, array):
        self.name, self.array = name, array

    def as_numpy(self):
        return self.array


class TritonError(Exception):
    INVALID_ARG = 3

    def __init__(self, message, code=None):
        super().__init__(message)
        self.code = code


class InferenceResponse:
    def __init__(self, tensors=(), error=None):
        self.tensors, self.error = tensors, error


class MetricFamily:
    """Keeps what was observed; what it counts is asked of the real server in tests/server."""

    HISTOGRAM = "histogram"

    def __init__(self, *, name, description, kind):
        self.observed = []

    def Metric(self, labels, buckets):
        assert buckets == sorted(buckets)
        return self

    def observe(self, value):
        self.observed.append(value)


@pytest.fixture
def adapter(monkeypatch):
    """The model class of a version folder, with Triton's module stood in for."""
    module = types.ModuleType("triton_python_backend_utils")
    module.Tensor, module.TritonError, module.InferenceResponse = Tensor, TritonError, InferenceResponse
    module.MetricFamily = MetricFamily
    module.get_input_tensor_by_name = lambda request, name: Tensor(name, request[name])
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", module)

    def load(name):
        model = runpy.run_path(str(REPOSITORY / name / "1/model.py"))["TritonPythonModel"]()
        model.initialize(arguments(LIMITS))
        return model

    return load


def arguments(parameters):
    """What Triton hands to ``initialize``."""
    return {"model_name": "a model", "model_version": "1", "model_config": json.dumps({"parameters": parameters})}


class Request(dict):
    """Tensors by name, and request parameters."""

    def __init__(self, tensors, parameters):
        super().__init__(tensors)
        self.given = parameters

    def parameters(self):
        return json.dumps(self.given)


def request_for(*files, **parameters):
    core = np.zeros((len(files), 3, SIDE, SIDE), np.float32)
    images = np.array([[f] for f in files], dtype=np.object_)
    return Request({"IMAGE": images, "PIXELS": core, "RESTORED": core}, parameters)


@pytest.mark.parametrize("name", ["preprocess", "postprocess"])
def test_a_bad_photograph_fails_its_own_request_alone(adapter, name):
    good = encoded(pixels(60, 80))
    batch = [
        request_for(good), request_for(b"a letter"), request_for(good, good), request_for(good, b""),
        request_for(good, strength=2), request_for(good, strength="0.5"),
    ]  # fmt: skip
    responses = adapter(name).execute(batch)
    assert [response.error is None for response in responses] == [True, False, True, False, False, True]
    assert all(r.error.code == TritonError.INVALID_ARG for r in responses if r.error)
    assert [len(r.tensors[0].as_numpy()) for r in responses if not r.error] == [1, 2, 1]


@pytest.mark.parametrize("name", ["preprocess", "postprocess"])
def test_the_histogram_is_of_photographs_that_were_worked_on(adapter, name):
    model = adapter(name)
    model.execute([request_for(encoded(pixels(60, 80))), request_for(b"a letter")])
    assert len(model.worked.observed) == 1
    assert 0 < model.worked.observed[0] < 300_000


@pytest.mark.parametrize("name", ["preprocess", "postprocess"])
def test_a_surprise_fails_its_own_request_alone(adapter, name):
    good = encoded(pixels(60, 80))
    responses = adapter(name).execute([request_for(good), Request({**request_for(good), "IMAGE": np.array([[7]])}, {})])
    assert responses[0].error is None
    assert responses[1].error is not None


def test_limits_are_those_of_the_configuration(adapter):
    model = adapter("preprocess")
    tight = {**LIMITS, "max_pixels": {"string_value": "4799"}}
    model.initialize(arguments(tight))
    (response,) = model.execute([request_for(encoded(pixels(60, 80)))])
    assert "80x60 pixels; at most 4,799" in str(response.error)


def test_what_postprocess_returns_is_a_photograph(adapter):
    (response,) = adapter("postprocess").execute([request_for(encoded(pixels(60, 80)))])
    assert opened(response.tensors[0].as_numpy()[0, 0]).size == (80, 60)
