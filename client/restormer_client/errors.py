"""Exceptions, and the translation of gRPC and Triton errors into them.

All derive from `EnhanceError` and can be pickled. An unreadable file raises `OSError`, an argument of the wrong type
`TypeError`.
"""

from __future__ import annotations


class EnhanceError(Exception):
    """A call failed. ``str(error)`` is one human-readable line.

    ``status`` is gRPC's (None if there was none), ``attempts`` how often the request was sent to ``model``.
    """

    def __init__(self, message: str, *, status: str | None = None, model: str | None = None, attempts: int = 1) -> None:
        super().__init__(message)
        self.status = status
        self.model = model
        self.attempts = attempts


class InvalidRequest(EnhanceError):
    """The same request will fail again, for example because it exceeds the message size limit."""


class InvalidPhotograph(InvalidRequest):
    """The server cannot read these bytes as a photograph."""


class InvalidOption(InvalidRequest):
    """An option is unknown to the server, or out of range."""


class InvalidTensor(InvalidRequest):
    """`core`: the model does not take a tensor of this shape or type."""


class Overloaded(EnhanceError):
    """A queue of the server is full; never retried by this client. ``retry_after``: suggested wait in seconds,
    estimated from the duration of this client's recent calls."""

    retry_after: float = 1.0


class DeadlineExceeded(EnhanceError):
    """No response within the timeout."""


class ServerUnavailable(EnhanceError):
    """No server answers at this address, the connection broke, or the server is starting or stopping. Retried within
    the deadline, which is safe because enhancing is idempotent."""


class ModelNotReady(EnhanceError):
    """The server does not serve the model. Retried like `ServerUnavailable` while the server has no version of it."""


class AccessDenied(EnhanceError):
    """A token, header or certificate is missing or wrong."""


class ServerError(EnhanceError):
    """The server failed, or its response is invalid."""


#: Text that the ensemble puts before the message of the step that failed.
_ENSEMBLE_PREFIX = "in ensemble '"
_STACK_MARKER = "\n\nAt:\n"  #: start of the stack trace that Triton's Python backend appends
#: Part of messages that come from Triton itself; this project's models do not use it.
_TRITON_MARKER = "[request id: "
#: Parts of this project's messages about an invalid option.
_OPTION_MARKERS = ("unknown parameter", "it has to be")
#: Part of Triton's message while it has no version of a model: during start and shutdown, and permanently if the model
#: failed to load.
NO_VERSIONS = "has no available versions"
#: Meaning of status UNAVAILABLE by parts of its message. Only messages about the connection or a stopping server count
#: as ServerUnavailable, which is retried: an overloaded proxy reports UNAVAILABLE too.
_UNAVAILABLE: dict[type[EnhanceError], tuple[str, ...]] = {
    # "timeout expired" is the limit of the queue policy; the call's own deadline is DEADLINE_EXCEEDED.
    Overloaded: ("xceeds maximum queue size", "timeout expired", "status: 429", "overflow"),
    ModelNotReady: ("unknown model", "is not ready", "not at ready state"),
    AccessDenied: ("protocol is restricted",),
    # "rrors resolving" is gRPC 1.85's: the name does not exist or has no address.
    ServerUnavailable: (
        "erver is stopping", "ailed to connect", "onnection refused", "onnection reset", "onnection timed out",
        "onnection dropped", "ocket closed", "roken pipe", "GOAWAY", "tream removed", "ndpoint closing",
        "esolution failed", "rrors resolving", "recvmsg", "sendmsg",
    ),
}  # fmt: skip
#: Parts of messages which prove that the server did not process the request.
_NOT_PROCESSED = (
    "ailed to connect", "onnection refused", "esolution failed", "rrors resolving", "erver is stopping", NO_VERSIONS
)  # fmt: skip
_BY_STATUS: dict[str, type[EnhanceError]] = {
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "NOT_FOUND": ModelNotReady,
    "UNAUTHENTICATED": AccessDenied,
    "PERMISSION_DENIED": AccessDenied,
    "RESOURCE_EXHAUSTED": Overloaded,  # from a rate limiter; `_classify` handles messages above the size limit
}
_SENTENCES: dict[type[EnhanceError], str] = {
    Overloaded: "{url} is overloaded: {details}",
    DeadlineExceeded: "{url} did not answer in time",
    ServerUnavailable: "no server answers at {url}: is it running? ({details})",
    ModelNotReady: "{url} does not serve {model!r}: {details}",
    AccessDenied: "{url} denied access: {details}",
    ServerError: "{url}: {details}",
}


def may_be_processed(message: str) -> bool:
    """Return whether the server may have processed a request that failed with this message."""
    return not any(text in message for text in _NOT_PROCESSED)


def error_from_failure(status: str, details: str, *, url: str, model: str | None, attempts: int) -> EnhanceError:
    """Translate gRPC's status and message. One status has several meanings here, so the message decides first."""
    details = details.partition(_STACK_MARKER)[0]
    if details.startswith(_ENSEMBLE_PREFIX):
        details = details.split("', ", 1)[-1]
    kind = _classify(status, details)
    sentence = _SENTENCES.get(kind, "{details}").format(url=url, model=model, details=details)
    return kind(sentence, status=status, model=model, attempts=attempts)


def _classify(status: str, details: str) -> type[EnhanceError]:
    if status == "UNAVAILABLE":
        kinds = (kind for kind, texts in _UNAVAILABLE.items() if any(text in details for text in texts))
        return next(kinds, ServerError)
    if status == "RESOURCE_EXHAUSTED" and "larger than max" in details:
        return InvalidRequest
    if status == "INVALID_ARGUMENT" and _TRITON_MARKER not in details:
        return InvalidOption if any(text in details for text in _OPTION_MARKERS) else InvalidPhotograph
    if status == "INVALID_ARGUMENT":
        return InvalidRequest
    return _BY_STATUS.get(status, ServerError)
