"""The ``tensorrt`` target as far as a machine without a GPU gets.

TensorRT for RTX stands in for TensorRT: it parses and builds for real. Stubs stand in for CUDA and for the runtime,
whose plan is run by PyTorch.
"""

import contextlib
import ctypes
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import hosts
from export import factory
from export import onnx_runtime as ort
from export.build import build
from export.engines import engines_table
from export.errors import ExportError
from export.fidelity import torch_runner
from export.network.coverage import Convolution
from export.publish import EngineLocation, link_aliases, provenance
from export.request import Options, Request
from export.targets import TARGETS, tensorrt
from export.targets.tensorrt import AMPERE_PLUS, INSTALLATION, LoadedPlan, TensorRT, executed_layers
from export.triton import serve_engine
from server import engines
from tests.conftest import SERVER_PYTHON, bare_repository

rtx = pytest.importorskip("tensorrt_rtx")


class Context:
    """An execution context that runs a network of PyTorch on the addresses that it is given."""

    def __init__(self, network):
        self._run, self._addresses = torch_runner(network), {}

    def set_input_shape(self, name, shape):
        self._shape = shape

    def get_tensor_shape(self, name):
        return self._shape

    def set_tensor_address(self, name, address):
        self._addresses[name] = address

    def execute_async_v3(self, stream):
        source, target = (self._tensor(name) for name in ("input", "output"))
        target[:] = self._run(source)
        return True

    def _tensor(self, name):
        count = int(np.prod(self._shape))
        return np.ctypeslib.as_array((ctypes.c_float * count).from_address(self._addresses[name])).reshape(self._shape)


class Library:
    """The module, with a runtime that loads every plan."""

    def __init__(self, network):
        inspector = SimpleNamespace(get_engine_information=lambda format: json.dumps({"Layers": ["a name"]}))
        engine = SimpleNamespace(
            num_io_tensors=2,
            get_tensor_name=["output", "input"].__getitem__,
            create_execution_context=lambda: Context(network),
            create_engine_inspector=lambda: inspector,
        )
        self.Runtime = lambda logger: SimpleNamespace(deserialize_cuda_engine=lambda plan: engine)

    def __getattr__(self, name):
        return getattr(rtx, name)


class Event:
    """An event of CUDA that reports two milliseconds."""

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self, stream): ...

    def synchronize(self): ...

    def elapsed_time(self, end):
        return 2.0


A100, L40S = ("NVIDIA A100-SXM4-80GB", "8.0"), ("NVIDIA L40S", "8.9")


@pytest.fixture
def tensorrt_host(tiny_network, cuda_device, monkeypatch):
    """Simulate a host with an A100."""
    cuda_device(*A100)
    monkeypatch.setattr(hosts, "gpus", lambda: [A100])
    library, configure = Library(tiny_network), TensorRT.configure
    monkeypatch.setattr(TensorRT, "library", lambda self: library)

    def configure_both(self, trt, config, options):
        configure(self, trt, config, options)
        TARGETS["rtx"].configure(trt, config, options)  # without a GPU it has to be told what to build for

    monkeypatch.setattr(TensorRT, "configure", configure_both)
    monkeypatch.setattr(tensorrt, "DEVICE", "cpu")
    monkeypatch.setattr(tensorrt, "WARM_UP", 0)
    monkeypatch.setattr(tensorrt, "ROUNDS", 1)
    stream = SimpleNamespace(cuda_stream=0, synchronize=lambda: None, wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)


def test_a_portable_plan_is_measured_and_published_under_the_names_it_serves(
    tiny, tmp_path, tensorrt_host, monkeypatch, tiny_network, capsys
):
    (tmp_path / "backends/tensorrt").mkdir(parents=True)
    monkeypatch.setenv(INSTALLATION, str(tmp_path))
    served = []

    @contextlib.contextmanager
    def serve_engine(python, repository, folder, *flags):
        served.append((flags, json.loads((folder / "model.sm80.plan.json").read_text())))
        yield torch_runner(tiny_network)

    monkeypatch.setattr(factory, "serve_engine", serve_engine)
    folders = {"repository": bare_repository(tmp_path / "models"), "engines": tmp_path / "engines"}
    options = Options(max_batch=2, compatibility="ampere_plus", optimization_level=1, compute_capabilities=("8.0",))
    request = Request(
        **tiny, **folders, target="tensorrt", precision="fp32", server_python=SERVER_PYTHON, options=options
    )
    [engine] = build(request)
    document = provenance(engine)
    stages = [stage["rung"] for stage in document["fidelity"]["ladder"]]
    assert stages[1:] == [
        "ONNX Runtime", "ONNX Runtime, CUDA", "engine, TensorRT", "batch of 2, against batch of 1", "served by Triton",
    ]  # fmt: skip
    assert "reason" in document["fidelity"]["ladder"][2]  # there is no CUDA here
    assert document["fidelity"]["ladder"][-2]["psnr"] > 90
    assert document["runtime"]["gpu_ms"] == {"1": 2.0, "2": 2.0}
    assert json.loads(engine.with_name(f"{engine.name}.layers.json").read_text()) == {"Layers": ["a name"]}
    assert document["runtime"]["work_executed_in"] == {"unknown": 1.0}
    assert document["machine"]["gpu"] == A100[0]
    [(flags, described)] = served
    assert flags == ("--triton", str(tmp_path), "--hardware", "gpu")
    assert described["profile"]["max"][0] == 2
    assert described["machine"]["gpu_compute_capability"] == "8.0"

    names = {f"model.sm{capability.replace('.', '')}.plan" for capability in AMPERE_PLUS}
    assert {path.name for path in engine.parent.glob("*.plan")} == names
    assert names | {f"{name}.json" for name in names} < set(document["files"])
    assert engines.check_engines(folders["repository"], [L40S], tensorrt="").path.name == "model.sm89.plan"
    monkeypatch.setattr(hosts, "gpus", lambda: [L40S])
    (row,) = engines_table(**folders).splitlines()[1:]
    assert row.endswith("yes")
    monkeypatch.setattr(hosts, "gpus", lambda: [("Tesla T4", "7.5")])
    assert "8.0 or 8.6 or 8.9 or 9.0 or 10.0 or 10.3 or 12.0 or 12.1, found 7.5" in engines_table(**folders)
    monkeypatch.setattr(hosts, "gpus", lambda: [A100])
    capsys.readouterr()
    build(request)
    assert "nothing to do" in capsys.readouterr().err


