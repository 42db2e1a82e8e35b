"""What is said to Triton, without the saying: each call is a generator that both clients drive.

A flow yields what has to be done next (`Send`, `Pause`, `Work`), is resumed with what came of it, and returns the
call's result. `blocking` makes a method of `Enhancer` of it, `awaitable` one of `AsyncEnhancer`: retries, deadlines
and errors stand here once.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar

from restormer_client import tracing, wire
from restormer_client.connection import Connection
from restormer_client.errors import (
    NO_VERSIONS,
    UNTOUCHED,
    DeadlineExceeded,
    EnhanceError,
    Failure,
    InvalidRequest,
    InvalidTensor,
    ModelNotReady,
    Overloaded,
    ServerError,
    ServerUnavailable,
    error_from_failure,
)
from restormer_client.photo import Photo, photo_bytes

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

T = TypeVar("T")
MODEL, TILED_MODEL, CORE_MODEL = "enhance", "enhance_tiled", "restormer"
STEPS = ("preprocess", CORE_MODEL, "postprocess")  #: of the ensemble; asked only to say which is missing
TIMEOUT = 30.0  #: seconds a call may take unless told otherwise
LONGEST = 86_400.0  #: seconds that a timeout may say
PRIORITIES = {"interactive": 1, "bulk": 2}  #: as in the models' config.pbtxt
_BACK_OFF, _LONGEST_BACK_OFF = 0.1, 2.0  #: seconds; the first doubles up to the second
_BREAKS = 3  #: connections that may break over one photograph: it may be what breaks them
_DIAGNOSIS = 1.0  #: seconds, at the least, to ask which model it is that is missing
_POLL = 0.2  #: seconds between two looks at a server that is not ready

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
    """Send these bytes and resume with the answer's, or throw gRPC's error in."""

    rpc: str
    request: bytes
    timeout: float
    metadata: list[tuple[str, str]]


@dataclass(frozen=True)
class Pause:
    """Resume after so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Work:
    """Call this, which may read a disk, and resume with what it returns."""

    function: Callable[[], Any]


Step = Send | Pause | Work
Flow = Generator[Step, Any, T]


@dataclass(frozen=True)
class Health:
    """What the server says of itself. ``models``: whether each is ready. ``reason``: why it is not well, else empty."""

    live: bool
    ready: bool
    models: dict[str, bool]
    reason: str = ""


@dataclass(frozen=True)
class Metadata:
    """Name and version of the server, and of its models the tensors, ``{model: {tensor: (datatype, shape)}}``, and the
    versions in service (of ``restormer``: the engine's)."""

    name: str
    version: str
    models: dict[str, dict[str, tuple[str, tuple[int, ...]]]]
    versions: dict[str, tuple[str, ...]] = field(default_factory=dict)


