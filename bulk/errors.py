"""Errors that stop a job. A photograph that cannot be enhanced does not: it becomes a row of the manifest."""


class BulkError(Exception):
    """The job cannot continue. ``str(error)`` is one human-readable line; running the command again resumes the job."""
