"""The reference path: photographs through PyTorch, without any server. The yardstick of what is served.

Every step but the network is ``imaging``'s, the same code the server runs.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from export.errors import ExportError
from export.fidelity import Runner, torch_runner
from export.files import write_bytes
from export.package import network_from_package, package_from_folder
from export.rewrites import typed
from imaging import SUFFIXES, InvalidPhotograph, Options, finished, prepared

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def enhanced(data: bytes, run: Runner) -> bytes:
    """One encoded photograph, enhanced, in its own size and format. ``run`` maps core tensors ``[1, 3, 512, 512]``."""
    core = prepared(data)
    return finished(data, core, run(core[None])[0], Options())


def runner_from_package(folder: Path, *, precision: str, device: str, compiled: bool) -> Runner:
    """The package's network in PyTorch, in the given precision, on the given device."""
    if precision not in DTYPES:
        raise ExportError(f"--precision {precision} is unknown: choose one of {', '.join(DTYPES)}")
    network = network_from_package(package_from_folder(folder))
    network = network if precision == "fp32" else typed(network, DTYPES[precision])
    try:
        return torch_runner(network, device=device, compiled=compiled)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ExportError(f"--device {device} cannot be used ({reason}): choose cpu, or cuda with a GPU") from error


def enhance_files(pairs: list[tuple[Path, Path]], run: Runner) -> int:
    """Enhances each input into its output, whole or not at all; returns how many failed, each told in one line."""
    failed, started = 0, time.monotonic()
    for number, (source, target) in enumerate(pairs, 1):
        try:
            write_bytes(target, enhanced(source.read_bytes(), run))
        except (InvalidPhotograph, OSError) as error:
            failed += 1
            print(f"\nerror: {source}: {error}", file=sys.stderr)
        left = (time.monotonic() - started) / number * (len(pairs) - number)
        bar = "█" * round(24 * number / len(pairs))
        print(f"\r  {bar:<24} {number}/{len(pairs)}  {left:.0f} s left ", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return failed


def pairs_in(source: Path, target: Path) -> list[tuple[Path, Path]]:
    """Every photograph of a folder, and where its result goes."""
    paths = sorted(path for path in source.glob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise ExportError(f"no photographs in {source}: give a folder with {', '.join(SUFFIXES)}")
    target.mkdir(parents=True, exist_ok=True)
    return [(path, target / path.name) for path in paths]
