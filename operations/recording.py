"""Recorded runs: shared command-line options, progress on standard error, and the JSON record with its circumstances.

A run ends with one JSON object on the last line, which ``--record`` also writes to a file. The object may hold the
*circumstances* of the run: machine, versions, commit, command, and how much the speed of the machine varied.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

import hosts
from export import machine
from export.files import read_json, write_bytes
from export.termination import exit_on_sigterm

ROOT = Path(__file__).parents[1]
PACKAGES = ("torch", "onnxruntime", "openvino", "onnx", "numpy", "tensorrt-rtx", "tritonclient", "grpcio")
ISA = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8")
MAX_SPREAD = 0.15  #: of the median: maximum spread of the probe times on a quiet machine
MAX_STOLEN = 0.05  #: maximum share of CPU time taken by other tenants of a quiet machine
PROBES = 7


def add_record_option(parser: argparse.ArgumentParser, note: str = "") -> None:
    """Add ``--record``, which is checked before anything is measured."""
    parser.add_argument("--record", type=parse_output_path, help=f"JSON file for the figures{note}")


def parse_output_path(text: str) -> Path:
    """Convert an option to the path of a file that can be written; reject folders and devices."""
    path = Path(text)
    if path.exists() and not path.is_file():
        raise argparse.ArgumentTypeError(f"{path} is a {'folder' if path.is_dir() else 'device'}: name a regular file")
    parent = next(each for each in path.absolute().parents if each.exists())
    try:  # os.access is wrong for /proc and for a full disk
        with tempfile.TemporaryFile(dir=parent):
            return path
    except OSError:
        raise argparse.ArgumentTypeError(f"cannot write to {parent}: name another file") from None


def parse_numbers(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """Return a parser of ``1,2,4``: positive numbers, sorted, without duplicates."""

    def parse(text: str) -> list[Any]:
        try:
            numbers = sorted({kind(part) for part in text.split(",") if part.strip()})
        except ValueError:
            numbers = []
        if not numbers or numbers[0] <= 0:
            raise argparse.ArgumentTypeError(f"{text!r}: give positive numbers, as in 1,2,4")
        return numbers

    return parse


def find_jpegs(folder: Path) -> list[Path]:
    """Return the JPEGs of a folder by name; exit with one line if there are none."""
    paths = sorted(folder.glob("*.jpg"))
    if not paths:
        raise SystemExit(f"error: no JPEG in {folder}: name a folder with --photos")
    return paths


def show_progress(text: str = "") -> None:
    """Print the current step to standard error: on a terminal one line that is overwritten, and cleared by no text."""
    if sys.stderr.isatty():
        print(f"\r\033[K  {text}" if text else "\r\033[K", end="", file=sys.stderr, flush=True)
    elif text:
        print_status(text)


def print_status(line: str) -> None:
    """Print a line about the run to standard error."""
    print(f"  {line}", file=sys.stderr, flush=True)


def exit_on_interrupt(main: Callable[[], int | None]) -> None:
    """Run a command line and exit with its code, or with one line after Ctrl-C; SIGTERM ends it in the same way."""
    try:
        with exit_on_sigterm():
            sys.exit(main())
    except KeyboardInterrupt:
        raise SystemExit("interrupted") from None


def write_record(figures: dict[str, Any], record: Path | None) -> None:
    """Write the figures to ``record``, whole or not at all."""
    if record:
        write_bytes(record, (json.dumps(figures, indent=2) + "\n").encode())


def read_record(record: Path | None) -> dict[str, Any]:
    """Return the figures of earlier runs, for a run that measures only a part; empty without a file."""
    return read_json(record) if record else {}


def finish_run(figures: dict[str, Any], record: Path | None, kept: dict[str, Any] | None = None) -> None:
    """Write the figures, or ``kept`` instead, to ``record``, and print the figures as the last line of the run.

    If they have circumstances, the machine is probed again, so that a drift during the run shows in its noise.
    """
    if (circumstances := figures.get("circumstances")) and not figures.get("calculation"):
        probes = circumstances["noise"]
        circumstances["noise"] = noise_from_probes(
            {name: probes[name] + values for name, values in run_probes().items()}
        )
        _warn_if_noisy(circumstances["noise"])
    write_record(kept or figures, record)
    print(json.dumps(figures))


def describe_circumstances(command: str = "") -> dict[str, Any]:
    """Return machine, versions, commit and command of a run, and the noise of the machine before it.

    ``command`` reproduces the run; the default is the module with its arguments. Warns on standard error if the
    machine is noisy.
    """
    noise = noise_from_probes(run_probes())
    _warn_if_noisy(noise)
    return {
        "cpu": machine.cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "isa": [flag for flag in ISA if flag in machine.cpu_flags()],
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": [name for name, _ in hosts.gpus()],
        "system": platform.platform(terse=True),
        "versions": {"python": platform.python_version(), **_package_versions()},
        "commit": _git_commit(),
        "command": command or shlex.join(["python", "-m", _main_module(), *sys.argv[1:]]),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "noise": noise,
    }


def format_make_command(
    target: str, parser: argparse.ArgumentParser, options: argparse.Namespace, *ignored: str
) -> str:
    """Return the make command with every option that differs from its default, except ``ignored``."""
    given = {name: value for name, value in vars(options).items() if value != parser.get_default(name)}
    settings = {
        name.upper(): ",".join(
            f"{each:g}" if isinstance(each, float) else str(each)
            for each in (value if isinstance(value, list) else [value])
        )
        for name, value in given.items()
        if name not in ignored
    }
    return " ".join(["make", target, *(f"{name}={shlex.quote(value)}" for name, value in settings.items())])


def noise_from_probes(probes: dict[str, list[float]]) -> dict[str, Any]:
    """Summarize probes. ``spread``: (maximum - minimum) / median of the seconds; ``stolen``: mean share of CPU time
    that went to other tenants."""
    seconds = probes["seconds"]
    return {
        "spread": (max(seconds) - min(seconds)) / statistics.median(seconds),
        "stolen": statistics.mean(probes["stolen_shares"]),
        **probes,
    }


def is_noisy(noise: dict[str, Any]) -> bool:
    """Return whether figures vary by more than on a quiet machine."""
    return bool(noise["spread"] > MAX_SPREAD or noise["stolen"] > MAX_STOLEN)


def _warn_if_noisy(noise: dict[str, Any]) -> None:
    if is_noisy(noise):
        print_status(
            f"warning: this machine is noisy: the time of the same work varied by {noise['spread']:.0%}, "
            f"other tenants took {noise['stolen']:.0%} of the CPU time"
        )


def run_probes() -> dict[str, list[float]]:
    """Measure the probes in a process of their own, whose threads may use all cores that this process may use."""
    command = [sys.executable, "-m", "operations.recording"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    probes: dict[str, list[float]] = json.loads(done.stdout)
    return probes


def _measure_probes() -> dict[str, list[float]]:
    """Time a fixed piece of work `PROBES` times; measure the share of CPU time stolen meanwhile."""
    square = np.random.default_rng(0).random((700, 700), np.float32)
    (total, stolen), seconds = _cpu_ticks(), []
    for _ in range(PROBES + 1):
        started = time.perf_counter()
        for _ in range(4):
            square @ square
        seconds.append(time.perf_counter() - started)
    new_total, new_stolen = _cpu_ticks()
    share = (new_stolen - stolen) / (new_total - total) if new_total > total else 0.0
    return {"seconds": seconds[1:], "stolen_shares": [share]}  # the first one warms up


def _cpu_ticks() -> tuple[int, int]:
    """Return all CPU ticks since boot and those stolen by a hypervisor; zeros where the kernel does not count them."""
    try:
        counts = [int(each) for each in Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0].split()[1:9]]
        return sum(counts), counts[7]
    except (OSError, ValueError, IndexError):
        return 0, 0


def _package_versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def _git_commit() -> str:
    """Return the commit of the checkout, with a plus if tracked files were changed since."""
    command = ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _main_module() -> str:
    """Return the module that was started with ``python -m``."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec else Path(sys.argv[0]).stem


if __name__ == "__main__":
    print(json.dumps(_measure_probes()))
