"""The fingerprint of a build: everything that an engine and its figures depend on.

It is written into the engine's JSON as ``origin``; equal fingerprints mean that there is nothing to build.
"""

import hashlib
import platform
from importlib import metadata
from pathlib import Path

from export import machine
from export.files import checkpoint_path, files_digest, folder_digest, sha256
from export.names import ADAPTER, MODEL
from export.request import Request
from export.targets.base import Target
from imaging import FRAME

_LIBRARIES = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy")


def fingerprint(request: Request, target: Target) -> dict[str, str]:
    """Compute the fingerprint of a build for one target."""
    checkpoint_path(request.package)
    pairs = request.read_pairs()
    settings = [request.gate, request.calibrator, request.options, request.plan and sha256(request.plan)]
    settings += [request.side_override, target.why_not_served(request)]
    return {
        "package": folder_digest(request.package),
        "photographs": files_digest(pair.input for pair in pairs) if pairs else folder_digest(request.photos),
        "targets": files_digest(pair.target for pair in pairs) if pairs else folder_digest(request.ground_truth),
        "calibration": folder_digest(request.calibration),
        "precision": request.precision,
        "frame": FRAME,
        "settings": hashlib.sha256(repr(settings).encode()).hexdigest(),
        "builder": _builder_digest(request, target),
        "machine": repr([machine.cpu_name(), target.gpu()]),
    }


def tool_versions(target: Target) -> dict[str, str]:
    """Return the versions of Python and of the libraries that an engine of this target depends on."""
    versions = {name: _version(name) for name in (*_LIBRARIES, *target.distributions)}
    return {"python": platform.python_version(), **{name: version for name, version in versions.items() if version}}


def _builder_digest(request: Request, target: Target) -> str:
    """Hash the code that makes an engine, and the libraries it uses."""
    digest = hashlib.sha256(repr(sorted(tool_versions(target).items())).encode())
    room, adapter = Path(__file__).parent, request.repository / MODEL / ADAPTER
    for path in [*sorted(room.rglob("*.py")), *sorted((room.parent / "imaging").glob("*.py")), adapter]:
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
