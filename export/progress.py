"""Report the progress of a long build, on standard error."""

import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
INTERVAL = 60.0  #: seconds between two counts where standard error is not a terminal
_titles: list[str] = []  #: of the steps that run, the innermost last


def say(line: str) -> None:
    """Print one line for the user."""
    print(line, file=sys.stderr)


@contextmanager
def step(title: str) -> Iterator[None]:
    """Announce a long step before it runs, then print how long it took."""
    print(f"  {title} ...", end="", file=sys.stderr, flush=True)
    started = time.monotonic()
    _titles.append(title)
    try:
        yield
    except BaseException:
        print(file=sys.stderr)
        raise
    finally:
        _titles.pop()
    print(f" {time.monotonic() - started:.1f} s", file=sys.stderr)


def track(items: Collection[Item]) -> Iterator[Item]:
    """Yield the items; in a step, show the count and the time left: in place on a terminal, each minute in a log."""
    started = shown = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now, is_terminal = time.monotonic(), sys.stderr.isatty()
        if _titles and (is_terminal or now - shown >= INTERVAL):
            shown, left = now, (now - started) / done * (len(items) - done)
            start = f"\r  {_titles[-1]} ..." if is_terminal else "\n   "
            print(f"{start} {done}/{len(items)}, {left:.0f} s left   ", end="", file=sys.stderr, flush=True)
