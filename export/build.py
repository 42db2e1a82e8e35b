"""From a model package to engines in the repository: what is asked, and whether there is anything to do.

    package -> network -> rewrites -> ONNX -> engine -> fidelity gate -> publish

The work itself is in ``export.factory``, which imports PyTorch; this file answers "nothing to do" without it. An
engine that does not pass the gate of its precision is not published, and the one in service stays as it was.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import platform
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path

from export import machine
from export import onnx_runtime as ort
from export.errors import ExportError, GateError
from export.files import checkpoint_path, sha256, write_bytes
from export.package.pairs import Pair, pairs_from_file
from export.precision import PRECISIONS, Precision, precision_from_name
from export.progress import say
from export.publish import provenance, versions
from export.targets import tensorrt
from export.targets.tensorrt import Options
from imaging import FRAME

MODEL = "restormer"  #: the model's folder in a repository
MOST_PAIRS = 16  #: of a file of pairs, the first
MAX_BATCH = 8  #: the configs' max_batch_size; a test holds them together
ADAPTER = "cpu_model.py"  #: in model_repository/restormer/: becomes model.py of every version served on a CPU
CALIBRATORS = ("percentile", "entropy", "minmax")
#: GPUs that restormer/config.pbtxt maps to plans; a test holds them together.
CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "10.3", "12.0")
AUTO = "auto"  #: of a target and of a precision: what this machine can, and does fastest
TARGETS = (AUTO, "cpu", "rtx", "tensorrt")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to build, from where, to where.

    ``repository`` is Triton's; engines that Triton does not serve go to ``engines``. ``photographs`` are those
    fidelity is measured on, ``targets`` their ground truth by the same names; ``pairs``, a file of pairs whose paths
    are relative to ``data``, replaces both. ``calibration`` are the photographs that ranges and INT8 scales come from.
    ``plan`` pins an INT8 plan. ``gate`` replaces the precision's own, in dB.
    ``server_python`` is the interpreter of the server's environment, for the ladder's last rung; without it that rung
    is left out, and says so. ``side_override`` builds for this side although the network was trained at another.
    """

    package: Path
    precision: str = "fp32"
    target: str = "auto"
    repository: Path = Path("model_repository")
    engines: Path = Path("engines")
    version: int = 1
    photographs: Path = Path("demo/photos")
    targets: Path = Path("demo/targets")
    pairs: Path | None = None
    data: Path | None = None
    calibration: Path = Path("demo/calibration")
    calibrator: str = "percentile"
    plan: Path | None = None
    gate: float | None = None
    server_python: Path | None = None
    side_override: int | None = None
    options: Options = field(default_factory=Options)


@dataclass(frozen=True)
class Place:
    """Where a target's engine is published: ``model/<version>/engine``."""

    model: Path
    version: int
    engine: str

    @property
    def path(self) -> Path:
        """The engine's file."""
        return self.model / str(self.version) / self.engine


def build(request: Request) -> list[Path]:
    """Builds and publishes the engines asked for, or finds them unchanged; returns them. Raises `ExportError`."""
    if request.precision == AUTO:
        return _build_fastest(request)
    precision = precision_from_name(request.precision, AUTO)
    ort.require_one()
    _require_settings(request)
    targets = _targets(request, precision)
    places = {target: _place(request, target) for target in targets}
    todo = {}
    for target, place in places.items():
        origin = _origin(request, target)
        if provenance(place.path).get("origin") == origin:
            say(f"{place.path} is up to date ({precision.name}, same package, same builder): nothing to do")
        else:
            todo[target] = origin
    try:
        if todo:
            _make(request, precision, places, todo)
    finally:
        if request.target == "auto" and "tensorrt" not in targets:
            _say_what_is_left(request)
    return [place.path for place in places.values()]


def pairs_of(request: Request) -> list[Pair]:
    """Return the pairs fidelity is measured on; none where photographs and targets are folders."""
    return pairs_from_file(request.pairs, request.data)[:MOST_PAIRS] if request.pairs else []


def _build_fastest(request: Request) -> list[Path]:
    """In the precision that is fastest here: measured on a CPU, and if it does not pass its gate the next.

    What was chosen is kept in ``engines/.cache`` by everything it depends on: with nothing changed nothing is measured.
    """
    _require_settings(request)
    if request.target == "tensorrt" or (request.target == AUTO and machine.gpus()):
        say("PRECISION=auto: fp16, the fastest that needs no calibration on every GPU since Turing")
        return build(replace(request, precision="fp16"))
    if request.target == "rtx":
        raise ExportError("PRECISION=auto measures on this CPU, which TARGET=rtx is not for: give PRECISION=fp16")
    ort.require_one()
    key = hashlib.sha256(json.dumps(_origin(request, "cpu")).encode()).hexdigest()[:16]
    cache = request.engines / ".cache" / f"auto-{key}.json"
    if known := _known(cache):
        say(f"PRECISION=auto: {known}, as measured before ({cache})")
        return build(replace(request, precision=known, target="cpu"))
    from export.targets.fastest import fastest_first  # PyTorch

    name, made = _first_to_pass(request, fastest_first(request.package))
    write_bytes(cache, json.dumps({"precision": name}).encode())
    return made


