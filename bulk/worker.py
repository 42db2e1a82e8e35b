"""A Ray actor that reads, sends and writes the photographs of its blocks, with bounded concurrency over all blocks.

Ray calls it for two blocks at once, so that no slot is idle while one block ends. Its work is idempotent: any actor may
repeat a block, and outputs that exist are not made again.
"""

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
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
from restormer_client.errors import may_be_processed
from restormer_client.folder import Backoff, error_line

from bulk import manifest, storage
from bulk.errors import BulkError
from bulk.manifest import Row
from bulk.plan import Job
from bulk.storage import Folder

T = TypeVar("T")
#: Photographs in memory per request in flight, so that files are read and written while the server works.
LOADED_PER_SLOT = 2
#: Broken connections, timeouts and server errors allowed for one photograph, because it may be their cause.
MAX_TRIES = 3
ENGINE_MAX_AGE = 10.0  #: seconds for which the engine's version is cached


class Worker:
    """A callable that turns a block of photographs (`plan.SCHEMA`) into rows of the manifest (`manifest.SCHEMA`)."""

    def __init__(self, job: Job, output: Folder) -> None:
        self._job, self._output = job, output
        self._enhancer = AsyncEnhancer(**job.server)
        self._backoff = Backoff(job.patience)
        self._writing: set[asyncio.Task[Any] | None] = set()
        self._engine_lock = asyncio.Lock()
        self._engine: str | None = None
        self._engine_queried = -ENGINE_MAX_AGE
        self._loaded = asyncio.Semaphore(LOADED_PER_SLOT * job.in_flight_per_actor)
        self._in_flight = asyncio.Semaphore(job.in_flight_per_actor)
        # fsspec's file systems block, so files are read and written in threads.
        self._threads = ThreadPoolExecutor(LOADED_PER_SLOT * job.in_flight_per_actor, thread_name_prefix="bulk")

    async def __call__(self, block: pa.Table) -> AsyncIterator[pa.Table]:
        """Process a block and yield its rows. Raise `BulkError` if the job cannot continue; rows of completed
        photographs are in the manifest by then."""
        photographs = zip(block.column("key").to_pylist(), block.column("source").to_pylist(), strict=True)
        tasks = [asyncio.create_task(self._process(key, source)) for key, source in photographs]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                if task not in self._writing:  # a photograph that the server has enhanced is written in any case
                    task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            self._writing.difference_update(tasks)
            rows = [row for row in results if isinstance(row, dict)]
            if rows:
                await self._access_output(partial(manifest.write_part, self._output, rows), "the manifest")
        yield manifest.rows_to_table(rows)

    async def _process(self, key: str, source: str) -> Row:
        async with self._loaded:
            if await self._access_output(partial(self._output.exists, key), key):
                data = await self._access_output(partial(self._output.read, key), key)
                return _make_row(key, source, status=manifest.ENHANCED, **_file_fields(data))
            try:
                photograph = await self._in_thread(partial(storage.read_file, source))
            except Exception as error:  # noqa: BLE001 - file systems raise the exceptions of the libraries they use
                return _failed_row(key, source, error)
            return await self._enhance(key, source, photograph)

    async def _enhance(self, key: str, source: str, photograph: bytes) -> Row:
        tries = rejections = 0
        async with self._in_flight:
            while True:
                await self._wait_for_turn()
                started = time.monotonic()
                try:
                    data = await self._enhancer.enhance(
                        photograph, priority="bulk", timeout=self._job.timeout, **self._job.options
                    )
                    break
                except (InvalidOption, AccessDenied) as error:  # every photograph would fail
                    raise BulkError(error_line(error)) from None
                except InvalidRequest as error:
                    return _failed_row(key, source, error, rejections)
                except (Overloaded, ModelNotReady) as error:
                    rejections += isinstance(error, Overloaded)
                    self._backoff.record_rejection(error)
                except (ServerUnavailable, DeadlineExceeded, ServerError) as error:
                    tries += may_be_processed(str(error))
                    self._backoff.record_rejection(error)
                    if tries == MAX_TRIES:
                        return _failed_row(key, source, error, rejections)
            seconds = time.monotonic() - started
        self._backoff.record_success()
        self._writing.add(asyncio.current_task())
        await self._access_output(partial(self._output.write, key, data), key)
        return _make_row(
            key, source, status=manifest.ENHANCED, seconds=seconds, engine=await self._describe_engine(),
            rejections=rejections, **_file_fields(data),
        )  # fmt: skip

    async def _wait_for_turn(self) -> None:
        """Wait until the backoff allows the next request. Raise `BulkError` if patience runs out."""
        while seconds := self._backoff.remaining():
            await asyncio.sleep(seconds)
        error = self._backoff.last_error
        if error and self._backoff.is_exhausted():
            raise BulkError(f"no photograph was enhanced for {self._job.patience:g} s: {error_line(error)}")

    async def _describe_engine(self) -> str | None:
        """Return the versions of the engine and of Triton. Cached briefly, because either may be replaced."""
        async with self._engine_lock:
            if time.monotonic() - self._engine_queried > ENGINE_MAX_AGE:
                with contextlib.suppress(EnhanceError):  # keep the last known versions
                    metadata = await self._enhancer.metadata()
                    self._engine = f"restormer {'+'.join(metadata.versions[CORE_MODEL])}, Triton {metadata.version}"
                self._engine_queried = time.monotonic()
            return self._engine

    async def _access_output(self, function: Callable[[], T], what: str) -> T:
        """Run a file operation on the output. Raise `BulkError` if it fails, because the job cannot continue."""
        try:
            return await self._in_thread(function)
        except Exception as error:
            raise BulkError(f"{self._output.url}, {what}: {_describe_error(error)}") from error

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)


def _make_row(key: str, source: str, **fields: Any) -> Row:
    return {"key": key, "source": source, "rejections": 0, "finished": datetime.now(timezone.utc), **fields}


def _failed_row(key: str, source: str, error: Exception, rejections: int = 0) -> Row:
    return _make_row(key, source, status=manifest.FAILED, error=_describe_error(error), rejections=rejections)


def _file_fields(data: bytes) -> dict[str, Any]:
    return {"checksum": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def _describe_error(error: Exception) -> str:
    return f"{type(error).__name__}: {error_line(error)}"
