"""From a model package to an engine in the model repository: the whole way, as one function.

    package -> network -> rewrites -> ONNX -> engine -> fidelity gate -> publish

An engine that does not pass the gate of its precision is not published, and the one in service stays as it was.
"""

from __future__ import annotations

import datetime
import hashlib
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from export.errors import ExportError
from export.files import checkpoint_path, sha256
from export.precision import Precision, precision_from_name
from export.publish import provenance, staged, write_json
from imaging import SIDE

if TYPE_CHECKING:
    from export.fidelity import Fidelity
    from export.network import Restormer
    from export.package import Package

ENGINE = "model.onnx"  #: the file the cpu target loads
MAX_BATCH = 8  #: the configs' max_batch_size; a test holds them together
ADAPTER = "cpu_model.py"  #: in model_repository/restormer/: becomes model.py of every version served on a CPU


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to build, from where, to where."""

    package: Path
    precision: str = "fp32"
    target: str = "auto"
    repository: Path = Path("model_repository")
    version: int = 1
    photographs: Path = Path("demo/photos")


def build(request: Request) -> Path:
    """Builds and publishes the engine, or finds it unchanged; returns its path. Raises `ExportError`."""
    precision = precision_from_name(request.precision)
    _require_target(request.target)
    origin = _origin(request)
    published = request.repository / "restormer" / str(request.version) / ENGINE
    if provenance(request.repository, request.version, ENGINE).get("origin") == origin:
        _say(f"{published} is up to date ({precision.name}, same package, same builder): nothing to do")
        return published

    from export import cpu, fidelity, graph  # PyTorch takes seconds to import: not for a build with nothing to do

    cpu.require_precision(precision)
    package, network = _network(request)
    with _step("PyTorch float32 on the photographs"):
        images = fidelity.core_tensors(request.photographs)
        reference = fidelity.torch_runner(network)
        references = {name: reference(image) for name, image in images.items()}
    with _step("ONNX"):
        rewritten = cpu.rewritten(network)
        model = graph.onnx_from_network(rewritten)
    with staged(request.repository, request.version) as folder:
        engine = folder / ENGINE
        engine.write_bytes(graph.onnx_bytes(model))
        settings = cpu.settings(precision)
        with _step(f"compiling for this CPU ({precision.name})"):
            compiled = cpu.compiled(engine, settings)
        with _step("fidelity"):
            runners = {"torch float32, rewritten": fidelity.torch_runner(rewritten),
                       f"engine cpu {precision.name}": cpu.runner(compiled)}  # fmt: skip
            ladder = [fidelity.fidelity(rung, run, images, references) for rung, run in runners.items()]
        _say("\n".join(f"    {line}" for line in (fidelity.HEADER, *(rung.row() for rung in ladder))))
        _require_fidelity(ladder[-1], precision)
        shutil.copyfile(request.repository / "restormer" / ADAPTER, folder / "model.py")
        figures = {
            "onnx": {"sha256": sha256(engine), "opset": model.opset_import[0].version, "nodes": len(model.graph.node)},
            "runtime": {"name": "openvino", "settings": settings,
                        "convolutions_executed_in": cpu.executed_types(compiled)},
            "fidelity": {"gate_psnr": precision.gate, "photographs": len(images),
                         "ladder": [asdict(rung) for rung in ladder]},
        }  # fmt: skip
        write_json(folder / f"{ENGINE}.json", {**_document(request, origin, package, sha256(engine)), **figures})
    _say(f"published {published} ({precision.name}, cpu, {ladder[-1].psnr:.1f} dB against torch float32)")
    return published


def _network(request: Request) -> tuple[Package, Restormer]:
    """The package and its network, told to the user; refused if the server could not feed it."""
    from export.package import network_from_package, package_from_folder

    with _step("reading the package"):
        package = package_from_folder(request.package)
        network = network_from_package(package)
    architecture = package.architecture
    _say(f"    {architecture.describe()} · {package.parameters:,} parameters")
    for remark in package.remarks:
        _say(f"    does not agree: {remark}")
    if (architecture.in_channels, architecture.out_channels) != (3, 3):
        raise ExportError(f"{request.package}: the server takes RGB to RGB, this network is {architecture.describe()}")
    return package, network


def _require_fidelity(reached: Fidelity, precision: Precision) -> None:
    if reached.psnr < precision.gate:
        raise ExportError(
            f"fidelity {reached.psnr:.1f} dB on {reached.worst} is below the gate of {precision.name}, "
            f"{precision.gate:.0f} dB: nothing was published"
        )


def _document(request: Request, origin: dict[str, str], package: Package, digest: str) -> dict[str, object]:
    """The part of an engine's JSON that says what it is and where it came from."""
    return {
        "engine": ENGINE,
        "sha256": digest,
        "target": "cpu",
        "precision": request.precision,
        "origin": origin,
        "package": {
            "folder": request.package.name,
            "checkpoint_sha256": sha256(checkpoint_path(request.package)),
            "training_info": package.training_info,
            "remarks": package.remarks,
        },
        "network": {"architecture": package.architecture.describe(), "parameters": package.parameters},
        "profile": {"compiled": [1, 3, SIDE, SIDE], "max_batch": MAX_BATCH},
        "versions": _versions(),
        "machine": {"cpu": _cpu_name(), "gpu_compute_capability": None, "tensorrt": None},
        "command": _command(request),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _require_target(target: str) -> None:
    if target == "auto":
        _say("TARGET=auto: cpu (the only target this version builds)")
    elif target != "cpu":
        raise ExportError(f"TARGET={target} is not built here: choose cpu or auto")


def _origin(request: Request) -> dict[str, str]:
    """Everything the engine and its figures depend on; equal origins mean there is nothing to build."""
    checkpoint_path(request.package)
    room = Path(__file__).parent
    adapter = request.repository / "restormer" / ADAPTER
    sources = [*sorted(room.glob("*.py")), *sorted((room.parent / "imaging").glob("*.py")), adapter]
    builder = hashlib.sha256(repr(sorted(_versions().items())).encode())
    for path in sources:
        builder.update(path.read_bytes() if path.is_file() else b"")
    return {
        "package": _folder_digest(request.package),
        "photographs": _folder_digest(request.photographs),
        "precision": request.precision,
        "builder": builder.hexdigest(),
        "cpu": _cpu_name(),
    }


def _folder_digest(folder: Path) -> str:
    """SHA-256 over names and contents of a folder's files."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.glob("*") if path.is_file()):
        digest.update(f"{path.name} {sha256(path)}\n".encode())
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("torch", "onnx", "onnxscript", "openvino", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def _cpu_name() -> str:
    """The processor's model name from the kernel, or its architecture where the kernel has none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _command(request: Request) -> str:
    return (
        f"make engine PACKAGE={request.package} PRECISION={request.precision} TARGET={request.target} "
        f"VERSION={request.version} PHOTOS={request.photographs}"
    )


@contextmanager
def _step(title: str) -> Iterator[None]:
    """Announces a long step before it runs, and says how long it took."""
    print(f"  {title} ...", end="", file=sys.stderr, flush=True)
    started = time.monotonic()
    try:
        yield
    except BaseException:
        print(file=sys.stderr)
        raise
    print(f" {time.monotonic() - started:.1f} s", file=sys.stderr)


def _say(line: str) -> None:
    print(line, file=sys.stderr)
