"""The ``tensorrt`` and ``rtx`` targets: one builder function for TensorRT 11 and TensorRT for RTX.

Both libraries have the same Python API; TensorRT for RTX builds without a GPU, ahead of time, for the compute
capabilities it is told, and is our proof on any machine that NVIDIA's parser and builder take the graph. Networks are
strongly typed: the ONNX graph says every type, and no flag but TF32 touches precision. Only API that TensorRT 11 kept
is used.

Why not Polygraphy's loaders: they choose between the two libraries by an environment variable before import, once a
process.
"""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.errors import ExportError
from export.files import write_bytes
from export.names import INPUT

LIBRARIES = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
COMPATIBILITY = {"none": "NONE", "ampere_plus": "AMPERE_PLUS", "same_cc": "SAME_COMPUTE_CAPABILITY"}
RTX_CAPABILITIES = ("8.6", "8.9", "12.0")


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to build: the largest batch of the one profile, effort (0 to 5), portability, limits, and for whom.

    ``compatibility`` is for ``tensorrt`` (see `COMPATIBILITY`), ``compute_capabilities`` for ``rtx``.
    ``workspace_mb`` is the most scratch memory a layer may take, 0 for no limit.
    """

    max_batch: int = 8
    optimization_level: int = 3
    compatibility: str = "none"
    workspace_mb: int = 0
    compute_capabilities: tuple[str, ...] = RTX_CAPABILITIES


@dataclass(frozen=True)
class Built:
    """A serialized engine and what the parser and builder said on the way."""

    plan: bytes
    version: str
    layers: int
    layer_types: dict[str, int]
    casts: int
    warnings: tuple[str, ...]

    def figures(self) -> dict[str, Any]:
        """For the engine's JSON."""
        document = asdict(self)
        document.pop("plan")
        return {**document, "bytes": len(self.plan)}


def library(target: str) -> Any:
    """The target's Python module. Raises `ExportError` saying how to install it."""
    try:
        return importlib.import_module(LIBRARIES[target])
    except (ImportError, OSError) as error:
        how = "make setup" if target == "rtx" else "make setup-gpu on a GPU host"
        raise ExportError(
            f"TARGET={target} needs {LIBRARIES[target]}, which cannot be loaded ({error}): {how}"
        ) from error


def require(target: str, options: Options) -> None:
    """Refuses at once what the builder would refuse after minutes: a missing library, or GPUs it does not know."""
    trt = library(target)
    if target == "rtx":
        for capability in options.compute_capabilities:
            _capability(trt, capability)
        return
    import torch

    if not torch.cuda.is_available():
        raise ExportError(
            "PyTorch here has no CUDA, and it runs the plan to measure its fidelity: "
            "install a CUDA build of torch==2.13.0"
        )


def built(target: str, onnx: bytes, options: Options, *, tf32: bool = False, timing_cache: Path | None = None) -> Built:
    """Parses the graph and builds the engine. Raises `ExportError` with the library's own words.

    ``timing_cache`` is read if it is there and written back: the next build of a like network is faster.
    """
    trt = library(target)
    logger = _logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    config = _config(trt, builder, options, target, tf32=tf32)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(onnx):
        first = parser.get_error(0)
        raise ExportError(f"{LIBRARIES[target]} does not take the graph: {first.desc()} (node {first.node_name()})")
    config.add_optimization_profile(_profile(builder, network, options.max_batch))
    cache = _timing_cache(config, timing_cache)
    plan = builder.build_serialized_network(network, config)
    if getattr(config.progress_monitor, "interrupted", False):
        raise KeyboardInterrupt
    if plan is None:
        raise ExportError(
            f"{LIBRARIES[target]} did not build the engine: {'; '.join(logger.errors) or 'no reason given'}"
        )
    if cache is not None and timing_cache is not None:
        write_bytes(timing_cache, bytes(cache.serialize()))
    kinds = Counter(str(network.get_layer(i).type).rpartition(".")[2] for i in range(network.num_layers))
    return Built(
        bytes(plan),
        trt.__version__,
        network.num_layers,
        dict(kinds.most_common()),
        kinds["CAST"],
        tuple(logger.warnings),
    )


def runner(plan: bytes) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Runs a TensorRT plan on the GPU of this machine, one image at a time (docs/gpu-checklist.md: not run yet)."""
    import torch

    trt = library("tensorrt")
    engine = trt.Runtime(_logger(trt)).deserialize_cuda_engine(plan)
    context = engine.create_execution_context() if engine is not None else None
    if context is None:
        raise ExportError("the plan does not load on this GPU: built for another, by another TensorRT, or too large")
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


def _config(trt: Any, builder: Any, options: Options, target: str, *, tf32: bool) -> Any:
    config = builder.create_builder_config()
    # Set by default in TensorRT: float32 means float32 here, and TF32 is a precision of its own.
    (config.set_flag if tf32 else config.clear_flag)(trt.BuilderFlag.TF32)
    config.builder_optimization_level = options.optimization_level
    if options.workspace_mb:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb << 20)
    if target == "rtx":
        config.num_compute_capabilities = len(options.compute_capabilities)
        for position, capability in enumerate(options.compute_capabilities):
            config.set_compute_capability(_capability(trt, capability), position)
    elif options.compatibility != "none":
        name = COMPATIBILITY.get(options.compatibility)
        if name is None:
            raise ExportError(
                f"COMPATIBILITY={options.compatibility} is unknown: choose one of {', '.join(COMPATIBILITY)}"
            )
        config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, name)
    if sys.stderr.isatty():
        config.progress_monitor = _progress(trt)
    return config


def _profile(builder: Any, network: Any, max_batch: int) -> Any:
    """One to ``max_batch`` images of the size that the graph has, made fastest for the most."""
    profile, image = builder.create_optimization_profile(), tuple(network.get_input(0).shape)[1:]
    profile.set_shape(INPUT, (1, *image), (max_batch, *image), (max_batch, *image))
    return profile


def _capability(trt: Any, text: str) -> Any:
    found = getattr(trt.ComputeCapability, f"SM{text.replace('.', '')}", None)
    if found is None:
        names = [n[2:] for n in dir(trt.ComputeCapability) if n.startswith("SM")]
        known = " ".join(f"{n[:-1]}.{n[-1]}" for n in sorted(names, key=int))
        raise ExportError(f"COMPUTE_CAPABILITIES: {text} is not built for by TensorRT for RTX: choose among {known}")
    return found


def _timing_cache(config: Any, path: Path | None) -> Any:
    """The cache of an earlier build by this TensorRT, or an empty one."""
    if path is None:
        return None
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=True):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=True)
    return cache


def _logger(trt: Any) -> Any:
    """A logger that keeps warnings and errors instead of printing them."""

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


def _progress(trt: Any) -> Any:
    """The builder's phases as one line that is written over; Ctrl-C ends the build at the next step."""

    class Progress(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.interrupted = False
            self._steps: dict[str, int] = {}

        # Ctrl-C may come in any of the three, and no exception may cross the library that calls them.
        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            with self._noticing():
                self._steps[phase] = steps

        def step_complete(self, phase: str, step: int) -> bool:
            with self._noticing():
                total = self._steps.get(phase, 0)
                print(f"\r    {phase[:50]:<50} {step}/{total} ", end="", file=sys.stderr, flush=True)
            return not self.interrupted

        def phase_finish(self, phase: str) -> None:
            with self._noticing():
                self._steps.pop(phase, None)

        @contextmanager
        def _noticing(self) -> Iterator[None]:
            try:
                yield
            except KeyboardInterrupt:
                self.interrupted = True

    return Progress()
