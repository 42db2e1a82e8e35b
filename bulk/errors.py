"""What ends a job; a photograph that cannot be enhanced does not, it is a row of the manifest."""


class BulkError(Exception):
    """The job cannot go on. ``str(error)`` is one line for people; the same command goes on where it stopped."""
