"""The exceptions of the build side."""


class ExportError(Exception):
    """A problem that the user can fix: the message names the file, the values found and wanted, and what to do."""


class GateError(ExportError):
    """An engine that misses the requirements of its precision; another precision may be tried."""