def _first_to_pass(request: Request, names: list[str]) -> tuple[str, list[Path]]:
    """Builds in the first of the precisions that passes its gate; what is wrong otherwise ends it."""
    name, *others = names
    try:
        return name, build(replace(request, precision=name, target="cpu"))
    except GateError as error:
        if not others:
            raise
        say(f"PRECISION=auto: {name} is not taken: {error}")
    return _first_to_pass(request, others)


def _known(cache: Path) -> str:
    """The precision that was chosen before; empty if none was, or the file is damaged."""
    try:
        name = json.loads(cache.read_text(encoding="utf-8"))["precision"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return name if name in PRECISIONS else ""


def _make(request: Request, precision: Precision, places: dict[str, Place], todo: dict[str, dict[str, str]]) -> None:
    for target in todo:
        if target in tensorrt.LIBRARIES:
            tensorrt.require(target, request.options)
    from export.factory import Factory  # PyTorch takes seconds to import: not for a build with nothing to do

    factory = Factory(request, precision)
    made: list[Path] = []
    try:
        for target, origin in todo.items():
            factory.publish(target, places[target], origin)
            made.append(places[target].path)
    except BaseException:
        if made:
            say(f"published before that: {', '.join(map(str, made))}")
        raise


def _require_settings(request: Request) -> None:
    """Refuses at once what would be refused after minutes."""
    if request.target not in TARGETS:
        raise ExportError(f"TARGET={request.target} is unknown: choose one of {', '.join(TARGETS)}")
    if not (request.repository / MODEL / "config.pbtxt").is_file():
        raise ExportError(f"{request.repository} is no model repository of ours: {MODEL}/config.pbtxt is missing")
    if request.gate is not None and not math.isfinite(request.gate):
        raise ExportError(f"GATE={request.gate} is no number of decibels")
    if request.calibrator not in CALIBRATORS:
        raise ExportError(f"CALIBRATOR={request.calibrator} is unknown: choose one of {', '.join(CALIBRATORS)}")
    if request.plan and not request.plan.is_file():
        raise ExportError(f"PLAN={request.plan} is no file: take the .int8.json that lies beside an engine")
    pairs_of(request)
    if request.options.max_batch != MAX_BATCH:
        say(f"MAX_BATCH={request.options.max_batch}: max_batch_size in restormer/config.pbtxt has to be the same")


def _targets(request: Request, precision: Precision) -> list[str]:
    """The targets to build, with the reason said where the user left the choice to us."""
    if request.target == "cpu":
        from export.targets.cpu import require_precision  # OpenVINO: half a second

        require_precision(precision)
    if request.target == "tensorrt" and not machine.gpus():
        raise ExportError(
            "TARGET=tensorrt needs an NVIDIA GPU, and none is visible (nvidia-smi, CUDA_VISIBLE_DEVICES): "
            "use TARGET=auto, which does what this machine can"
        )
    if request.target != "auto":
        return [request.target]
    if gpus := machine.gpus():
        say(f"TARGET=auto: tensorrt ({gpus[0][0]}, compute capability {gpus[0][1]})")
        return ["tensorrt"]
    from export.targets.cpu import why_not

    reason = why_not(precision)
    has_rtx = importlib.util.find_spec(tensorrt.LIBRARIES["rtx"]) is not None  # its wheels are for x86-64 only
    rtx = "rtx (built ahead of time)" if has_rtx else "not rtx: TensorRT for RTX is not installed"
    say(f"TARGET=auto: no GPU here, so {rtx} and {f'not cpu: {reason}' if reason else 'cpu'}")
    chosen = [name for name, can in (("rtx", has_rtx), ("cpu", not reason)) if can]
    if not chosen:
        raise ExportError(f"nothing can be built here in {precision.name}: build on a GPU host, or PRECISION=fp32")
    return chosen


def _place(request: Request, target: str) -> Place:
    if target == "rtx":
        return Place(request.engines / MODEL, request.version, "model.rtx")
    served = request.repository / MODEL
    if target == "cpu":
        return Place(served, request.version, "model.onnx")
    capability = machine.gpus()[0][1]
    if capability not in CAPABILITIES:
        raise ExportError(
            f"compute capability {capability} is not in cc_model_filenames of restormer/config.pbtxt: add it there, "
            "and to CAPABILITIES in export/build.py"
        )
    return Place(served, request.version, f"model.sm{capability.replace('.', '')}.plan")


def _say_what_is_left(request: Request) -> None:
    """After a build without a GPU: what is served here now, and the command that finishes elsewhere."""
    model = request.repository / MODEL
    served = versions(model)[-1:]
    engine = provenance(model / str(served[0]) / "model.onnx") if served else {}
    on_cpu = f"version {served[0]}, {engine['precision']} on the CPU" if engine else ""
    say(f"served here now: {on_cpu or 'no engine: make engine PRECISION=fp32 TARGET=cpu'}")
    say(f"to finish on the GPU host: {command(request, target='tensorrt')}")


def command(request: Request, target: str | None = None) -> str:
    """The line that builds this again: every setting that is not the default, quoted for a shell."""
    options, usual = request.options, Request(package=request.package)
    settings = {
        "TARGET": (target or request.target, "auto"), "VERSION": (request.version, usual.version),
        "PHOTOS": (request.photographs, usual.photographs), "TRUTH": (request.targets, usual.targets),
        "PAIRS": (request.pairs, None), "DATA": (request.data, None),
        "CALIBRATION": (request.calibration, usual.calibration), "CALIBRATOR": (request.calibrator, usual.calibrator),
        "PLAN": (request.plan, None), "GATE": (request.gate, None), "SIDE_OVERRIDE": (request.side_override, None),
        "REPOSITORY": (request.repository, usual.repository), "ENGINES": (request.engines, usual.engines),
        "MAX_BATCH": (options.max_batch, usual.options.max_batch),
        "OPTIMIZATION_LEVEL": (options.optimization_level, usual.options.optimization_level),
        "COMPATIBILITY": (options.compatibility, usual.options.compatibility),
        "WORKSPACE_MB": (options.workspace_mb, usual.options.workspace_mb),
        "COMPUTE_CAPABILITIES": (" ".join(options.compute_capabilities), " ".join(usual.options.compute_capabilities)),
    }  # fmt: skip
    given = {name: str(value) for name, (value, default) in settings.items() if value != default}
    words = {"PACKAGE": str(request.package), "PRECISION": request.precision, **given}
    return "make engine " + " ".join(f"{name}={shlex.quote(value)}" for name, value in words.items())


def tool_versions(target: str) -> dict[str, str]:
    """Python and the libraries an engine of this target depends on."""
    names = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy", *_RUNTIMES[target])
    return {"python": platform.python_version(), **{name: v for name in names if (v := _version(name))}}


_RUNTIMES = {"cpu": ("openvino",), "rtx": ("tensorrt-rtx",), "tensorrt": ("tensorrt", "onnxruntime-gpu")}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _origin(request: Request, target: str) -> dict[str, str]:
    """Everything the engine and its figures depend on; equal origins mean there is nothing to build."""
    checkpoint_path(request.package)
    pairs = pairs_of(request)
    room = Path(__file__).parent
    adapter = request.repository / MODEL / ADAPTER
    builder = hashlib.sha256(repr(sorted(tool_versions(target).items())).encode())
    for path in [*sorted(room.rglob("*.py")), *sorted((room.parent / "imaging").glob("*.py")), adapter]:
        builder.update(path.read_bytes() if path.is_file() else b"")
    settings = [request.gate, request.calibrator, request.options, request.plan and sha256(request.plan)]
    settings.append(request.side_override)
    if target == "cpu":  # with the server installed the ladder has one rung more
        settings.append(request.server_python is not None and request.server_python.is_file())
    return {
        "package": folder_digest(request.package),
        "photographs": _files_digest(pair.input for pair in pairs) if pairs else folder_digest(request.photographs),
        "targets": _files_digest(pair.target for pair in pairs) if pairs else folder_digest(request.targets),
        "calibration": folder_digest(request.calibration),
        "precision": request.precision,
        "frame": FRAME,
        "settings": hashlib.sha256(repr(settings).encode()).hexdigest(),
        "builder": builder.hexdigest(),
        "machine": repr([machine.cpu_name(), machine.gpus() if target == "tensorrt" else None]),
    }


def folder_digest(folder: Path) -> str:
    """SHA-256 over names and contents of a folder's files; that of nothing if there is no such folder."""
    return _files_digest(sorted(path for path in folder.glob("*") if path.is_file()))


def _files_digest(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.name} {sha256(path)}\n".encode())
    return digest.hexdigest()
