"""Exceptions of ``imaging``: what is wrong with a request, in a sentence that tells the client what to do."""


class InvalidRequest(ValueError):
    """The request is invalid: the base class of the two below."""


class InvalidPhotograph(InvalidRequest):
    """The bytes are not a photograph that can be processed."""


class InvalidOption(InvalidRequest):
    """A request parameter is unknown or out of range."""
