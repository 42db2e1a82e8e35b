"""Precisions that a CPU executes, and OpenVINO's settings for them."""

import openvino
import pytest

from export import machine
from export.precision import PRECISIONS
from export.targets import cpu


@pytest.mark.parametrize(("types", "rest", "hint"), [(["FP32"], "fp32", "f32"), (["FP32", "BF16"], "bf16", "bf16")])
def test_the_rest_of_int8_is_bfloat16_where_the_cpu_executes_it(monkeypatch, types, rest, hint):
    monkeypatch.setattr(openvino.Core, "get_property", lambda self, device, name: types)
    monkeypatch.setattr(machine, "cpu_flags", lambda: {"avx512_vnni"})
    assert cpu.floating_type(PRECISIONS["int8"]) == rest
    assert cpu.settings(PRECISIONS["int8"])["INFERENCE_PRECISION_HINT"] == hint
    assert cpu.floating_type(PRECISIONS["fp32"]) == "fp32"
    document = {"precision": "int8", "runtime": {"settings": {"INFERENCE_PRECISION_HINT": "bf16"}}}
    reason = cpu.Cpu().why_not_run(document)  # of an engine built on a CPU with bfloat16
    assert ("this CPU has no bfloat16 arithmetic" in reason) == (rest == "fp32")
