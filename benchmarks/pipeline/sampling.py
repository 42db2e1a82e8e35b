"""Sample a running server or machine from a thread while something else runs."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")
PATIENCE = 5.0  #: seconds after the end of the block until the last sample has to be complete


class Sampler(Generic[T]):
    """Samples from the start of a block to its end, and on until one is complete: Triton counts a request after it has
    answered. ``cpu`` is the CPU time of the sampling thread in seconds."""

    def __init__(
        self, read: Callable[[], T], every: float, is_complete: Callable[[T], bool] = lambda sample: True
    ) -> None:
        self.samples: list[T] = []
        self.cpu = 0.0
        self._read, self._every, self._is_complete = read, every, is_complete
        self._over, self._thread = threading.Event(), threading.Thread(target=self._sample)

    def __enter__(self) -> Sampler[T]:
        self.samples.append(self._read())
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def _sample(self) -> None:
        end = math.inf
        while True:
            self._over.wait(self._every)
            is_over = self._over.is_set()  # before the sample, so that the last one is of after the block
            self.samples.append(self._read())
            if is_over:
                end = min(end, time.perf_counter() + PATIENCE)
                if self._is_complete(self.samples[-1]) or time.perf_counter() > end:
                    break
                time.sleep(self._every)
        self.cpu = time.thread_time()
