"""``python -m server start | stop | run | status``: the local Triton. ``make serve`` and ``make stop`` call it."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from server import process
from server.errors import ServerError
from server.settings import Settings


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    defaults = Settings()
    parser = argparse.ArgumentParser(prog="python -m server", description="The local Triton Inference Server.")
    parser.add_argument("verb", choices=("start", "stop", "run", "status"))
    parser.add_argument("--repository", type=Path, default=defaults.repository)
    parser.add_argument("--wheel", type=Path, default=defaults.wheel, help="folder the Triton wheel was installed in")
    parser.add_argument("--state", type=Path, default=defaults.state, help="folder for log, backends and process id")
    parser.add_argument("--address", default=defaults.address)
    parser.add_argument("--grpc-port", type=int, default=defaults.grpc_port)
    parser.add_argument("--metrics-port", type=int, default=defaults.metrics_port)
    options = vars(parser.parse_args(arguments))
    verb, settings = options.pop("verb"), Settings(**options)
    try:
        return _VERBS[verb](settings)
    except ServerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _start(settings: Settings) -> int:
    print("starting Triton ...", end="", file=sys.stderr, flush=True)
    started = time.monotonic()
    try:
        pid = process.start(settings)
    except BaseException:
        print(file=sys.stderr)
        raise
    print(f" ready on {settings.url} after {time.monotonic() - started:.1f} s (process {pid})", file=sys.stderr)
    return 0


def _stop(settings: Settings) -> int:
    print("Triton stopped" if process.stop(settings) else "no server was running", file=sys.stderr)
    return 0


def _run(settings: Settings) -> int:
    process.run(settings)
    return 0


def _status(settings: Settings) -> int:
    pid = process.running(settings)
    print(f"running on {settings.url} (process {pid})" if pid else "not running", file=sys.stderr)
    return 0 if pid else 1


_VERBS = {"start": _start, "stop": _stop, "run": _run, "status": _status}

if __name__ == "__main__":
    sys.exit(main())