class Deadline:
    """A point in time, ``seconds`` from now."""

    def __init__(self, seconds: float) -> None:
        if not 0 < seconds <= LONGEST:
            raise ValueError(f"timeout is {seconds!r}: it has to be a number of seconds above 0, a day at the most")
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds until then, 0 at the least."""
        return max(self._end - time.monotonic(), 0.0)


class Calls:
    """The calls of one server, as flows. Thread-safe: all it learns is how long calls take, and the core's tensors."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._typical: dict[str, float] = {}  # by model, seconds of recent calls that succeeded
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
        """An enhanced photograph as an image file; what is not asked for comes back as it was sent.

        ``photo``: the bytes of an image file, a path, an open binary file, a Pillow image or a uint8 array
        ``[H, W, 3]`` (the last two travel as PNG). ``size``: ``native`` (usually) or ``512``, the longer side's pixels.
        ``format``: ``jpeg``, ``png``, ``webp``, ``tiff``, ``bmp`` or ``avif`` (usually the photograph's own; JPEG for
        HEIC). ``quality``: 1 to 100 (usually 92). ``strength``: 0, the photograph as it was, to 1, the whole effect
        (usually).
        ``gps``: ``keep`` (usually), or ``strip`` positions in EXIF and XMP. ``tiled``: run the network over the full
        resolution in tiles, for detail; dozens of times the work. ``priority``: ``interactive`` or ``bulk``, which
        waits behind it. ``timeout``: seconds for the whole call, retries included. The server checks the values.
        Raises `EnhanceError` or one of its kin, and `OSError` where ``photo`` cannot be read.
        """
        asked = {"size": size, "format": format, "quality": quality, "strength": strength, "gps": gps}
        # As text: Triton's parameters know no floating point on older servers.
        parameters = {name: str(value) for name, value in asked.items() if value is not None}
        model = TILED_MODEL if tiled else MODEL
        return self._enhance(photo, model, parameters, _level(priority), Deadline(timeout))

    def _enhance(
        self, photo: Photo, model: str, parameters: dict[str, str], level: int, deadline: Deadline
    ) -> Flow[bytes]:
        data = photo if isinstance(photo, bytes) else (yield Work(partial(photo_bytes, photo)))
        answer = yield from self._infer(model, wire.one_file("IMAGE", data), parameters, level, deadline)
        tensor = wire.output(answer, "ENHANCED")
        enhanced = wire.file_of(tensor) if tensor else None
        if enhanced is None:
            raise ServerError(
                f"{self.connection.url} answered without ENHANCED: is {model!r} there the model of this project?",
                model=model,
            )
        return enhanced

    def core(
        self, tensor: npt.NDArray[np.float32], *, priority: Priority = "interactive", timeout: float = TIMEOUT
    ) -> Flow[npt.NDArray[np.float32]]:
        """The network alone, for services that decode for themselves.

        ``tensor``: RGB, float32, ``[N, 3, 512, 512]`` in [0, 1]. Returns the same shape, not clamped, writable. A type
        or shape that the server's metadata do not have is refused before it is sent; how large N may be (8 as
        configured) they do not tell, so the server does. Raises `InvalidTensor`, or another `EnhanceError`.
        """
        deadline = Deadline(timeout)
        if self._core_tensors is None:
            tensors = _tensors((yield from self._model(CORE_MODEL, deadline)))
            if "input" not in tensors:
                raise ServerError(
                    f"{self.connection.url}: {CORE_MODEL!r} there has no tensor 'input'", model=CORE_MODEL
                )
            self._core_tensors = tensors
        datatype, shape = _checked(tensor, self._core_tensors["input"])
        sent = wire.Tensor("input", datatype, shape, (_contiguous(tensor),))
        try:
            answer = yield from self._infer(CORE_MODEL, sent, {}, _level(priority), deadline)
        except InvalidRequest as error:
            raise InvalidTensor(str(error), status=error.status, model=CORE_MODEL, attempts=error.attempts) from error
        found = wire.output(answer, "output")
        if found is None or (found.datatype, found.shape) != ("FP32", shape):
            raise ServerError(f"{self.connection.url} gave no output of shape {list(shape)}", model=CORE_MODEL)
        import numpy as np

        return np.frombuffer(found.content[0], np.float32).reshape(shape).copy()

    def health(self, *, timeout: float = 5.0) -> Flow[Health]:
        """What the server says of itself, asked once; a server that does not answer is a `Health` too, not an error."""
        deadline = Deadline(timeout)
        try:
            live = yield from self._ask("ServerLive", deadline)
            ready = yield from self._ask("ServerReady", deadline)
            models = {}
            for model in (MODEL, TILED_MODEL, *STEPS):
                models[model] = yield from self._is_ready(model, deadline)
        except EnhanceError as error:
            return Health(live=False, ready=False, models={}, reason=str(error))
        missing = [model for model in (*STEPS, MODEL) if not models[model]]
        reason = "" if ready.ready and not missing else f"not ready: {', '.join(missing) or 'the server'}"
        return Health(live=live.live, ready=not reason, models=models, reason=reason)

    def wait_until_ready(self, timeout: float = TIMEOUT) -> Flow[None]:
        """Returns when ``enhance`` is ready. After ``timeout`` seconds raises `ModelNotReady`, which says which model
        is missing, `AccessDenied` at once, or `ServerUnavailable`."""
        deadline = Deadline(timeout)
        while True:
            try:
                if (yield from self._is_ready(MODEL, deadline)):
                    return
                error: EnhanceError = ModelNotReady("", model=MODEL)
            except (ServerUnavailable, DeadlineExceeded) as unreachable:
                error = unreachable
            if deadline.left() <= min(_DIAGNOSIS, timeout / 2):
                break
            yield Pause(_POLL)
        if isinstance(error, ModelNotReady):
            health = yield from self.health(timeout=max(deadline.left(), _DIAGNOSIS))
            missing = next((model for model in STEPS if health.models.get(model) is False), MODEL)
            raise ModelNotReady(
                f"{self.connection.url} answers, but model {missing!r} is not ready after {timeout:g} s", model=missing
            )
        raise ServerUnavailable(
            f"{self.connection.url} was not ready within {timeout:g} s: {error}", status=error.status
        ) from error

    def metadata(self, *, timeout: float = TIMEOUT) -> Flow[Metadata]:
        """The server's version, and tensors and versions of ``enhance`` and ``restormer``."""
        deadline = Deadline(timeout)
        server = yield from self._ask("ServerMetadata", deadline)
        models, versions = {}, {}
        for model in (MODEL, CORE_MODEL):
            found = yield from self._model(model, deadline)
            models[model], versions[model] = _tensors(found), tuple(found.versions)
        return Metadata(name=server.name, version=server.version, models=models, versions=versions)

    def _infer(
        self, model: str, tensor: wire.Tensor, parameters: dict[str, str], level: int, deadline: Deadline
    ) -> Flow[bytes]:
        def request(left: float) -> bytes:
            # Triton's queue, too, gives up in time: microseconds.
            known = {"priority": level, "timeout": int(left * 1e6) or 1}
            return wire.infer_request(model, tensor, {**parameters, **known})

        with tracing.span(model, self.connection.url) as headers:
            return (yield from self._call("ModelInfer", request, deadline, model=model, headers=headers))

    def _call(
        self,
        rpc: str,
        request: Callable[[float], bytes],
        deadline: Deadline,
        *,
        model: str | None = None,
        headers: list[tuple[str, str]] | None = None,
        retry: bool = True,
    ) -> Flow[bytes]:
        """Sends until it is answered: again after a broken connection only, with a growing, jittered pause."""
        import grpc

        attempts, broken, longest = 0, 0, _BACK_OFF
        while left := deadline.left():
            attempts += 1
            metadata = yield from self._metadata()
            started = time.monotonic()
            try:
                answer: bytes = yield Send(rpc, request(left), left, [*metadata, *(headers or [])])
            except grpc.RpcError as failed:
                cause = failed.with_traceback(None)  # whose frames hold the photograph
                failure = Failure(failed.code().name, failed.details() or "no reason given")
            else:
                self._learn(model, time.monotonic() - started)
                return answer
            error = error_from_failure(failure, url=self.connection.url, model=model, attempts=attempts)
            broken += not any(words in failure.said for words in UNTOUCHED)
            pause = random.uniform(0, longest)
            passes = isinstance(error, ServerUnavailable) or NO_VERSIONS in failure.said
            if not (retry and passes) or broken == _BREAKS or pause >= deadline.left():
                if isinstance(error, Overloaded):
                    error.retry_after = random.uniform(1, 1.5) * self._typical.get(model or "", Overloaded.retry_after)
                try:
                    raise error from cause
                finally:
                    del error, cause  # else they and this frame, which holds the photograph, keep each other alive
            yield Pause(pause)
            longest = min(2 * longest, _LONGEST_BACK_OFF)
        raise DeadlineExceeded(f"{self.connection.url} did not answer in time", model=model, attempts=attempts)

    def _learn(self, model: str | None, seconds: float) -> None:
        """How long a call to this model takes, recent ones counting most."""
        self._typical[model or ""] = 0.9 * self._typical.get(model or "", seconds) + 0.1 * seconds

    def _metadata(self) -> Flow[list[tuple[str, str]]]:
        """The headers of a call; a token that has to be fetched may take a while."""
        if callable(self.connection.token):
            headers: list[tuple[str, str]] = yield Work(self.connection.metadata)
            return headers
        return self.connection.metadata()

    def _ask(self, rpc: str, deadline: Deadline, *, retry: bool = False, **fields: Any) -> Flow[Any]:
        """One of the small calls; asked once unless told otherwise."""
        message = wire.request(f"{rpc}Request", **fields)
        answer = yield from self._call(rpc, lambda left: message, deadline, model=fields.get("name"), retry=retry)
        return wire.response(f"{rpc}Response", answer)

    def _is_ready(self, model: str, deadline: Deadline) -> Flow[bool]:
        try:
            return bool((yield from self._ask("ModelReady", deadline, name=model)).ready)
        except ModelNotReady:
            return False

    def _model(self, model: str, deadline: Deadline) -> Flow[Any]:
        return (yield from self._ask("ModelMetadata", deadline, retry=True, name=model))


