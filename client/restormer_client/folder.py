"""A folder of photographs, enhanced: what is done already is skipped, what fails is told and the rest goes on."""

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
from restormer_client.errors import EnhanceError, Overloaded
from restormer_client.files import Job, write

#: Seconds without one success after which a server that stays overloaded is given up.
PATIENCE = 600.0
_LONGEST_PAUSE = 30.0


@dataclass(frozen=True)
class Failed:
    """One line of the report."""

    photo: str
    error: str
    message: str
    attempts: int


def enhance_all(
    enhancer: Enhancer, todo: Sequence[Job], failures: list[Failed], *, parallel: int, options: Options
) -> None:
    """Enhances and writes each; adds what failed to ``failures`` as it happens. Progress goes to standard error.

    A photograph that finds the queue full comes back at the end, and nothing is sent for as long as the server hints,
    longer each time: a folder must not make an overload worse.
    """
    by_source, waiting, pace = {job.source: job for job in todo}, deque(todo), Pace(PATIENCE)

    def sources() -> Iterator[Path]:
        while waiting and not pace.is_exhausted():
            time.sleep(pace.left())
            yield waiting.popleft().source

    def failed(job: Job, error: Exception) -> None:
        failures.append(_failed(job, error))
        progress.say(f"failed: {job.source}: {failures[-1].message}")

    with Progress(len(todo)) as progress:
        while waiting:
            with closing(enhancer.map(sources(), max_in_flight=parallel, ordered=False, **options)) as results:
                for result in results:
                    job, error = by_source[result.photo], result.error
                    if isinstance(error, Overloaded):
                        pace.rejected(error)
                        waiting.append(job)
                        continue
                    pace.taken()
                    error = error or _written(job, result.unwrap())
                    if error:
                        failed(job, error)
                    progress.count(failed=bool(error))
            while pace.last and pace.is_exhausted() and waiting:
                failed(waiting.popleft(), pace.last)
                progress.count(failed=True)


class Pace:
    """When the next photograph may be sent to a server whose queue was full."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self.last: EnhanceError | None = None
        self._since = self._until = self._pause = 0.0

    def rejected(self, error: EnhanceError) -> None:
        """One was turned away: all wait. Those that were on their way with it do not make the wait longer."""
        now = time.monotonic()
        if self.last is None:
            self._since = now
        if now >= self._until:
            hint = getattr(error, "retry_after", Overloaded.retry_after)
            self._pause = min(max(2 * self._pause, hint), _LONGEST_PAUSE)
            self._until = now + self._pause
        self.last = error

    def taken(self) -> None:
        """One found its place."""
        self.last, self._pause = None, 0.0

    def is_exhausted(self) -> bool:
        """Whether the server was overloaded for too long."""
        return self.last is not None and time.monotonic() - self._since > self._patience

    def left(self) -> float:
        """Seconds until then."""
        return max(self._until - time.monotonic(), 0.0)


def report(path: Path, failures: Sequence[Failed]) -> None:
    """The failures as CSV, or as JSON if the name ends so; written also when there are none."""
    rows = [asdict(each) for each in failures]
    if path.suffix.lower() == ".json":
        text = json.dumps(rows, indent=2) + "\n"
    else:
        buffer = io.StringIO(newline="")
        table = csv.DictWriter(buffer, list(Failed.__dataclass_fields__))
        table.writeheader()
        table.writerows(rows)
        text = buffer.getvalue()
    write(path, text.encode("utf-8", "surrogateescape"))  # names of files need not be text


def _written(job: Job, data: bytes) -> OSError | None:
    try:
        job.target.parent.mkdir(parents=True, exist_ok=True)
        write(job.target, data)
    except OSError as error:
        return error
    return None


def _failed(job: Job, error: Exception) -> Failed:
    attempts = error.attempts if isinstance(error, EnhanceError) else 0
    return Failed(str(job.source), type(error).__name__, said(error), attempts)


def said(error: Exception) -> str:
    """An error in one line, without Python's errno."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split())


class Progress:
    """A bar with rate and time left on a terminal; elsewhere a line now and then."""

    _SECONDS_BETWEEN_LINES = 10.0

    def __init__(self, total: int) -> None:
        self._total, self._done, self._failed = total, 0, 0
        self._started = self._last = time.monotonic()
        self._is_terminal = sys.stderr.isatty()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._show(last=True)

    def count(self, *, failed: bool) -> None:
        """One more is done."""
        self._done += 1
        self._failed += failed
        self._show()

    def say(self, line: str) -> None:
        """A line of its own, above the bar."""
        line = line.encode("ascii" if sys.stderr.encoding is None else sys.stderr.encoding, "backslashreplace").decode(
            sys.stderr.encoding or "ascii"
        )
        line = line.replace("\n", "\\n")
        sys.stderr.write(f"\r\033[K{line}\n" if self._is_terminal else f"{line}\n")

    def _show(self, *, last: bool = False) -> None:
        now = time.monotonic()
        if not last and now - self._last < (0.1 if self._is_terminal else self._SECONDS_BETWEEN_LINES):
            return
        self._last = now
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
