"""The exception of the build side, and the one kind of it that something else may be tried after."""

from __future__ import annotations


class ExportError(Exception):
    """Something the user can mend: the message names the file, what was found, what was wanted, and what to do."""


class GateError(ExportError):
    """What was built is not what its precision has to be: not faithful, not finite, or too little of it executed so."""
