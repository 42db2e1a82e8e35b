"""The one exception of the build side."""

from __future__ import annotations


class ExportError(Exception):
    """Something the user can mend: the message names the file, what was found, what was wanted, and what to do."""
