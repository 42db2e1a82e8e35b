"""The interface of a target. Every build imports all target modules, so they import heavy libraries in functions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from export.precision import Precision
from export.publish import EngineLocation
from export.request import Options, Request
from imaging import SIDE

if TYPE_CHECKING:
    import onnx

    from export.context import BuildContext
    from export.fidelity import Stage


class Target(ABC):
    """A kind of engine: the graph it is made of, how it is built, where it is published and what it runs on.

    ``distributions`` are the packages whose versions an engine depends on. ``is_emulated``: the engine cannot run where
    it is built; the gate applies to emulation. Stages that run the engine have titles that begin with "engine" or
    "served". ``serving_flags`` are the flags of ``python -m server`` that the last stage, in Triton, needs.
    """

    name: ClassVar[str]
    distributions: ClassVar[tuple[str, ...]]
    is_emulated: ClassVar[bool] = False
    #: Whether ``--target auto`` builds it on hosts with a GPU (True), without one (False), or never (None).
    automatic: ClassVar[bool | None] = None

    @abstractmethod
    def why_not(self, precision: Precision) -> str:
        """Return why this machine cannot build a precision; empty if it can."""

    def require_builder(self, options: Options) -> None:  # noqa: B027 (most targets have nothing to check)
        """Raise `ExportError` for what the builder would reject after minutes."""

    @abstractmethod
    def location(self, request: Request) -> EngineLocation:
        """Return where the engine is published."""

    def why_not_served(self, request: Request) -> str:
        """Return why no Triton here can serve the engine; empty if one can."""
        is_installed = request.server_python is not None and request.server_python.is_file()
        return "" if is_installed else "the server is not installed: make setup"

    def serving_flags(self) -> tuple[str, ...]:
        """Return the server's flags for this target; by default it serves on the CPU."""
        return ()

    @abstractmethod
    def floating_type(self, precision: Precision) -> str:
        """Return the precision of everything that is not INT8."""

    def has_float16_tensors(self, precision: Precision) -> bool:
        """Return whether the graph holds float16 tensors, whose headroom has to be checked."""
        return False

    def int8_ranges(self, ranges: Mapping[str, float]) -> Mapping[str, float]:
        """Return the part of an INT8 plan that the engine executes in INT8."""
        return ranges

    @abstractmethod
    def graph(self, context: BuildContext) -> onnx.ModelProto:
        """Export the typed ONNX graph that the engine is built from."""

    @abstractmethod
    def build(self, context: BuildContext, model: onnx.ModelProto, path: Path) -> tuple[dict[str, Any], list[Stage]]:
        """Build the engine as ``path``, with its other files beside it; return entries of its JSON, and its stages.

        Raises `GateError` where too little of the work would execute in the precision.
        """

    def profile(self, options: Options) -> dict[str, list[int]]:
        """Return the shapes that the engine takes."""
        batches = {"min": 1, "opt": options.opt_batch or options.max_batch, "max": options.max_batch}
        return {name: [batch, 3, SIDE, SIDE] for name, batch in batches.items()}

    def gpu(self) -> tuple[str, str] | None:
        """Return name and compute capability of the GPU that the engine is built on, if it is built on one."""
        return None

    @abstractmethod
    def why_not_run(self, document: Mapping[str, Any]) -> str:
        """Return why this machine cannot run the engine that a JSON describes; empty if it can."""


REGISTERED: list[Target] = []


def register(target: type[Target]) -> type[Target]:
    """Add a class to the targets of ``--target``."""
    REGISTERED.append(target())
    return target