@pytest.mark.parametrize("is_wanted", [False, True])
def test_onnx_runtimes_tensorrt_is_measured_only_on_request(tensorrt_host, tmp_path, is_wanted):
    """It builds the graph a second time."""
    context = SimpleNamespace(
        request=Request(package=tmp_path, options=Options(max_batch=1, onnxruntime_tensorrt=is_wanted)),
        measure_onnx_runtime=lambda graph, provider: provider,
        measure_batch=lambda types, run: [],
        reference=SimpleNamespace(measure=lambda stage, types, run: stage),
    )
    plan, layers = SimpleNamespace(data=b""), [Convolution("a", 1, 1, "typed", "a")]
    _, stages = TARGETS["tensorrt"].measure(context, b"", plan, tmp_path / "model.plan", layers)
    assert stages == [ort.CUDA, *[ort.TENSORRT] * is_wanted, "engine, TensorRT"]


def test_an_alias_does_not_replace_a_plan_built_for_that_gpu(tmp_path):
    """The plan for 8.6 belongs to an older portable plan; that for 9.0 was built on such a GPU."""
    for name, engine in (("sm80", "sm80"), ("sm86", "sm89"), ("sm90", "sm90")):
        (tmp_path / f"model.{name}.plan").write_text(name)
        (tmp_path / f"model.{name}.plan.json").write_text(json.dumps({"engine": f"model.{engine}.plan"}))
    aliases = ("model.sm86.plan", "model.sm90.plan", "model.sm120.plan")
    link_aliases(EngineLocation(tmp_path, 1, "model.sm80.plan", aliases), tmp_path)
    contents = {path.name: path.read_text() for path in tmp_path.glob("*.plan")}
    assert contents == {"model.sm80.plan": "sm80", **dict.fromkeys(aliases, "sm80"), "model.sm90.plan": "sm90"}
    assert json.loads((tmp_path / "model.sm120.plan.json").read_text())["engine"] == "model.sm80.plan"


@pytest.mark.parametrize(("cards", "reason"), [([A100, L40S], "mixed GPUs"), ([A100, A100], "")])
def test_a_plan_is_served_where_there_is_a_triton_with_tensorrt(monkeypatch, tmp_path, cards, reason):
    target, request = TARGETS["tensorrt"], Request(package=tmp_path, server_python=SERVER_PYTHON)
    monkeypatch.setattr(hosts, "gpus", lambda: cards)
    monkeypatch.setenv(INSTALLATION, str(tmp_path))
    assert "no Triton with TensorRT" in target.why_not_served(request)
    (tmp_path / "backends/tensorrt").mkdir(parents=True)
    assert target.why_not_served(request).startswith(reason)
    assert bool(target.why_not_served(request)) == bool(reason)


def test_a_plan_is_served_by_nvidias_triton_and_not_by_the_wheel(monkeypatch, tmp_path):
    """The real server gets the flags; the installation is an empty folder."""
    monkeypatch.setenv(INSTALLATION, str(tmp_path))
    (tmp_path / "1").mkdir()
    flags, models = TARGETS["tensorrt"].serving_flags(), bare_repository(tmp_path / "models")
    with (
        pytest.raises(ExportError, match=f"does not start: .*{tmp_path}/bin/tritonserver not found"),
        serve_engine(SERVER_PYTHON, models, tmp_path / "1", *flags),
    ):
        pass


def layer(metadata, **stated):
    return {"Name": "a layer", "LayerType": "gemm", "Metadata": metadata, **stated}


def test_executed_types_are_read_from_tensorrts_inspector():
    """Read rows as written by TensorRT 10 and 11, of layers fused from several nodes, and with names only."""
    information = {
        "Layers": [
            layer("[ONNX Layer: a]\x1e[ONNX Layer: add]", Inputs=[{"DataType": "Half", "Format": "kLINEAR"}]),
            layer("[ONNX Layer: b]", Inputs=[{"DataType": "Float"}], Weights={"Type": "Int8", "Count": 9}),
            layer("[ONNX Layer: c]", Inputs=[{"Format/Datatype": "Row major linear FP32"}]),
            layer("[ONNX Layer: d]", Inputs=[{"Format/Datatype": "Channel major BFloat16 format"}]),
            layer("[ONNX Layer: e]", Inputs=[]),
            "a reformat",
        ],
        "I/O Tensors": [],
    }
    found = executed_layers(information, [Convolution(node, 1, 1, "typed", node) for node in "abcdef"])
    expected = ["FLOAT16", "INT8", "FLOAT", "BFLOAT16", "unknown", "unknown"]
    assert [convolution.arithmetic for convolution in found] == expected


def test_a_plan_that_does_not_load_is_reported():
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda plan: None)
    with pytest.raises(ExportError, match="built for another GPU or TensorRT"):
        LoadedPlan(SimpleNamespace(ILogger=rtx.ILogger, Runtime=lambda logger: runtime), b"")
