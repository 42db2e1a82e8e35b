"""Triton's errors become ours at one gate."""

import pickle

import pytest
from restormer_client import (
    DeadlineExceeded,
    EnhanceError,
    InvalidOption,
    InvalidPhotograph,
    Overloaded,
    ServerUnavailable,
)
from restormer_client.errors import error_from_triton
from tritonclient.utils import InferenceServerException


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        ("StatusCode.INVALID_ARGUMENT", "in ensemble 'enhance', not a photograph", InvalidPhotograph),
        ("StatusCode.INVALID_ARGUMENT", "the photograph is empty (0 bytes)", InvalidPhotograph),
        ("StatusCode.INVALID_ARGUMENT", "in ensemble 'enhance', unknown parameter 'x': the", InvalidOption),
        ("StatusCode.DEADLINE_EXCEEDED", "Deadline Exceeded", DeadlineExceeded),
        ("StatusCode.UNAVAILABLE", "failed to connect to all addresses", ServerUnavailable),
        ("StatusCode.UNAVAILABLE", "[request id: <id_unknown>] Exceeds maximum queue size", Overloaded),
        ("StatusCode.UNAVAILABLE", "Request for unknown model: 'enhance' is not found", EnhanceError),
        ("StatusCode.INVALID_ARGUMENT", "[request id: 1] unexpected shape for input 'IMAGE'", EnhanceError),
        ("StatusCode.INTERNAL", "Stub process is unhealthy", EnhanceError),
        (None, "no status at all", EnhanceError),
    ],
)
def test_each_error_has_its_name(status, message, kind):
    error = error_from_triton(InferenceServerException(message, status), "host:1")
    assert type(error) is kind
    assert error.status == (status.removeprefix("StatusCode.") if status else None)


def test_the_ensembles_own_words_are_left_out():
    error = error_from_triton(
        InferenceServerException("in ensemble 'enhance', the photograph is empty", "StatusCode.INVALID_ARGUMENT"), "h:1"
    )
    assert str(error) == "the photograph is empty"


def test_errors_pickle():
    error = pickle.loads(pickle.dumps(InvalidPhotograph("bad", "INVALID_ARGUMENT")))
    assert (type(error), str(error), error.status) == (InvalidPhotograph, "bad", "INVALID_ARGUMENT")
