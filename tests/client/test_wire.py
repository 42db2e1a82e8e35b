"""The wire format against Triton's protobuf messages and tritonclient."""

import numpy as np
import tritonclient.grpc
from hypothesis import given
from hypothesis import strategies as st
from restormer_client import wire
from tritonclient.grpc import service_pb2
from tritonclient.grpc._utils import _get_inference_request

PARAMETERS = st.dictionaries(st.text(min_size=1), st.text() | st.integers(-(2**63), 2**63 - 1))


@given(st.binary(), st.text(min_size=1), PARAMETERS)
def test_request_parses_with_protobuf(photo, model, parameters):
    request = service_pb2.ModelInferRequest.FromString(
        wire.infer_request(model, wire.one_file("IMAGE", photo), parameters)
    )
    assert request.model_name == model
    assert list(request.raw_input_contents) == [len(photo).to_bytes(4, "little") + photo]
    values = {k: v.string_param if v.HasField("string_param") else v.int64_param for k, v in request.parameters.items()}
    assert values == parameters


@given(st.binary(max_size=300))
def test_request_equals_tritonclients(photo):
    tensor = tritonclient.grpc.InferInput("IMAGE", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[photo]], dtype=np.object_))
    expected = _get_inference_request("enhance", [tensor], "", "", None, 0, False, False, 0, None, {"format": "webp"})
    request = wire.infer_request("enhance", wire.one_file("IMAGE", photo), {"format": "webp"})
    assert service_pb2.ModelInferRequest.FromString(request) == expected


@given(st.binary(), st.booleans())
def test_output_is_extracted_from_a_response(enhanced, second):
    response = service_pb2.ModelInferResponse(raw_output_contents=[b"other"] if second else [])
    if second:
        response.outputs.add(name="OTHER", datatype="BYTES", shape=[1])
    response.outputs.add(name="ENHANCED", datatype="BYTES", shape=[1, 1])
    response.raw_output_contents.append(len(enhanced).to_bytes(4, "little") + enhanced)
    answer = response.SerializeToString()
    assert wire.file_from_tensor(wire.output_tensor(answer, "ENHANCED")) == enhanced
    assert wire.output_tensor(answer, "ABSENT") is None


def test_response_with_an_unknown_field_is_parsed():
    """A later Triton may add fields: here the unknown field 15, an integer."""
    response = service_pb2.ModelInferResponse(raw_output_contents=[b"\1\0\0\0x"])
    response.outputs.add(name="ENHANCED", datatype="BYTES", shape=[1, 1])
    answer = bytes([15 << 3, 7]) + response.SerializeToString()
    assert wire.file_from_tensor(wire.output_tensor(answer, "ENHANCED")) == b"x"


@given(st.binary())
def test_malformed_file_tensor_gives_none(content):
    tensor = wire.Tensor("ENHANCED", "BYTES", (1, 1), (content,))
    is_one = len(content) >= 4 and int.from_bytes(content[:4], "little") == len(content) - 4
    assert (wire.file_from_tensor(tensor) is not None) == is_one
    assert wire.file_from_tensor(wire.Tensor("ENHANCED", "FP32", (1, 1), (content,))) is None
