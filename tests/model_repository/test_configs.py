"""Every config.pbtxt parses with the official protobuf, and says what the code says."""

import json
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from export import machine
from export.build import CAPABILITIES, MAX_BATCH, Request, _place
from export.names import INPUT, OUTPUT
from imaging import SIDE, Limits, Options

REPOSITORY = Path(__file__).parents[2] / "model_repository"
CONFIGS = sorted(REPOSITORY.rglob("*.pbtxt"))
CORE = [3, SIDE, SIDE]


def parsed(path):
    return text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())


def signature(config):
    return {
        t.name: (model_config_pb2.DataType.Name(t.data_type), list(t.dims)) for t in (*config.input, *config.output)
    }


def test_there_are_configs():
    assert {path.relative_to(REPOSITORY).parts[0] for path in CONFIGS} == {
        "enhance", "enhance_tiled", "preprocess", "restormer", "postprocess",
    }  # fmt: skip


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_parses_and_agrees_with_the_code(path):
    config = parsed(path)
    assert config.name == path.relative_to(REPOSITORY).parts[0]
    assert config.max_batch_size == MAX_BATCH
    assert config.platform == "ensemble" or config.HasField("dynamic_batching")


@pytest.mark.parametrize("name", ["config.pbtxt", "configs/cpu.pbtxt"])
def test_the_core_speaks_the_graphs_names_and_shapes(name):
    expected = {INPUT: ("TYPE_FP32", CORE), OUTPUT: ("TYPE_FP32", CORE)}
    assert signature(parsed(REPOSITORY / "restormer" / name)) == expected


def test_plans_are_found_by_the_names_they_are_published_under(monkeypatch):
    """And by no other: a plain model.plan would be taken for a GPU that is not listed."""
    config = parsed(REPOSITORY / "restormer/config.pbtxt")
    for capability, plan in config.cc_model_filenames.items():
        monkeypatch.setattr(machine, "gpus", lambda capability=capability: [("a GPU", capability)])
        assert _place(Request(package=Path("demo/package")), "tensorrt").engine == plan
    assert set(config.cc_model_filenames) == set(CAPABILITIES)
    assert not config.default_model_filename


def test_the_ensemble_fits_its_steps_together():
    ensemble = parsed(REPOSITORY / "enhance/config.pbtxt")
    known = dict(signature(ensemble))
    for step in ensemble.ensemble_scheduling.step:
        tensors = signature(parsed(REPOSITORY / step.model_name / "config.pbtxt"))
        for inner, outer in step.input_map.items():
            assert tensors[inner] == known[outer]
        for inner, outer in step.output_map.items():
            assert known.setdefault(outer, tensors[inner]) == tensors[inner]
        assert set(step.input_map) | set(step.output_map) == set(tensors)


@pytest.mark.parametrize("name", ["preprocess", "postprocess", "enhance_tiled"])
def test_limits_are_the_same_everywhere(name):
    parameters = {k: v.string_value for k, v in parsed(REPOSITORY / name / "config.pbtxt").parameters.items()}
    found = Limits.parsed(json.dumps({"parameters": {k: {"string_value": v} for k, v in parameters.items()}}))
    assert found == Limits()


def test_enhance_tiled_is_called_as_enhance_is():
    assert signature(parsed(REPOSITORY / "enhance_tiled/config.pbtxt")) == signature(
        parsed(REPOSITORY / "enhance/config.pbtxt")
    )


def test_tiles_in_flight_fit_restormers_queue():
    tiled = parsed(REPOSITORY / "enhance_tiled/config.pbtxt")
    in_flight = int(tiled.parameters["tiles_in_flight"].string_value) * tiled.instance_group[0].count
    for name in ("config.pbtxt", "configs/cpu.pbtxt"):
        queue = parsed(REPOSITORY / "restormer" / name).dynamic_batching.default_queue_policy.max_queue_size
        assert in_flight <= queue / 2


def test_every_request_parameter_is_documented_in_the_contract():
    text = (REPOSITORY / "enhance/config.pbtxt").read_text(encoding="utf-8")
    assert all(f"#   {name}" in text for name in Options.__dataclass_fields__)


def test_the_local_ensemble_differs_only_in_what_its_server_does_not_know():
    full, local = (parsed(REPOSITORY / "enhance" / name) for name in ("config.pbtxt", "configs/cpu.pbtxt"))
    assert full.ensemble_scheduling.max_inflight_requests > 0
    full.ensemble_scheduling.ClearField("max_inflight_requests")
    assert full == local
