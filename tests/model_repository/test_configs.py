"""Every config.pbtxt parses with Triton's schema and agrees with the code and the other configs."""

import json
import re
from pathlib import Path

import pytest
from google.protobuf import text_format
from restormer_client import calls
from tritonclient.grpc import model_config_pb2

from export.names import INPUT, OUTPUT
from export.request import MAX_BATCH, Request
from export.targets import TARGETS
from export.targets.tensorrt import CAPABILITIES
from imaging import SIDE, Limits, Options
from server import assemble, hardware

REPOSITORY = Path(__file__).parents[2] / "model_repository"
CONFIGS = sorted(path for path in REPOSITORY.rglob("*.pbtxt") if not path.parts[-2].startswith("."))
CORE = [3, SIDE, SIDE]
CPU_CORE = ("restormer", "configs", "cpu.pbtxt")
CORE_CONFIGS = ("config.pbtxt", "configs/cpu.pbtxt")
REJECT = model_config_pb2.ModelQueuePolicy.TimeoutAction.REJECT
#: Fields that the server of the PyPI wheel (2.51) does not know: it drops a model that has one.
NEWER_THAN_THE_WHEEL = ("max_inflight_requests", "model_metrics")


def parsed(path):
    return text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())


def config(name):
    """Return the parsed config of ``model`` or ``model/configs/x.pbtxt``."""
    return parsed(REPOSITORY / name / "config.pbtxt" if "/" not in name else REPOSITORY / name)


def signature(config):
    return {
        t.name: (model_config_pb2.DataType.Name(t.data_type), list(t.dims)) for t in (*config.input, *config.output)
    }


def policies(config):
    """Return the queue policy of each priority level."""
    batcher = config.dynamic_batching
    return {1: batcher.default_queue_policy, 2: batcher.priority_queue_policy[2]}


