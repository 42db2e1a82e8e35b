"""Sans-I/O request logic: each call is a generator (a flow) that both clients drive.

A flow yields the next step (`Send`, `Pause`, `Work`), is resumed with the outcome of that step, and returns the result
of the call. `make_blocking` turns a flow into a method of `Enhancer`, `make_awaitable` into one of `AsyncEnhancer`, so
retries, deadlines and errors are implemented only here.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator, Mapping, MutableMapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypedDict, TypeVar

from restormer_client import tracing, wire
from restormer_client.connection import TLS, Connection
from restormer_client.errors import (
    NO_VERSIONS,
    DeadlineExceeded,
    EnhanceError,
    InvalidRequest,
    InvalidTensor,
    ModelNotReady,
    Overloaded,
    ServerError,
    ServerUnavailable,
    error_from_failure,
    may_be_processed,
)
from restormer_client.photo import Photo, photo_bytes

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

T = TypeVar("T")
MODEL, TILED_MODEL, CORE_MODEL = "enhance", "enhance_tiled", "restormer"
STEPS = ("preprocess", CORE_MODEL, "postprocess")  #: of the ensemble; queried only to report which one is missing
TIMEOUT = 30.0  #: default timeout of a call, in seconds
MAX_TIMEOUT = 86_400.0  #: largest timeout accepted, in seconds
PRIORITIES = {"interactive": 1, "bulk": 2}  #: as in the models' config.pbtxt
_FIRST_PAUSE, _MAX_PAUSE = 0.1, 2.0  #: seconds between attempts: the pause doubles from the first to the second
_MAX_BROKEN = 3  #: broken connections allowed for one photograph, because the photograph may be the cause
_DIAGNOSIS_SECONDS = 1.0  #: minimum time reserved for finding out which model is missing
_POLL_SECONDS = 0.2  #: interval between readiness checks

Format = Literal["jpeg", "png", "webp", "tiff", "bmp", "avif"]
Priority = Literal["interactive", "bulk"]


class Options(TypedDict, total=False):
    """The keywords of `Enhancer.enhance`, for `Enhancer.map`."""

    size: str | int | None
    format: Format | None
    quality: int | None
    strength: float | None
    gps: Literal["keep", "strip"] | None
    tiled: bool
    timeout: float


@dataclass(frozen=True)
class Send:
    """Send ``request`` and resume with the bytes of the response, or throw gRPC's error into the flow."""

    rpc: str
    request: bytes
    timeout: float
    metadata: list[tuple[str, str]]


@dataclass(frozen=True)
class Pause:
    """Resume after ``seconds``."""

    seconds: float


@dataclass(frozen=True)
class Work:
    """Call ``function``, which may block on a disk, and resume with its return value."""

    function: Callable[[], Any]


Step = Send | Pause | Work
Flow = Generator[Step, Any, T]


@dataclass(frozen=True)
class Health:
    """State of the server. ``models``: readiness by model. ``reason``: why the server is not ready, else empty."""

    live: bool
    ready: bool
    models: dict[str, bool]
    reason: str = ""


@dataclass(frozen=True)
class Metadata:
    """Name and version of the server, and for each model its tensors (``{model: {tensor: (datatype, shape)}}``) and the
    versions in service. The version of ``restormer`` is that of the engine."""

    name: str
    version: str
    models: dict[str, dict[str, tuple[str, tuple[int, ...]]]]
    versions: dict[str, tuple[str, ...]] = field(default_factory=dict)


class Deadline:
    """A point in time, ``seconds`` from now."""

    def __init__(self, seconds: float) -> None:
        if not 0 < seconds <= MAX_TIMEOUT:
            raise ValueError(f"timeout is {seconds!r}: it must be more than 0 and at most {MAX_TIMEOUT:.0f} seconds")
        self._end = time.monotonic() + seconds

    def remaining(self) -> float:
        """Return the seconds left, 0 if the deadline has passed."""
        return max(self._end - time.monotonic(), 0.0)


