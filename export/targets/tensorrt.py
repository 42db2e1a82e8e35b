"""The ``tensorrt`` target: a plan for this machine's GPU, served by Triton's TensorRT backend.

No GPU has run it yet: docs/gpu-checklist.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import hosts
from export import machine
from export import onnx_runtime as ort
from export.errors import ExportError
from export.names import INPUT, MODEL
from export.precision import Precision
from export.progress import step
from export.publish import EngineLocation
from export.request import COMPATIBILITY, Options, Request
from export.targets.base import register
from export.targets.nvidia import NvidiaTarget, Plan, make_logger

if TYPE_CHECKING:
    from export.context import BuildContext
    from export.fidelity import Stage

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

    def note(self) -> str:
        return "{}, compute capability {}".format(*self.gpu())

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

    def measure(self, context: BuildContext, graph: bytes, plan: Plan, types: str) -> list[Stage]:
        providers = [ort.CUDA, *[ort.TENSORRT] * context.request.options.onnxruntime_tensorrt]
        stages = [context.measure_onnx_runtime(graph, provider) for provider in providers]
        with step("fidelity of the plan"):
            stages.append(context.reference.measure("engine, TensorRT", types, self.runner(plan.data)))
        return stages

    def why_not_served(self, request: Request) -> str:
        if reason := super().why_not_served(request):
            return reason
        if not (Path(os.environ.get(INSTALLATION, "")) / "backends/tensorrt").is_dir():
            return f"no Triton with TensorRT: set {INSTALLATION}=/opt/tritonserver in its image"
        if len({capability for _, capability in hosts.gpus()}) > 1:
            return "mixed GPUs, one plan: set CUDA_VISIBLE_DEVICES"
        return ""

    def serving_flags(self) -> tuple[str, ...]:
        return ("--triton", os.environ[INSTALLATION], "--hardware", "gpu")

    def gpu(self) -> tuple[str, str]:
        """Ask CUDA: it orders GPUs by speed unless CUDA_DEVICE_ORDER says otherwise, nvidia-smi by bus."""
        import torch

        if torch.version.cuda is None:
            raise ExportError(
                "PyTorch here has no CUDA, and it runs the plan to measure its fidelity: "
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

    def runner(self, plan: bytes) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
        """Run a plan on this machine's GPU, one image at a time."""
        import torch

        trt = self.library()
        engine = trt.Runtime(make_logger(trt)).deserialize_cuda_engine(plan)
        context = engine.create_execution_context() if engine is not None else None
        if context is None:
            raise ExportError(
                "the plan does not load on this GPU: it was built for another GPU or TensorRT, or is too large"
            )
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        source, target = sorted(names, key=lambda name: name != INPUT)

        def run(image: NDArray[np.float32]) -> NDArray[np.float32]:
            data = torch.from_numpy(image).cuda()
            context.set_input_shape(source, tuple(data.shape))
            result = torch.empty(tuple(context.get_tensor_shape(target)), dtype=torch.float32, device="cuda")
            context.set_tensor_address(source, data.data_ptr())
            context.set_tensor_address(target, result.data_ptr())
            stream = torch.cuda.current_stream()
            if not context.execute_async_v3(stream.cuda_stream):
                raise ExportError("TensorRT could not execute the plan")
            stream.synchronize()
            output: NDArray[np.float32] = result.cpu().numpy()
            return output

        return run


def _plan_name(capability: str) -> str:
    return f"model.sm{capability.replace('.', '')}.plan"


def _served(built_for: str, compatibility: str) -> list[str]:
    """Return the compute capabilities of the GPUs that run a plan, that of its own GPU first."""
    others = AMPERE_PLUS if compatibility == "ampere_plus" else ()
    return list(dict.fromkeys((built_for, *others)))
