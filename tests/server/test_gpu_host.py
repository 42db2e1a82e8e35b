"""Test a GPU host on a CPU: nvidia-smi is a stub (tests/conftest.py), and plans contain any bytes."""

import json
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

import hosts
from server import assemble, host, process
from server.settings import Settings
from tests.conftest import CARDS, bare_repository
from tests.server.conftest import publish_plan, rows

NVIDIAS = Path("/opt/tritonserver")


@pytest.fixture
def models(gpu_host, tmp_path, monkeypatch):
    """Publish plans for all `CARDS` in a model repository; the first two GPUs are visible."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    folder = bare_repository(tmp_path / "models")
    for capability in {capability for _, capability, _ in CARDS}:
        publish_plan(folder, 1, capability)
    return folder


def served(models, model="restormer", **options):
    return assemble.served_config(Settings(repository=models, triton=NVIDIAS, **options), models / model)


def test_nvidias_triton_without_a_visible_gpu_is_rejected(models, monkeypatch):
    """It cannot run an engine for CPUs, so `auto` does not mean cpu."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    checked = rows(repository=models, triton=NVIDIAS)
    assert all(cause in checked["hardware"].problem for cause in ("no GPU is visible", "--gpus", "runtimeClassName"))
    assert {checked[name].problem for name in ("engine", "driver", "instances")} == {"no GPU is visible"}


@pytest.mark.parametrize("batch", [1, 8, 32])
def test_the_served_configs_follow_the_engines_profile(models, batch):
    publish_plan(models, 1, "9.0", profile={"max": [batch, 3, 512, 512]})
    core, sizes = served(models), list(range(1, batch + 1))
    assert core.max_batch_size == batch
    assert [spec.batch_size for spec in core.optimization.cuda.graph_spec] == sizes
    assert [(sample.name, sample.batch_size) for sample in core.model_warmup] == [(f"batch {n}", n) for n in sizes]
    for samples in (core.optimization.cuda.graph_spec, [*core.model_warmup]):
        inputs = [getattr(sample, "input", None) or sample.inputs for sample in samples]
        assert all(set(each) == {"input"} for each in inputs)
    # Two H100 with two instances each; twice their batches, and at least as many as the published config allows.
    in_flight = max(160, 2 * 2 * 2 * batch)
    assert served(models, "enhance").ensemble_scheduling.max_inflight_requests == in_flight
    for config in (core, served(models, "postprocess")):
        batcher = config.dynamic_batching
        queues = {batcher.default_queue_policy.max_queue_size, batcher.priority_queue_policy[2].max_queue_size}
        assert queues == {in_flight}
    assert served(models, "preprocess").dynamic_batching.default_queue_policy.max_queue_size == 32
    pinned = assemble.pinned_mib(Settings(repository=models, triton=NVIDIAS))
    assert pinned == 3 * (3 * in_flight + 2 * 2 * 2 * batch)
    assert 1024 <= pinned <= 4096
    assert (
        f"batches of 1 to {batch}, {in_flight} photographs in flight, pinned memory {pinned} MiB"
        in rows(repository=models, triton=NVIDIAS)["instances"].result
    )


def test_the_smallest_profile_of_the_served_plans_decides(models, monkeypatch):
    """Plans for batches of 32 on an H100 and of 4 on an L40S."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    publish_plan(models, 1, "9.0", profile={"max": [32, 3, 512, 512]})
    publish_plan(models, 1, "8.9", profile={"max": [4, 3, 512, 512]})
    assert served(models).max_batch_size == 4


@pytest.mark.parametrize(
    ("memory", "slices", "precision", "batch", "instances"),
    [
        ("81559 MiB", "", "fp16", 8, 2), ("81559 MiB", "", "fp16", 32, 2), ("40960 MiB", "", "fp16", 32, 1),
        ("16376 MiB", "", "fp16", 8, 2), ("11264 MiB", "", "fp16", 8, 1), ("16376 MiB", "", "fp32", 8, 1),
        ("4096 MiB", "", "fp16", 8, 1), ("[N/A]", "", "fp16", 8, 2),
        ("81559 MiB", "  MIG 1g.10gb     Device  0: (UUID: MIG-1c9d)", "fp16", 8, 1),
        ("81559 MiB", "  MIG 1c.3g.40gb  Device  0: (UUID: MIG-1c9d)", "fp16", 8, 2),
        ("81559 MiB", "  MIG 1g.10gb+me  Device  0: (UUID: MIG-1c9d)", "fp16", 4, 2),
    ],
)  # fmt: skip
def test_memory_limits_the_instances(models, memory, slices, precision, batch, instances, monkeypatch):
    """The memory of a MIG slice counts too, although it has the name of its GPU."""
    monkeypatch.setenv("STUB_MEMORY", memory)
    monkeypatch.setenv("STUB_MIG", slices)
    publish_plan(models, 1, "9.0", precision=precision, profile={"max": [batch, 3, 512, 512]})
    assert served(models).instance_group[0].count == instances
    assert served(models, core_instances=5).instance_group[0].count == 5
    advice = rows(repository=models, triton=NVIDIAS)["instances"].result
    assert ("with --max-batch 5 " in advice) == (memory == "4096 MiB")


def test_only_the_visible_slice_counts(gpu_host, monkeypatch):
    lines = ["  MIG 1g.10gb Device 0: (UUID: MIG-aa)", "  MIG 3g.40gb Device 1: (UUID: MIG-bb)"]
    monkeypatch.setenv("STUB_MIG", "\n".join(lines))
    assert hosts.mig_sizes() == [10, 40]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-bb")
    assert hosts.mig_sizes() == [40]


def test_a_mixed_host_is_served(models, tmp_path, monkeypatch):
    """Every GPU gets an instance, and Triton selects its plan by compute capability."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(host, "tensorrt_version", lambda: "11.4.1.5")
    settings = Settings(repository=models, triton=NVIDIAS, state=tmp_path / "state")
    checked = rows(repository=models, triton=NVIDIAS)
    assert checked["engine"].problem == ""
    assert checked["hardware"].result.startswith("gpu: ")
    assemble.assemble_repository(settings)
    core = text_format.Parse((settings.served / "restormer/config.pbtxt").read_text(), ModelConfig())
    (group,) = core.instance_group
    assert (group.count, list(group.gpus)) == (1, [])
    for _, capability, _ in CARDS:
        assert (settings.served / "restormer/1" / core.cc_model_filenames[capability]).is_file()
    (models / "restormer/1/model.sm89.plan").unlink()
    assert "no model.sm89.plan for NVIDIA L40S" in rows(repository=models, triton=NVIDIAS)["engine"].problem


