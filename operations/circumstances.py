"""Where and how figures were measured, for the head of every result; and whether the machine was quiet meanwhile."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from export import machine

PACKAGES = ("torch", "onnxruntime", "openvino", "onnx", "numpy", "tensorrt-rtx", "tritonclient", "grpcio")
ISA = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8")
NOISY = 0.15  #: of the median: how far the probes of a quiet machine lie apart at most
PROBES = 7


def circumstances(command: str = "") -> dict[str, Any]:
    """Machine, versions, commit and command of a run, and how steady the machine is at this moment.

    ``command``: what anyone can run again; by default the module and its arguments. Warns on standard error where the
    machine is noisy: then its figures drift by as much.
    """
    found = noise(probes())
    warn_of(found)
    return {
        "cpu": machine.cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "isa": [flag for flag in ISA if flag in machine.cpu_flags()],
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": [name for name, _ in machine.gpus()],
        "system": platform.platform(terse=True),
        "versions": {"python": platform.python_version(), **_versions()},
        "commit": _commit(),
        "command": command or shlex.join(["python", "-m", _module(), *sys.argv[1:]]),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "noise": found,
    }


def after(found: dict[str, Any]) -> None:
    """At the end of the run whose `circumstances` these are: its noise is that before and after it, so a drift too."""
    found["noise"] = noise({each: found["noise"][each] + more for each, more in probes().items()})
    warn_of(found["noise"])


def warn_of(found: dict[str, Any]) -> None:
    """Says on standard error that the machine is noisy, if it is."""
    if is_noisy(found):
        print(
            f"  warning: this machine is noisy: the same work took {found['spread']:.0%} longer or shorter, "
            f"{found['stolen']:.0%} of the time went to other tenants",
            file=sys.stderr,
        )


def is_noisy(found: dict[str, Any]) -> bool:
    """Whether figures taken with this `noise` drift by more than a quiet machine's."""
    return bool(found["spread"] > NOISY or found["stolen"] > NOISY / 3)


def make_command(target: str, parser: argparse.ArgumentParser, options: argparse.Namespace, *but: str) -> str:
    """The make target with the options that were given, as its settings; without ``but``, which change no figure."""
    given = {name: value for name, value in vars(options).items() if value != parser.get_default(name)}
    settings = {
        name.upper(): ",".join(f"{each:g}" if isinstance(each, float) else str(each) for each in _listed(value))
        for name, value in given.items()
        if name not in but
    }
    return " ".join(["make", target, *(f"{name}={shlex.quote(value)}" for name, value in settings.items())])


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def noise(found: dict[str, list[float]]) -> dict[str, Any]:
    """How unsteady the machine was, beside the `probes` that tell it: ``spread``, (most - least) / median of the
    seconds that the same work took, and ``stolen``, the share of the processors' time that others had."""
    seconds = found["seconds"]
    return {
        "spread": (max(seconds) - min(seconds)) / statistics.median(seconds),
        "stolen": statistics.mean(found["stolen_shares"]),
        **found,
    }


def probes() -> dict[str, list[float]]:
    """A fixed piece of work, timed a few times; and the share of the processors' time that was stolen meanwhile.

    In a process of its own, whose threads are started here and now: they may use the cores that this one may.
    """
    command, root = [sys.executable, "-m", "operations.circumstances"], Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, check=True)
    found: dict[str, list[float]] = json.loads(done.stdout)
    return found


def probed() -> dict[str, list[float]]:
    """The `probes`, in this process."""
    square = np.random.default_rng(0).random((700, 700), np.float32)
    before, seconds = ticks(), []
    for _ in range(PROBES + 1):
        began = time.perf_counter()
        for _ in range(4):
            square @ square
        seconds.append(time.perf_counter() - began)
    now = ticks()
    total = now.total - before.total
    return {"seconds": seconds[1:], "stolen_shares": [(now.stolen - before.stolen) / total if total else 0.0]}


class Ticks(NamedTuple):
    """What the kernel has counted since the machine was started: ticks of all its processors, and those of them
    that a hypervisor gave to others."""

    total: int
    stolen: int


def ticks() -> Ticks:
    """The counts of this moment; zeros where the kernel does not keep them."""
    try:
        counts = [int(each) for each in Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0].split()[1:9]]
        return Ticks(sum(counts), counts[7])
    except (OSError, ValueError, IndexError):
        return Ticks(0, 0)


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _commit() -> str:
    """The checkout's commit, with a plus where tracked files were changed since."""
    command = ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _module() -> str:
    """The module that was started with ``python -m``."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec else Path(sys.argv[0]).stem


if __name__ == "__main__":
    print(json.dumps(probed()))
