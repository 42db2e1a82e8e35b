"""The adapters on one batch of several requests, good and bad, as Triton hands them over.

Triton decides by itself which requests meet in a batch, so this is the one place where its module is stood in for; the
adapters' code is the one that is served, and tests/client sends the same through the real server.
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

from imaging import SIDE
from imaging.watch import OUTCOMES, memory
from tests.photographs import encoded, opened, pixels
from traffic import generator as traffic

REPOSITORY = Path(__file__).parents[2] / "model_repository"
LIMITS = {
    "max_pixels": {"string_value": "100000000"}, "max_bytes": {"string_value": "200000000"},
    "histogram_ms": {"string_value": "10 100 1000"},
    "tiles_in_flight": {"string_value": "2"}, "photographs_in_flight": {"string_value": "1"},
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

    def has_error(self):
        return self.error is not None


class MetricFamily:
    """Keeps what was counted; what Triton makes of it is asked of a real server in tests/watching."""

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


def outcomes(model):
    """How often an adapter counted each outcome, the zeros aside."""
    return {name: metric.value for name, metric in model.watch._ended.items() if metric.value}


@pytest.fixture
def adapter(monkeypatch):
    """The model class of a version folder, with Triton's module stood in for."""
    module = types.ModuleType("triton_python_backend_utils")
    module.Tensor, module.TritonError, module.InferenceResponse = Tensor, TritonError, InferenceResponse
    module.MetricFamily = MetricFamily
    module.get_input_tensor_by_name = lambda request, name: Tensor(name, request[name])
    module.get_output_tensor_by_name = lambda response, name: response.tensors[0]
    module.PreferredMemory, module.TRITONSERVER_MEMORY_CPU = str, "CPU"
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", module)

    def load(name, **parameters):
        model = runpy.run_path(str(REPOSITORY / name / "1/model.py"))["TritonPythonModel"]()
        model.initialize(arguments({**LIMITS, **parameters}))
        return model

    return load


def arguments(parameters):
    """What Triton hands to ``initialize``."""
    return {
        "model_name": "a model", "model_version": "1", "model_config": json.dumps({"parameters": parameters})
    }  # fmt: skip


class Request(dict):
    """Tensors by name, and request parameters."""

    gone = False

    def __init__(self, tensors, parameters):
        super().__init__(tensors)
        self.given = parameters

    def is_cancelled(self):
        return self.gone

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
    assert len(model.watch._worked.observed) == 1
    assert 0 < model.watch._worked.observed[0] < 300_000
    assert outcomes(model) == {"done": 1, "refused": 1}


@pytest.mark.parametrize("name", ["preprocess", "postprocess"])
def test_a_surprise_fails_its_own_request_alone(adapter, name):
    good = encoded(pixels(60, 80))
    model = adapter(name)
    responses = model.execute([request_for(good), Request({**request_for(good), "IMAGE": np.array([[7]])}, {})])
    assert responses[0].error is None
    assert responses[1].error is not None
    assert outcomes(model) == {"done": 1, "internal": 1}


def test_limits_are_those_of_the_configuration(adapter):
    model = adapter("preprocess", max_pixels={"string_value": "4799"})
    (response,) = model.execute([request_for(encoded(pixels(60, 80)))])
    assert "80x60 pixels; at most 4,799" in str(response.error)


def test_what_postprocess_returns_is_a_photograph(adapter):
    (response,) = adapter("postprocess").execute([request_for(encoded(pixels(60, 80)))])
    assert opened(response.tensors[0].as_numpy()[0, 0]).size == (80, 60)


class Network:
    """restormer, as ``enhance_tiled`` asks it: answers what it is given, or an error."""

    said = None

    def __init__(self, **call):
        self.call = call

    async def async_exec(self):
        return Answer(self.call["inputs"][0].as_numpy(), self.said)


class Answer:
    def __init__(self, array, said):
        self.tensors, self.said = [Tensor("output", array)], said

    def has_error(self):
        return self.said is not None

    def error(self):
        return types.SimpleNamespace(message=lambda: self.said)


def tiled(adapter, monkeypatch, *requests, said=None):
    """``enhance_tiled`` on some requests, with a network that answers ``said``."""
    model = adapter("enhance_tiled")
    module = sys.modules["triton_python_backend_utils"]
    module.InferenceRequest = type("Calls", (Network,), {"said": said})
    monkeypatch.setitem(type(model)._restored.__globals__, "PATIENCE", 0.05)
    return model, asyncio.run(model.execute(requests))


def test_enhance_tiled_counts_what_became_of_its_requests(adapter, monkeypatch):
    good, gone = encoded(pixels(60, 80)), request_for(encoded(pixels(60, 80)))
    gone.gone = True
    model, responses = tiled(adapter, monkeypatch, request_for(good), request_for(b"a letter"), gone)
    assert [response.error and response.error.code for response in responses] == [
        None, TritonError.INVALID_ARG, TritonError.CANCELLED
    ]  # fmt: skip
    assert outcomes(model) == {"done": 1, "refused": 1, "cancelled": 1}
    assert len(model.watch._worked.observed) == 1


@pytest.mark.parametrize(
    ("said", "outcome", "code"),
    [
        ("Exceeds maximum queue size", "overloaded", TritonError.UNAVAILABLE),
        ("Request timeout expired", "overloaded", TritonError.UNAVAILABLE),
        ("CUDA error", "internal", TritonError.INTERNAL),
    ],
)
def test_enhance_tiled_tells_overload_from_a_broken_engine(adapter, monkeypatch, said, outcome, code):
    model, (response,) = tiled(adapter, monkeypatch, request_for(encoded(pixels(60, 80))), said=said)
    assert response.error.code == code
    assert outcomes(model) == {outcome: 1}


def test_the_words_of_overload_are_the_clients_and_the_benchmarks(adapter):
    words = type(adapter("enhance_tiled"))._restored.__globals__["OVERLOAD"]
    assert words == (traffic.REJECTED, traffic.EXPIRED)
    for word in words:
        failure = errors.Failure("UNAVAILABLE", f"[request id: <id_unknown>] E{word}")
        assert isinstance(
            errors.error_from_failure(failure, url="here", model="enhance", attempts=1), errors.Overloaded
        )


def test_every_outcome_is_there_from_the_start(adapter):
    assert tuple(adapter("preprocess").watch._ended) == OUTCOMES


def test_memory_is_the_containers_where_one_limits_it_and_the_hosts_elsewhere(tmp_path):
    (tmp_path / "memory.current").write_text("3000\n")
    (tmp_path / "memory.max").write_text("4000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 1000\n")
    assert memory(tmp_path) == (2000, 4000)
    (tmp_path / "memory.max").write_text("max\n")
    used, limit = memory(tmp_path)
    assert 4000 < used < limit
    old = tmp_path / "old/memory"
    old.mkdir(parents=True)
    (old / "memory.usage_in_bytes").write_text("3000\n")
    (old / "memory.limit_in_bytes").write_text("4000\n")
    (old / "memory.stat").write_text("inactive_file 7\ntotal_inactive_file 500\n")
    assert memory(tmp_path / "old") == (2500, 4000)
