"""Translation of gRPC and Triton errors, and the exception hierarchy."""

import inspect
import pickle

import pytest
from restormer_client import errors
from restormer_client.errors import (
    AccessDenied,
    DeadlineExceeded,
    EnhanceError,
    Failure,
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
    error = error_from_failure(Failure(status, details), url="host:1", model="enhance", attempts=3)
    assert type(error) is kind
    assert (error.status, error.model, error.attempts) == (status, "enhance", 3)
    assert "in ensemble" not in str(error)
    assert "\n" not in str(error)


def class_tree(kind, depth=0):
    yield f"{'  ' * depth}{kind.__name__}"
    for child in kind.__subclasses__():
        yield from class_tree(child, depth + 1)


def test_docstring_shows_the_whole_hierarchy():
    lines = inspect.getdoc(errors).splitlines()
    shown = [line[:27].rstrip() for line in lines if line[:27].strip().isalpha() and "  " in line]
    assert shown == list(class_tree(EnhanceError))


@pytest.mark.parametrize("kind", [name.strip() for name in class_tree(EnhanceError)])
def test_errors_pickle(kind):
    error = getattr(errors, kind)("bad", status="INTERNAL", model="m", attempts=2)
    if kind == "Overloaded":
        error.retry_after = 7.5
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert (str(copy), vars(copy)) == (str(error), vars(error))
