"""Encode requests and decode responses of Triton's gRPC protocol (KServe v2), without a connection.

A serialized protobuf message may be a concatenation of parts (the specification calls it merging). So the photograph
is appended to the rest of its request with one copy, and cut out of its response with another. As part of a message
object it would be copied twice more each way (`make benchmark-client` measures the cost).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType

Buffer = bytes | bytearray | memoryview
_SERVICE = "/inference.GRPCInferenceService/"
_LENGTH_DELIMITED = 2  #: protobuf's wire type of fields with a length prefix
_LENGTH_BYTES = 4  #: size of the little-endian length prefix of an element of a BYTES tensor


@dataclass(frozen=True)
class Tensor:
    """A tensor on the wire; ``content`` is the sequence of buffers that form its data."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    content: Sequence[Buffer]


def method_path(rpc: str) -> str:
    """Return the gRPC method path of an RPC such as ``ModelInfer``."""
    return _SERVICE + rpc


@cache
def messages() -> ModuleType:
    """Return tritonclient's protobuf messages; imported on first use, because the import is slow."""
    from tritonclient.grpc import service_pb2

    return service_pb2  # type: ignore[no-any-return]


def one_file(name: str, data: Buffer) -> Tensor:
    """Return a BYTES tensor ``[1, 1]`` that holds one file."""
    return Tensor(name, "BYTES", (1, 1), (struct.pack("<I", len(data)), data))


def infer_request(model: str, tensor: Tensor, parameters: Mapping[str, str | int]) -> bytes:
    """Return a serialized ``ModelInferRequest`` with one input. Parameters are strings or integers."""
    request = messages().ModelInferRequest(model_name=model)
    request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    for name, value in parameters.items():
        if isinstance(value, int):
            request.parameters[name].int64_param = value
        else:
            request.parameters[name].string_param = value
    length = sum(len(part) for part in tensor.content)
    field = messages().ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER
    prefix = _encode_varint(field << 3 | _LENGTH_DELIMITED) + _encode_varint(length)
    return b"".join((request.SerializeToString(), prefix, *tensor.content))


def output_tensor(answer: bytes, name: str) -> Tensor | None:
    """Return the output tensor ``name`` of a ``ModelInferResponse``, None if there is none."""
    try:
        rest, contents = _split_contents(answer)
        response = messages().ModelInferResponse.FromString(rest)
    except (IndexError, ValueError):  # invalid bytes: protobuf's DecodeError is a ValueError
        return None
    for tensor, content in zip(response.outputs, contents, strict=False):
        if tensor.name == name:
            return Tensor(name, tensor.datatype, tuple(tensor.shape), (content,))
    return None


def _split_contents(answer: bytes) -> tuple[bytes, list[memoryview]]:
    """Split a ``ModelInferResponse`` into the message without its raw contents, and the contents, not copied.

    All fields of the message are length-delimited. If a later version adds another kind, fall back to protobuf.
    """
    view, at, rest, contents = memoryview(answer), 0, [], []
    contents_key = messages().ModelInferResponse.RAW_OUTPUT_CONTENTS_FIELD_NUMBER << 3 | _LENGTH_DELIMITED
    while at < len(view):
        start = at
        key, at = _decode_varint(view, at)
        if key & 7 != _LENGTH_DELIMITED:
            response = messages().ModelInferResponse.FromString(answer)
            return answer, [memoryview(content) for content in response.raw_output_contents]
        length, at = _decode_varint(view, at)
        at += length
        if key == contents_key:
            contents.append(view[at - length : at])
        else:
            rest.append(view[start:at])
    return b"".join(rest), contents


def file_from_tensor(tensor: Tensor) -> bytes | None:
    """Return the file in a BYTES tensor ``[1, 1]``, None if the tensor holds anything else."""
    (content,) = tensor.content
    if tensor.datatype != "BYTES" or len(content) < _LENGTH_BYTES:
        return None
    (length,) = struct.unpack_from("<I", content)
    return bytes(content[_LENGTH_BYTES:]) if length == len(content) - _LENGTH_BYTES else None


def _encode_varint(value: int) -> bytes:
    """Encode an integer as protobuf does: seven bits per byte, the lowest first."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _decode_varint(view: memoryview, at: int) -> tuple[int, int]:
    """Return the integer at offset ``at``, and the offset after it."""
    value = shift = 0
    while True:
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
