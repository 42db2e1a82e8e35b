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
from export.network.rewrites import typed
from export.package.model_package import Package, network_from_package, package_from_folder
from imaging import SUFFIXES, InvalidPhotograph, Options, finished, prepared
from imaging.options import WRITTEN

DEFAULTS = Options()
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def enhanced(data: bytes, run: Runner, options: Options = DEFAULTS) -> bytes:
    """Enhance one encoded photograph. ``run`` maps core tensors ``[1, 3, 512, 512]``."""
    core = prepared(data)
    return finished(data, core, run(core[None])[0], options)


def runner_from_package(folder: Path, *, precision: str, device: str, compiled: bool) -> Runner:
    """The package's network in PyTorch, in the given precision, on the given device."""
    return runner_of(package_from_folder(folder), precision=precision, device=device, compiled=compiled)


def runner_of(package: Package, *, precision: str, device: str, compiled: bool) -> Runner:
    """Return what runs the package's network in PyTorch, in the given precision, on the given device."""
    if precision not in DTYPES:
        raise ExportError(f"--precision {precision} is unknown: choose one of {', '.join(DTYPES)}")
    network = network_from_package(package)
    network = network if precision == "fp32" else typed(network, DTYPES[precision])
    try:
        return torch_runner(network, device=device, compiled=compiled)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ExportError(f"--device {device} cannot be used ({reason}): choose cpu, or cuda with a GPU") from error


def enhance_files(pairs: list[tuple[Path, Path]], run: Runner, *, size: str) -> int:
    """Enhance each input into its output, whole or not at all; return how many failed, each reported in one line.

    The name of an output decides its format.
    """
    failed, started = 0, time.monotonic()
    for number, (source, target) in enumerate(pairs, 1):
        try:
            options = Options(format=format_of(target), size=size)
            write_bytes(target, enhanced(source.read_bytes(), run, options))
        except (InvalidPhotograph, OSError) as error:
            failed += 1
            print(f"\nerror: {source}: {error}", file=sys.stderr)
        left = (time.monotonic() - started) / number * (len(pairs) - number)
        bar = "█" * round(24 * number / len(pairs))
        print(f"\r  {bar:<24} {number}/{len(pairs)}  {left:.0f} s left ", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return failed


def pairs_in(source: Path, target: Path, suffix: str) -> list[tuple[Path, Path]]:
    """List every photograph of a folder with the file its result goes to: ``<stem><suffix>`` and its ending.

    HEIC, which is not written, becomes JPEG.
    """
    paths = sorted(path for path in source.glob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise ExportError(f"no photographs in {source}: give a folder with {', '.join(SUFFIXES)}")
    if "/" in suffix:
        raise ExportError(f"--suffix {suffix} must be part of a file name, without /")
    endings = [path.suffix if path.suffix.lower() in WRITTEN else ".jpg" for path in paths]
    return [(path, target / f"{path.stem}{suffix}{ending}") for path, ending in zip(paths, endings, strict=True)]


def require_no_overwriting(pairs: list[tuple[Path, Path]]) -> None:
    """Raise `ExportError` where a photograph, or the result of another one, would be overwritten."""
    taken = {source.resolve() for source, _ in pairs}
    for source, target in pairs:
        if target.resolve() in taken:
            raise ExportError(f"{source} would overwrite {target}: choose another output or --suffix, or rename one")
        taken.add(target.resolve())


def format_of(path: Path) -> str:
    """Return the format that a file's name asks for. Raises `ExportError` where it is none that is written."""
    try:
        return WRITTEN[path.suffix.lower()]
    except KeyError:
        raise ExportError(f"{path} names no format that can be written: end it in {', '.join(WRITTEN)}") from None
