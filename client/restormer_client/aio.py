"""The asyncio client: `Enhancer` with ``await``."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

from restormer_client import wire
from restormer_client.calls import Calls, Client, Flow, Options, Priority, Send, Step, Work
from restormer_client.enhancer import copy_signature, map_flow
from restormer_client.photo import Photo
from restormer_client.result import Result

if TYPE_CHECKING:
    import grpc
    from typing_extensions import Self, Unpack

P = ParamSpec("P")
T = TypeVar("T")
AnyPhoto = TypeVar("AnyPhoto", bound=Photo)


def make_awaitable(
    flow: Callable[Concatenate[Calls, P], Flow[T]],
) -> Callable[Concatenate[AsyncEnhancer, P], Coroutine[Any, Any, T]]:
    """Turn a flow into a coroutine method."""

    @wraps(flow)
    async def method(self: AsyncEnhancer, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._run(flow(self._calls, *args, **kwargs))

    copy_signature(method, flow)
    return method


class AsyncEnhancer(Client):
    """`Enhancer` for asyncio: the same arguments, the same methods with ``await``, ``async with`` and ``async for``.

    Cancelling a task cancels its call, on the server too. It uses one connection per event loop.
    """

    _channels: WeakKeyDictionary[asyncio.AbstractEventLoop, grpc.aio.Channel]
    _new_channels = WeakKeyDictionary

    enhance = make_awaitable(Calls.enhance)
    core = make_awaitable(Calls.core)
    health = make_awaitable(Calls.health)
    wait_until_ready = make_awaitable(Calls.wait_until_ready)
    metadata = make_awaitable(Calls.metadata)

    def map(
        self,
        photos: Iterable[AnyPhoto] | AsyncIterable[AnyPhoto],
        *,
        max_in_flight: int = 16,
        ordered: bool = True,
        priority: Priority = "bulk",
        **options: Unpack[Options],
    ) -> AsyncGenerator[Result[AnyPhoto], None]:
        """Enhance many photographs as `Enhancer.map` does, for ``async for``; ``photos`` may be asynchronous too.

        To cancel the requests in flight when the loop is left early, close the generator: ``async with
        contextlib.aclosing(enhancer.map(...)) as results``.
        """
        flow = map_flow(self._calls, max_in_flight, priority=priority, **options)
        return self._iterate_results(photos, max_in_flight, ordered, flow)

    async def _iterate_results(
        self,
        photos: Iterable[AnyPhoto] | AsyncIterable[AnyPhoto],
        max_in_flight: int,
        ordered: bool,
        flow: Callable[[int, AnyPhoto], Flow[Result[AnyPhoto]]],
    ) -> AsyncGenerator[Result[AnyPhoto], None]:
        slots = asyncio.Semaphore(max_in_flight)

        async def enhance_one(index: int, photo: AnyPhoto) -> Result[AnyPhoto]:
            async with slots:
                return await self._run(flow(index, photo))

        # Twice as many results may be pending, so that a slow photograph at the head leaves no slot idle.
        window = 2 * max_in_flight if ordered else max_in_flight
        tasks: set[asyncio.Task[Result[AnyPhoto]]] = set()
        results: asyncio.Queue[asyncio.Task[Result[AnyPhoto]]] = asyncio.Queue()

        async def next_result() -> Result[AnyPhoto]:
            task = await results.get()
            result = await task
            tasks.discard(task)
            return result

        try:
            index = 0
            async for photo in _iterate(photos):
                task = asyncio.create_task(enhance_one(index, photo))
                index += 1
                tasks.add(task)
                if ordered:
                    results.put_nowait(task)
                else:
                    task.add_done_callback(results.put_nowait)
                if len(tasks) == window:
                    yield await next_result()
            while tasks:
                yield await next_result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        """Close the connection of this event loop; a loop that has ended has already closed its own."""
        self._closed = True
        channel = self._channels.pop(asyncio.get_running_loop(), None)
        if channel is not None:
            await channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _get_channel(self) -> grpc.aio.Channel:
        """Return the gRPC channel of the running event loop."""
        if self._closed:
            raise RuntimeError("this AsyncEnhancer was closed")
        loop = asyncio.get_running_loop()
        if loop not in self._channels:
            import grpc.aio

            connection = self._calls.connection
            # In a thread, because reading the certificate files would block the loop.
            credentials = await asyncio.to_thread(connection.credentials) if connection.tls else None
            if self._closed:
                raise RuntimeError("this AsyncEnhancer was closed")
            if loop not in self._channels:  # another task may have been first
                self._channels[loop] = connection.open_channel(grpc.aio, credentials)
        return self._channels[loop]

    async def _run(self, flow: Flow[T]) -> T:
        """Drive a flow to its end in this task."""
        if "tritonclient.grpc" not in sys.modules:
            await asyncio.to_thread(wire.messages)  # the import would block the loop
        try:
            step = next(flow)
            while True:
                try:
                    outcome = await self._perform(step)
                except Exception as error:  # noqa: BLE001 - the flow handles it or raises it again
                    step = flow.throw(error)
                else:
                    step = flow.send(outcome)
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            flow.close()

    async def _perform(self, step: Step) -> Any:
        if isinstance(step, Send):
            method = (await self._get_channel()).unary_unary(wire.method_path(step.rpc))
            try:
                return await method(step.request, timeout=step.timeout, metadata=step.metadata)
            except asyncio.CancelledError:
                if self._closed:  # gRPC cancels the calls of a closed channel
                    raise RuntimeError("this AsyncEnhancer was closed") from None
                raise
        if isinstance(step, Work):
            return await asyncio.to_thread(step.function)
        return await asyncio.sleep(step.seconds)


async def _iterate(photos: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    if isinstance(photos, AsyncIterable):
        async for photo in photos:
            yield photo
    else:
        for photo in photos:
            yield photo
