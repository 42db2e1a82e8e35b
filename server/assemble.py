"""Assemble the repository that Triton loads: the published one, with configs for this machine.

The published repository is only read: it may be mounted read-only, and several servers may share it. The copy holds
each model's config (on a CPU ``configs/cpu.pbtxt`` if the model has one, else ``config.pbtxt``) and links to the
published versions. Some values of the configs are set at each start: the processes of preprocess and postprocess,
instances and batching of the network (server/hardware.py), its threads on a CPU, the served versions, and the response
cache. The configs are edited as messages of Triton's own schema, so the copies have no comments; the published files
do.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import hosts
from server import host
from server.errors import ServerError
from server.hardware import GPUS
from server.settings import Settings

#: Processor time of a 12-megapixel photograph in preprocess and in postprocess, in ms (`make benchmark-imaging`).
WORK_MS = {"preprocess": 37, "postprocess": 95}
CORE = "restormer"
#: Maximum of preprocess and postprocess processes together, however many cores there are. With the times above, 64
#: processes handle 64 / 0.132 s = 485 photographs of 12 megapixels a second (a calculation): enough for eight GPUs at
#: 60 each. More would only hold memory, 32 MiB of /dev/shm each. `--preprocess-instances` overrides it.
MAX_PROCESSES = 64
#: The settings that decide what is served: `refresh` uses the values of the start.
SERVED_SETTINGS = (
    "repository", "hardware", "versions", "preprocess_instances", "postprocess_instances", "core_instances",
    "core_batch", "core_delay_us", "cache_mb",
)  # fmt: skip


def assemble_repository(settings: Settings) -> None:
    """Replace the served copy; the caller holds the lock of the state folder.

    The copy is missing for a moment between two renames, so Triton must not load models before this returns. Raises
    `ServerError` if the repository has no ``restormer``.
    """
    models = sorted(path for path in settings.repository.glob("*") if (path / "config.pbtxt").is_file())
    if CORE not in {model.name for model in models}:
        raise ServerError(
            f"{settings.repository} is not a restormer repository: {CORE}/config.pbtxt not found: set --repository"
        )
    fresh, old = settings.served.with_name("served.new"), settings.served.with_name("served.old")
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    for model in models:
        _assemble_model(settings, model, fresh / model.name)
    if settings.served.exists():
        shutil.move(settings.served, old)  # copies a folder that cannot be renamed: one in a lower layer of an overlay
    fresh.rename(settings.served)
    shutil.rmtree(old, ignore_errors=True)


def _assemble_model(settings: Settings, model: Path, target: Path) -> None:
    target.mkdir(parents=True)
    text_format, _ = import_schema()
    text = text_format.MessageToString(served_config(settings, model), as_utf8=True)
    (target / "config.pbtxt").write_text(text, encoding="utf-8")
    for path in model.iterdir():
        if path.is_dir() and path.name.isdigit():
            (target / path.name).symlink_to(path.resolve(), target_is_directory=True)


def served_config(settings: Settings, model: Path) -> Any:
    """Return the model's config for this machine and these settings, as Triton's ``ModelConfig``."""
    on_cpu = model / "configs/cpu.pbtxt"
    config = read_config(on_cpu if resolve_hardware(settings) == "cpu" and on_cpu.is_file() else model / "config.pbtxt")
    if model.name in WORK_MS:
        _instance_group(config).count = instance_counts(settings)[model.name]
    if model.name == CORE:
        _configure_core(config, settings)
    return config


def rate_limits(settings: Settings) -> dict[str, int]:
    """Return the rate limiter's resources in the network's config, one for each instance; none for a GPU."""
    group = _instance_group(served_config(settings, settings.repository / CORE))
    return {resource.name: group.count for resource in group.rate_limiter.resources}


def _configure_core(config: Any, settings: Settings) -> None:
    """Set the values of the GPU in the network's config, then those of the settings, which take precedence."""
    batcher = config.dynamic_batching
    if gpu := GPUS.get(resolve_hardware(settings)):
        _instance_group(config).count = gpu.instances
        batcher.max_queue_delay_microseconds = gpu.delay_us
    if settings.core_instances:
        _instance_group(config).count = settings.core_instances
    if settings.core_batch > config.max_batch_size:
        raise ServerError(f"--core-batch={settings.core_batch}: {CORE}'s config allows {config.max_batch_size}")
    if settings.core_batch:
        # The batcher stops at the preferred size. A lower max_batch_size would reject larger batches of clients, and
        # contradict the warm-up.
        batcher.preferred_batch_size[:] = [settings.core_batch]
    if settings.core_delay_us is not None:
        batcher.max_queue_delay_microseconds = settings.core_delay_us
    if resolve_hardware(settings) == "cpu":  # OpenVINO does not know a container's quota
        config.parameters["threads"].string_value = str(max(1, host.cores() // _instance_group(config).count))
    if settings.versions:
        config.version_policy.specific.versions[:] = settings.versions
    if settings.cache_mb:
        config.response_cache.enable = True


def _instance_group(config: Any) -> Any:
    if len(config.instance_group) != 1:
        raise ServerError(
            f"{config.name}: its config has {len(config.instance_group)} entries in instance_group instead of one: "
            "restore it from the project"
        )
    return config.instance_group[0]


def read_config(path: Path) -> Any:
    """Read a ``config.pbtxt`` as a ``ModelConfig``; raise `ServerError` with the line that the schema rejects."""
    text_format, model_config = import_schema()
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), model_config())
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise ServerError(f"{path}: {error}: restore it from the project") from None


def import_schema() -> tuple[Any, Any]:
    """Import protobuf's ``text_format`` and Triton's ``ModelConfig``.

    Only here, because `check-python` and the preflight must run without them.
    """
    try:
        from google.protobuf import text_format
        from tritonclient.grpc.model_config_pb2 import ModelConfig
    except ImportError as error:
        raise ServerError(
            f"{sys.executable} cannot import tritonclient[grpc] ({error}): install requirements/server.txt (make setup)"
        ) from None
    return text_format, ModelConfig


def resolve_hardware(settings: Settings) -> str:
    """Return the hardware to select configs for: as set, or by the visible GPUs. The PyPI wheel cannot use GPUs."""
    if settings.hardware != "auto":
        return settings.hardware
    return host.hardware_from_gpus(hosts.gpus()) if settings.triton else "cpu"


def instance_counts(settings: Settings) -> dict[str, int]:
    """Return the number of preprocess and of postprocess processes: as set, or computed from the cores."""
    computed = share_cores(host.cores(), on_gpu=resolve_hardware(settings) != "cpu")
    given = {"preprocess": settings.preprocess_instances, "postprocess": settings.postprocess_instances}
    return {name: given[name] or computed[name] for name in computed}


def share_cores(cores: int, *, on_gpu: bool) -> dict[str, int]:
    """Share the cores between preprocess and postprocess in proportion to `WORK_MS`.

    With a GPU the two get all cores but one. On a CPU host the network uses every core, and a quarter of them is enough
    to keep it busy. At least one process of each, at most `MAX_PROCESSES` together.
    """
    share = min(MAX_PROCESSES, max(2, cores - 1 if on_gpu else cores // 4))
    preprocess = max(1, round(share * WORK_MS["preprocess"] / sum(WORK_MS.values())))
    return {"preprocess": preprocess, "postprocess": max(1, share - preprocess)}
