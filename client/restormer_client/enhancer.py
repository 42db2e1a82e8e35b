"""The blocking client; `restormer_client.aio` has its asyncio counterpart."""

from __future__ import annotations

import contextvars
import inspect
import os
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from restormer_client import wire
from restormer_client.calls import Calls, Client, Flow, Options, Priority, Send, Step, Work
from restormer_client.errors import EnhanceError
from restormer_client.photo import Photo
from restormer_client.result import Result

if TYPE_CHECKING:
    import grpc
    from typing_extensions import Self, Unpack

P = ParamSpec("P")
T = TypeVar("T")
AnyPhoto = TypeVar("AnyPhoto", bound=Photo)
#: Exceptions that concern one photograph of a `map` and do not stop the others.
PHOTO_ERRORS = (EnhanceError, OSError, TypeError, ValueError)


def copy_signature(method: Callable[..., Any], flow: Callable[..., Any]) -> None:
    """Give the method the signature of the flow, returning the flow's result type."""
    signature = inspect.signature(flow)
    result = str(signature.return_annotation).removeprefix("Flow[").removesuffix("]")
    method.__signature__ = signature.replace(return_annotation=result)  # type: ignore[attr-defined]


def make_blocking(flow: Callable[Concatenate[Calls, P], Flow[T]]) -> Callable[Concatenate[Enhancer, P], T]:
    """Turn a flow into a method that runs it in the calling thread."""

    @wraps(flow)
    def method(self: Enhancer, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._run(flow(self._calls, *args, **kwargs))

    copy_signature(method, flow)
    return method


def map_flow(
    calls: Calls, max_in_flight: int, *, priority: Priority, **options: Unpack[Options]
) -> Callable[[int, AnyPhoto], Flow[Result[AnyPhoto]]]:
    """Return the function that makes the flow of one photograph. Validate the options now, not once per photograph."""
    if max_in_flight < 1:
        raise ValueError(f"max_in_flight is {max_in_flight}: it must be 1 or more")
    enhance = partial(calls.enhance, priority=priority, **options)
    enhance(b"").close()

    def flow(index: int, photo: AnyPhoto) -> Flow[Result[AnyPhoto]]:
        started = time.monotonic()
        try:
            data = yield from enhance(photo)
        except PHOTO_ERRORS as error:
            return Result(index, photo, error=strip_traceback(error), seconds=time.monotonic() - started)
        return Result(index, photo, data, seconds=time.monotonic() - started)

    return flow


def strip_traceback(error: Exception) -> Exception:
    """Remove the tracebacks from an error: their frames hold the photograph, and callers may keep results."""
    for each in (error, error.__cause__, error.__context__):
        if each is not None:
            each.__traceback__ = None
    return error


class Enhancer(Client):
    """Client of one server; a context manager that may be shared between threads.

    ``url``: ``host:port`` of the gRPC endpoint, or ``dns:///host:port`` for round robin over all addresses of a name.
    ``tls``: paths of certificates; without it the connection is plaintext. ``token``: a string, or a function that
    returns one, sent as ``authorization: Bearer``. ``headers``: sent with every call, for example the key of a
    restricted Triton protocol.

    It connects on first use, can be pickled, and works after a fork and in a spawned process.
    """

    # By process ID, because a channel does not survive a fork; neither would a lock, so there is none.
    _channels: dict[int, grpc.Channel]

    enhance = make_blocking(Calls.enhance)
    core = make_blocking(Calls.core)
    health = make_blocking(Calls.health)
    wait_until_ready = make_blocking(Calls.wait_until_ready)
    metadata = make_blocking(Calls.metadata)

    def map(
        self,
        photos: Iterable[AnyPhoto],
        *,
        max_in_flight: int = 16,
        ordered: bool = True,
        priority: Priority = "bulk",
        **options: Unpack[Options],
    ) -> Generator[Result[AnyPhoto], None, None]:
        """Enhance many photographs, ``max_in_flight`` at a time, and yield a `Result` for each.

        ``photos`` is consumed as requests complete, so it may be infinite; memory is bounded by ``max_in_flight``.
        Results come in the order of ``photos``, or in order of completion with ``ordered=False``. ``options`` are those
        of `enhance`; ``timeout`` applies to each photograph. A failure is reported in the `Result` of its photograph
        and does not stop the others. Leaving the loop cancels the requests in flight.
        """
        flow = map_flow(self._calls, max_in_flight, priority=priority, **options)
        return self._iterate_results(photos, max_in_flight, ordered, flow)

    def _iterate_results(
        self,
        photos: Iterable[AnyPhoto],
        max_in_flight: int,
        ordered: bool,
        flow: Callable[[int, AnyPhoto], Flow[Result[AnyPhoto]]],
    ) -> Generator[Result[AnyPhoto], None, None]:
        in_flight = _InFlight()
        pool = ThreadPoolExecutor(max_in_flight, thread_name_prefix="restormer-map")
        # Twice as many results may be pending, so that a slow photograph at the head leaves no thread idle.
        window = 2 * max_in_flight if ordered else max_in_flight
        results: queue.SimpleQueue[Future[Result[AnyPhoto]]] = queue.SimpleQueue()
        pending = 0
        try:
            for index, photo in enumerate(photos):
                context = contextvars.copy_context()  # carries the caller's trace
                future = pool.submit(context.run, self._run, flow(index, photo), in_flight)
                pending += 1
                if ordered:
                    results.put(future)
                else:
                    future.add_done_callback(results.put)
                if pending == window:
                    yield results.get().result()
                    pending -= 1
            for _ in range(pending):
                yield results.get().result()
        finally:
            in_flight.cancel()
            pool.shutdown(cancel_futures=True)

    def close(self) -> None:
        """Close the connection; calls in flight in other threads fail."""
        self._closed = True
        while self._channels:
            self._channels.popitem()[1].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _get_channel(self) -> grpc.Channel:
        import grpc

        connection, process = self._calls.connection, os.getpid()
        channel = self._channels.get(process)
        if channel is None and not self._closed:
            new = connection.open_channel(grpc, connection.credentials())
            channel = self._channels.setdefault(process, new)
            if channel is not new:  # another thread was first
                new.close()
        if channel is None or self._closed:
            self.close()  # another thread may have closed the client while the channel was created
            raise RuntimeError("this Enhancer was closed")
        return channel

    def _run(self, flow: Flow[T], in_flight: _InFlight | None = None) -> T:
        """Drive a flow to its end in this thread."""
        try:
            step = next(flow)
            while True:
                try:
                    outcome = self._perform(step, in_flight)
                except Exception as error:  # noqa: BLE001 - the flow handles it or raises it again
                    step = flow.throw(error)
                else:
                    step = flow.send(outcome)
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            flow.close()

    def _perform(self, step: Step, in_flight: _InFlight | None) -> Any:
        import grpc

        if isinstance(step, Send):
            try:
                method = self._get_channel().unary_unary(wire.method_path(step.rpc))
                if in_flight is None:
                    return method(step.request, timeout=step.timeout, metadata=step.metadata)
                call = method.future(step.request, timeout=step.timeout, metadata=step.metadata)
                with in_flight.register(call):
                    return call.result()
            except (grpc.RpcError, ValueError):
                if self._closed:
                    raise RuntimeError("this Enhancer was closed") from None
                raise
        if isinstance(step, Work):
            return step.function()
        if in_flight is None:
            return time.sleep(step.seconds)
        return in_flight.cancelled.wait(step.seconds)


class _InFlight:
    """Calls of a `map` that can still be cancelled."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: set[grpc.Future] = set()
        self.cancelled = threading.Event()

    @contextmanager
    def register(self, call: grpc.Future) -> Iterator[None]:
        """Make a call cancellable for the duration of the block."""
        with self._lock:
            self._calls.add(call)
            if self.cancelled.is_set():
                call.cancel()
        try:
            yield
        finally:
            with self._lock:
                self._calls.discard(call)

    def cancel(self) -> None:
        """Cancel the calls in flight and those that start later."""
        with self._lock:
            self.cancelled.set()
            for call in self._calls:
                call.cancel()
