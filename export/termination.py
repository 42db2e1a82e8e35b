"""End on SIGTERM as on Ctrl-C, so that private servers are stopped and temporary folders are removed."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

TERMINATED = 128 + signal.SIGTERM  #: exit code after SIGTERM


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Make SIGTERM raise `SystemExit` in this block. Python handles signals only in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is _exit:
            signal.signal(signal.SIGTERM, previous)


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    # make and timeout send it twice; the second must stop neither the cleanup nor the commands that it runs.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(TERMINATED)
