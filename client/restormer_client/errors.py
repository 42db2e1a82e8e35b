"""What can go wrong, and the one gate at which Triton's errors become ours.

EnhanceError                 base; also everything the server reports that has no name of its own
  InvalidPhotograph          these bytes are no photograph it takes: do not send them again
  InvalidOption              an option is out of its range
  Overloaded                 its queue is full: come back later
  DeadlineExceeded           no answer within the timeout
  ServerUnavailable          nobody answers at this address
"""

from __future__ import annotations

from tritonclient.utils import InferenceServerException


class EnhanceError(Exception):
    """The photograph was not enhanced; ``status`` is the gRPC status, if there was one."""

    def __init__(self, message: str, status: str | None = None) -> None:
        super().__init__(message, status)
        self.message = message
        self.status = status

    def __str__(self) -> str:
        return self.message


class InvalidPhotograph(EnhanceError):
    """These bytes are not a photograph the server takes."""


class InvalidOption(EnhanceError):
    """An option is unknown to the server, or out of its range."""


class Overloaded(EnhanceError):
    """The server's queue is full."""


class DeadlineExceeded(EnhanceError):
    """No answer within the timeout."""


class ServerUnavailable(EnhanceError):
    """Nobody answers at this address."""


#: How gRPC words a connection that failed; Triton uses UNAVAILABLE for its own troubles too.
_UNREACHABLE = (
    "failed to connect",
    "onnection refused",
    "onnection reset",
    "ocket closed",
    "resolution failed",
    "GOAWAY",
)
_ENSEMBLE = "in ensemble 'enhance', "
#: How Triton itself begins to complain about a request; our models do not.
_TRITONS_OWN = "[request id: "
#: How the server words a bad option.
_OPTION = ("unknown parameter", "it has to be")


def error_from_triton(error: InferenceServerException, url: str) -> EnhanceError:
    """Ours for Triton's. One status stands for several troubles, so the message is asked first."""
    status = str(error.status() or "").removeprefix("StatusCode.") or None
    message = str(error.message() or error)
    # An ensemble puts its own words before the step's.
    said = message.split(_ENSEMBLE, 1)[-1]
    if "xceeds maximum queue size" in message:
        return Overloaded(f"{url} is overloaded: {said}", status)
    if status == "INVALID_ARGUMENT" and _TRITONS_OWN not in message:
        is_option = any(words in said for words in _OPTION)
        return InvalidOption(said, status) if is_option else InvalidPhotograph(said, status)
    if status == "DEADLINE_EXCEEDED":
        return DeadlineExceeded(f"{url} did not answer in time", status)
    if status == "UNAVAILABLE" and any(words in message for words in _UNREACHABLE):
        return ServerUnavailable(f"no server answers at {url}: is it running? ({said})", status)
    return EnhanceError(f"{url}: {said}", status)
