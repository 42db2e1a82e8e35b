"""Keeps the preparing of photographs in step with a network that is slower, across the processes of one server.

Whoever is too many should be turned away by a queue that holds files, before any work. But preparing is quick and its
queue always empty: it is the network's queue that fills, behind work that is then done in vain, on the processor that
the network needs. So whoever prepares waits while the network works and enough are ready for it, and goes on when it
has *ended* one.

He waits in two places, because of Triton's batcher: with a queue policy, that of 2.51 notices that a model has become
free only when a request is taken into its queue, or at the next half second after it began to wait; and a full queue
takes none (docs/production.md). So he *rests* with nobody in his hands while the end is far, and the queue before him
still lets the more urgent go first. Some tenths of a second before the end he is free, is given the next, and *pauses*
with that one's file until the end. How far the end is tells the network's last run.

Two small files have the state: the count, and when the network began and how long its last run took. Locks keep them;
the kernel lets go of the locks of a process that dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

POLL = 0.01  #: seconds between two looks at the network
#: Seconds without work after which nobody is waited for: handing over takes a few ms.
IDLE = 0.03
#: Seconds before the network's end at which whoever prepares is free for the next. Triton 2.51 looks every half second,
#: so that with a little less the network waits a moment now and then; with more, bulk is taken before somebody who has
#: just had an answer can ask again, and he waits for one batch more.
NOTICE = 0.4
#: Seconds without work after which nobody is on his way to the network: Triton 2.51 may leave somebody waiting for half
#: a second, and whoever is counted beyond that has gone another way (his sender gone, his time up).
EMPTY = 1.0


class Pace:
    """How many are prepared whom the network has not ended, as both sides know it who were given one ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._count, self._work = (
            os.open(folder / f"pace.{name}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600) for name in ("count", "work")
        )
        self._handed = 0.0  # when this process handed over its last

    @classmethod
    def beside(cls, model: str) -> Pace:
        """That of all models that lie beside this one (``args["model_repository"]``), as `server` assembles them.

        Where nothing may be written, as in a repository that a bare Triton serves read-only, no pace is kept.
        """
        folder = Path(model).parent
        if os.access(folder, os.W_OK):
            return cls(folder)
        with tempfile.TemporaryDirectory() as own:  # the files stay open; nobody else has them
            return cls(Path(own))

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """The network's side: it works on one, and then has ended it."""
        with _locked(self._work, fcntl.LOCK_SH):
            began = time.time()
            self._note(began, self._run()[1])
            try:
                yield
            finally:
                self._note(began, time.time() - began)
                self._change(lambda count: max(0, count - 1))

    def prepared(self) -> None:
        """The other side: one more is on its way to the network, or the only one if it has nothing to do."""
        self._change(lambda count: 1 if self._idle(EMPTY) else count + 1)
        self._handed = time.time()

    def pause(self, most: int) -> None:
        """Returns when fewer than ``most`` are prepared and not ended, or when the network has nothing to do."""
        while self._read() >= most and not self._idle(IDLE):
            time.sleep(POLL)

    def rest(self, most: int) -> None:
        """Returns ``NOTICE`` before `pause` would, as far as the network's last run tells."""
        while self._read() >= most and not self._idle(IDLE):
            began, took = self._run()
            if self._works() and time.time() > began + took - NOTICE:  # else it is about to begin
                return
            time.sleep(POLL)

    def _idle(self, seconds: float) -> bool:
        # In this order: what ended in between has just been noted.
        return not self._works() and time.time() - max(self._handed, os.fstat(self._work).st_mtime) > seconds

    def _works(self) -> bool:
        try:
            with _locked(self._work, fcntl.LOCK_EX | fcntl.LOCK_NB):
                return False
        except BlockingIOError:
            return True

    def _run(self) -> tuple[float, float]:
        """When the network began last, and how many seconds the run before that took."""
        began, took = (os.pread(self._work, 40, 0) or b"0 0").split()
        return float(began), float(took)

    def _note(self, began: float, took: float) -> None:
        os.pwrite(self._work, b"%20.6f%20.6f" % (began, took), 0)

    def _change(self, change: Callable[[int], int]) -> None:
        with _locked(self._count, fcntl.LOCK_EX):
            os.pwrite(self._count, b"%20d" % change(self._read()), 0)

    def _read(self) -> int:
        return int(os.pread(self._count, 20, 0) or 0)


@contextlib.contextmanager
def _locked(file: int, how: int) -> Iterator[None]:
    fcntl.flock(file, how)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)