class Client:
    """What both clients are, beside their calls: an address, and settings that travel to other processes."""

    _calls: Calls

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def __getstate__(self) -> Connection:
        return self._calls.connection

    def __setstate__(self, connection: Connection) -> None:
        self.__init__(**vars(connection))  # type: ignore[misc]

    @property
    def url(self) -> str:
        """Where the server is."""
        return self._calls.connection.url


def _tensors(model: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The tensors in a model's metadata, in and out."""
    tensors = (*model.inputs, *model.outputs)
    return {tensor.name: (tensor.datatype, tuple(tensor.shape)) for tensor in tensors}


def _level(priority: Priority) -> int:
    if priority not in PRIORITIES:
        raise ValueError(f"priority is {priority!r}: it has to be one of {', '.join(PRIORITIES)}")
    return PRIORITIES[priority]


def _checked(tensor: Any, wanted: tuple[str, tuple[int, ...]]) -> tuple[str, tuple[int, ...]]:
    """Datatype and shape of the tensor, if the server's input takes them (-1 there stands for any)."""
    datatype, shape = wanted
    found = tuple(getattr(tensor, "shape", ()))
    if getattr(tensor, "dtype", None) != "float32" or datatype != "FP32":
        kind = getattr(tensor, "dtype", type(tensor).__name__)
        raise InvalidTensor(f"the tensor is {kind}, the model takes {datatype}: tensor.astype(numpy.float32)")
    if (
        0 in found
        or len(found) != len(shape)
        or not all(have == want or want == -1 for have, want in zip(found, shape, strict=True))
    ):
        raise InvalidTensor(f"the tensor is {list(found)}, the model takes {list(shape)} (-1: the batch)")
    return datatype, found


def _contiguous(tensor: npt.NDArray[np.float32]) -> memoryview:
    import numpy as np

    return np.ascontiguousarray(tensor).data.cast("B")
