"""One actor: photographs of a block read, sent, and written, so many at a time, whatever block they are of.

Ray calls it for two blocks at once, so that the end of one leaves no place idle. What it does may be done again at any
time, by itself or by another: an output that is there is not made again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa
from restormer_client import (
    AccessDenied,
    AsyncEnhancer,
    DeadlineExceeded,
    EnhanceError,
    InvalidOption,
    InvalidRequest,
    ModelNotReady,
    Overloaded,
    ServerError,
    ServerUnavailable,
)
from restormer_client.calls import CORE_MODEL
from restormer_client.errors import UNTOUCHED
from restormer_client.folder import Pace, said

from bulk import manifest, storage
from bulk.errors import BulkError
from bulk.manifest import Row
from bulk.storage import Place

T = TypeVar("T")
#: Photographs an actor holds for each that is at the server: the next is read and the last is written meanwhile.
HELD = 2
#: How often a photograph may break the connection, find no answer in time or make the server fail; it may be what
#: breaks them.
TRIES = 3
ENGINE_AGE = 10.0  #: seconds for which what the server said of its engine is believed


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What an actor is told; it travels to other machines. ``in_flight``: photographs of this actor at the server.
    ``patience``: seconds without a success, on a server that is overloaded or away, after which the job is stopped."""

    enhancer: AsyncEnhancer
    output: Place
    in_flight: int
    patience: float
    timeout: float
    wishes: dict[str, Any] = field(default_factory=dict)


class Worker:
    """Called by Ray with blocks of photographs (`plan.SCHEMA`); gives the rows of the manifest (`manifest.SCHEMA`)."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._pace = Pace(settings.patience)
        self._answered: set[asyncio.Task[Any] | None] = set()
        self._engine_lock = asyncio.Lock()
        self._said: str | None = None
        self._asked = -ENGINE_AGE
        self._held = asyncio.Semaphore(HELD * settings.in_flight)
        self._at_the_server = asyncio.Semaphore(settings.in_flight)
        # Files are read and written by threads: file systems of fsspec are called without `await`.
        self._threads = ThreadPoolExecutor(HELD * settings.in_flight, thread_name_prefix="bulk")

    async def __call__(self, block: pa.Table) -> AsyncIterator[pa.Table]:
        """The rows of a block, when all its photographs are done. Raises `BulkError` where the job cannot go on; what
        was done until then is in the manifest."""
        photographs = zip(block.column("key").to_pylist(), block.column("source").to_pylist(), strict=True)
        tasks = [asyncio.create_task(self._row(key, source)) for key, source in photographs]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                if task not in self._answered:  # what the server did is written, whatever happened to the others
                    task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            self._answered.difference_update(tasks)
            rows = [row for row in ended if isinstance(row, Row)]
            if rows:
                await self._done(partial(manifest.write_part, self._settings.output, rows), "the manifest")
        yield manifest.table(rows)

    async def _row(self, key: str, source: str) -> Row:
        async with self._held:
            if await self._done(partial(self._settings.output.exists, key), key):
                data = await self._done(partial(self._settings.output.read, key), key)
                return _row(key, source, status=manifest.ENHANCED, **_of(data))
            try:
                photograph = await self._in_thread(partial(storage.read, source))
            except Exception as error:  # noqa: BLE001 - file systems raise what the libraries below them do
                return _row(key, source, status=manifest.FAILED, error=_line(error))
            return await self._enhanced(key, source, photograph)

    async def _enhanced(self, key: str, source: str, photograph: bytes) -> Row:
        tries = turned_away = 0
        async with self._at_the_server:
            while True:
                await self._turn()
                started = time.monotonic()
                try:
                    data = await self._settings.enhancer.enhance(
                        photograph, priority="bulk", timeout=self._settings.timeout, **self._settings.wishes
                    )
                    break
                except (InvalidOption, AccessDenied) as error:  # would be said of every photograph
                    raise BulkError(said(error)) from None
                except InvalidRequest as error:
                    return _row(key, source, status=manifest.FAILED, error=_line(error), turned_away=turned_away)
                except (Overloaded, ModelNotReady) as error:
                    turned_away += isinstance(error, Overloaded)
                    self._pace.rejected(error)
                except (ServerUnavailable, DeadlineExceeded, ServerError) as error:
                    tries += not any(words in str(error) for words in UNTOUCHED)
                    self._pace.rejected(error)
                    if tries == TRIES:
                        return _row(key, source, status=manifest.FAILED, error=_line(error), turned_away=turned_away)
            seconds = time.monotonic() - started
        self._pace.taken()
        self._answered.add(asyncio.current_task())
        await self._done(partial(self._settings.output.write, key, data), key)
        return _row(
            key, source, status=manifest.ENHANCED, seconds=seconds, engine=await self._engine(),
            turned_away=turned_away, **_of(data),
        )  # fmt: skip

    async def _turn(self) -> None:
        """Waits while nothing is to be sent."""
        while left := self._pace.left():
            await asyncio.sleep(left)
        if self._pace.last and self._pace.is_exhausted():
            raise BulkError(f"nothing was enhanced for {self._settings.patience:g} s: {said(self._pace.last)}")

    async def _engine(self) -> str | None:
        """What the server says it runs. Asked now and then, since it may be replaced meanwhile."""
        async with self._engine_lock:
            if time.monotonic() - self._asked > ENGINE_AGE:
                with contextlib.suppress(EnhanceError):  # it enhanced a photograph just now: what it said last holds
                    found = await self._settings.enhancer.metadata()
                    self._said = f"restormer {'+'.join(found.versions[CORE_MODEL])}, Triton {found.version}"
                self._asked = time.monotonic()
            return self._said

    async def _done(self, function: Callable[[], T], what: str) -> T:
        """Something with the output, without which the job cannot go on."""
        try:
            return await self._in_thread(function)
        except Exception as error:
            raise BulkError(f"{self._settings.output.url}, {what}: {_line(error)}") from error

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)


def _row(key: str, source: str, **said_of_it: Any) -> Row:
    return Row(key=key, source=source, finished=datetime.now(timezone.utc), **said_of_it)


def _of(data: bytes) -> dict[str, Any]:
    return {"checksum": manifest.checksum(data), "bytes": len(data)}


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {said(error)}"
