"""What the benchmarks' command lines share: the photographs they send, what they say on the way, and how a run ends."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from export.files import write_bytes
from operations.circumstances import after


def add_record(parser: argparse.ArgumentParser, more: str = "") -> None:
    """``--record``, refused before the first minute where nothing can be written."""
    parser.add_argument("--record", type=writable, help=f"JSON file that keeps the figures{more}")


def writable(text: str) -> Path:
    """An option's file, which may be written and need not be there; renamed into its place, so never over a device."""
    path = Path(text)
    if path.exists() and not path.is_file():
        raise argparse.ArgumentTypeError(f"{path} is {'a folder' if path.is_dir() else 'no file'}: name a file")
    parent = next(each for each in path.absolute().parents if each.exists())
    try:  # what access says is not always true: of /proc, or of a full disk
        with tempfile.TemporaryFile(dir=parent):
            return path
    except OSError:
        raise argparse.ArgumentTypeError(f"nothing can be written into {parent}: name another file") from None


def progress(text: str = "") -> None:
    """What is being done, on standard error: on a terminal one line written over, which no text wipes; else a line."""
    if sys.stderr.isatty():
        print(f"\r\033[K  {text}" if text else "\r\033[K", end="", file=sys.stderr, flush=True)
    elif text:
        print(f"  {text}", file=sys.stderr, flush=True)


def say(line: str) -> None:
    """What was found on the way, on standard error: a line that stays."""
    print(f"  {line}", file=sys.stderr, flush=True)


def interruptible(main: Callable[[], None]) -> None:
    """Runs a command line that Ctrl-C ends in one word."""
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("interrupted") from None


def numbers(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """Reads ``1,2,4``, in order and once each, all above zero."""

    def read(text: str) -> list[Any]:
        try:
            found = sorted({kind(part) for part in text.split(",") if part.strip()})
        except ValueError:
            found = []
        if not found or found[0] <= 0:
            raise argparse.ArgumentTypeError(f"{text!r}: numbers above zero, as 1,2,4")
        return found

    return read


def jpegs(folder: Path) -> list[Path]:
    """The JPEGs of a folder, by name; ends the program where there are none."""
    found = sorted(folder.glob("*.jpg"))
    if not found:
        raise SystemExit(f"error: no JPEG in {folder}: name a folder with --photos")
    return found


def keep(figures: dict[str, Any], record: Path | None) -> None:
    """Writes the figures to ``record``, whole or not at all."""
    if record:
        write_bytes(record, (json.dumps(figures, indent=2) + "\n").encode())


def finish(figures: dict[str, Any], record: Path | None, kept: dict[str, Any] | None = None) -> None:
    """Keeps the figures, or ``kept`` in their place, and prints them: the last line of a run, one JSON object.

    Where they name their `circumstances`, the machine is probed once more: figures drift with it.
    """
    if (where := figures.get("circumstances")) and not figures.get("calculation"):
        after(where)
    keep(kept or figures, record)
    print(json.dumps(figures))


def earlier(record: Path | None) -> dict[str, Any]:
    """What the file holds of earlier runs, for a run that measures only a part anew."""
    kept: dict[str, Any] = json.loads(record.read_text(encoding="utf-8")) if record and record.is_file() else {}
    return kept
