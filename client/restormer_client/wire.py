"""The bytes of Triton's gRPC protocol (KServe v2): requests made and answers taken apart, without a connection.

A protobuf message may be given in pieces, one after another (the specification calls it merging). So the photograph
is joined to the rest of its request in one copy, and is never copied into a message object.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

Buffer = bytes | bytearray | memoryview
_SERVICE = "/inference.GRPCInferenceService/"
_BYTES_LENGTH = 4  #: an element of a BYTES tensor begins with its length, little-endian


@dataclass(frozen=True)
class Tensor:
    """A tensor on the wire; ``content`` is one buffer or several that follow each other."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    content: Sequence[Buffer]


def path(rpc: str) -> str:
    """The path gRPC calls, for example of ``ModelInfer``."""
    return _SERVICE + rpc


@cache
def messages() -> ModuleType:
    """tritonclient's protobuf messages; imported on first use, because it takes a while."""
    from tritonclient.grpc import service_pb2

    return service_pb2  # type: ignore[no-any-return]


def one_file(name: str, data: Buffer) -> Tensor:
    """A BYTES tensor ``[1, 1]`` that holds one file."""
    return Tensor(name, "BYTES", (1, 1), (struct.pack("<I", len(data)), data))


def infer_request(model: str, tensor: Tensor, parameters: Mapping[str, str | int]) -> bytes:
    """A ``ModelInferRequest`` with one input. Parameters are text, or whole numbers."""
    request = messages().ModelInferRequest(model_name=model)
    request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    for name, value in parameters.items():
        if isinstance(value, int):
            request.parameters[name].int64_param = value
        else:
            request.parameters[name].string_param = value
    length = sum(len(part) for part in tensor.content)
    field = messages().ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER
    return b"".join((request.SerializeToString(), _varint(field << 3 | 2), _varint(length), *tensor.content))


def output(answer: bytes, name: str) -> Tensor | None:
    """The output tensor ``name`` of a ``ModelInferResponse``, None if it is not in it."""
    response = messages().ModelInferResponse.FromString(answer)
    for tensor, content in zip(response.outputs, response.raw_output_contents, strict=False):
        if tensor.name == name:
            return Tensor(name, tensor.datatype, tuple(tensor.shape), (content,))
    return None


def file_of(tensor: Tensor) -> bytes | None:
    """The one file of a BYTES tensor ``[1, 1]``, None if it holds something else."""
    (content,) = tensor.content
    if tensor.datatype != "BYTES" or len(content) < _BYTES_LENGTH:
        return None
    (length,) = struct.unpack_from("<I", content)
    return bytes(content[_BYTES_LENGTH:]) if length == len(content) - _BYTES_LENGTH else None


def request(kind: str, **fields: Any) -> bytes:
    """Any of the small requests, for example ``request("ModelReadyRequest", name="enhance")``."""
    return bytes(getattr(messages(), kind)(**fields).SerializeToString())


def response(kind: str, answer: bytes) -> Any:
    """The message of an answer, for example of kind ``ModelReadyResponse``."""
    return getattr(messages(), kind).FromString(answer)


def _varint(value: int) -> bytes:
    """A whole number as protobuf writes it: seven bits a byte, the lowest first."""
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value)
    return bytes(made)
