"""Run Triton: ``python -m server VERB``. ``make serve`` and ``make stop`` call it.

preflight     run the checks of a start, print them as a table, fail if there is a problem
start, stop   start Triton in the background and wait until it enhances a photograph; stop it
run           run the checks, then replace this process by Triton (for containers)
status        print the running server as one JSON line
refresh       replace the served copy of a server that loads models on request (--control=explicit)
health        check the server, and stop one that no longer enhances (for containers)
check-python  check that this Python can run the local server

Every flag has a variable: --tls-cert is RESTORMER_TLS_CERT. A flag takes precedence.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, fields
from typing import NoReturn

from server import health, preflight, process
from server.errors import ServerError
from server.settings import Settings, libpython_folder


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    verb, settings = parse_arguments(arguments)
    try:
        return _VERBS[verb](settings) or 0
    except (ServerError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def parse_arguments(arguments: list[str] | None = None) -> tuple[str, Settings]:
    """Return the verb, and the settings from flags and environment."""
    options = vars(_parser().parse_args(arguments))
    return options.pop("verb"), Settings(**options)


def _start(settings: Settings) -> None:
    print("starting Triton ...", end="", file=sys.stderr, flush=True)
    started = time.monotonic()
    signal.signal(signal.SIGTERM, _exit_on_sigterm)
    try:
        server = process.start(settings)
    except BaseException:
        print(file=sys.stderr)
        raise
    print(f" ready on {server.url} after {time.monotonic() - started:.1f} s (process {server.pid})", file=sys.stderr)


def _exit_on_sigterm(number: int, _: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not interrupt the clean-up
    raise SystemExit(128 + number)


def _stop(settings: Settings) -> None:
    print("Triton stopped" if process.stop(settings) else "no server was running", file=sys.stderr)


def _run(settings: Settings) -> None:
    print(preflight.format_table(preflight.run_checks(settings)), file=sys.stderr, flush=True)
    process.run(settings)


def _preflight(settings: Settings) -> int:
    rows = list(preflight.run_checks(settings))
    print(preflight.format_table(rows))
    return int(any(row.problem for row in rows))


def _status(settings: Settings) -> int:
    server = process.running_server(settings)
    if server is None:
        print("not running", file=sys.stderr)
        return 1
    print(json.dumps(asdict(server)))
    return 0


def _refresh(settings: Settings) -> None:
    process.refresh(settings)
    print(f"{settings.served} matches the published repository; Triton loads it on request", file=sys.stderr)


def _check_python(settings: Settings) -> None:
    preflight.check_python()
    libpython_folder()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Print one line, as for every other error."""
        self.exit(2, f"error: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m server", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", metavar="VERB", choices=tuple(_VERBS), help=", ".join(_VERBS))
    for field in fields(Settings):
        kind, help_text = field.metadata["kind"], field.metadata["help"]
        # A string, which argparse checks like a flag's value. It does not check choices; the next lines do.
        default = os.environ.get(f"RESTORMER_{field.name.upper()}") or field.default
        choices = kind if isinstance(kind, tuple) else None
        if choices and default not in choices:
            parser.error(f"RESTORMER_{field.name.upper()}={default}: choose one of {', '.join(choices)}")
        parser.add_argument(
            f"--{field.name.replace('_', '-')}", type=str if choices else kind, choices=choices, default=default,
            help=help_text,
        )  # fmt: skip
    return parser


_VERBS: dict[str, Callable[[Settings], int | None]] = {
    "preflight": _preflight, "start": _start, "stop": _stop, "run": _run, "status": _status, "refresh": _refresh,
    "health": health.check, "check-python": _check_python,
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
