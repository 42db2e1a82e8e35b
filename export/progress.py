"""Report the progress of a long build, on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def say(line: str) -> None:
    """Print one line for the user."""
    print(line, file=sys.stderr)


@contextmanager
def step(title: str) -> Iterator[None]:
    """Announce a long step before it runs, then print how long it took."""
    print(f"  {title} ...", end="", file=sys.stderr, flush=True)
    started = time.monotonic()
    try:
        yield
    except BaseException:
        print(file=sys.stderr)
        raise
    print(f" {time.monotonic() - started:.1f} s", file=sys.stderr)


@contextmanager
def count_steps(title: str, total: int) -> Iterator[Callable[[], None]]:
    """Do what `step` does and, on a terminal, show a count and the time left; yield the function that counts one."""
    started, done = time.monotonic(), 0

    def tick() -> None:
        nonlocal done
        done += 1
        if not sys.stderr.isatty():
            return
        left = (time.monotonic() - started) / done * (total - done)
        print(f"\r  {title} ... {done}/{total}, {left:.0f} s left   ", end="", file=sys.stderr, flush=True)

    with step(title):
        yield tick
