"""The client of asyncio: `Enhancer` with ``await``."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable, Mapping
from functools import partial, wraps
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

from restormer_client import wire
from restormer_client.calls import Calls, Client, Flow, Options, Priority, Send, Step, Work
from restormer_client.connection import TLS, Connection
from restormer_client.enhancer import OF_ONE_PHOTOGRAPH, checked_for_map, documented, without_frames
from restormer_client.photo import Photo
from restormer_client.result import Result

if TYPE_CHECKING:
    import grpc
    from typing_extensions import Self, Unpack

P = ParamSpec("P")
T = TypeVar("T")
AnyPhoto = TypeVar("AnyPhoto", bound=Photo)


def awaitable(
    flow: Callable[Concatenate[Calls, P], Flow[T]],
) -> Callable[Concatenate[AsyncEnhancer, P], Coroutine[Any, Any, T]]:
    """A method that does what the flow says, to be awaited."""

    @wraps(flow)
    async def method(self: AsyncEnhancer, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._run(flow(self._calls, *args, **kwargs))

    documented(method, flow)
    return method


class AsyncEnhancer(Client):
    """`Enhancer` for asyncio: the same arguments, the same methods with ``await``, ``async with`` and ``async for``.

    A cancelled task cancels its call, and the server hears of it. Connects in each event loop it is used in.
    """

    def __init__(
        self,
        url: str = "127.0.0.1:8001",
        *,
        tls: TLS | None = None,
        token: str | Callable[[], str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._calls = Calls(Connection(url, tls=tls, token=token, headers=dict(headers or {})))
        self._channels: WeakKeyDictionary[asyncio.AbstractEventLoop, grpc.aio.Channel] = WeakKeyDictionary()
        self._closed = False

    enhance = awaitable(Calls.enhance)
    core = awaitable(Calls.core)
    health = awaitable(Calls.health)
    wait_until_ready = awaitable(Calls.wait_until_ready)
    metadata = awaitable(Calls.metadata)

    def map(
        self,
        photos: Iterable[AnyPhoto] | AsyncIterable[AnyPhoto],
        *,
        max_in_flight: int = 16,
        ordered: bool = True,
        priority: Priority = "bulk",
        **options: Unpack[Options],
    ) -> AsyncGenerator[Result[AnyPhoto], None]:
        """`Enhancer.map` for ``async for``; ``photos`` may be asynchronous too.

        To cancel what is under way when the loop is left early, close it: ``async with
        contextlib.aclosing(enhancer.map(...)) as results``.
        """
        flow = checked_for_map(self._calls, max_in_flight, priority=priority, **options)
        return self._mapped(photos, max_in_flight, ordered, flow)

    async def _mapped(
        self,
        photos: Iterable[AnyPhoto] | AsyncIterable[AnyPhoto],
        max_in_flight: int,
        ordered: bool,
        flow: Callable[[AnyPhoto], Flow[bytes]],
    ) -> AsyncGenerator[Result[AnyPhoto], None]:
        places = asyncio.Semaphore(max_in_flight)

        async def enhanced(index: int, photo: AnyPhoto) -> Result[AnyPhoto]:
            async with places:
                started = time.monotonic()
                try:
                    data = await self._run(flow(photo))
                except OF_ONE_PHOTOGRAPH as error:
                    return Result(index, photo, error=without_frames(error), seconds=time.monotonic() - started)
                return Result(index, photo, data, seconds=time.monotonic() - started)

        # As many again may wait, so that a slow photograph at the head leaves no place idle.
        window = 2 * max_in_flight if ordered else max_in_flight
        tasks: set[asyncio.Task[Result[AnyPhoto]]] = set()
        waiting: deque[asyncio.Task[Result[AnyPhoto]]] = deque()
        done: asyncio.Queue[asyncio.Task[Result[AnyPhoto]]] = asyncio.Queue()

        async def taken() -> Result[AnyPhoto]:
            task = waiting.popleft() if ordered else await done.get()
            result = await task
            tasks.discard(task)
            return result

        try:
            index = 0
            async for photo in _each(photos):
                task = asyncio.create_task(enhanced(index, photo))
                index += 1
                tasks.add(task)
                if ordered:
                    waiting.append(task)
                else:
                    task.add_done_callback(done.put_nowait)
                if len(tasks) == window:
                    yield await taken()
            while tasks:
                yield await taken()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        """Closes the connection of this loop; those of loops that have ended went with them."""
        self._closed = True
        channel = self._channels.pop(asyncio.get_running_loop(), None)
        if channel is not None:
            await channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _connected(self) -> grpc.aio.Channel:
        """gRPC's channel of the running loop."""
        if self._closed:
            raise RuntimeError("this AsyncEnhancer was closed")
        loop = asyncio.get_running_loop()
        if loop not in self._channels:
            import grpc.aio

            connection = self._calls.connection
            options = connection.options()
            # Files are read, which would hold up the loop.
            credentials = await asyncio.to_thread(connection.credentials) if connection.tls else None
            if self._closed:
                raise RuntimeError("this AsyncEnhancer was closed")
            if loop not in self._channels:  # unless another task was first
                self._channels[loop] = (
                    grpc.aio.secure_channel(connection.url, credentials, options)
                    if credentials
                    else grpc.aio.insecure_channel(connection.url, options)
                )
        return self._channels[loop]

    async def _run(self, flow: Flow[T]) -> T:
        """Drives a flow to its end, in this task."""
        if "tritonclient.grpc" not in sys.modules:
            await asyncio.to_thread(wire.messages)  # the import would hold up the loop
        import grpc

        resume: Callable[[], Step] = partial(next, flow)
        try:
            while True:
                try:
                    step = resume()
                except StopIteration as end:
                    result: T = end.value
                    return result
                try:
                    resume = partial(flow.send, await self._do(step))
                except grpc.RpcError as error:
                    resume = partial(flow.throw, error)
        finally:
            flow.close()

    async def _do(self, step: Step) -> Any:
        if isinstance(step, Send):
            method = (await self._connected()).unary_unary(wire.path(step.rpc))
            try:
                return await method(step.request, timeout=step.timeout, metadata=step.metadata)
            except asyncio.CancelledError:
                if self._closed:  # that is how gRPC tells it
                    raise RuntimeError("this AsyncEnhancer was closed") from None
                raise
        if isinstance(step, Work):
            return await asyncio.to_thread(step.function)
        return await asyncio.sleep(step.seconds)


async def _each(photos: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    if isinstance(photos, AsyncIterable):
        async for photo in photos:
            yield photo
    else:
        for photo in photos:
            yield photo
