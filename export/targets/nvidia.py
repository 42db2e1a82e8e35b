"""What the ``tensorrt`` and ``rtx`` targets share: one builder for TensorRT 11 and TensorRT for RTX.

Both libraries have the same Python API. Networks are strongly typed: the ONNX graph states every type, and TF32 is the
only flag that touches precision. Only API that TensorRT 11 kept is used.

Polygraphy's loaders are not used, because they choose between the two libraries only once per process, by an
environment variable that must be set before the import.
"""

from __future__ import annotations

import importlib
import re
import sys
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from export.errors import ExportError
from export.files import sha256, write_bytes
from export.names import INPUT
from export.network.coverage import Convolution, convolutions, shares
from export.precision import Precision
from export.progress import say, step
from export.request import Options
from export.targets.base import Target

if TYPE_CHECKING:
    import onnx

    from export.context import BuildContext
    from export.fidelity import Stage


@dataclass(frozen=True)
class Plan:
    """A serialized engine, and what the parser and the builder reported."""

    data: bytes
    version: str
    layers: int
    layer_types: dict[str, int]
    casts: int
    tf32: bool
    warnings: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """Return the entries of the engine's JSON."""
        document = asdict(self)
        document.pop("data")
        return {**document, "bytes": len(self.data)}


class NvidiaTarget(Target):
    """A target whose library has TensorRT's API. ``library_name`` is its Python module."""

    library_name: ClassVar[str]
    installation: ClassVar[str]

    @abstractmethod
    def configure(self, trt: Any, config: Any, options: Options) -> None:
        """Set what the library's builder configuration has of its own."""

    @abstractmethod
    def measure(
        self, context: BuildContext, graph: bytes, plan: Plan, path: Path, layers: list[Convolution]
    ) -> tuple[dict[str, Any], list[Stage]]:
        """Measure the stages after the ONNX graph, with these convolutions; return entries about the runtime too."""

    def library(self) -> Any:
        """Import the library. Raises `ExportError` saying how to install it."""
        try:
            return importlib.import_module(self.library_name)
        except (ImportError, OSError) as error:
            raise ExportError(
                f"--target {self.name} needs {self.library_name}, which cannot be loaded ({error}): {self.installation}"
            ) from error

    def floating_type(self, precision: Precision) -> str:
        return "fp16" if precision.name == "int8" else precision.name

    def has_float16_tensors(self, precision: Precision) -> bool:
        return self.floating_type(precision) == "fp16"

    def graph(self, context: BuildContext) -> onnx.ModelProto:
        from export.network import int8
        from export.network.graph import onnx_from_network
        from export.network.rewrites import to_floating_type

        ranges = context.int8_ranges
        with step("ONNX"):
            model = onnx_from_network(to_floating_type(context.network, self.floating_type(context.precision)))
            return model if ranges is None else int8.quantize_graph(model, ranges)

    def build(self, context: BuildContext, model: onnx.ModelProto, path: Path) -> tuple[dict[str, Any], list[Stage]]:
        from export.network.graph import onnx_bytes

        layers, graph, source = convolutions(model), onnx_bytes(model), path.with_name(f"{path.name}.onnx")
        context.require_share(layers)
        source.write_bytes(graph)
        request, precision = context.request, context.precision
        timings = self.timing_cache(request.engines / ".cache")
        with step(f"{self.library_name} builds ({precision.name})"):
            plan = self.build_plan(graph, request.options, tf32=precision.name != "fp32", timing_cache=timings)
        path.write_bytes(plan.data)
        say(
            f"    {plan.layers:,} layers parsed, {plan.casts} of them casts; "
            f"engine {len(plan.data) / 2**20:.1f} MiB; {len(plan.warnings)} warnings"
        )
        measured, stages = self.measure(context, graph, plan, path, layers)
        document = {
            "runtime": {"name": self.library_name, **plan.document(), **measured},
            "options": asdict(request.options),
            "work_typed": shares(layers),
            "onnx_sha256": sha256(source),
        }
        return document, stages

    def timing_cache(self, folder: Path) -> Path | None:
        """Return the file of earlier timings by this library on this GPU; None if the builder times nothing."""
        gpu = self.gpu()
        if gpu is None:
            return None
        name = f"{self.name}-{self.library().__version__}-{gpu[0]}"
        return folder / f"{re.sub(r'[^A-Za-z0-9.]+', '-', name)}.timing"

    def build_plan(
        self, graph: bytes, options: Options, *, tf32: bool = False, timing_cache: Path | None = None
    ) -> Plan:
        """Parse the ONNX graph and build the plan. Raises `ExportError` with the library's own message.

        ``timing_cache`` is read if it exists and written back; it makes the next build of a similar network faster.
        """
        trt = self.library()
        logger = make_logger(trt)
        builder = trt.Builder(logger)
        network = builder.create_network(0)
        config = self.builder_config(trt, builder, options, tf32=tf32)
        parser = trt.OnnxParser(network, logger)
        if not parser.parse(graph):
            first = parser.get_error(0)
            raise ExportError(f"{self.library_name} rejects the graph: {first.desc()} (node {first.node_name()})")
        config.add_optimization_profile(_profile(builder, network, self.profile(options)))
        cache = _load_timings(config, timing_cache)
        data = builder.build_serialized_network(network, config)
        if interruption := getattr(config.progress_monitor, "interruption", None):
            raise interruption
        if data is None:
            reason = "; ".join(logger.errors) or "no reason given"
            raise ExportError(f"{self.library_name} did not build the engine: {reason}")
        if cache is not None and timing_cache is not None:
            write_bytes(timing_cache, bytes(cache.serialize()))
        kinds = Counter(str(network.get_layer(i).type).rpartition(".")[2] for i in range(network.num_layers))
        return Plan(
            bytes(data),
            trt.__version__,
            network.num_layers,
            dict(kinds.most_common()),
            kinds["CAST"],
            config.get_flag(trt.BuilderFlag.TF32),
            tuple(logger.warnings),
        )

    def builder_config(self, trt: Any, builder: Any, options: Options, *, tf32: bool) -> Any:
        """Configure the builder."""
        config = builder.create_builder_config()
        # Set by default in TensorRT. In fp32 engines float32 means float32. In bf16, fp16 and int8 engines TF32 loses
        # nothing: the inputs of every float32 product are casts of halves, which TF32 represents exactly.
        (config.set_flag if tf32 else config.clear_flag)(trt.BuilderFlag.TF32)
        config.builder_optimization_level = options.optimization_level
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # so that the inspector has the types
        config.avg_timing_iterations = options.timing_iterations
        config.tiling_optimization_level = getattr(trt.TilingOptimizationLevel, options.tiling.upper())
        if options.aux_streams is not None:
            config.max_aux_streams = options.aux_streams
        if options.workspace_mb:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb << 20)
        self.configure(trt, config, options)
        if sys.stderr.isatty():
            config.progress_monitor = make_progress_monitor(trt)
        return config


