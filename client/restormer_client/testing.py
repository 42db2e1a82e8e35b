"""A fake Triton for tests: a real gRPC server on a free local port, with scripted answers.

    with FakeTriton(Overloaded, b"enhanced") as triton, Enhancer(triton.url) as enhancer:
        with pytest.raises(Overloaded):
            enhancer.enhance(photo)
        assert enhancer.enhance(photo) == b"enhanced"
        assert triton.requests[0].photo == photo

It parses requests and words its errors as Triton does (a test compares the two), but does not look at photographs:
without a scripted answer each comes back as it was sent.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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
#: gRPC status and message with which Triton reports each error.
_TRITON_ERRORS: dict[type[errors.EnhanceError], tuple[str, str]] = {
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
    """A request received: ``photo`` is the file (for `core` the tensor's bytes), ``parameters`` the options as text,
    ``timeout`` the limit in Triton's queue in seconds, ``priority`` 1 (interactive) or 2 (bulk), ``headers`` the
    call's metadata.
    """

    model: str
    photo: bytes
    parameters: dict[str, str]
    timeout: float
    priority: int
    headers: dict[str, str]


#: The enhanced file, a function that returns it (or raises an `EnhanceError`), or an `EnhanceError` class or object.
#: `DeadlineExceeded` makes the server wait until the client gives up.
Answer = bytes | Callable[[Request], bytes] | errors.EnhanceError | type[errors.EnhanceError]


class FakeTriton:
    """A server that runs for the duration of a ``with`` block. It gives ``answers`` in turn, then echoes photographs.

    ``requests`` lists the inference requests in order. Models named in ``missing`` are not ready. `stop` and `start`
    simulate an outage; the port stays the same. ``credentials`` (`grpc.ssl_server_credentials`) turn on TLS.
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
        """Address of the server, once started."""
        return f"127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start the server, on a free port the first time and on the same port afterwards."""
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
        """Stop the server and drop every connection at once."""
        self.stopping.set()
        if self._server is not None:
            self._server.stop(grace=None).wait()
        self._server = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class _Service(GRPCInferenceServiceServicer):  # type: ignore[misc]
    """The part of Triton's protocol that the clients use."""

    def __init__(self, fake: FakeTriton) -> None:
        self._fake = fake

    def ServerLive(self, request: Any, context: grpc.ServicerContext) -> Any:
        return pb.ServerLiveResponse(live=True)

    def ServerReady(self, request: Any, context: grpc.ServicerContext) -> Any:
        return pb.ServerReadyResponse(ready=not self._fake.missing)

    def ServerMetadata(self, request: Any, context: grpc.ServicerContext) -> Any:
        return pb.ServerMetadataResponse(name="triton", version="0.0.0 (fake)")

    def ModelReady(self, request: Any, context: grpc.ServicerContext) -> Any:
        models = {MODEL, TILED_MODEL, *STEPS}
        return pb.ModelReadyResponse(ready=request.name in models - self._fake.missing)

    def ModelMetadata(self, request: Any, context: grpc.ServicerContext) -> Any:
        tensor = pb.ModelMetadataResponse.TensorMetadata
        names, datatype, shape = ("IMAGE", "ENHANCED"), "BYTES", _FILE_SHAPE
        if request.name == CORE_MODEL:
            names, datatype, shape = ("input", "output"), "FP32", _CORE_SHAPE
        tensors = [tensor(name=name, datatype=datatype, shape=shape) for name in names]
        return pb.ModelMetadataResponse(name=request.name, versions=["1"], inputs=tensors[:1], outputs=tensors[1:])

    def ModelInfer(self, request: Any, context: grpc.ServicerContext) -> Any:
        if request.model_name in self._fake.missing:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: {request.model_name!r} is not found")
        is_core = request.model_name == CORE_MODEL
        raw, tensor = request.raw_input_contents[0], request.inputs[0]
        photo = raw if is_core else wire.file_from_tensor(wire.Tensor("IMAGE", tensor.datatype, (1, 1), (raw,))) or b""
        timeout, priority = (request.parameters[name].int64_param for name in ("timeout", "priority"))
        received = Request(
            model=request.model_name,
            photo=photo,
            parameters={n: v.string_param for n, v in request.parameters.items() if n not in ("timeout", "priority")},
            timeout=timeout / 1e6,
            priority=priority,
            headers={name: str(value) for name, value in context.invocation_metadata()},
        )
        self._fake.requests.append(received)
        content = self._next_answer(received, context)
        if is_core:
            return _response(request, "output", "FP32", tensor.shape, content)
        return _response(request, "ENHANCED", "BYTES", (1, 1), b"".join(wire.one_file("ENHANCED", content).content))

    def _next_answer(self, received: Request, context: grpc.ServicerContext) -> bytes:
        try:
            answer = self._fake.answers.popleft()
        except IndexError:
            return received.photo
        if isinstance(answer, bytes):
            return answer
        try:
            if isinstance(answer, errors.EnhanceError):
                raise answer
            if isinstance(answer, type):
                raise answer("")
            return answer(received)
        except errors.EnhanceError as error:
            self._abort(error, context)

    def _abort(self, error: errors.EnhanceError, context: grpc.ServicerContext) -> NoReturn:
        if isinstance(error, errors.DeadlineExceeded):
            self._fake.stopping.wait(context.time_remaining())
            context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
        status, message = _TRITON_ERRORS.get(type(error), ("INTERNAL", ""))
        if isinstance(error, errors.InvalidPhotograph) and str(error):
            message = f"in ensemble 'enhance', {error}"  # the ensemble passes the step's message on
        elif str(error):
            message = f"{message}: {error}"
        context.abort(grpc.StatusCode[status], message)
        raise AssertionError("abort raises")


def _response(request: Any, name: str, datatype: str, shape: tuple[int, ...], content: bytes) -> Any:
    response = pb.ModelInferResponse(model_name=request.model_name, raw_output_contents=[content])
    response.outputs.add(name=name, datatype=datatype, shape=shape)
    return response
