"""The one exception of ``imaging``."""

from __future__ import annotations


class InvalidPhotograph(ValueError):
    """These bytes are not a photograph we take; the message is a sentence its sender can act on."""
