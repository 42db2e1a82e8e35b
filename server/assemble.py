"""The repository that Triton is given: the published one, with the configs chosen for this machine.

What was published is only read: it may be mounted read-only, and several servers may serve it. The copy holds each
model's config (on a CPU ``configs/cpu.pbtxt`` where the model has one, else ``config.pbtxt``) with the few values that
only this start knows, and links to everything else. Those values: how many processes prepare and finish photographs,
how the network is instanced and batched (server/hardware.py), which versions are served, and whether answers are kept.
The configs are edited as messages of Triton's own schema, so the copies have no comments; the published files do.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from server import host as machine
from server.errors import ServerError
from server.hardware import GPUS
from server.settings import Settings

#: Processor time of a 12-megapixel photograph in preprocess and in postprocess, in ms (`make benchmark-imaging`).
WORK_MS = {"preprocess": 37, "postprocess": 95}
CORE = "restormer"
#: Processes of the two steps together, at the most, however many cores there are: by the work above they prepare and
#: finish 64 / 0.132 s = 485 photographs of 12 megapixels a second (a calculation), which is eight GPUs at 60 each. More
#: would only hold memory: each takes 32 MiB of /dev/shm from the start. `--preprocess-instances` asks for more.
MOST = 64
#: The settings that decide what is served: `refresh` takes them as they were at the start.
DECIDE = (
    "repository", "hardware", "versions", "preprocess_instances", "postprocess_instances", "core_instances",
    "core_batch", "core_delay_us", "cache_mb",
)  # fmt: skip


def assemble(settings: Settings) -> None:
    """Makes the served copy anew; to be called under the state folder's lock.

    Between its two renames there is no copy for a moment: Triton is told to load when this has returned. Raises
    `ServerError` if the repository is not one of ours.
    """
    models = sorted(path for path in settings.repository.glob("*") if (path / "config.pbtxt").is_file())
    if CORE not in {model.name for model in models}:
        raise ServerError(f"{settings.repository} is no model repository of ours: {CORE}/config.pbtxt is missing")
    fresh, old = settings.served.with_name("served.new"), settings.served.with_name("served.old")
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    for model in models:
        _assemble_model(settings, model, fresh / model.name)
    if settings.served.exists():
        settings.served.rename(old)
    fresh.rename(settings.served)
    shutil.rmtree(old, ignore_errors=True)


def _assemble_model(settings: Settings, model: Path, target: Path) -> None:
    target.mkdir(parents=True)
    text_format, _ = schema()
    text = text_format.MessageToString(config(settings, model), as_utf8=True)
    (target / "config.pbtxt").write_text(text, encoding="utf-8")
    for path in model.iterdir():
        if path.is_dir() and path.name.isdigit():
            (target / path.name).symlink_to(path.resolve(), target_is_directory=True)


def config(settings: Settings, model: Path) -> Any:
    """Return the model's config for this machine and these settings, as Triton's ``ModelConfig``."""
    on_cpu = model / "configs/cpu.pbtxt"
    made = read_config(on_cpu if hardware(settings) == "cpu" and on_cpu.is_file() else model / "config.pbtxt")
    if model.name in WORK_MS:
        _instance_group(made).count = instances(settings)[model.name]
    if model.name == CORE:
        _configure_core(made, settings)
    return made


def rate_limits(settings: Settings) -> dict[str, int]:
    """Return the rate limiter's resources that the network's config names, one for each instance; on a GPU none."""
    group = _instance_group(config(settings, settings.repository / CORE))
    return {resource.name: group.count for resource in group.rate_limiter.resources}


def _configure_core(made: Any, settings: Settings) -> None:
    """Set the values of the GPU in the network's config, and those of the settings, which take precedence."""
    batcher = made.dynamic_batching
    if gpu := GPUS.get(hardware(settings)):
        _instance_group(made).count = gpu.instances
        batcher.max_queue_delay_microseconds = gpu.delay_us
    if settings.core_instances:
        _instance_group(made).count = settings.core_instances
    if settings.core_batch > made.max_batch_size:
        raise ServerError(f"--core-batch={settings.core_batch}: {CORE}'s config allows {made.max_batch_size}")
    if settings.core_batch:
        # The batcher stops at the preferred size, and a batch that a client made passes as it is. A lower
        # max_batch_size would contradict the warm-up.
        batcher.preferred_batch_size[:] = [settings.core_batch]
    if settings.core_delay_us is not None:
        batcher.max_queue_delay_microseconds = settings.core_delay_us
    if settings.versions:
        made.version_policy.specific.versions[:] = settings.versions
    if settings.cache_mb:
        made.response_cache.enable = True


def _instance_group(config: Any) -> Any:
    if len(config.instance_group) != 1:
        raise ServerError(
            f"{config.name}: its config has {len(config.instance_group)} entries in instance_group instead of one: "
            "take it from the project"
        )
    return config.instance_group[0]


def read_config(path: Path) -> Any:
    """Read a ``config.pbtxt`` as a ``ModelConfig``; raise `ServerError` with the line if Triton's schema rejects it."""
    text_format, model_config = schema()
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), model_config())
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise ServerError(f"{path}: {error}: take it from the project") from None


def schema() -> tuple[Any, Any]:
    """Return protobuf's ``text_format`` and Triton's ``ModelConfig``.

    Imported only here, because `check-python` and the preflight also run where they are not installed.
    """
    try:
        from google.protobuf import text_format
        from tritonclient.grpc.model_config_pb2 import ModelConfig
    except ImportError as error:
        raise ServerError(f"tritonclient[grpc] cannot be imported by {sys.executable} ({error}): make setup") from None
    return text_format, ModelConfig


def hardware(settings: Settings) -> str:
    """What the configs are for: as set, or by the GPUs found if this Triton can use them. The PyPI wheel cannot."""
    if settings.hardware != "auto":
        return settings.hardware
    return machine.hardware(machine.gpus()) if settings.triton else "cpu"


def instances(settings: Settings) -> dict[str, int]:
    """Processes of preprocess and postprocess: as set, or by the cores and the work."""
    sized = sized_instances(machine.cores(), on_gpu=hardware(settings) != "cpu")
    asked = {"preprocess": settings.preprocess_instances, "postprocess": settings.postprocess_instances}
    return {name: asked[name] or sized[name] for name in sized}


def sized_instances(cores: int, *, on_gpu: bool) -> dict[str, int]:
    """Processes for so many cores, shared out by the work.

    Beside a GPU all cores but one prepare and finish photographs. On a CPU the network takes every core, and the two
    steps need only keep it fed: a quarter of the cores. Never fewer than one of each, never more than `MOST` together.
    """
    share = min(MOST, max(2, cores - 1 if on_gpu else cores // 4))
    preprocess = max(1, round(share * WORK_MS["preprocess"] / sum(WORK_MS.values())))
    return {"preprocess": preprocess, "postprocess": max(1, share - preprocess)}