def memory_flags(models, **options):
    command = process.prepare(Settings(repository=models, triton=NVIDIAS, state=models.parent / "state", **options))
    return [flag for flag in command if "-pool-byte-size" in flag and "grpc" not in flag]


def test_outputs_go_to_pinned_memory(models):
    """No GPU memory for them on any visible GPU: their copies would wait on CUDA's legacy default stream."""
    pools = ["--cuda-memory-pool-byte-size=0:0", "--cuda-memory-pool-byte-size=1:0"]
    assert memory_flags(models) == [f"--pinned-memory-pool-byte-size={3 * (480 + 64) << 20}", *pools]
    chosen = memory_flags(models, pinned_mb=256, gpu_pool_mb=64)
    assert chosen[:2] == [f"--pinned-memory-pool-byte-size={256 << 20}", f"--cuda-memory-pool-byte-size=0:{64 << 20}"]


@pytest.mark.parametrize(
    ("driver", "cuda", "has_libraries", "result", "problem"),
    [
        ("580.95.05", "13.1.0.036", False, "580.95.05; CUDA 13.1.0.036 needs 580", ""),
        ("570.86.10", "13.1.0", True, "compat/lib.real, which only data-center GPUs support", ""),
        ("570.86.10", "13.1.0", False, "", "driver 570.86.10 is too old for CUDA 13.1.0"),
        ("570.86.10", "12.8", True, "570.86.10; CUDA 12.8 needs 525", ""),
        ("580.95.05", "", False, "not compared: CUDA not found", ""), ("[N/A]", "99.1", False, "not compared", ""),
    ],
)  # fmt: skip
def test_the_driver_is_compared_with_the_images_cuda(
    models, driver, cuda, has_libraries, result, problem, monkeypatch, tmp_path
):
    monkeypatch.setenv("STUB_DRIVER", driver)
    monkeypatch.setenv("CUDA_VERSION", cuda)
    monkeypatch.setenv("LD_LIBRARY_PATH", "/usr/local/nvidia/lib")
    libraries = tmp_path / "compat/lib.real"
    libraries.mkdir(parents=True)
    if has_libraries:
        (libraries / "libcuda.so.1").touch()
    monkeypatch.setattr(host, "CUDA", tmp_path)
    row = rows(repository=models, triton=NVIDIAS)["driver"]
    assert result in row.result
    assert problem in row.problem
    assert bool(row.problem) == bool(problem)
    path = process.triton_environment(Settings(triton=NVIDIAS))["LD_LIBRARY_PATH"]
    assert (path == f"{libraries}:/usr/local/nvidia/lib") == ("using" in row.result)
    assert path.endswith("/usr/local/nvidia/lib")


def test_the_images_cuda_is_also_read_from_its_files(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VERSION", raising=False)
    monkeypatch.setattr(host, "CUDA", tmp_path)
    assert host.cuda_version() == ""
    (tmp_path / "version.json").write_text(json.dumps({"cuda": {"name": "CUDA SDK", "version": "13.1.0"}}))
    assert (host.cuda_version(), host.minimum_driver()) == ("13.1.0", 580)


@pytest.mark.parametrize(
    ("status", "variable", "version"),
    [
        ("Package: libnvinfer11\nStatus: ok\nVersion: 11.4.1.5-1+cuda13.1\n", "", "11.4.1.5"),
        ("Package: libc6\nVersion: 11.4.1.9\n\nPackage: libnvinfer-lean11\nVersion: 11.4.0.2-1\n", "", "11.4.1"),
        ("", "11.4.1.7+cuda13.1.0.036", "11.4.1.7"), ("", "11.3.0.1", "11.4.1"),
    ],
)  # fmt: skip
def test_tensorrts_build_number_comes_from_package_or_image(status, variable, version, monkeypatch, tmp_path):
    (tmp_path / "libnvinfer.so.11.4.1").touch()
    (tmp_path / "status").write_text(status)
    monkeypatch.setattr(host, "DPKG", tmp_path / "status")
    monkeypatch.setenv("TRT_VERSION", variable)
    assert host.tensorrt_version([tmp_path]) == version
