"""NVIDIA's parser and builder accept the graph: TensorRT for RTX builds without a GPU.

The standard network (26,126,644 parameters) goes through in every precision, with random weights.
"""

import importlib.util
import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from export.__main__ import main
from export.errors import ExportError
from export.network import int8
from export.network.architecture import owner_network
from export.network.coverage import convolutions, share_in_type
from export.network.graph import onnx_bytes, onnx_from_network
from export.network.restormer import Restormer
from export.network.rewrites import rewrite_network, to_floating_type
from export.precision import PRECISIONS
from export.request import TILING, Options, Request
from export.targets import TARGETS
from export.targets.nvidia import _load_timings, _profile, make_logger, make_progress_monitor
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="TensorRT for RTX has wheels for Linux on x86-64"
)

#: Parsed layers of the owner's base network, and casts among them: neither may grow.
MOST_LAYERS = {"fp32": 1859, "bf16": 1993, "fp16": 1993, "int8": 3577}
MOST_CASTS = {"fp32": 44, "bf16": 178, "fp16": 178, "int8": 178}
ONE_GPU = Options(compute_capabilities=("8.9",))
RTX = TARGETS["rtx"]


@pytest.fixture(scope="module")
def standard():
    torch.manual_seed(0)
    network = Restormer(owner_network()).eval()
    with torch.no_grad():
        for parameter in network.parameters():  # as after training: all temperatures differ
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    return rewrite_network(network)


@pytest.fixture(scope="module")
def half_graph(standard):
    return onnx_from_network(to_floating_type(standard, "fp16"))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_standard_network_builds(standard, precision):
    graph = onnx_from_network(to_floating_type(standard, precision))
    check(graph, precision)
    if precision == "fp32":  # TF32 is the same graph with another flag
        check(graph, precision, tf32=True)


@pytest.mark.timeout(600)
def test_the_standard_network_builds_in_fp16(half_graph):
    check(half_graph, "fp16")


@pytest.mark.timeout(600)
def test_the_standard_network_builds_in_int8(standard, half_graph):
    graph = int8.quantize_graph(half_graph, dict.fromkeys(int8.candidates(standard), 3.0))
    assert share_in_type(convolutions(graph), "INT8") > PRECISIONS["int8"].min_share
    plan = RTX.build_plan(onnx_bytes(graph), ONE_GPU)
    print(f"int8: {plan.layers} layers, {plan.casts} casts, {len(plan.data) / 2**20:.0f} MiB")
    assert plan.layer_types["QUANTIZE"] == len(int8.candidates(standard))
    assert plan.layers <= MOST_LAYERS["int8"]
    assert plan.casts <= MOST_CASTS["int8"]
    assert all("scales to fp32" in warning for warning in plan.warnings)  # how the builder keeps Q/DQ scales


def check(graph, precision, *, tf32=False):
    assert share_in_type(convolutions(graph), PRECISIONS[precision].arithmetic) == 1.0
    plan = RTX.build_plan(onnx_bytes(graph), ONE_GPU, tf32=tf32)
    print(f"{precision}: {plan.layers} layers, {plan.casts} casts, {len(plan.data) / 2**20:.0f} MiB, {plan.warnings}")
    assert plan.layers <= MOST_LAYERS[precision]
    assert plan.casts <= MOST_CASTS[precision]
    assert plan.layer_types["NORMALIZATION"] == 88
    assert plan.warnings == ()


def test_tf32_is_off_unless_asked_for(monkeypatch):
    """TF32 is on by default in TensorRT; only the flag distinguishes the two engines."""
    trt = RTX.library()
    builder = trt.Builder(make_logger(trt))
    for tf32 in (False, True):
        config = RTX.builder_config(trt, builder, ONE_GPU, tf32=tf32)
        assert config.get_flag(trt.BuilderFlag.TF32) == tf32


@pytest.mark.parametrize("side", [256, 512])
def test_the_profile_has_the_graphs_size(side):
    trt = RTX.library()
    builder = trt.Builder(make_logger(trt))
    network = builder.create_network(0)
    network.add_input("input", trt.float32, (-1, 3, side, side))
    profile = _profile(builder, network, RTX.profile(Options(max_batch=4, opt_batch=2)))
    config = RTX.builder_config(trt, builder, ONE_GPU, tf32=False)
    assert config.add_optimization_profile(profile) == 0  # its index; -1 if it is not valid
    assert config.num_optimization_profiles == 1
    assert [tuple(shape) for shape in profile.get_shape("input")] == [
        (1, 3, side, side),
        (2, 3, side, side),
        (4, 3, side, side),
    ]


def test_the_largest_and_the_best_batch_are_in_plan_and_json(tiny_network):
    """Real plans for a small image; their JSON records the profile at 512x512."""
    graph = onnx_bytes(onnx_from_network(tiny_network, side=32))
    for largest, best in ((1, None), (8, 1), (32, None)):
        options = Options(max_batch=largest, opt_batch=best, optimization_level=0, compute_capabilities=("8.9",))
        assert RTX.build_plan(graph, options).layers > 0
        profile = {"min": [1, 3, 512, 512], "opt": [best or largest, 3, 512, 512], "max": [largest, 3, 512, 512]}
        assert RTX.profile(options) == profile


