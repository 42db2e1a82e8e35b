"""What can go wrong, and the one gate at which gRPC's and Triton's errors become ours.

EnhanceError                 base of them all
  InvalidRequest             sending the same again will fail again (also: larger than a message may be)
    InvalidPhotograph        these bytes are no photograph the server takes
    InvalidOption            an option is unknown to the server, or out of its range
    InvalidTensor            `core`: the tensor is not what the model takes
  Overloaded                 a queue is full; ``retry_after`` is the hint in seconds; never retried by this client
  DeadlineExceeded           no answer within the timeout
  ServerUnavailable          nobody answers at this address, the connection broke, or the server is stopping; the one
                             kind that is retried, within the deadline, since enhancing twice gives the same
  ModelNotReady              the server is there, the model is not
  AccessDenied               the server wants a token, a header or a certificate it did not get
  ServerError                the server failed on its own account, or answered what makes no sense

Each carries ``status`` (gRPC's, or None if there was none), ``model`` and ``attempts`` (how often it was sent), and
pickles.
A photograph that cannot be read raises what Python raises (`OSError`), a wrong type `TypeError`.
"""

from __future__ import annotations

from dataclasses import dataclass


class EnhanceError(Exception):
    """Nothing was enhanced. ``str(error)`` is one line for people."""

    def __init__(self, message: str, *, status: str | None = None, model: str | None = None, attempts: int = 1) -> None:
        super().__init__(message)
        self.status = status
        self.model = model
        self.attempts = attempts


class InvalidRequest(EnhanceError):
    """The request itself is wrong; do not send it again as it is."""


class InvalidPhotograph(InvalidRequest):
    """These bytes are not a photograph the server takes."""


class InvalidOption(InvalidRequest):
    """An option is unknown to the server, or out of its range."""


class InvalidTensor(InvalidRequest):
    """The tensor's shape or type is not what the model takes."""


class Overloaded(EnhanceError):
    """A queue of the server is full. ``retry_after``: seconds after which a place may be free, from this client's own
    recent calls."""

    retry_after: float = 1.0


class DeadlineExceeded(EnhanceError):
    """No answer within the timeout."""


class ServerUnavailable(EnhanceError):
    """Nobody answers at this address, the connection broke, or the server is starting or stopping."""


class ModelNotReady(EnhanceError):
    """The server answers, but does not serve this model."""


class AccessDenied(EnhanceError):
    """A token, header or certificate is missing or wrong."""


class ServerError(EnhanceError):
    """The server failed on its own account, or answered what makes no sense."""


@dataclass(frozen=True)
class Failure:
    """What gRPC reported: ``status`` is the name of its code, ``said`` its text."""

    status: str
    said: str


#: The ensemble's own words, before those of the step that failed.
_ENSEMBLE = "in ensemble '"
_WHERE = "\n\nAt:\n"  #: after it Triton's Python backend names lines of the server's files
#: How Triton itself begins to complain about a request; our models do not.
_TRITONS_OWN = "[request id: "
#: How our models word a bad option.
_OPTION = ("unknown parameter", "it has to be")
#: How Triton says that it has no versions of a model now: between start and ready, while it shuts down, and for good
#: where the model failed to load.
NO_VERSIONS = "has no available versions"
#: What is meant by UNAVAILABLE, by its words. Only what the connection, or a server that stops, says of itself is
#: retried: a proxy, too, says UNAVAILABLE when it is overloaded.
_UNAVAILABLE: tuple[tuple[str, type[EnhanceError]], ...] = (
    ("xceeds maximum queue size", Overloaded),
    ("timeout expired", Overloaded),  # waited longer than the queue's policy allows; our own deadline comes as gRPC's
    ("status: 429", Overloaded),
    ("overflow", Overloaded),
    ("unknown model", ModelNotReady),
    ("is not ready", ModelNotReady),
    ("not at ready state", ModelNotReady),
    ("protocol is restricted", AccessDenied),
    ("erver is stopping", ServerUnavailable),
    ("ailed to connect", ServerUnavailable),
    ("onnection refused", ServerUnavailable),
    ("onnection reset", ServerUnavailable),
    ("onnection timed out", ServerUnavailable),
    ("onnection dropped", ServerUnavailable),
    ("ocket closed", ServerUnavailable),
    ("roken pipe", ServerUnavailable),
    ("GOAWAY", ServerUnavailable),
    ("tream removed", ServerUnavailable),
    ("ndpoint closing", ServerUnavailable),
    ("esolution failed", ServerUnavailable),
    ("rrors resolving", ServerUnavailable),  # gRPC 1.85: no such name, or one without an address now
    ("recvmsg", ServerUnavailable),
    ("sendmsg", ServerUnavailable),
)
#: Of these it is certain that nothing was done.
UNTOUCHED = (
    "ailed to connect", "onnection refused", "esolution failed", "rrors resolving", "erver is stopping", NO_VERSIONS
)  # fmt: skip
_BY_STATUS: dict[str, type[EnhanceError]] = {
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "NOT_FOUND": ModelNotReady,
    "UNAUTHENTICATED": AccessDenied,
    "PERMISSION_DENIED": AccessDenied,
    "RESOURCE_EXHAUSTED": Overloaded,  # a rate limiter; of a message above a limit, see below
}
_SENTENCES: dict[type[EnhanceError], str] = {
    Overloaded: "{url} is overloaded: {said}",
    DeadlineExceeded: "{url} did not answer in time",
    ServerUnavailable: "no server answers at {url}: is it running? ({said})",
    ModelNotReady: "{url} does not serve {model!r}: {said}",
    AccessDenied: "{url} refuses: {said}",
    ServerError: "{url}: {said}",
}


def error_from_failure(failure: Failure, *, url: str, model: str | None, attempts: int) -> EnhanceError:
    """Ours for gRPC's. One status stands for several troubles, so the message is asked first."""
    said = failure.said.partition(_WHERE)[0]
    if said.startswith(_ENSEMBLE):
        said = said.split("', ", 1)[-1]
    kind = _kind(failure.status, said)
    sentence = _SENTENCES.get(kind, "{said}").format(url=url, model=model, said=said)
    return kind(sentence, status=failure.status, model=model, attempts=attempts)


def _kind(status: str, said: str) -> type[EnhanceError]:
    if status == "UNAVAILABLE":
        return next((kind for words, kind in _UNAVAILABLE if words in said), ServerError)
    if status == "RESOURCE_EXHAUSTED" and "larger than max" in said:
        return InvalidRequest
    if status == "INVALID_ARGUMENT" and _TRITONS_OWN not in said:
        return InvalidOption if any(words in said for words in _OPTION) else InvalidPhotograph
    if status == "INVALID_ARGUMENT":
        return InvalidRequest
    return _BY_STATUS.get(status, ServerError)
