"""The client of threads and scripts. `restormer_client.aio` has the same for asyncio."""

from __future__ import annotations

import contextvars
import inspect
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial, wraps
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from restormer_client import wire
from restormer_client.calls import Calls, Client, Flow, Options, Priority, Send, Step, Work
from restormer_client.connection import TLS, Connection
from restormer_client.errors import EnhanceError
from restormer_client.photo import Photo
from restormer_client.result import Result

if TYPE_CHECKING:
    import grpc
    from typing_extensions import Self, Unpack

P = ParamSpec("P")
T = TypeVar("T")
AnyPhoto = TypeVar("AnyPhoto", bound=Photo)
#: What may be wrong with one photograph of many, and is its own affair.
OF_ONE_PHOTOGRAPH = (EnhanceError, OSError, TypeError, ValueError)


def documented(method: Callable[..., Any], flow: Callable[..., Any]) -> None:
    """Gives the method the flow's name, text and signature; it returns what the flow does."""
    signature = inspect.signature(flow)
    result = str(signature.return_annotation).removeprefix("Flow[").removesuffix("]")
    method.__signature__ = signature.replace(return_annotation=result)  # type: ignore[attr-defined]


def blocking(flow: Callable[Concatenate[Calls, P], Flow[T]]) -> Callable[Concatenate[Enhancer, P], T]:
    """A method that does what the flow says, and returns when it is done."""

    @wraps(flow)
    def method(self: Enhancer, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._run(flow(self._calls, *args, **kwargs))

    documented(method, flow)
    return method


def checked_for_map(
    calls: Calls, max_in_flight: int, *, priority: Priority, **options: Unpack[Options]
) -> Callable[[Photo], Flow[bytes]]:
    """The flow of one photograph of many. What is wrong with all of them is said now, not once for each."""
    if max_in_flight < 1:
        raise ValueError(f"max_in_flight is {max_in_flight}: it has to be 1 or more")
    flow = partial(calls.enhance, priority=priority, **options)
    flow(b"").close()
    return flow


def without_frames(error: Exception) -> Exception:
    """The error without its traceback: the frames hold the photograph, and a result may be kept."""
    for each in (error, error.__cause__, error.__context__):
        if each is not None:
            each.__traceback__ = None
    return error


class Enhancer(Client):
    """A server, by the address of its gRPC endpoint; a context manager, safe to share between threads.

    ``url``: ``host:port``, or ``dns:///host:port`` for round robin over all addresses of a name. ``tls``: certificates
    by path; without it the connection is plain. ``token``: sent as ``authorization: Bearer``, a string or a function
    that returns one. ``headers``: sent with every call, for example Triton's key of a restricted protocol.

    Connects on first use. Pickles, and works again after a fork and in a spawned process.
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
        self._closed = False
        # By process: a channel does not survive a fork. No lock, which would not survive one either.
        self._channels: dict[int, _Channel] = {}

    enhance = blocking(Calls.enhance)
    core = blocking(Calls.core)
    health = blocking(Calls.health)
    wait_until_ready = blocking(Calls.wait_until_ready)
    metadata = blocking(Calls.metadata)

    def map(
        self,
        photos: Iterable[AnyPhoto],
        *,
        max_in_flight: int = 16,
        ordered: bool = True,
        priority: Priority = "bulk",
        **options: Unpack[Options],
    ) -> Generator[Result[AnyPhoto], None, None]:
        """Enhances many, ``max_in_flight`` at a time, and yields a `Result` for each.

        ``photos`` is read as places become free, so it may be endless; what is held is bounded by ``max_in_flight``.
        Results come in the order of ``photos``, or with ``ordered=False`` as they are done. ``options`` are those of
        `enhance`; ``timeout`` is that of each photograph. An error belongs to its photograph: it is in its `Result`,
        and the others go on. Leaving the loop cancels what is under way.
        """
        flow = checked_for_map(self._calls, max_in_flight, priority=priority, **options)
        return self._mapped(photos, max_in_flight, ordered, flow)

    def _mapped(
        self, photos: Iterable[AnyPhoto], max_in_flight: int, ordered: bool, flow: Callable[[AnyPhoto], Flow[bytes]]
    ) -> Generator[Result[AnyPhoto], None, None]:
        under_way = _UnderWay()

        def enhanced(index: int, photo: AnyPhoto) -> Result[AnyPhoto]:
            started = time.monotonic()
            try:
                data = self._run(flow(photo), under_way)
            except OF_ONE_PHOTOGRAPH as error:
                return Result(index, photo, error=without_frames(error), seconds=time.monotonic() - started)
            return Result(index, photo, data, seconds=time.monotonic() - started)

        pool = ThreadPoolExecutor(max_in_flight, thread_name_prefix="restormer-map")
        # As many again may wait, so that a slow photograph at the head leaves no thread idle.
        window = 2 * max_in_flight if ordered else max_in_flight
        waiting: deque[Future[Result[AnyPhoto]]] = deque()
        done: queue.SimpleQueue[Future[Result[AnyPhoto]]] = queue.SimpleQueue()
        pending = 0
        try:
            for index, photo in enumerate(photos):
                future = pool.submit(contextvars.copy_context().run, enhanced, index, photo)  # a caller's trace goes on
                pending += 1
                if ordered:
                    waiting.append(future)
                else:
                    future.add_done_callback(done.put)
                if pending == window:
                    yield (waiting.popleft() if ordered else done.get()).result()
                    pending -= 1
            for _ in range(pending):
                yield (waiting.popleft() if ordered else done.get()).result()
        finally:
            under_way.cancel()
            pool.shutdown(cancel_futures=True)

    def close(self) -> None:
        """Closes the connection; calls under way in other threads fail."""
        self._closed = True
        while self._channels:
            self._channels.popitem()[1].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _channel(self) -> _Channel:
        channel = self._channels.get(process := os.getpid())
        if channel is None and not self._closed:
            made = _Channel(self._calls.connection)
            channel = self._channels.setdefault(process, made)
            if channel is not made:  # another thread was first
                made.close()
        if channel is None or self._closed:
            self.close()  # what was made while another thread closed
            raise RuntimeError("this Enhancer was closed")
        return channel

    def _run(self, flow: Flow[T], under_way: _UnderWay | None = None) -> T:
        """Drives a flow to its end, in this thread."""
        import grpc

        resume: Callable[[], Step] = partial(next, flow)
        try:
            while True:
                step = resume()
                try:
                    resume = partial(flow.send, self._do(step, under_way))
                except grpc.RpcError as error:
                    resume = partial(flow.throw, error)
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            flow.close()

    def _do(self, step: Step, under_way: _UnderWay | None) -> Any:
        import grpc

        if isinstance(step, Send):
            try:
                return self._channel().send(step, under_way)
            except (grpc.RpcError, ValueError):
                if self._closed:
                    raise RuntimeError("this Enhancer was closed") from None
                raise
        if isinstance(step, Work):
            return step.function()
        if under_way is None:
            return time.sleep(step.seconds)
        return under_way.cancelled.wait(step.seconds)


class _UnderWay:
    """The calls of a `map`, so that leaving it can cancel them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: set[grpc.Future] = set()
        self.cancelled = threading.Event()

    @contextmanager
    def holding(self, call: grpc.Future) -> Iterator[None]:
        """Cancellable for as long as the block runs."""
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
        """Ends what is under way, and what still begins."""
        with self._lock:
            self.cancelled.set()
            for call in self._calls:
                call.cancel()


class _Channel:
    """gRPC's channel, and its methods as they are first called."""

    def __init__(self, connection: Connection) -> None:
        import grpc

        credentials, options = connection.credentials(), connection.options()
        self._channel = (
            grpc.secure_channel(connection.url, credentials, options)
            if credentials
            else grpc.insecure_channel(connection.url, options)
        )
        self._methods: dict[str, grpc.UnaryUnaryMultiCallable[bytes, bytes]] = {}

    def send(self, step: Send, under_way: _UnderWay | None) -> bytes:
        """The answer. Raises `grpc.RpcError`."""
        if step.rpc not in self._methods:
            self._methods[step.rpc] = self._channel.unary_unary(wire.path(step.rpc))
        method = self._methods[step.rpc]
        if under_way is None:
            return bytes(method(step.request, timeout=step.timeout, metadata=step.metadata))
        call = method.future(step.request, timeout=step.timeout, metadata=step.metadata)
        with under_way.holding(call):
            return bytes(call.result())

    def close(self) -> None:
        self._channel.close()
