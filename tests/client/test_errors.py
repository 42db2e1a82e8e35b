"""Translation of gRPC and Triton errors, and the exception hierarchy."""

import pickle

import pytest
from restormer_client.errors import (
    AccessDenied,
    DeadlineExceeded,
    EnhanceError,
    InvalidOption,
    InvalidPhotograph,
    InvalidRequest,
    ModelNotReady,
    Overloaded,
    ServerError,
    ServerUnavailable,
    error_from_failure,
)

#: Messages of a real Triton 2.51 and of gRPC 1.85, with the exceptions they become.
FAILURES = [
    ("INVALID_ARGUMENT", "in ensemble 'enhance', not a photograph", InvalidPhotograph),
    ("INVALID_ARGUMENT", "the photograph is empty (0 bytes)", InvalidPhotograph),
    ("INVALID_ARGUMENT", "in ensemble 'enhance', unknown parameter 'x': the", InvalidOption),
    ("INVALID_ARGUMENT", "in ensemble 'enhance_tiled', strength is '2': it has to be a number", InvalidOption),
    ("INVALID_ARGUMENT", "[request id: 1] unexpected shape for input 'IMAGE'", InvalidRequest),
    ("RESOURCE_EXHAUSTED", "CLIENT: Sent message larger than max (6 vs. 4)", InvalidRequest),
    ("RESOURCE_EXHAUSTED", "rate limited", Overloaded),
    ("UNAVAILABLE", "Received http2 header with status: 429", Overloaded),
    ("UNAVAILABLE", "upstream connect error or disconnect/reset before headers. reset reason: overflow", Overloaded),
    ("UNAVAILABLE", "an unknown message of a proxy", ServerError),
    ("DEADLINE_EXCEEDED", "Deadline Exceeded", DeadlineExceeded),
    ("UNAVAILABLE", "failed to connect to all addresses; last error: UNKNOWN: Connection refused", ServerUnavailable),
    ("UNAVAILABLE", "Stream removed (Socket closed (GOAWAY received; Error code: 0))", ServerUnavailable),
    (
        "UNAVAILABLE",
        "errors resolving a.test:8001: [field:hostname lookup error:DNS server returned answer with no data]",
        ServerUnavailable,
    ),
    (
        "UNAVAILABLE",
        "[request id: <id_unknown>] Server is stopping, scheduler for model has stopped",
        ServerUnavailable,
    ),
    ("NOT_FOUND", "Request for unknown model: 'enhance' has no available versions", ModelNotReady),
    ("UNAVAILABLE", "[request id: <id_unknown>] Exceeds maximum queue size", Overloaded),
    ("UNAVAILABLE", "in ensemble 'enhance', [request id: <id_unknown>] Request timeout expired", Overloaded),
    ("UNAVAILABLE", "in ensemble 'enhance_tiled', enhance_tiled: Exceeds maximum queue size", Overloaded),
    ("NOT_FOUND", "Request for unknown model: 'enhance' is not found", ModelNotReady),
    ("UNAVAILABLE", "This protocol is restricted, expecting header 'triton-grpc-protocol-k'", AccessDenied),
    ("UNAUTHENTICATED", "no token", AccessDenied),
    ("INTERNAL", "Stub process 'postprocess_0_0' is not healthy.", ServerError),
    (
        "INTERNAL",
        "Failed to process the request(s), message: RuntimeError: no\n\nAt:\n  /m/model.py(3): execute\n",
        ServerError,
    ),
    ("UNKNOWN", "what?", ServerError),
]


@pytest.mark.parametrize(("status", "details", "kind"), FAILURES)
def test_failures_are_translated(status, details, kind):
    error = error_from_failure(status, details, url="host:1", model="enhance", attempts=3)
    assert type(error) is kind
    assert (error.status, error.model, error.attempts) == (status, "enhance", 3)
    assert "in ensemble" not in str(error)
    assert "\n" not in str(error)


def classes(kind):
    yield kind
    for child in kind.__subclasses__():
        yield from classes(child)


@pytest.mark.parametrize("kind", classes(EnhanceError))
def test_errors_pickle(kind):
    error = kind("bad", status="INTERNAL", model="m", attempts=2)
    if kind is Overloaded:
        error.retry_after = 7.5
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert (str(copy), vars(copy)) == (str(error), vars(error))
