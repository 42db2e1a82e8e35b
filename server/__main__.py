"""``python -m server start | stop | run | status``: the local Triton. ``make serve`` and ``make stop`` call it.

``status`` prints the running server as one JSON line; ``check-python`` says whether this Python can run one at all.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

from server import preflight, process
from server.errors import ServerError
from server.settings import Settings, libpython_folder


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    defaults = Settings()
    parser = _Parser(prog="python -m server", description="The local Triton Inference Server.")
    parser.add_argument("verb", choices=tuple(_VERBS))
    parser.add_argument("--repository", type=Path, default=defaults.repository)
    parser.add_argument("--wheel", type=Path, default=defaults.wheel, help="folder the Triton wheel was installed in")
    parser.add_argument("--state", type=Path, default=defaults.state, help="folder for log, backends and process id")
    parser.add_argument("--address", default=defaults.address)
    parser.add_argument("--grpc-port", type=_port, default=defaults.grpc_port)
    parser.add_argument("--metrics-port", type=_port, default=defaults.metrics_port)
    options = vars(parser.parse_args(arguments))
    verb, settings = options.pop("verb"), Settings(**options)
    try:
        return _VERBS[verb](settings)
    except (ServerError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _start(settings: Settings) -> int:
    print("starting Triton ...", end="", file=sys.stderr, flush=True)
    started = time.monotonic()
    try:
        server = process.start(settings)
    except BaseException:
        print(file=sys.stderr)
        raise
    print(f" ready on {server.url} after {time.monotonic() - started:.1f} s (process {server.pid})", file=sys.stderr)
    return 0


def _stop(settings: Settings) -> int:
    print("Triton stopped" if process.stop(settings) else "no server was running", file=sys.stderr)
    return 0


def _run(settings: Settings) -> int:
    process.run(settings)
    return 0


def _status(settings: Settings) -> int:
    server = process.running(settings)
    if server is None:
        print("not running", file=sys.stderr)
        return 1
    print(json.dumps(asdict(server)))
    return 0


def _check_python(settings: Settings) -> int:
    preflight.check_python()
    libpython_folder()
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, as every other error."""
        self.exit(2, f"error: {message}\n")


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text} is no port: 1 to 65535")
    return int(text)


_VERBS = {"start": _start, "stop": _stop, "run": _run, "status": _status, "check-python": _check_python}

if __name__ == "__main__":
    sys.exit(main())
