"""Make one engine: build it, measure its fidelity, check that against the gate, and publish the engine."""

import datetime
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from export import fidelity, machine
from export.context import BuildContext
from export.errors import GateError
from export.fidelity import Fidelity, NotRun, Stage
from export.files import sha256
from export.fingerprint import tool_versions
from export.network.coverage import describe_shares
from export.network.graph import onnx_bytes
from export.progress import say, step
from export.publish import EngineLocation, keep_siblings, link_aliases, replace_version, write_json
from export.request import make_command
from export.targets.base import Target
from export.triton import serve_engine
from imaging import FRAME


def publish_engine(
    context: BuildContext, target: Target, location: EngineLocation, fingerprint: dict[str, str]
) -> None:
    """Build a target's engine and publish it, or raise `ExportError` and leave everything as it was."""
    say(f"{context.precision.name} for {target.name}:")
    with replace_version(location.model, location.version) as folder:
        path = folder / location.engine
        entries, stages = _build(context, target, path)
        document = {**_describe_engine(context, target, path, fingerprint), **entries}
        stages.append(_measure_served(context, target, path, document))
        decisive = _decisive_stage(stages)
        say("\n".join(f"    {line}" for line in (fidelity.HEADER, *(stage.row() for stage in stages))))
        _require_fidelity(context, target, decisive)
        document["fidelity"] = _describe_fidelity(context, stages, decisive)
        document["peak_memory_mib"] = machine.peak_memory_mib()
        names = [f"{name}{suffix}" for name in (location.engine, *location.aliases) for suffix in ("", ".json")]
        document["files"] = sorted({*(path.name for path in folder.iterdir()), *names})
        write_json(folder / f"{location.engine}.json", document)
        dropped = keep_siblings(location.model, location.version, location.engine, context.checkpoint_sha256, folder)
        link_aliases(location, folder)
    for name in dropped:
        say(f"  {name} is removed from version {location.version}: it was made from another checkpoint")
    say(
        f"published {location.path} ({context.precision.name}, {target.name}, {decisive.psnr:.1f} dB against "
        f"torch float32{' emulated' if target.is_emulated else ''}; "
        f"peak memory {document['peak_memory_mib'] / 1024:.1f} GiB)"
    )


def _build(context: BuildContext, target: Target, path: Path) -> tuple[dict[str, Any], list[Stage]]:
    """Build the engine as ``path``; return its own entries of the JSON, and all stages of the ladder."""
    ranges, has_float16 = context.int8_ranges, target.has_float16_tensors(context.precision)
    stages = context.measure_torch(target.floating_type(context.precision), ranges and target.int8_ranges(ranges))
    if has_float16:
        context.require_headroom()
    model = target.graph(context)
    stages.append(context.measure_onnx_runtime(onnx_bytes(model)))
    document = {
        "onnx": {"opset": model.opset_import[0].version, "nodes": len(model.graph.node)},
        "int8": context.int8_plan and asdict(context.int8_plan),
        "ranges": [asdict(tensor) for tensor in context.float16_ranges] if has_float16 else None,
    }
    if document["int8"]:
        write_json(path.with_name(f"{path.name}.int8.json"), document["int8"])
    entries, own_stages = target.build(context, model, path)
    return {**document, **entries}, [*stages, *own_stages]


def _measure_served(context: BuildContext, target: Target, path: Path, document: dict[str, Any]) -> Stage:
    """Measure the engine behind a real Triton, which reads the engine's JSON."""
    stage, request = "served by Triton", context.request
    if reason := target.why_not_served(request):
        return NotRun(stage=stage, reason=reason)
    assert request.server_python is not None
    write_json(path.with_name(f"{path.name}.json"), document)
    flags, types = target.serving_flags(), describe_shares(document["runtime"]["work_executed_in"])
    with (
        step("fidelity as served by Triton"),
        serve_engine(request.server_python, request.repository, path.parent, *flags) as run,
    ):
        return context.reference.measure(stage, types, run)


def _decisive_stage(stages: list[Stage]) -> Fidelity:
    """Return the stage that the gate applies to: the worst of the engine's own, or of all where it cannot run here."""
    measured = [stage for stage in stages if isinstance(stage, Fidelity)]
    own = [stage for stage in measured if stage.stage.startswith(("engine", "served"))]
    return min(own or measured, key=lambda stage: stage.psnr)


def _require_fidelity(context: BuildContext, target: Target, decisive: Fidelity) -> None:
    """Raise `GateError` for an engine that misses its gate, with a picture of its worst photograph."""
    reference, name = context.reference, decisive.worst
    try:
        fidelity.require_fidelity(decisive, reference.ground_truth_distance(), context.precision, context.gate)
    except GateError as error:
        picture = context.request.engines / "failed" / f"{target.name}-{context.precision.name}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        panels = reference.images[name], reference.outputs[name], reference.worst_outputs[decisive.stage]
        Image.fromarray(fidelity.difference_picture(*panels)).save(picture)
        write_json(picture.with_suffix(".json"), decisive.document())
        raise GateError(
            f"{error}; {picture} shows {name}: input, float32, {context.precision.name}, difference"
        ) from None


def _describe_fidelity(context: BuildContext, stages: list[Stage], decisive: Fidelity) -> dict[str, Any]:
    ground_truth = context.reference.ground_truth_distance()
    return {
        "gate_psnr": context.gate,
        "gate_overridden": context.gate != context.precision.gate,
        "photographs": len(context.reference.images),
        "decided_by": decisive.stage,
        "truth_of_torch_float32": asdict(ground_truth) if ground_truth else None,
        "ladder": [stage.document() for stage in stages],
    }


def _describe_engine(context: BuildContext, target: Target, path: Path, fingerprint: dict[str, str]) -> dict[str, Any]:
    """Return the part of an engine's JSON that says what it is and where it came from."""
    request, package, gpu = context.request, context.package, target.gpu()
    return {
        "engine": path.name,
        "sha256": sha256(path),
        "target": target.name,
        "precision": request.precision,
        "frame": FRAME,
        "origin": fingerprint,
        "package": {
            "folder": request.package.name,
            "checkpoint_sha256": context.checkpoint_sha256,
            "training_info": package.training_info,
            "remarks": package.remarks,
        },
        "network": {
            "architecture": package.architecture.describe(),
            "parameters": package.parameters,
            "eps": package.architecture.eps,
            "trained_frame": package.frame.text,
        },
        "profile": target.profile(request.options),
        "versions": tool_versions(target),
        "machine": {
            "cpu": machine.cpu_name(),
            "gpu": gpu and gpu[0],
            "gpu_compute_capability": gpu and gpu[1],
        },
        "command": make_command(request, target.name),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
