"""The ``tensorrt`` target: a plan for this machine's GPU, served by Triton's TensorRT backend.

No GPU has run it yet: docs/gpu-checklist.md.
"""

from __future__ import annotations

import json
import os
import re
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import hosts
from export import machine
from export import onnx_runtime as ort
from export.errors import ExportError
from export.names import INPUT, MODEL
from export.network.coverage import Convolution, describe_shares, shares
from export.precision import Precision
from export.progress import say, step
from export.publish import EngineLocation, write_json
from export.request import COMPATIBILITY, Options, Request
from export.targets.base import register
from export.targets.nvidia import NvidiaTarget, Plan, make_logger
from imaging import SIDE

if TYPE_CHECKING:
    import torch

    from export.context import BuildContext
    from export.fidelity import Stage

Tensor = NDArray[np.float32]
DEVICE = "cuda"
WARM_UP, ROUNDS = 5, 20  #: runs of a batch before and while its time is measured
#: Parts of the type names of TensorRT's inspector, in lower case, and the types; the first match counts.
_ARITHMETIC = {
    "int8": "INT8",
    "bf": "BFLOAT16",
    "half": "FLOAT16",
    "fp16": "FLOAT16",
    "float": "FLOAT",
    "fp32": "FLOAT",
}

INSTALLATION = "RESTORMER_TRITON"  #: variable with the folder of NVIDIA's Triton
#: Compute capabilities that restormer/config.pbtxt maps to plans; a test compares them.
CAPABILITIES = ("7.5", "8.0", "8.6", "8.7", "8.9", "9.0", "10.0", "10.3", "11.0", "12.0", "12.1")
#: Those that run an ``ampere_plus`` plan: Turing does not, and TensorRT has no hardware compatibility on Jetson.
AMPERE_PLUS = tuple(capability for capability in CAPABILITIES if capability not in ("7.5", "8.7", "11.0"))


@register
class TensorRT(NvidiaTarget):
    """A plan for CUDA's current device."""

    name = "tensorrt"
    distributions = ("tensorrt", "onnxruntime-gpu")
    library_name = "tensorrt"
    installation = "make setup-gpu on a GPU host"
    automatic = True

    def why_not(self, precision: Precision) -> str:
        if hosts.gpus():
            return ""
        return "--target tensorrt needs an NVIDIA GPU, and none is visible (nvidia-smi, CUDA_VISIBLE_DEVICES)"

    def require_builder(self, options: Options) -> None:
        self.library()

    def location(self, request: Request) -> EngineLocation:
        _, capability = self.gpu()
        if capability not in CAPABILITIES:
            raise ExportError(
                f"compute capability {capability} is not in cc_model_filenames of restormer/config.pbtxt: add it "
                "there, and to CAPABILITIES in export/targets/tensorrt.py"
            )
        name, *aliases = map(_plan_name, _served(capability, request.options.compatibility))
        return EngineLocation(request.repository / MODEL, request.version, name, tuple(aliases))

    def configure(self, trt: Any, config: Any, options: Options) -> None:
        if options.compatibility != "none":
            level = getattr(trt.HardwareCompatibilityLevel, COMPATIBILITY[options.compatibility])
            config.hardware_compatibility_level = level

    def measure(
        self, context: BuildContext, graph: bytes, plan: Plan, path: Path, layers: list[Convolution]
    ) -> tuple[dict[str, Any], list[Stage]]:
        providers = [ort.CUDA, *[ort.TENSORRT] * context.request.options.onnxruntime_tensorrt]
        stages = [context.measure_onnx_runtime(graph, provider) for provider in providers]
        loaded, largest = LoadedPlan(self.library(), plan.data), context.request.options.max_batch
        information = loaded.layers()
        write_json(path.with_name(f"{path.name}.layers.json"), information)
        executed = shares(executed_layers(information, layers))
        types = describe_shares(executed)
        with step("fidelity of the plan"):
            stages.append(context.reference.measure("engine, TensorRT", types, loaded.run))
            stages += context.measure_batch(types, loaded.run)
        with step("the plan's time on the GPU"):
            times = {str(batch): loaded.milliseconds(batch) for batch in sorted({1, largest})}
        parts = ", ".join(f"{ms:.2f} ms for a batch of {batch}" for batch, ms in times.items())
        say(f"    {parts}, without copies")
        return {"work_executed_in": executed, "gpu_ms": times}, stages

    def why_not_served(self, request: Request) -> str:
        if reason := super().why_not_served(request):
            return reason
        if not (Path(os.environ.get(INSTALLATION, "")) / "backends/tensorrt").is_dir():
            return f"no Triton with TensorRT: set {INSTALLATION}=/opt/tritonserver in NVIDIA's image"
        if len({capability for _, capability in hosts.gpus()}) > 1:
            return "mixed GPUs, and a plan for one kind: set CUDA_VISIBLE_DEVICES"
        return ""

    def serving_flags(self) -> tuple[str, ...]:
        return ("--triton", os.environ[INSTALLATION], "--hardware", "gpu")

    def gpu(self) -> tuple[str, str]:
        """Ask CUDA: it orders GPUs by speed unless CUDA_DEVICE_ORDER says otherwise, nvidia-smi by bus."""
        import torch

        if torch.version.cuda is None:
            raise ExportError(
                "PyTorch runs the plan to measure its fidelity, and this one has no CUDA: "
                "install a CUDA build of torch==2.13.0"
            )
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]
        except RuntimeError as error:  # for example, the driver is too old
            raise ExportError(f"PyTorch cannot use the GPU: {str(error).splitlines()[0]}") from error
        found = torch.cuda.get_device_properties(torch.cuda.current_device())
        return found.name, f"{found.major}.{found.minor}"

    def why_not_run(self, document: Mapping[str, Any]) -> str:
        return machine.why_no_gpu(
            _served(document["machine"]["gpu_compute_capability"], document["options"]["compatibility"])
        )