def test_options_reach_the_builder():
    trt = RTX.library()
    builder = trt.Builder(make_logger(trt))
    options = Options(
        optimization_level=5, timing_iterations=8, tiling="full", aux_streams=0, workspace_mb=64,
        compute_capabilities=("8.6", "12.0"),
    )  # fmt: skip
    config = RTX.builder_config(trt, builder, options, tf32=False)
    assert config.builder_optimization_level == 5
    assert config.avg_timing_iterations == 8
    assert config.tiling_optimization_level == trt.TilingOptimizationLevel.FULL
    assert config.max_aux_streams == 0
    assert config.profiling_verbosity == trt.ProfilingVerbosity.DETAILED
    assert {level.lower() for level in trt.TilingOptimizationLevel.__members__} == set(TILING)
    assert config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 64 << 20
    assert [config.get_compute_capability(i) for i in range(2)] == [
        trt.ComputeCapability.SM86,
        trt.ComputeCapability.SM120,
    ]


def test_an_unknown_gpu_is_rejected():
    with pytest.raises(
        ExportError, match=r"--compute-capabilities: .* not build for 9\.0: choose among 7\.5 8\.0 8\.6"
    ):
        RTX.build_plan(b"", Options(compute_capabilities=("9.0",)))


def test_an_invalid_graph_is_rejected():
    with pytest.raises(ExportError, match="tensorrt_rtx rejects the graph: "):
        RTX.build_plan(b"no graph", ONE_GPU)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("when", ["phase_start", "step_complete", "phase_finish"])
def test_ctrl_c_and_sigterm_in_the_builder_reach_the_user(when, interruption):
    """No exception may cross the library: the monitor stops the build, which then raises it."""
    progress = make_progress_monitor(RTX.library())
    assert progress.step_complete("tactics", 1)
    calls = {"phase_start": ("tactics", None, 3), "step_complete": ("tactics", 1), "phase_finish": ("tactics",)}

    class Interrupted(dict):
        def interrupt(self, *arguments):
            raise interruption

        __setitem__ = get = pop = interrupt

    progress._steps = Interrupted()
    getattr(progress, when)(*calls[when])
    assert isinstance(progress.interruption, interruption)
    assert not progress.step_complete("tactics", 2)


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed here")
def test_a_missing_tensorrt_names_its_installation():
    with pytest.raises(ExportError, match=r"--target tensorrt needs tensorrt, .*: make setup-gpu on a GPU host"):
        TARGETS["tensorrt"].library()


def test_the_plan_is_for_cudas_device_and_not_for_the_first_of_nvidia_smi(gpu_host, cuda_device):
    """On a host that nvidia-smi lists with an H100 first."""
    cuda_device("NVIDIA L40S", "8.9")
    tensorrt = TARGETS["tensorrt"]
    assert tensorrt.location(Request(package=Path("demo/package"))).engine == "model.sm89.plan"
    assert tensorrt.gpu() == ("NVIDIA L40S", "8.9")


def test_a_driver_that_is_too_old_is_not_reported_as_a_missing_cuda(cuda_device, monkeypatch):
    def fail():
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 12020).\nPlease update it")

    cuda_device("NVIDIA L40S", "8.9")
    monkeypatch.setattr(torch.cuda, "init", fail)
    with pytest.raises(ExportError, match=r"cannot use the GPU: .* too old \(found version 12020\)\.$"):
        TARGETS["tensorrt"].gpu()
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(ExportError, match=r"has no CUDA: install a CUDA build of torch"):
        TARGETS["tensorrt"].gpu()


def test_timings_are_separate_for_each_gpu_and_tensorrt(cuda_device, monkeypatch):
    """H100 and H200 have the same compute capability; TensorRT here is a stub."""
    tensorrt = TARGETS["tensorrt"]
    monkeypatch.setattr(type(tensorrt), "library", lambda self: SimpleNamespace(__version__="11.4.1.5"))
    names = set()
    for name in ("NVIDIA H100 80GB HBM3", "NVIDIA H200"):
        cuda_device(name, "9.0")
        names.add(tensorrt.timing_cache(Path(".cache")).name)
    assert names == {"tensorrt-11.4.1.5-NVIDIA-H100-80GB-HBM3.timing", "tensorrt-11.4.1.5-NVIDIA-H200.timing"}
    assert RTX.timing_cache(Path(".cache")) is None


def test_timings_of_another_device_are_not_used(tmp_path):
    """TensorRT rejects them (here a stub, because TensorRT for RTX times nothing)."""
    calls = []

    class Config:
        def create_timing_cache(self, data):
            return data

        def set_timing_cache(self, cache, *, ignore_mismatch):
            calls.append((cache, ignore_mismatch))
            return not cache

    path = tmp_path / "another.timing"
    path.write_bytes(b"another device's")
    assert _load_timings(Config(), path) == b""
    assert calls == [(b"another device's", False), (b"", False)]


def test_nvidias_libraries_are_imported_late():
    code = "import sys, export.factory, export.context, export.build, export.__main__;"
    code += "print(sorted(m for m in sys.modules if m.startswith('tensorrt')))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_tensorrt_build_without_a_gpu_is_rejected(capsys, monkeypatch):
    monkeypatch.setenv("PATH", os.defpath)
    assert main(["engine", "--package", "demo/package", "--target", "tensorrt"]) == 1
    assert "needs an NVIDIA GPU, and none is visible" in capsys.readouterr().err
