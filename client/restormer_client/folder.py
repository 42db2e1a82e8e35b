"""Enhance a folder of photographs, with backoff on overload, a failure report and progress."""

from __future__ import annotations

import csv
import io
import json
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from restormer_client.calls import Options
from restormer_client.enhancer import Enhancer
from restormer_client.errors import EnhanceError, ModelNotReady, Overloaded, ServerUnavailable, may_be_processed
from restormer_client.files import Job, write_atomically

#: Seconds without a success after which `enhance_all` gives up on an overloaded or unreachable server.
PATIENCE = 600.0
_MAX_PAUSE = 30.0


@dataclass(frozen=True)
class FailedPhoto:
    """One row of the report: a photograph that failed, or a file that was skipped."""

    photo: str
    error: str
    message: str
    attempts: int


def enhance_all(
    enhancer: Enhancer, todo: Sequence[Job], failures: list[FailedPhoto], *, parallel: int, options: Options
) -> None:
    """Enhance and write each photograph; append failures to ``failures`` as they occur. Progress goes to stderr.

    A photograph that the server rejected, or that did not reach it, is queued again at the end, and nothing is sent for
    as long as the error hints, longer each time, so that a folder does not make an overload worse.
    """
    by_source, waiting, backoff = {job.source: job for job in todo}, deque(todo), Backoff(PATIENCE)

    def sources() -> Iterator[Path]:
        while waiting and not backoff.is_exhausted():
            time.sleep(backoff.remaining())
            yield waiting.popleft().source

    def record_failure(job: Job, error: Exception) -> None:
        attempts = error.attempts if isinstance(error, EnhanceError) else 0
        failures.append(FailedPhoto(str(job.source), type(error).__name__, error_line(error), attempts))
        progress.print_line(f"failed: {job.source}: {failures[-1].message}")

    with Progress(len(todo)) as progress:
        while waiting:
            with closing(enhancer.map(sources(), max_in_flight=parallel, ordered=False, **options)) as results:
                for result in results:
                    job, error = by_source[result.photo], result.error
                    if isinstance(error, EnhanceError) and _is_rejected(error):
                        backoff.record_rejection(error)
                        waiting.append(job)
                        continue
                    backoff.record_success()
                    error = error or _write_result(job, result.unwrap())
                    if error:
                        record_failure(job, error)
                    progress.advance(failed=bool(error))
            while backoff.last_error and backoff.is_exhausted() and waiting:
                record_failure(waiting.popleft(), backoff.last_error)
                progress.advance(failed=True)


class Backoff:
    """Decide when the next photograph may be sent to a server that rejects requests, and when to give up."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self.last_error: EnhanceError | None = None
        self._since = self._until = self._pause = 0.0

    def record_rejection(self, error: EnhanceError) -> None:
        """Start or extend the pause. Rejections of requests that were in flight together count as one."""
        now = time.monotonic()
        if self.last_error is None:
            self._since = now
        if now >= self._until:
            hint = getattr(error, "retry_after", Overloaded.retry_after)
            self._pause = min(max(2 * self._pause, hint), _MAX_PAUSE)
            self._until = now + self._pause
        self.last_error = error

    def record_success(self) -> None:
        """Reset the pause and the patience."""
        self.last_error, self._pause = None, 0.0

    def is_exhausted(self) -> bool:
        """Return whether the server has rejected requests for longer than the patience."""
        return self.last_error is not None and time.monotonic() - self._since > self._patience

    def remaining(self) -> float:
        """Return the seconds left until the next photograph may be sent."""
        return max(self._until - time.monotonic(), 0.0)


def skipped(path: Path) -> FailedPhoto:
    """Return the row of a file that is not sent."""
    return FailedPhoto(str(path), "Skipped", "no photograph extension", 0)


def write_report(path: Path, failures: Sequence[FailedPhoto]) -> None:
    """Write the rows as JSON if the name ends in .json, else as CSV, even if there are none."""
    rows = [asdict(each) for each in failures]
    if path.suffix.lower() == ".json":
        text = json.dumps(rows, indent=2) + "\n"
    else:
        buffer = io.StringIO(newline="")
        table = csv.DictWriter(buffer, list(FailedPhoto.__dataclass_fields__))
        table.writeheader()
        table.writerows(rows)
        text = buffer.getvalue()
    write_atomically(path, text.encode("utf-8", "surrogateescape"))  # file names need not be valid UTF-8


def _is_rejected(error: EnhanceError) -> bool:
    """Return whether the server is overloaded, or unavailable for a reason that is not the photograph."""
    is_unavailable = isinstance(error, ServerUnavailable | ModelNotReady)
    return isinstance(error, Overloaded) or (is_unavailable and not may_be_processed(str(error)))


def _write_result(job: Job, data: bytes) -> OSError | None:
    try:
        job.target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(job.target, data)
    except OSError as error:
        return error
    return None


def error_line(error: Exception) -> str:
    """Return the message of an error as one line, without Python's errno."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split())


class Progress:
    """A progress bar with rate and remaining time on a terminal; elsewhere a line every few seconds."""

    _SECONDS_BETWEEN_LINES = 10.0

    def __init__(self, total: int) -> None:
        self._total, self._done, self._failed = total, 0, 0
        self._started = self._last_shown = time.monotonic()
        self._is_terminal = sys.stderr.isatty()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._show(last=True)

    def advance(self, *, failed: bool) -> None:
        """Count one photograph as done or failed."""
        self._done += 1
        self._failed += failed
        self._show()

    def print_line(self, line: str) -> None:
        """Print a separate line, above the bar on a terminal."""
        encoding = sys.stderr.encoding or "ascii"
        line = line.replace("\n", "\\n").encode(encoding, "backslashreplace").decode(encoding)
        sys.stderr.write(f"\r\033[K{line}\n" if self._is_terminal else f"{line}\n")

    def _show(self, *, last: bool = False) -> None:
        now = time.monotonic()
        if not last and now - self._last_shown < (0.1 if self._is_terminal else self._SECONDS_BETWEEN_LINES):
            return
        self._last_shown = now
        rate = self._done / max(now - self._started, 1e-9)
        left = (self._total - self._done) / rate if rate else 0.0
        line = f"{self._done}/{self._total}, {rate:.1f}/s"
        line += f", {self._failed} failed" if self._failed else ""
        line += "" if last else f", {int(left) // 60}:{int(left) % 60:02} left"
        if self._is_terminal:
            filled = 30 * self._done // max(self._total, 1)
            line = f"\r\033[K[{'#' * filled}{'.' * (30 - filled)}] {line}"
        sys.stderr.write(f"{line}\n" if last or not self._is_terminal else line)
        sys.stderr.flush()