def test_there_are_configs():
    assert {path.relative_to(REPOSITORY).parts[0] for path in CONFIGS} == {
        "enhance", "enhance_tiled", "preprocess", "restormer", "postprocess",
    }  # fmt: skip
    assert {path.stem for path in CONFIGS if path.parent.name == "configs"} == {"cpu"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_parses_and_is_named_as_its_folder(path):
    assert parsed(path).name == path.relative_to(REPOSITORY).parts[0]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_every_chosen_number_has_a_comment(path):
    """A comment stands above, in the same paragraph of fields."""
    fields = ("max_inflight_requests", "max_queue_delay", "default_queue_policy", "instance_group", "parameters")
    text = path.read_text(encoding="utf-8")
    for name in fields:
        if match := re.search(rf"^ *{name}", text, re.MULTILINE):
            above = text[: match.start()].splitlines()[-8:]
            assert any(line.lstrip().startswith("#") for line in above), name


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_every_queue_is_bounded_rejects_in_time_and_has_two_levels(path):
    loaded = parsed(path)
    if loaded.platform == "ensemble":
        return
    batcher = loaded.dynamic_batching
    assert (batcher.priority_levels, batcher.default_priority_level) == (
        len(calls.PRIORITIES),
        calls.PRIORITIES["interactive"],
    )
    # NVIDIA advises against preferred sizes. On a CPU size 1 stops the batcher; a client's own batches pass.
    assert list(batcher.preferred_batch_size) == ([1] if path.parts[-3:] == CPU_CORE else [])
    for policy in policies(loaded).values():
        assert policy.timeout_action == REJECT
        assert policy.default_timeout_microseconds > 0
        assert policy.allow_timeout_override
        assert policy.max_queue_size > 0
    interactive, bulk = policies(loaded)[1], policies(loaded)[2]
    assert interactive.default_timeout_microseconds < bulk.default_timeout_microseconds


@pytest.mark.parametrize("core", CORE_CONFIGS)
def test_a_waiting_request_is_rejected_before_its_client_times_out(core):
    """The time limits of all queues together are shorter than the client's."""
    prepares = "preprocess/configs/cpu.pbtxt" if core == "configs/cpu.pbtxt" else "preprocess"
    steps = (config(prepares), parsed(REPOSITORY / "restormer" / core), config("postprocess"))
    waits = sum(policies(step)[1].default_timeout_microseconds for step in steps)
    assert waits / 1e6 < calls.TIMEOUT


@pytest.mark.parametrize(
    "name",
    [f"{model}{own}" for model in ("preprocess", "enhance") for own in ("", "/configs/cpu.pbtxt")] + ["postprocess"],
)
def test_models_without_batching_take_one_photograph_a_call(name):
    assert config(name).max_batch_size == 1


@pytest.mark.parametrize("name", CORE_CONFIGS)
def test_the_core_speaks_the_graphs_names_and_shapes(name):
    expected = {INPUT: ("TYPE_FP32", CORE), OUTPUT: ("TYPE_FP32", CORE)}
    assert signature(parsed(REPOSITORY / "restormer" / name)) == expected


def test_every_batch_size_of_the_engines_profile_is_captured_and_warmed():
    core = config("restormer")
    sizes = list(range(1, MAX_BATCH + 1))
    cuda = core.optimization.cuda
    assert core.max_batch_size == MAX_BATCH
    assert cuda.graphs
    assert [spec.batch_size for spec in cuda.graph_spec] == sizes
    assert all(list(spec.input[INPUT].dim) == CORE for spec in cuda.graph_spec)
    assert [sample.batch_size for sample in core.model_warmup] == sizes
    assert all(list(sample.inputs[INPUT].dims) == CORE for sample in core.model_warmup)


@pytest.mark.parametrize("gpu", hardware.GPUS)
def test_the_reasons_in_the_table_of_gpus_match_the_roofline(gpu):
    recorded = json.loads((REPOSITORY.parent / "benchmarks/results/roofline.json").read_text(encoding="utf-8"))
    batch = recorded["batch"]
    least = recorded["gpus"][gpu]["fused_ms"]["fp16"][str(batch)]
    text = Path(hardware.__file__).read_text(encoding="utf-8")
    reasons = text.split(f'"{gpu}": Values')[0].rpartition("Values(")[2]
    assert f"{least:.1f} ms a photograph, {batch * least:.0f} ms a batch of eight" in reasons
    assert 0.1 < hardware.GPUS[gpu].delay_us / (1000 * least) < 0.25


def test_every_gpu_gets_its_instances():
    (group,) = config("restormer").instance_group
    assert group.kind == model_config_pb2.ModelInstanceGroup.Kind.KIND_GPU
    assert not group.gpus


def test_the_highest_version_is_served_alone():
    for name in CORE_CONFIGS:
        assert parsed(REPOSITORY / "restormer" / name).version_policy.latest.num_versions == 1


def test_the_cpu_takes_the_batches_of_a_gpu_and_is_warmed_with_what_it_runs():
    core = config("restormer/configs/cpu.pbtxt")
    assert core.max_batch_size == MAX_BATCH
    assert [sample.batch_size for sample in core.model_warmup] == [1]


def test_plans_are_found_by_the_names_they_are_published_under(cuda_device):
    """And by no other: a plain model.plan would be taken for a GPU that is not listed."""
    core = config("restormer")
    for capability, plan in core.cc_model_filenames.items():
        cuda_device("a GPU", capability)
        assert TARGETS["tensorrt"].location(Request(package=Path("demo/package"))).engine == plan
    assert set(core.cc_model_filenames) == set(CAPABILITIES)
    assert {"8.7", "11.0", "12.1"} < set(CAPABILITIES)  # Jetson Orin, Jetson Thor, DGX Spark
    assert not core.default_model_filename


def test_the_ensemble_fits_its_steps_together():
    ensemble = config("enhance")
    known = dict(signature(ensemble))
    for step in ensemble.ensemble_scheduling.step:
        tensors = signature(config(step.model_name))
        for inner, outer in step.input_map.items():
            assert tensors[inner] == known[outer]
        for inner, outer in step.output_map.items():
            assert known.setdefault(outer, tensors[inner]) == tensors[inner]
        assert set(step.input_map) | set(step.output_map) == set(tensors)
        assert config(step.model_name).max_batch_size >= ensemble.max_batch_size


def test_the_client_speaks_the_ensembles_names():
    text = Path(calls.__file__).read_text(encoding="utf-8")
    for model in (calls.MODEL, calls.TILED_MODEL):
        assert all(f'"{name}"' in text for name in signature(config(model)))


@pytest.mark.parametrize("name", ["preprocess", "postprocess", "enhance_tiled"])
def test_limits_are_the_same_everywhere(name):
    parameters = {name: value.string_value for name, value in config(name).parameters.items()}
    assert Limits(int(parameters["max_pixels"]), int(parameters["max_bytes"])) == Limits()


def test_both_adapters_keep_the_same_histogram():
    edges = {name: config(name).parameters["histogram_ms"].string_value for name in assemble.WORK_MS}
    assert len(set(edges.values())) == 1
    numbers = [float(edge) for edge in edges["preprocess"].split()]
    assert numbers == sorted(numbers)


def test_enhance_tiled_is_called_as_enhance_is():
    assert signature(config("enhance_tiled")) == signature(config("enhance"))


@pytest.mark.parametrize("name", CORE_CONFIGS)
def test_tiles_in_flight_leave_half_of_restormers_queue(name):
    tiles = parsed(REPOSITORY / "enhance_tiled" / name)
    in_flight = int(tiles.parameters["tiles_in_flight"].string_value) * tiles.instance_group[0].count
    assert in_flight <= policies(parsed(REPOSITORY / "restormer" / name))[1].max_queue_size / 2
    assert tiles.max_batch_size <= int(tiles.parameters["photographs_in_flight"].string_value)


def test_every_request_parameter_is_documented_in_the_contract():
    text = (REPOSITORY / "enhance/config.pbtxt").read_text(encoding="utf-8")
    assert all(f"#   {name}" in text for name in Options.__dataclass_fields__)


def test_the_local_ensemble_differs_only_in_what_its_server_does_not_know():
    full, local = (config(name) for name in ("enhance", "enhance/configs/cpu.pbtxt"))
    assert full.ensemble_scheduling.max_inflight_requests > 0
    full.ensemble_scheduling.ClearField("max_inflight_requests")
    assert full == local


def test_the_local_enhance_tiled_differs_only_in_tiles_in_flight():
    full, local = (config(name) for name in ("enhance_tiled", "enhance_tiled/configs/cpu.pbtxt"))
    del full.parameters["tiles_in_flight"], local.parameters["tiles_in_flight"]
    assert full == local


def test_preprocess_on_a_cpu_differs_only_in_queue_and_rate_limiter():
    usual, local = (config(name) for name in ("preprocess", "preprocess/configs/cpu.pbtxt"))
    for loaded in (usual, local):
        loaded.instance_group[0].count = 1
        for policy in policies(loaded).values():
            policy.max_queue_size = policy.default_timeout_microseconds = 1
    local.instance_group[0].ClearField("rate_limiter")
    assert usual == local


def test_preprocess_and_the_network_take_turns_on_a_cpu_host_only():
    """Both hold the same resource, and a decoded photograph goes on before the next is decoded."""
    prepares, core = (
        config(f"{name}/configs/cpu.pbtxt").instance_group[0].rate_limiter for name in ("preprocess", "restormer")
    )
    assert prepares.resources == core.resources
    assert [resource.count for resource in core.resources] == [1]
    assert core.priority < prepares.priority
    for path in CONFIGS:
        if path.stem != "cpu":
            assert not any(group.HasField("rate_limiter") for group in parsed(path).instance_group)


def test_excess_requests_are_rejected_by_preprocess():
    """preprocess never reaches max_inflight_requests, and the queues of the other steps hold as many."""
    limit = config("enhance").ensemble_scheduling.max_inflight_requests
    most_processes = 96
    assert sum(policy.max_queue_size for policy in policies(config("preprocess")).values()) + most_processes <= limit
    for name in ("restormer", "postprocess"):
        assert all(policy.max_queue_size >= limit for policy in policies(config(name)).values())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_what_the_local_server_loads_has_no_field_it_does_not_know(path):
    """It loads configs/cpu.pbtxt where a model has one, the others' config.pbtxt."""
    if path.stem == "cpu" or not (path.parent / "configs/cpu.pbtxt").exists():
        code = re.sub(r"#.*", "", path.read_text(encoding="utf-8"))
        assert not [field for field in NEWER_THAN_THE_WHEEL if field in code]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_no_config_enables_the_response_cache(path):
    """The cache's key ignores request parameters; only the served copy of restormer may have it."""
    assert not parsed(path).response_cache.enable
