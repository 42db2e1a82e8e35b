"""A Triton to test against without one: real gRPC on a free port of this machine, answers on demand.

    with FakeTriton(Overloaded, b"enhanced") as triton, Enhancer(triton.url) as enhancer:
        with pytest.raises(Overloaded):
            enhancer.enhance(photo)
        assert enhancer.enhance(photo) == b"enhanced"
        assert triton.requests[0].photo == photo

It takes apart what arrives as Triton does and words its errors as Triton does (a test holds both together), but looks
at no photograph: what is not told otherwise comes back as it was sent.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceServicer, add_GRPCInferenceServiceServicer_to_server

from restormer_client import errors, wire
from restormer_client.calls import CORE_MODEL, MODEL, STEPS, TILED_MODEL

if TYPE_CHECKING:
    from typing_extensions import Self

_FILE_SHAPE: tuple[int, ...] = (-1, 1)
_CORE_SHAPE: tuple[int, ...] = (-1, 3, 512, 512)
#: What Triton says, and with which status, when it means one of our errors.
_AS_TRITON: dict[type[errors.EnhanceError], tuple[str, str]] = {
    errors.InvalidRequest: ("INVALID_ARGUMENT", "[request id: <id_unknown>] unexpected shape for input 'IMAGE'"),
    errors.InvalidTensor: ("INVALID_ARGUMENT", "[request id: <id_unknown>] unexpected shape for input 'input'"),
    errors.InvalidPhotograph: ("INVALID_ARGUMENT", "in ensemble 'enhance', not a photograph"),
    errors.InvalidOption: ("INVALID_ARGUMENT", "in ensemble 'enhance', unknown parameter 'x'"),
    errors.Overloaded: ("UNAVAILABLE", "in ensemble 'enhance', [request id: <id_unknown>] Exceeds maximum queue size"),
    errors.ServerUnavailable: ("UNAVAILABLE", "Socket closed"),
    errors.ModelNotReady: ("NOT_FOUND", "Request for unknown model: 'enhance' is not found"),
    errors.AccessDenied: ("UNAVAILABLE", "This protocol is restricted, expecting header 'triton-grpc-protocol-key'"),
    errors.ServerError: ("INTERNAL", "in ensemble 'enhance', Stub process 'postprocess_0_0' is not healthy."),
}


@dataclass(frozen=True)
class Request:
    """What arrived: ``photo`` the file sent (of `core`, the tensor's bytes), ``parameters`` the options as text,
    ``timeout`` the queue's, in seconds, ``priority`` 1 (interactive) or 2 (bulk), ``headers`` the call's metadata.
    """

    model: str
    photo: bytes
    parameters: dict[str, str]
    timeout: float
    priority: int
    headers: dict[str, str]


#: The enhanced file, a function that makes it (or raises an error), or an error of ours, as class or object.
#: `DeadlineExceeded` is a server that does not answer before the client gives up.
Answer = bytes | Callable[[Request], bytes] | errors.EnhanceError | type[errors.EnhanceError]


class FakeTriton:
    """A server for the length of a ``with`` block. ``answers`` are given in turn, then photographs come back as sent.

    ``requests`` are those for photographs, in order. Models named in ``missing`` are not ready. `stop` and `start` take
    it away and bring it back on the same port. ``credentials`` (`grpc.ssl_server_credentials`) make it speak TLS.
    """

    def __init__(self, *answers: Answer, port: int = 0, credentials: grpc.ServerCredentials | None = None) -> None:
        self.answers: deque[Answer] = deque(answers)
        self.requests: list[Request] = []
        self.missing: set[str] = set()
        self._port = port
        self._credentials = credentials
        self._server: grpc.Server | None = None
        self.stopping = threading.Event()

    @property
    def url(self) -> str:
        """Where it listens, once started."""
        return f"127.0.0.1:{self._port}"

    def start(self) -> None:
        """Listens; on a free port the first time, then on the same again."""
        self.stopping.clear()
        self._server = grpc.server(
            ThreadPoolExecutor(64, thread_name_prefix="fake-triton"),
            options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)],
        )
        add_GRPCInferenceServiceServicer_to_server(_Service(self), self._server)
        if self._credentials is None:
            self._port = self._server.add_insecure_port(self.url)
        else:
            self._port = self._server.add_secure_port(self.url, self._credentials)
        self._server.start()

    def stop(self) -> None:
        """Drops every connection at once."""
        self.stopping.set()
        if self._server is not None:
            self._server.stop(grace=None).wait()
        self._server = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


class _Service(GRPCInferenceServiceServicer):  # type: ignore[misc]
    """The part of Triton's protocol that the clients speak."""

    def __init__(self, fake: FakeTriton) -> None:
        self._fake = fake

    def ServerLive(self, request: Any, context: grpc.ServicerContext) -> Any:
        return pb.ServerLiveResponse(live=True)

    def ServerReady(self, request: Any, context: grpc.ServicerContext) -> Any:
        return pb.ServerReadyResponse(ready=not self._fake.missing)

    def ServerMetadata(self, request: Any, context: grpc.ServicerContext) -> Any:
        return pb.ServerMetadataResponse(name="triton", version="0.0.0 (fake)")

    def ModelReady(self, request: Any, context: grpc.ServicerContext) -> Any:
        known = {MODEL, TILED_MODEL, *STEPS}
        return pb.ModelReadyResponse(ready=request.name in known - self._fake.missing)

    def ModelMetadata(self, request: Any, context: grpc.ServicerContext) -> Any:
        tensor = pb.ModelMetadataResponse.TensorMetadata
        names, datatype, shape = ("IMAGE", "ENHANCED"), "BYTES", _FILE_SHAPE
        if request.name == CORE_MODEL:
            names, datatype, shape = ("input", "output"), "FP32", _CORE_SHAPE
        sides = [tensor(name=name, datatype=datatype, shape=shape) for name in names]
        return pb.ModelMetadataResponse(name=request.name, versions=["1"], inputs=sides[:1], outputs=sides[1:])

    def ModelInfer(self, request: Any, context: grpc.ServicerContext) -> Any:
        if request.model_name in self._fake.missing:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: {request.model_name!r} is not found")
        is_core = request.model_name == CORE_MODEL
        raw, tensor = request.raw_input_contents[0], request.inputs[0]
        sent = raw if is_core else wire.file_of(wire.Tensor("IMAGE", tensor.datatype, (1, 1), (raw,))) or b""
        timeout, priority = (request.parameters[name].int64_param for name in ("timeout", "priority"))
        arrived = Request(
            model=request.model_name,
            photo=sent,
            parameters={n: v.string_param for n, v in request.parameters.items() if n not in ("timeout", "priority")},
            timeout=timeout / 1e6,
            priority=priority,
            headers={name: str(value) for name, value in context.invocation_metadata()},
        )
        self._fake.requests.append(arrived)
        made = self._enhanced(arrived, context)
        if is_core:
            return _answer(request, "output", "FP32", tensor.shape, made)
        return _answer(request, "ENHANCED", "BYTES", (1, 1), b"".join(wire.one_file("ENHANCED", made).content))

    def _enhanced(self, arrived: Request, context: grpc.ServicerContext) -> bytes:
        try:
            answer = self._fake.answers.popleft()
        except IndexError:
            return arrived.photo
        if isinstance(answer, bytes):
            return answer
        try:
            if isinstance(answer, errors.EnhanceError):
                raise answer
            if isinstance(answer, type):
                raise answer("")
            return answer(arrived)
        except errors.EnhanceError as error:
            self._fail(error, context)

    def _fail(self, error: errors.EnhanceError, context: grpc.ServicerContext) -> NoReturn:
        if isinstance(error, errors.DeadlineExceeded):
            self._fake.stopping.wait(context.time_remaining())
            context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
        status, words = _AS_TRITON.get(type(error), ("INTERNAL", ""))
        if isinstance(error, errors.InvalidPhotograph) and str(error):
            words = f"in ensemble 'enhance', {error}"  # the sentence is our models' own
        elif str(error):
            words = f"{words}: {error}"
        context.abort(grpc.StatusCode[status], words)
        raise AssertionError("abort raises")


def _answer(request: Any, name: str, datatype: str, shape: tuple[int, ...], content: bytes) -> Any:
    response = pb.ModelInferResponse(model_name=request.model_name, raw_output_contents=[content])
    response.outputs.add(name=name, datatype=datatype, shape=shape)
    return response
