"""The request for a build: its settings, their defaults and their checks."""

import math
import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path

from export.errors import ExportError
from export.names import MODEL
from export.package.pairs import Pair, pairs_from_file
from imaging import SUFFIXES

MAX_PAIRS = 16  #: pairs that are read from the top of a file
MIN_CALIBRATION = 8  #: photographs to calibrate on
MAX_BATCH = 8  #: max_batch_size of the configs; a test compares them
AUTO = "auto"  #: as a precision or target: the fastest, or everything, that this machine can build
CALIBRATORS = ("percentile", "entropy", "minmax")
TILING = ("none", "fast", "moderate", "full")  #: TensorRT's levels of tiling optimization, in lower case
#: Hardware compatibility of a TensorRT plan, and the name of its level in TensorRT.
COMPATIBILITY = {"none": "NONE", "ampere_plus": "AMPERE_PLUS", "same_cc": "SAME_COMPUTE_CAPABILITY"}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of NVIDIA's builders.

    The one profile takes batches of 1 to ``max_batch`` and is fastest at ``opt_batch`` (None: the largest).
    ``optimization_level`` is the builder's effort, 0 to 5; ``timing_iterations`` is how many timings of each
    candidate of a layer are averaged; ``tiling`` is its effort to keep tensors in the L2 cache between layers (see
    `TILING`); ``aux_streams`` limits the streams for independent layers (None: TensorRT chooses).
    ``compatibility`` is for ``tensorrt`` (see `COMPATIBILITY`), ``compute_capabilities`` are the GPUs that an ``rtx``
    engine is built for. ``workspace_mb`` limits the scratch memory of a layer; 0 means no limit.
    ``onnxruntime_tensorrt`` adds ONNX Runtime's TensorRT to the ladder of a ``tensorrt`` build (a second build).
    """

    max_batch: int = MAX_BATCH
    opt_batch: int | None = None
    optimization_level: int = 3
    timing_iterations: int = 1
    tiling: str = TILING[0]
    aux_streams: int | None = None
    compatibility: str = "none"
    workspace_mb: int = 0
    compute_capabilities: tuple[str, ...] = ("8.6", "8.9", "12.0")
    onnxruntime_tensorrt: bool = False


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to build, from where, to where.

    ``repository`` is Triton's; engines that Triton does not serve go to ``engines``. Fidelity is measured on
    ``photos``; ``ground_truth`` holds their targets under the same names. ``pairs``, a file of pairs whose paths are
    relative to ``data``, replaces both folders. Float16 ranges and INT8 scales are measured on the photographs in
    ``calibration``. ``plan`` is an earlier build's INT8 plan. ``gate`` replaces the precision's minimum PSNR, in dB.
    ``server_python`` is the interpreter of the server's environment, which the last stage of the ladder needs.
    ``side_override`` builds for this side although the network was trained at another.
    """

    package: Path
    precision: str = "fp32"
    target: str = AUTO
    version: int = 1
    photos: Path = Path("demo/photos")
    ground_truth: Path = Path("demo/targets")
    pairs: Path | None = None
    data: Path | None = None
    calibration: Path = Path("demo/calibration")
    calibrator: str = CALIBRATORS[0]
    plan: Path | None = None
    gate: float | None = None
    side_override: int | None = None
    repository: Path = Path("model_repository")
    engines: Path = Path("engines")
    server_python: Path | None = None
    options: Options = field(default_factory=Options)

    def read_pairs(self) -> list[Pair]:
        """Read the pairs to measure fidelity on; none where there are folders instead."""
        return pairs_from_file(self.pairs, self.data)[:MAX_PAIRS] if self.pairs else []


def require_valid(request: Request) -> None:
    """Raise `ExportError` for settings that would fail the build after minutes."""
    require_repository(request.repository)
    if request.gate is not None and not math.isfinite(request.gate):
        raise ExportError(f"--gate {request.gate} must be a finite number of dB")
    if request.calibrator not in CALIBRATORS:
        raise ExportError(f"--calibrator {request.calibrator} is unknown: choose one of {', '.join(CALIBRATORS)}")
    if request.plan and not request.plan.is_file():
        raise ExportError(f"--plan {request.plan} is not a file: give the .int8.json beside an engine")
    options = request.options
    if options.opt_batch and options.opt_batch > options.max_batch:
        raise ExportError(f"--opt-batch {options.opt_batch} is larger than --max-batch {options.max_batch}")
    if request.read_pairs():
        return
    photographs(request.photos, "--photos")
    if not request.ground_truth.is_dir() and request.ground_truth != Request.ground_truth:
        raise ExportError(f"--truth {request.ground_truth} is not a folder: give that of the photographs' ground truth")


def require_repository(folder: Path) -> None:
    """Raise `ExportError` for a folder without the served models."""
    if not (folder / MODEL / "config.pbtxt").is_file():
        raise ExportError(f"--repository {folder} is not a restormer repository: {MODEL}/config.pbtxt not found")


def photographs(folder: Path, flag: str, minimum: int = 1) -> list[Path]:
    """List the photographs of a flag's folder, by name. Raises `ExportError` if there are fewer than ``minimum``."""
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)
    if len(paths) < minimum:
        raise ExportError(
            f"{folder} holds {len(paths)} photographs, at least {minimum} are needed: give a folder with more as {flag}"
        )
    return paths


def make_command(request: Request, target: str) -> str:
    """Write the ``make`` command that repeats a build: all settings that differ from the defaults, quoted."""
    values = _settings(replace(request, target=target))
    default = {**_settings(Request(package=request.package)), "PACKAGE": None, "PRECISION": None}
    given = (f"{name}={shlex.quote(value)}" for name, value in values.items() if value != default[name])
    return f"make engine {' '.join(given)}"


def _settings(request: Request) -> dict[str, str]:
    """Return the settings of ``make engine``, in the order of the fields."""
    names = {"ground_truth": "TRUTH"}
    values = {**vars(request), **vars(request.options), "options": None, "server_python": None}
    values["compute_capabilities"] = " ".join(request.options.compute_capabilities)
    return {names.get(field, field.upper()): "" if value is None else str(value) for field, value in values.items()}