class LoadedPlan:
    """A plan on this machine's GPU. Raises `ExportError` if TensorRT does not load it."""

    def __init__(self, trt: Any, plan: bytes) -> None:
        self._trt = trt
        self._engine = trt.Runtime(make_logger(trt)).deserialize_cuda_engine(plan)
        self._context = self._engine and self._engine.create_execution_context()
        if self._context is None:
            raise ExportError(
                "the plan does not load on this GPU: it was built for another GPU or TensorRT, or is too large"
            )

    def run(self, images: Tensor) -> Tensor:
        """Run a batch."""
        import torch

        data = torch.from_numpy(images).to(DEVICE)
        result, stream = self._bind(data), torch.cuda.current_stream()
        self._enqueue(stream)
        stream.synchronize()
        output: Tensor = result.cpu().numpy()
        return output

    def milliseconds(self, batch: int) -> float:
        """Measure the GPU's median time of a batch with CUDA events: without copies, kernels launched one by one."""
        import torch

        data = torch.rand(batch, 3, SIDE, SIDE, device=DEVICE)
        cuda: Any = torch.cuda  # whose streams and events are not typed
        result, stream, times = self._bind(data), cuda.Stream(), list[float]()
        stream.wait_stream(cuda.current_stream())
        for _ in range(WARM_UP + ROUNDS):
            began, ended = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
            began.record(stream)
            self._enqueue(stream)
            ended.record(stream)
            ended.synchronize()
            times.append(began.elapsed_time(ended))
        del result  # the plan wrote into it until here
        return statistics.median(times[WARM_UP:])

    def layers(self) -> dict[str, Any]:
        """Return what TensorRT's inspector says of the executed layers, as trtexec's ``--exportLayerInfo`` does."""
        inspector = self._engine.create_engine_inspector()
        return dict(json.loads(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON)))

    def _bind(self, data: torch.Tensor) -> torch.Tensor:
        """Set the addresses of the tensors; return that of the output."""
        import torch

        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        source, target = sorted(names, key=lambda name: name != INPUT)
        self._context.set_input_shape(source, tuple(data.shape))
        result = torch.empty(tuple(self._context.get_tensor_shape(target)), dtype=torch.float32, device=DEVICE)
        self._context.set_tensor_address(source, data.data_ptr())
        self._context.set_tensor_address(target, result.data_ptr())
        return result

    def _enqueue(self, stream: Any) -> None:
        if not self._context.execute_async_v3(stream.cuda_stream):
            raise ExportError("TensorRT could not execute the plan")


def executed_layers(information: Mapping[str, Any], layers: Iterable[Convolution]) -> list[Convolution]:
    """Return the graph's convolutions with the types in which they execute, by TensorRT's inspector.

    The type is that of a layer's weights or else of its first input; TensorRT 10 names it ``Format/Datatype``, 11
    ``DataType``.
    """
    types: dict[str, str] = {}
    for row in information["Layers"]:
        if not isinstance(row, dict):  # only names: built without detailed verbosity
            continue
        tensors = [row.get("DataType") or row.get("Format/Datatype") for row in row.get("Inputs", [])]
        stated = next(filter(None, [row.get("Weights", {}).get("Type"), *tensors]), "").lower()
        arithmetic = next((name for key, name in _ARITHMETIC.items() if key in stated), "unknown")
        for node in re.findall(r"\[ONNX Layer: ([^\]]+)\]", row.get("Metadata", "")):
            types.setdefault(node, arithmetic)
    return [replace(layer, arithmetic=types.get(layer.node, "unknown")) for layer in layers]


def _plan_name(capability: str) -> str:
    return f"model.sm{capability.replace('.', '')}.plan"


def _served(built_for: str, compatibility: str) -> list[str]:
    """Return the compute capabilities of the GPUs that run a plan, that of its own GPU first."""
    others = AMPERE_PLUS if compatibility == "ampere_plus" else ()
    return list(dict.fromkeys((built_for, *others)))
