"""The ``rtx`` target: TensorRT for RTX, which builds ahead of time and needs no GPU.

Triton does not serve its engines. On a machine without a GPU it proves that NVIDIA's parser and builder take the graph.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export import machine
from export.errors import ExportError
from export.names import MODEL
from export.precision import Precision
from export.publish import EngineLocation
from export.request import Options, Request
from export.targets.base import register
from export.targets.nvidia import NvidiaTarget, Plan

if TYPE_CHECKING:
    from export.context import BuildContext
    from export.fidelity import Stage
    from export.network.coverage import Convolution


@register
class Rtx(NvidiaTarget):
    """An engine for the RTX GPUs in ``compute_capabilities``."""

    name = "rtx"
    distributions = ("tensorrt-rtx",)
    library_name = "tensorrt_rtx"
    installation = "make setup"
    is_emulated = True
    automatic = False

    def why_not(self, precision: Precision) -> str:
        # Its wheels are for x86-64 only.
        return (
            ""
            if importlib.util.find_spec(self.library_name)
            else f"{self.library_name} is not installed ({self.installation})"
        )

    def require_builder(self, options: Options) -> None:
        trt = self.library()
        for text in options.compute_capabilities:
            _capability(trt, text)

    def location(self, request: Request) -> EngineLocation:
        return EngineLocation(request.engines / MODEL, request.version, "model.rtx")

    def configure(self, trt: Any, config: Any, options: Options) -> None:
        config.num_compute_capabilities = len(options.compute_capabilities)
        for position, text in enumerate(options.compute_capabilities):
            config.set_compute_capability(_capability(trt, text), position)

    def measure(
        self, context: BuildContext, graph: bytes, plan: Plan, path: Path, layers: list[Convolution]
    ) -> tuple[dict[str, Any], list[Stage]]:
        from export.fidelity import NotRun

        return {}, [NotRun(stage="engine, TensorRT for RTX", reason="needs an RTX GPU; built ahead of time")]

    def why_not_served(self, request: Request) -> str:
        return "Triton serves TensorRT's plans, not those for RTX"

    def why_not_run(self, document: Mapping[str, Any]) -> str:
        return machine.why_no_gpu(document["options"]["compute_capabilities"])


def _capability(trt: Any, text: str) -> Any:
    member = getattr(trt.ComputeCapability, f"SM{text.replace('.', '')}", None)
    if member is None:
        names = [n[2:] for n in dir(trt.ComputeCapability) if n.startswith("SM")]
        choices = " ".join(f"{n[:-1]}.{n[-1]}" for n in sorted(names, key=int))
        raise ExportError(f"--compute-capabilities: TensorRT for RTX does not build for {text}: choose among {choices}")
    return member
