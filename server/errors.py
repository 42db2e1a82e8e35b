"""The exception of ``server``."""

from __future__ import annotations


class ServerError(Exception):
    """The server cannot start or does not work; the message is one line and says what to do."""
