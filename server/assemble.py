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
from server.engines import plan_documents, require_repository
from server.errors import ServerError
from server.hardware import GPUS, INSTANCE_MIB, USABLE, Values
from server.settings import Settings

#: Processor time of a 12-megapixel photograph in preprocess and in postprocess, in ms (`make benchmark-imaging`).
WORK_MS = {"preprocess": 43, "postprocess": 124}
CORE = "restormer"
CORE_MIB = 3  #: a core tensor: 3 x 512 x 512 values of 4 bytes
#: Models whose configs hold max_inflight_requests, or queues of that size.
IN_FLIGHT = ("enhance", "restormer", "postprocess")
#: Maximum of preprocess and postprocess processes together, however many cores there are. With the times above, 120
#: processes handle 120 / 0.167 s = 719 photographs of 12 megapixels a second (a calculation, docs/scaling.md). More
#: would not fit into compose's default of /dev/shm, 32 MiB each. `--preprocess-instances` overrides it.
MAX_PROCESSES = 120
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
    require_repository(settings.repository)
    models = sorted(path for path in settings.repository.glob("*") if (path / "config.pbtxt").is_file())
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
    config = _published_config(settings, model)
    if model.name in WORK_MS:
        _instance_group(config).count = instance_counts(settings)[model.name]
    if model.name == CORE:
        _configure_core(config, settings)
    if model.name in IN_FLIGHT and (limit := photographs_in_flight(settings)):
        _set_in_flight(config, limit)
    return config


def _published_config(settings: Settings, model: Path) -> Any:
    on_cpu = model / "configs/cpu.pbtxt"
    is_for_cpu = resolve_hardware(settings) == "cpu" and on_cpu.is_file()
    return read_config(on_cpu if is_for_cpu else model / "config.pbtxt")


def rate_limits(settings: Settings) -> dict[str, int]:
    """Return the rate limiter's resources in the network's config, one for each instance; none for a GPU."""
    group = _instance_group(served_config(settings, settings.repository / CORE))
    return {resource.name: group.count for resource in group.rate_limiter.resources}


def photographs_in_flight(settings: Settings) -> int:
    """Return how many photographs may be in each step of ``enhance`` on a GPU host; 0 on a CPU host.

    The number in the config, or, if larger, two batches for each instance of the network: one runs and one waits.
    """
    if resolve_hardware(settings) == "cpu":
        return 0
    enhance = read_config(settings.repository / "enhance/config.pbtxt")
    published: int = enhance.ensemble_scheduling.max_inflight_requests
    return max(published, 2 * _photographs_in_batches(settings))


def pinned_mib(settings: Settings) -> int:
    """Return the pinned memory that the core tensors of a GPU host need, in MiB; 0 on a CPU host.

    A photograph that waits for the network holds one tensor, and one that waits for postprocess two. An instance of the
    network copies its batch in and out through buffers of its own.
    """
    if resolve_hardware(settings) == "cpu":
        return 0
    return CORE_MIB * (3 * photographs_in_flight(settings) + 2 * _photographs_in_batches(settings))


def _photographs_in_batches(settings: Settings) -> int:
    core = _published_config(settings, settings.repository / CORE)
    _configure_core(core, settings)
    of_a_gpu: int = core.max_batch_size * _instance_group(core).count
    return of_a_gpu * max(1, len(hosts.gpus()))


def _set_in_flight(config: Any, limit: int) -> None:
    """Let as many photographs wait at a step as may be in flight, if the config allows fewer."""
    ensemble, batcher = config.ensemble_scheduling, config.dynamic_batching
    if ensemble.max_inflight_requests:
        ensemble.max_inflight_requests = limit
    for policy in (batcher.default_queue_policy, *batcher.priority_queue_policy.values()):
        if policy.max_queue_size:
            policy.max_queue_size = max(policy.max_queue_size, limit)


def _configure_core(config: Any, settings: Settings) -> None:
    """Set the values of engine and GPU in the network's config, then those of the settings, which take precedence."""
    batcher, hardware = config.dynamic_batching, resolve_hardware(settings)
    if hardware != "cpu":
        _configure_gpu(config, settings, GPUS.get(hardware))
    if settings.core_instances:
        _instance_group(config).count = settings.core_instances
    if settings.core_batch > config.max_batch_size:
        raise ServerError(f"--core-batch={settings.core_batch}: the engine takes {config.max_batch_size} at most")
    if settings.core_batch:
        # The batcher stops at the preferred size. A lower max_batch_size would reject larger batches of clients, and
        # contradict the warm-up.
        batcher.preferred_batch_size[:] = [settings.core_batch]
    if settings.core_delay_us is not None:
        batcher.max_queue_delay_microseconds = settings.core_delay_us
    if hardware == "cpu":  # OpenVINO does not know a container's quota
        config.parameters["threads"].string_value = str(max(1, host.cores() // _instance_group(config).count))
    if settings.versions:
        config.version_policy.specific.versions[:] = settings.versions
    if settings.cache_mb:
        config.response_cache.enable = True


def _configure_gpu(config: Any, settings: Settings, gpu: Values | None) -> None:
    """Serve the batches of the engines' profiles, with as many instances as the GPU has memory for."""
    batches = [plan["profile"]["max"][0] for plan in _plans(settings) if "profile" in plan]
    if batches:
        _set_max_batch(config, min(batches))
    if gpu:
        _instance_group(config).count = gpu.instances
        config.dynamic_batching.max_queue_delay_microseconds = gpu.delay_us
    if photographs := photographs_in_memory(settings):
        group = _instance_group(config)
        group.count = max(1, min(group.count, photographs // config.max_batch_size))


def photographs_in_memory(settings: Settings) -> int:
    """Return how many photographs the instances on a GPU can hold together; 0 if its memory is not known."""
    is_float32 = any(plan.get("precision") in ("fp32", "tf32") for plan in _plans(settings))
    return int(host.gpu_memory_mib() * USABLE / (INSTANCE_MIB * (1 + is_float32)))


def _plans(settings: Settings) -> list[dict[str, Any]]:
    return plan_documents(settings.repository, hosts.gpus(), settings.versions)


def _set_max_batch(config: Any, batch: int) -> None:
    """Accept batches of 1 to ``batch``, each captured as a CUDA graph and warmed up."""
    config.max_batch_size = batch
    for samples in (config.optimization.cuda.graph_spec, config.model_warmup):
        while len(samples) > batch:
            samples.pop()
        while len(samples) < batch:
            samples.add().CopyFrom(samples[0])
            samples[-1].batch_size = len(samples)
    for sample in config.model_warmup:
        sample.name = f"batch {sample.batch_size}"


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
    """Return the hardware to select configs for: as set, or by the visible GPUs. The PyPI wheel cannot use GPUs.

    NVIDIA's Triton without a visible GPU is not a CPU server: its image cannot run engines for CPUs.
    """
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
