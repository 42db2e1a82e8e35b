"""The repository that Triton is given: the published one, with the configs chosen for this machine.

What was published is only read: it may be mounted read-only, and several servers may serve it. The copy holds each
model's config (on a CPU ``configs/cpu.pbtxt`` where the model has one, else ``config.pbtxt``) with the few values that
only this start knows, and links to everything else. Those values: how many processes prepare and finish photographs,
how the network is instanced and batched (server/hardware.py), which versions are served, and whether answers are kept.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from server import machine
from server.errors import ServerError
from server.hardware import GPUS
from server.settings import Settings

#: Processor time of a 12-megapixel photograph in preprocess and in postprocess, in ms (`make benchmark-imaging`).
WORK_MS = {"preprocess": 37, "postprocess": 95}
CORE = "restormer"
_INSTANCES = r"instance_group \[ \{ kind: KIND_[CG]PU count: "
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
    (target / "config.pbtxt").write_text(config(settings, model), encoding="utf-8")
    for path in model.iterdir():
        if path.is_dir() and path.name.isdigit():
            (target / path.name).symlink_to(path.resolve(), target_is_directory=True)


def config(settings: Settings, model: Path) -> str:
    """The text of the model's config for this machine and these settings."""
    on_cpu = model / "configs/cpu.pbtxt"
    path = on_cpu if hardware(settings) == "cpu" and on_cpu.is_file() else model / "config.pbtxt"
    text = path.read_text(encoding="utf-8")
    if model.name in WORK_MS:
        text = with_instances(text, instances(settings)[model.name])
    if model.name == "preprocess" and hardware(settings) == "cpu":
        core = config(settings, settings.repository / CORE)
        room = int(re.findall(r"max_queue_size: (\d+)", core)[0])
        text = with_ahead(text, _instances(core) + min(_instances(text) - 1, room))
    return core_config(text, settings) if model.name == CORE else text


def core_config(text: str, settings: Settings) -> str:
    """The network's config with the values of the GPU, and of the settings, which take precedence."""
    if gpu := GPUS.get(hardware(settings)):
        text = with_delay(with_instances(text, gpu.instances), gpu.delay_us)
    if settings.core_instances:
        text = with_instances(text, settings.core_instances)
    if settings.core_batch:
        text = with_batch(text, settings.core_batch)
    if settings.core_delay_us is not None:
        text = with_delay(text, settings.core_delay_us)
    if settings.versions:
        text = with_versions(text, settings.versions)
    return text + ("response_cache { enable: true }\n" if settings.cache_mb else "")


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


def with_instances(text: str, count: int) -> str:
    """The config with so many instances."""
    return _replaced(rf"({_INSTANCES})\d+", rf"\g<1>{count}", text)


def _instances(text: str) -> int:
    return int(_found(rf"{_INSTANCES}(\d+)", text))


def with_ahead(text: str, count: int) -> str:
    """preprocess's config with so many photographs prepared and not yet through the network, if it bounds them."""
    return re.sub(r'(key: "ahead" value: \{ string_value: ")\d+', rf"\g<1>{count}", text)


def with_batch(text: str, most: int) -> str:
    """The config whose batcher puts together so many at most; a batch that a sender made goes as it is.

    By the preferred size: the batcher stops there. A lower ``max_batch_size`` would contradict the warm-up.
    """
    limit = int(_found(r"^max_batch_size: (\d+)$", text))
    if most > limit:
        raise ServerError(f"--core-batch={most}: restormer's config allows {limit}")
    return _batcher(text, "preferred_batch_size", f"[ {most} ]")


def with_delay(text: str, microseconds: int) -> str:
    """The config whose batcher waits so long for a batch to fill while an instance is idle."""
    return _batcher(text, "max_queue_delay_microseconds", str(microseconds))


def _batcher(text: str, field: str, value: str) -> str:
    """The config with this field of the dynamic batcher, whether it had one or not."""
    without = re.sub(rf"^ *{field}: .*\n", "", text, flags=re.MULTILINE)
    return _replaced(r"^dynamic_batching \{$", f"dynamic_batching {{\n  {field}: {value}", without)


def with_versions(text: str, versions: tuple[int, ...]) -> str:
    """The config with exactly these versions in service."""
    wanted = f"version_policy {{ specific {{ versions: [ {', '.join(map(str, versions))} ] }} }}"
    return _replaced(r"version_policy \{ latest \{ num_versions: 1 \} \}", wanted, text)


def _replaced(pattern: str, replacement: str, text: str) -> str:
    _found(pattern, text)
    return re.sub(pattern, replacement, text, flags=re.MULTILINE)


def _found(pattern: str, text: str) -> str:
    """What stands in the one place of the config that is like this."""
    found: list[str] = re.findall(pattern, text, re.MULTILINE)
    if len(found) != 1:
        raise ServerError(
            f"a config.pbtxt has {len(found)} lines like {pattern!r} instead of one: take it from the project"
        )
    return found[0]
