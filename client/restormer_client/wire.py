"""The bytes of Triton's gRPC protocol (KServe v2): requests made and answers taken apart, without a connection.

A protobuf message may be given in pieces, one after another (the specification calls it merging). So the photograph
is joined to the rest of its request in one copy and cut out of its answer in another, and is never part of a message
object, which would copy it twice more each way (`make benchmark-client` shows what that costs).
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
_HAS_LENGTH = 2  #: protobuf's wire type of what has its length before it
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
    return b"".join((request.SerializeToString(), _varint(field << 3 | _HAS_LENGTH), _varint(length), *tensor.content))


def output(answer: bytes, name: str) -> Tensor | None:
    """The output tensor ``name`` of a ``ModelInferResponse``, None if it is not in it."""
    try:
        rest, contents = _without_contents(answer)
        response = messages().ModelInferResponse.FromString(rest)
    except (IndexError, ValueError):  # protobuf's DecodeError is a ValueError where it is not IndexError
        return None
    for tensor, content in zip(response.outputs, contents, strict=False):
        if tensor.name == name:
            return Tensor(name, tensor.datatype, tuple(tensor.shape), (content,))
    return None


def _without_contents(answer: bytes) -> tuple[bytes, list[memoryview]]:
    """A ``ModelInferResponse`` less its raw contents, and these, not copied.

    Every field of that message has its length before it; should a later version add another kind, all stays in place.
    """
    view, at, rest, contents = memoryview(answer), 0, [], []
    wanted = messages().ModelInferResponse.RAW_OUTPUT_CONTENTS_FIELD_NUMBER << 3 | _HAS_LENGTH
    while at < len(view):
        start = at
        key, at = _read_varint(view, at)
        if key & 7 != _HAS_LENGTH:
            contents = [
                memoryview(each) for each in messages().ModelInferResponse.FromString(answer).raw_output_contents
            ]
            return answer, contents
        length, at = _read_varint(view, at)
        at += length
        if key == wanted:
            contents.append(view[at - length : at])
        else:
            rest.append(view[start:at])
    return b"".join(rest), contents


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


def _read_varint(view: memoryview, at: int) -> tuple[int, int]:
    """The whole number at this place, and the place after it."""
    value = shift = 0
    while True:
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