class Calls:
    """The calls to one server, as flows. Thread-safe: its only state is the mean duration of calls and the core's
    tensor specification."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._mean_seconds: dict[str | None, float] = {}  # by model, of recent successful calls
        self._core_tensors: dict[str, tuple[str, tuple[int, ...]]] | None = None

    def enhance(
        self,
        photo: Photo,
        *,
        size: str | int | None = None,
        format: Format | None = None,
        quality: int | None = None,
        strength: float | None = None,
        gps: Literal["keep", "strip"] | None = None,
        tiled: bool = False,
        priority: Priority = "interactive",
        timeout: float = TIMEOUT,
    ) -> Flow[bytes]:
        """Enhance a photograph and return it as an image file. Properties that no option changes are kept.

        ``photo``: the bytes of an image file, a path, an open binary file, a Pillow image or a uint8 array
        ``[H, W, 3]`` (the last two are sent as PNG). ``size``: ``native`` (default) or ``512`` pixels on the longer
        side. ``format``: ``jpeg``, ``png``, ``webp``, ``tiff``, ``bmp`` or ``avif`` (default: the photograph's own;
        JPEG for HEIC). ``quality``: 1 to 100 (default 92). ``strength``: from 0, the original photograph, to 1, the
        full effect (default). ``gps``: ``keep`` (default), or ``strip`` to remove the position from EXIF and XMP.
        ``tiled``: run the network over the full resolution in tiles, for detail; dozens of times slower.
        ``priority``: ``interactive`` or ``bulk``, which waits behind it. ``timeout``: seconds for the whole call,
        retries included. The server validates the option values.
        Raises `EnhanceError` or a subclass, and `OSError` if ``photo`` cannot be read.
        """
        options = {"size": size, "format": format, "quality": quality, "strength": strength, "gps": gps}
        # As text: older Triton servers have no floating-point parameters.
        parameters = {name: str(value) for name, value in options.items() if value is not None}
        model = TILED_MODEL if tiled else MODEL
        return self._enhance(photo, model, parameters, _priority_level(priority), Deadline(timeout))

    def _enhance(
        self, photo: Photo, model: str, parameters: dict[str, str], level: int, deadline: Deadline
    ) -> Flow[bytes]:
        data = photo if isinstance(photo, bytes) else (yield Work(partial(photo_bytes, photo)))
        answer = yield from self._infer(model, wire.one_file("IMAGE", data), parameters, level, deadline)
        tensor = wire.output_tensor(answer, "ENHANCED")
        enhanced = wire.file_from_tensor(tensor) if tensor else None
        if enhanced is None:
            raise ServerError(
                f"{self.connection.url} returned no output ENHANCED: is its model {model!r} the one from this project?",
                model=model,
            )
        return enhanced

    def core(
        self, tensor: npt.NDArray[np.float32], *, priority: Priority = "interactive", timeout: float = TIMEOUT
    ) -> Flow[npt.NDArray[np.float32]]:
        """Run the network alone, for services that decode photographs themselves.

        ``tensor``: RGB, float32, ``[N, 3, 512, 512]`` in [0, 1]. Returns a writable array of the same shape, not
        clamped. Type and shape are checked against the server's metadata before anything is sent; the maximum N (8 by
        default) is not in the metadata, so the server checks it. Raises `InvalidTensor` or another `EnhanceError`.
        """
        import numpy as np

        deadline = Deadline(timeout)
        if self._core_tensors is None:
            tensors = _tensor_specs((yield from self._model_metadata(CORE_MODEL, deadline)))
            if "input" not in tensors:
                raise ServerError(
                    f"{self.connection.url}: its model {CORE_MODEL!r} has no tensor 'input'", model=CORE_MODEL
                )
            self._core_tensors = tensors
        datatype, shape = _check_tensor(tensor, self._core_tensors["input"])
        content = np.ascontiguousarray(tensor).data.cast("B")
        request = wire.Tensor("input", datatype, shape, (content,))
        try:
            answer = yield from self._infer(CORE_MODEL, request, {}, _priority_level(priority), deadline)
        except InvalidRequest as error:
            raise InvalidTensor(str(error), status=error.status, model=CORE_MODEL, attempts=error.attempts) from error
        output = wire.output_tensor(answer, "output")
        if output is None or (output.datatype, output.shape) != ("FP32", shape):
            raise ServerError(f"{self.connection.url} returned no output of shape {list(shape)}", model=CORE_MODEL)
        return np.frombuffer(output.content[0], np.float32).reshape(shape).copy()

    def health(self, *, timeout: float = 5.0) -> Flow[Health]:
        """Query the server's state once. A server that does not answer gives a `Health`, not an exception."""
        deadline = Deadline(timeout)
        try:
            live = yield from self._query("ServerLive", deadline)
            ready = yield from self._query("ServerReady", deadline)
            models = {}
            for model in (MODEL, TILED_MODEL, *STEPS):
                models[model] = yield from self._is_ready(model, deadline)
        except EnhanceError as error:
            return Health(live=False, ready=False, models={}, reason=str(error))
        missing = [model for model in (*STEPS, MODEL) if not models[model]]
        reason = "" if ready.ready and not missing else f"not ready: {', '.join(missing) or 'the server'}"
        return Health(live=live.live, ready=not reason, models=models, reason=reason)

    def wait_until_ready(self, timeout: float = TIMEOUT) -> Flow[None]:
        """Wait until ``enhance`` is ready. After ``timeout`` seconds raise `ModelNotReady`, which names the missing
        model, or `ServerUnavailable`; raise `AccessDenied` at once."""
        deadline = Deadline(timeout)
        while True:
            try:
                if (yield from self._is_ready(MODEL, deadline)):
                    return
                error: EnhanceError = ModelNotReady("", model=MODEL)
            except (ServerUnavailable, DeadlineExceeded) as unreachable:
                error = unreachable
            if deadline.remaining() <= min(_DIAGNOSIS_SECONDS, timeout / 2):
                break
            yield Pause(_POLL_SECONDS)
        if isinstance(error, ModelNotReady):
            health = yield from self.health(timeout=max(deadline.remaining(), _DIAGNOSIS_SECONDS))
            missing = next((model for model in STEPS if health.models.get(model) is False), MODEL)
            raise ModelNotReady(
                f"{self.connection.url} answers, but model {missing!r} is not ready after {timeout:g} s", model=missing
            )
        raise ServerUnavailable(
            f"{self.connection.url} was not ready within {timeout:g} s: {error}", status=error.status
        ) from error

    def metadata(self, *, timeout: float = TIMEOUT) -> Flow[Metadata]:
        """Return the server's version, and the tensors and versions of ``enhance`` and ``restormer``."""
        deadline = Deadline(timeout)
        server = yield from self._query("ServerMetadata", deadline)
        models, versions = {}, {}
        for model in (MODEL, CORE_MODEL):
            answer = yield from self._model_metadata(model, deadline)
            models[model], versions[model] = _tensor_specs(answer), tuple(answer.versions)
        return Metadata(name=server.name, version=server.version, models=models, versions=versions)

    def _infer(
        self, model: str, tensor: wire.Tensor, parameters: dict[str, str], level: int, deadline: Deadline
    ) -> Flow[bytes]:
        def build_request(remaining: float) -> bytes:
            # The deadline, in microseconds, also limits the time in Triton's queues.
            standard = {"priority": level, "timeout": int(remaining * 1e6) or 1}
            return wire.infer_request(model, tensor, {**parameters, **standard})

        with tracing.span(model, self.connection.url) as headers:
            return (yield from self._call("ModelInfer", build_request, deadline, model=model, headers=headers))

    def _call(
        self,
        rpc: str,
        build_request: Callable[[float], bytes],
        deadline: Deadline,
        *,
        model: str | None = None,
        headers: list[tuple[str, str]] | None = None,
        retry: bool = True,
    ) -> Flow[bytes]:
        """Send a request, and again only after a transient failure, with a growing, jittered pause in between."""
        import grpc

        attempts, broken, max_pause = 0, 0, _FIRST_PAUSE
        while remaining := deadline.remaining():
            attempts += 1
            if callable(self.connection.token):  # fetching a token may block
                metadata = yield Work(self.connection.metadata)
            else:
                metadata = self.connection.metadata()
            started = time.monotonic()
            try:
                answer: bytes = yield Send(rpc, build_request(remaining), remaining, [*metadata, *(headers or [])])
            except grpc.RpcError as rpc_error:
                cause = rpc_error.with_traceback(None)  # the frames hold the photograph
                status, details = rpc_error.code().name, rpc_error.details() or "no reason given"
            else:
                seconds = time.monotonic() - started
                self._mean_seconds[model] = 0.9 * self._mean_seconds.get(model, seconds) + 0.1 * seconds
                return answer
            error = error_from_failure(status, details, url=self.connection.url, model=model, attempts=attempts)
            broken += may_be_processed(details)
            pause = random.uniform(0, max_pause)
            is_transient = isinstance(error, ServerUnavailable) or NO_VERSIONS in details
            if not (retry and is_transient) or broken == _MAX_BROKEN or pause >= deadline.remaining():
                if isinstance(error, Overloaded):
                    expected = self._mean_seconds.get(model, Overloaded.retry_after)
                    error.retry_after = random.uniform(1, 1.5) * expected
                try:
                    raise error from cause
                finally:
                    del error, cause  # break the reference cycle with this frame, which holds the photograph
            yield Pause(pause)
            max_pause = min(2 * max_pause, _MAX_PAUSE)
        raise DeadlineExceeded(f"{self.connection.url} did not answer in time", model=model, attempts=attempts)

    def _query(self, rpc: str, deadline: Deadline, *, retry: bool = False, **fields: Any) -> Flow[Any]:
        """Make a call that carries no tensor; it is not retried by default."""
        message = getattr(wire.messages(), f"{rpc}Request")(**fields).SerializeToString()
        answer = yield from self._call(rpc, lambda _: message, deadline, model=fields.get("name"), retry=retry)
        return getattr(wire.messages(), f"{rpc}Response").FromString(answer)

    def _is_ready(self, model: str, deadline: Deadline) -> Flow[bool]:
        try:
            return bool((yield from self._query("ModelReady", deadline, name=model)).ready)
        except ModelNotReady:
            return False

    def _model_metadata(self, model: str, deadline: Deadline) -> Flow[Any]:
        return (yield from self._query("ModelMetadata", deadline, retry=True, name=model))