def _profile(builder: Any, network: Any, shapes: Mapping[str, Sequence[int]]) -> Any:
    """Make a profile with the batches of these shapes and the graph's image size."""
    profile, image = builder.create_optimization_profile(), tuple(network.get_input(0).shape)[1:]
    profile.set_shape(INPUT, *((shapes[name][0], *image) for name in ("min", "opt", "max")))
    return profile


def _load_timings(config: Any, path: Path | None) -> Any:
    """Load the cache of an earlier build; start with an empty one if there is none, or one of another device.

    NvInfer.h: timings of a device with other properties "may lead to functional/performance bugs".
    """
    if path is None:
        return None
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def make_logger(trt: Any) -> Any:
    """Make a logger that keeps warnings and errors instead of printing them."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.warnings: list[str] = []
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity == trt.ILogger.WARNING:
                self.warnings.append(message)
            elif severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)

    return Logger()


def make_progress_monitor(trt: Any) -> Any:
    """Make a monitor that shows the builder's phases in one line; Ctrl-C and SIGTERM stop it at its next step."""

    class Progress(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.interruption: BaseException | None = None
            self._steps: dict[str, int] = {}

        # Either may arrive in any of the three, and no exception may cross the library that calls them.
        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            with self._catch_interrupt():
                self._steps[phase] = steps

        def step_complete(self, phase: str, step: int) -> bool:
            with self._catch_interrupt():
                total = self._steps.get(phase, 0)
                print(f"\r    {phase[:50]:<50} {step}/{total} ", end="", file=sys.stderr, flush=True)
            return self.interruption is None

        def phase_finish(self, phase: str) -> None:
            with self._catch_interrupt():
                self._steps.pop(phase, None)

        @contextmanager
        def _catch_interrupt(self) -> Iterator[None]:
            try:
                yield
            except (KeyboardInterrupt, SystemExit) as error:
                self.interruption = error

    return Progress()
