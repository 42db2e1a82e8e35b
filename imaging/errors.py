"""The exceptions of ``imaging``: what a sender did wrong, in a sentence the sender can act on."""

from __future__ import annotations


class InvalidRequest(ValueError):
    """Something in the request is not as it has to be; the two kinds of it follow."""


class InvalidPhotograph(InvalidRequest):
    """These bytes are not a photograph we take."""


class InvalidOption(InvalidRequest):
    """A request parameter that is unknown, or out of its range."""