class Client:
    """Base of both clients: the connection settings, which are pickled with it."""

    _new_channels: ClassVar[type[MutableMapping[Any, Any]]] = dict

    def __init__(
        self,
        url: str = "127.0.0.1:8001",
        *,
        tls: TLS | None = None,
        token: str | Callable[[], str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._calls = Calls(Connection(url, tls=tls, token=token, headers=dict(headers or {})))
        self._channels = self._new_channels()
        self._closed = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def __getstate__(self) -> Connection:
        return self._calls.connection

    def __setstate__(self, connection: Connection) -> None:
        self.__init__(**vars(connection))  # type: ignore[misc]

    @property
    def url(self) -> str:
        """Address of the server."""
        return self._calls.connection.url


def _tensor_specs(model: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return datatype and shape of a model's inputs and outputs, by name."""
    tensors = (*model.inputs, *model.outputs)
    return {tensor.name: (tensor.datatype, tuple(tensor.shape)) for tensor in tensors}


def _priority_level(priority: Priority) -> int:
    if priority not in PRIORITIES:
        raise ValueError(f"priority is {priority!r}: it must be one of {', '.join(PRIORITIES)}")
    return PRIORITIES[priority]


def _check_tensor(tensor: Any, spec: tuple[str, tuple[int, ...]]) -> tuple[str, tuple[int, ...]]:
    """Return datatype and shape of the tensor. Raise `InvalidTensor` if they do not match the specification of the
    model's input, in which -1 stands for any size."""
    datatype, expected = spec
    shape = tuple(getattr(tensor, "shape", ()))
    if getattr(tensor, "dtype", None) != "float32" or datatype != "FP32":
        dtype = getattr(tensor, "dtype", type(tensor).__name__)
        raise InvalidTensor(f"the tensor is {dtype}, the model takes {datatype}: use tensor.astype(numpy.float32)")
    if (
        0 in shape
        or len(shape) != len(expected)
        or not all(size == wanted or wanted == -1 for size, wanted in zip(shape, expected, strict=True))
    ):
        raise InvalidTensor(f"the tensor is {list(shape)}, the model takes {list(expected)} (-1: the batch size)")
    return datatype, shape
