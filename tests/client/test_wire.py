"""The bytes are those that Triton's own protobuf reads and writes."""

import numpy as np
import tritonclient.grpc
from hypothesis import given
from hypothesis import strategies as st
from restormer_client import wire
from tritonclient.grpc import service_pb2
from tritonclient.grpc._utils import _get_inference_request

PARAMETERS = st.dictionaries(st.text(min_size=1), st.text() | st.integers(-(2**63), 2**63 - 1))


@given(st.binary(), st.text(min_size=1), PARAMETERS)
def test_a_request_given_in_pieces_is_the_request(photo, model, parameters):
    made = service_pb2.ModelInferRequest.FromString(
        wire.infer_request(model, wire.one_file("IMAGE", photo), parameters)
    )
    assert made.model_name == model
    assert list(made.raw_input_contents) == [len(photo).to_bytes(4, "little") + photo]
    values = {k: v.string_param if v.HasField("string_param") else v.int64_param for k, v in made.parameters.items()}
    assert values == parameters


@given(st.binary(max_size=300))
def test_it_is_what_tritonclient_would_send(photo):
    tensor = tritonclient.grpc.InferInput("IMAGE", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[photo]], dtype=np.object_))
    theirs = _get_inference_request("enhance", [tensor], "", "", None, 0, False, False, 0, None, {"format": "webp"})
    ours = wire.infer_request("enhance", wire.one_file("IMAGE", photo), {"format": "webp"})
    assert service_pb2.ModelInferRequest.FromString(ours) == theirs


@given(st.binary(), st.booleans())
def test_an_answer_is_taken_apart(enhanced, second):
    response = service_pb2.ModelInferResponse(raw_output_contents=[b"other"] if second else [])
    if second:
        response.outputs.add(name="OTHER", datatype="BYTES", shape=[1])
    response.outputs.add(name="ENHANCED", datatype="BYTES", shape=[1, 1])
    response.raw_output_contents.append(len(enhanced).to_bytes(4, "little") + enhanced)
    answer = response.SerializeToString()
    assert wire.file_of(wire.output(answer, "ENHANCED")) == enhanced
    assert wire.output(answer, "ABSENT") is None


def test_an_answer_with_a_field_of_another_kind_is_still_read():
    """A later Triton may add one: unknown field 15, a whole number."""
    response = service_pb2.ModelInferResponse(raw_output_contents=[b"\1\0\0\0x"])
    response.outputs.add(name="ENHANCED", datatype="BYTES", shape=[1, 1])
    answer = bytes([15 << 3, 7]) + response.SerializeToString()
    assert wire.file_of(wire.output(answer, "ENHANCED")) == b"x"


@given(st.binary())
def test_what_is_no_single_file_is_told_apart(content):
    tensor = wire.Tensor("ENHANCED", "BYTES", (1, 1), (content,))
    is_one = len(content) >= 4 and int.from_bytes(content[:4], "little") == len(content) - 4
    assert (wire.file_of(tensor) is not None) == is_one
    assert wire.file_of(wire.Tensor("ENHANCED", "FP32", (1, 1), (content,))) is None
