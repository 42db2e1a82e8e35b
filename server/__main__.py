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
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NoReturn

from server import health, preflight, process
from server.errors import ServerError
from server.settings import CONTROLS, HARDWARE, Settings, libpython_folder


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    verb, settings = parse_arguments(arguments)
    try:
        return _VERBS[verb](settings)
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
    print(preflight.format_table(preflight.run_checks(settings)), file=sys.stderr, flush=True)
    process.run(settings)
    return 0


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


def _health(settings: Settings) -> int:
    health.check(settings)
    return 0


def _refresh(settings: Settings) -> int:
    process.refresh(settings)
    print(f"{settings.served} matches the published repository; Triton loads it on request", file=sys.stderr)
    return 0


def _check_python(settings: Settings) -> int:
    preflight.check_python()
    libpython_folder()
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Print one line, as for every other error."""
        self.exit(2, f"error: {message}\n")


def _number(noun: str, minimum: int, maximum: int) -> Callable[[str], int]:
    """Return a parser of whole numbers in a range; ``noun`` names them in its error."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not minimum <= int(text) <= maximum:
            raise argparse.ArgumentTypeError(f"{text} is not a {noun} from {minimum} to {maximum}")
        return int(text)

    return parse


_COUNT, _SECONDS = _number("count", 0, 1 << 20), _number("number of whole seconds", 0, 86400)
_PORT, _VERSION = _number("port", 1, 65535), _number("version", 1, 1 << 31)


def _versions(text: str) -> tuple[int, ...]:
    return tuple(_VERSION(part.strip()) for part in text.split(",") if part.strip())


def _file(text: str) -> Path | None:
    return Path(text) if text else None


#: Flags by setting: type or choices, and help text.
_FLAGS: dict[str, tuple[Any, str]] = {
    "repository": (Path, "published model repository; only read"),
    "state": (Path, "folder for the served copy, log, backends, key and process id"),
    "wheel": (Path, "folder of the installed Triton wheel"),
    "triton": (_file, "NVIDIA's installation instead of the wheel: /opt/tritonserver in its image"),
    "hardware": (HARDWARE, "selects the configs; auto: cpu, or with --triton the GPUs that nvidia-smi lists"),
    "versions": (_versions, "engine versions to serve, such as 1,2; default: the highest"),
    "preprocess_instances": (_COUNT, "preprocess processes; 0: computed from the cores"),
    "postprocess_instances": (_COUNT, "postprocess processes; 0: computed from the cores"),
    "core_instances": (_COUNT, "instances of the network on each GPU; 0: value of its config"),
    "core_batch": (_COUNT, "maximum batch that the batcher forms; 0: value of its config"),
    "core_delay_us": (_COUNT, "wait of the batcher for a batch, in microseconds; default: value of its config"),
    "address": (str, "address for gRPC and HTTP"),
    "grpc_port": (_PORT, "port for gRPC"),
    "metrics_address": (str, "address for metrics; default: --address"),
    "metrics_port": (_PORT, "port for metrics"),
    "http_port": (_number("port", 0, 65535), "port for HTTP; 0: no HTTP"),
    "tls_cert": (_file, "PEM file of the certificate; turns on TLS for gRPC"),
    "tls_key": (_file, "PEM file of the certificate's key"),
    "tls_ca": (_file, "PEM file of the clients' authority; turns on mutual TLS"),
    "tls_name": (str, "name on the certificate for the health check; default: the address"),
    "admin_key_file": (_file, "file with the key of the restricted groups; default: a random key in the state folder"),
    "control": (CONTROLS, "explicit: callers with the admin key may load and unload models"),
    "trace": (str, "URL of an OpenTelemetry collector: http://host:4318/v1/traces"),
    "trace_rate": (_number("rate", 1, 1 << 31), "trace one request in this many"),
    "cache_mb": (_COUNT, "response cache of restormer in MiB; 0: none"),
    "start_timeout": (_SECONDS, "seconds that a start waits for the first enhanced photograph"),
    "exit_timeout": (_SECONDS, "seconds that a stop waits for requests in flight"),
    "grpc_pool": (_COUNT, "gRPC request objects kept for reuse"),
    "grpc_connection_age": (_SECONDS, "seconds after which connections are renewed; 0: never"),
}


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m server", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", metavar="VERB", choices=tuple(_VERBS), help=", ".join(_VERBS))
    for field in fields(Settings):
        kind, help_text = _FLAGS[field.name]
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


_VERBS = {
    "preflight": _preflight, "start": _start, "stop": _stop, "run": _run, "status": _status, "refresh": _refresh,
    "health": _health, "check-python": _check_python,
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
