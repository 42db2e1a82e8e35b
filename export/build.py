"""Choose the targets of a build, and skip those whose engine is up to date, without importing PyTorch.

``export.factory`` builds the others.
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import hosts
from export import onnx_runtime as ort
from export.errors import ExportError, GateError
from export.files import read_json, write_bytes
from export.fingerprint import fingerprint
from export.names import MODEL
from export.precision import PRECISIONS, Precision, precision_from_name
from export.progress import say
from export.publish import EngineLocation, lock_models, provenance, versions
from export.request import AUTO, MIN_CALIBRATION, Request, make_command, photographs, require_valid
from export.targets import TARGETS
from export.targets.base import Target


def build(request: Request, *, is_locked: bool = False) -> list[Path]:
    """Build and publish the requested engines, except those that are up to date; return all. Raises `ExportError`.

    Holds the lock of the folders that it publishes into, unless the caller does (``is_locked``).
    """
    if request.target not in (AUTO, *TARGETS):
        raise ExportError(f"--target {request.target} is unknown: choose one of {', '.join((AUTO, *TARGETS))}")
    if request.precision == AUTO:
        return _build_fastest(request)
    precision = precision_from_name(request.precision, AUTO)
    ort.require_one()
    require_valid(request)
    targets = _choose_targets(request, precision)
    locations = {target: target.location(request) for target in targets}
    changed = {}
    for target, location in locations.items():
        current = fingerprint(request, target)
        if provenance(location.path).get("origin") == current:
            say(f"{location.path} is up to date ({precision.name}, same package, same builder): nothing to do")
        else:
            changed[target] = current
    try:
        if changed:
            with lock_models([] if is_locked else {locations[target].model for target in changed}):
                _publish_engines(request, precision, locations, changed)
    finally:
        if request.target == AUTO and not any(target.automatic for target in targets):
            _report_remaining(request)
    return [location.path for location in locations.values()]


def _build_fastest(request: Request) -> list[Path]:
    """Build in the fastest precision that passes its gate; on a CPU the order is measured.

    The choice is cached in ``engines/.cache`` under a hash of everything it depends on.
    """
    require_valid(request)
    if request.target == "tensorrt" or (request.target == AUTO and hosts.gpus()):
        say("--precision auto: fp16, the fastest that needs no calibration on every GPU since Turing")
        return build(replace(request, precision="fp16"))
    if request.target not in (AUTO, "cpu"):
        raise ExportError(
            f"--precision auto measures on this CPU, which does not run --target {request.target}: "
            "give --precision fp16"
        )
    ort.require_one()
    key = hashlib.sha256(json.dumps(fingerprint(request, TARGETS["cpu"])).encode()).hexdigest()[:16]
    cache = request.engines / ".cache" / f"auto-{key}.json"
    if (cached := read_json(cache).get("precision")) in PRECISIONS:
        say(f"--precision auto: {cached}, as measured before ({cache})")
        return build(replace(request, precision=cached, target="cpu"))
    from export.fastest import rank_precisions  # imports PyTorch

    with lock_models([TARGETS["cpu"].location(request).model]):
        for name in rank_precisions(request.package):
            try:
                engines = build(replace(request, precision=name, target="cpu"), is_locked=True)
            except GateError as error:
                say(f"--precision auto: {name} is rejected: {error}")
            else:
                write_bytes(cache, json.dumps({"precision": name}).encode())
                return engines
    raise ExportError("--precision auto: every precision that this CPU executes misses its gate; see above")


def _publish_engines(
    request: Request,
    precision: Precision,
    locations: dict[Target, EngineLocation],
    changed: dict[Target, dict[str, str]],
) -> None:
    for target in changed:
        target.require_builder(request.options)
        if target.has_float16_tensors(precision) or (precision.name == "int8" and not request.plan):
            photographs(request.calibration, "--calibration", MIN_CALIBRATION)
    from export.context import BuildContext  # imports PyTorch, which takes seconds
    from export.factory import publish_engine

    context = BuildContext(request, precision)
    published: list[Path] = []
    try:
        for target, current in changed.items():
            publish_engine(context, target, locations[target], current)
            published.append(locations[target].path)
    except BaseException:
        if published:
            say(f"published before that: {', '.join(map(str, published))}")
        raise


def _choose_targets(request: Request, precision: Precision) -> list[Target]:
    """Return the targets to build; print the reasons where the choice is automatic."""
    if request.target != AUTO:
        target = TARGETS[request.target]
        if reason := target.why_not(precision):
            raise ExportError(f"{reason}: use --target auto, or --precision fp32, which every CPU executes")
        return [target]
    has_gpu = bool(hosts.gpus())
    # The target that Triton serves is built last, so that its report ends the output.
    candidates = sorted(
        (t for t in TARGETS.values() if t.automatic is has_gpu), key=lambda target: not target.is_emulated
    )
    reasons = {target: target.why_not(precision) for target in candidates}
    parts = [_report_choice(target, reason) for target, reason in reasons.items()]
    say(f"--target auto: {'' if has_gpu else 'no GPU here, so '}{' and '.join(parts)}")
    chosen = [target for target, reason in reasons.items() if not reason]
    if not chosen:
        raise ExportError(
            f"nothing can be built here in {precision.name}: build on a GPU host, or with --precision fp32"
        )
    return chosen


def _report_choice(target: Target, reason: str) -> str:
    if reason:
        return f"not {target.name}: {reason}"
    if gpu := target.gpu():
        return "{} ({}, compute capability {})".format(target.name, *gpu)
    return f"{target.name} (built ahead of time)" if target.is_emulated else target.name


def _report_remaining(request: Request) -> None:
    """Print what is served here after a build without a GPU, and the command that finishes on a GPU host."""
    model = request.repository / MODEL
    served = versions(model)[-1:]
    engine = provenance(model / str(served[0]) / "model.onnx") if served else {}
    on_cpu = f"version {served[0]}, {engine['precision']} on the CPU" if engine else ""
    say(f"served here now: {on_cpu or 'no engine: make engine PRECISION=fp32 TARGET=cpu'}")
    say(f"to finish on the GPU host: {make_command(request, 'tensorrt')}")
