"""Find what an acceptance test left behind: processes that it started, and shared memory that no process uses."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from uuid import uuid4

from server import host

MARK = "ACCEPTANCE_RUN"  #: environment variable that all processes of a run inherit
PATIENCE = 10.0  #: seconds that killed processes may take to disappear


@contextlib.contextmanager
def expect_no_leftovers(patience: float | None = None) -> Iterator[None]:
    """Exit with one line if processes or regions of shared memory outlive the block by `PATIENCE` seconds."""
    mark = os.environ[MARK] = uuid4().hex
    before = set(_unused_regions())
    yield
    deadline = time.monotonic() + (patience or PATIENCE)
    while leftovers := [*_marked_processes(mark), *(set(_unused_regions()) - before)]:
        if time.monotonic() > deadline:
            sys.exit(f"error: the test left behind: {', '.join(map(str, leftovers))}")
        time.sleep(0.2)


def _marked_processes(mark: str) -> Iterator[str]:
    """Yield the marked processes other than this one, with their command lines."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # a process may end meanwhile
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes() and int(folder.name) != os.getpid():
                yield f"process {folder.name} ({command[:100].strip()})"


def _unused_regions() -> Iterable[Path]:
    """Return the regions of our servers in shared memory that no process maps."""
    return host.leftover_regions(prefix="of no state folder")
