"""Choose the convolutions that run in INT8: calibrate, measure what each costs, and keep the plan above its gate."""

import dataclasses
import hashlib
import json
from pathlib import Path

from export import fidelity
from export.errors import ExportError
from export.files import folder_digest, read_json, write_bytes
from export.network import int8
from export.network.cost import network_convolutions
from export.network.coverage import Convolution
from export.network.restormer import Restormer
from export.progress import say, step
from export.request import MIN_CALIBRATION, Request, photographs
from imaging import SIDE

MAX_CALIBRATION = 32  #: photographs that activations are calibrated on
#: The error of quantizing one layer is measured on small images, so that the 176 candidates of the standard network
#: take minutes instead of hours: on the largest of these sides whose multiply-accumulates, over all layers and
#: photographs, are at most ``COST_WORK``.
COST_SIDES, COST_PHOTOGRAPHS, COST_WORK = (256, 128, 64), 2, 4e12


def plan_from_request(
    request: Request, network: Restormer, reference: fidelity.Reference, checkpoint: str, gate: float
) -> int8.Plan:
    """Read the plan that the request names, or make one for a rewritten network; print it."""
    if request.plan:
        plan = int8.plan_from_file(request.plan)
        if unknown := plan.ranges.keys() - int8.candidates(network).keys():
            raise ExportError(f"--plan {request.plan}: this network has no {sorted(unknown)[0]}")
    else:
        layers = network_convolutions(network, SIDE)
        ranges, errors = _ranges_and_errors(request, network, checkpoint, layers)
        plan = int8.make_plan(layers, ranges, errors, gate, request.calibrator)
        plan = _keep_above_gate(plan, network, reference, gate)
    for line in plan.lines():
        say(f"    {line}")
    return plan


def calibration_images(folder: Path, side: int, count: int) -> dict[str, fidelity.Tensor]:
    """Read up to ``count`` photographs, spread evenly over a folder, as core tensors of a side."""
    paths = photographs(folder, "--calibration", MIN_CALIBRATION)
    count = min(count, len(paths))
    spread = [paths[i * len(paths) // count] for i in range(count)]
    return {path.name: fidelity.core_tensor(path, side) for path in spread}


def _ranges_and_errors(
    request: Request, network: Restormer, checkpoint: str, layers: list[Convolution]
) -> tuple[dict[str, float], dict[str, float]]:
    """Return range and cost of each candidate, cached by the content of everything they depend on."""
    cache = request.engines / ".cache" / f"int8-{_cache_key(request, checkpoint)}.json"
    cached = read_json(cache)
    if {"ranges", "errors"} <= cached.keys():
        say(f"    calibration of these photographs is cached ({cache})")
        return cached["ranges"], cached["errors"]
    images = calibration_images(request.calibration, SIDE, MAX_CALIBRATION)
    with step(f"calibrating on {len(images)} photographs ({request.calibrator})"):
        ranges = int8.calibrate(network, images, request.calibrator)
    work = sum(layer.macs for layer in layers) * len(ranges) * COST_PHOTOGRAPHS
    side = next((s for s in COST_SIDES if work * (s / SIDE) ** 2 <= COST_WORK), COST_SIDES[-1])
    small = calibration_images(request.calibration, side, COST_PHOTOGRAPHS)
    with step(f"what each convolution costs in INT8, at {side}x{side}"):
        errors = int8.errors_alone(network, ranges, small)
    write_bytes(cache, json.dumps({"ranges": ranges, "errors": errors}, indent=1).encode())
    return ranges, errors


def _cache_key(request: Request, checkpoint: str) -> str:
    code = hashlib.sha256(repr((MAX_CALIBRATION, COST_SIDES, COST_PHOTOGRAPHS, COST_WORK)).encode())
    for name in ("int8.py", "rewrites.py", "restormer.py"):
        code.update((Path(__file__).parent / "network" / name).read_bytes())
    calibration = folder_digest(request.calibration)
    return f"{checkpoint[:16]}-{calibration[:16]}-{request.calibrator}-{code.hexdigest()[:16]}"


def _keep_above_gate(plan: int8.Plan, network: Restormer, reference: fidelity.Reference, gate: float) -> int8.Plan:
    """Drop the costliest layers while all of them together miss the gate at full size."""
    while plan.taken:
        run = fidelity.torch_runner(int8.fake_quantize(network, plan.ranges))
        with step(f"fidelity of the plan's {plan.taken} layers together"):
            reached = reference.measure("torch int8", "INT8 grid", run).psnr
        if reached >= gate:
            return plan
        plan = dataclasses.replace(plan, taken=plan.taken - max(1, plan.taken // 8))
        say(f"    {reached:.1f} dB, below the gate of {gate:.0f}: dropping the last layers, {plan.taken} remain")
    return plan
