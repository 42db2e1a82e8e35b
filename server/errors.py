"""The one exception of ``server``."""

from __future__ import annotations


class ServerError(Exception):
    """The server cannot start or answer; the message says in one line what to do about it."""
