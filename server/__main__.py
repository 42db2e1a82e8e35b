"""``python -m server preflight | start | stop | run | status``: Triton. ``make serve`` and ``make stop`` call it.

``preflight`` prints what a start would look at, as a table, and fails if something stands in the way. ``run`` becomes
Triton, for containers. ``status`` prints the running server as one JSON line. ``refresh`` makes the served copy anew
for a server that loads models when told; ``health`` is the check of a container; ``check-python`` says whether this
Python can run the local server at all.

Every flag has a variable: ``--tls-cert`` is RESTORMER_TLS_CERT. A flag given wins.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NoReturn

from server import health, preflight, process
from server.errors import ServerError
from server.settings import CONTROLS, HARDWARE, Settings, libpython_folder


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    verb, settings = parsed(arguments)
    try:
        return _VERBS[verb](settings)
    except (ServerError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def parsed(arguments: list[str] | None = None) -> tuple[str, Settings]:
    """The verb, and the settings that the flags and the environment give."""
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
    rows = list(preflight.rows(settings))
    print(preflight.table(rows), file=sys.stderr, flush=True)
    process.run(settings)
    return 0


def _preflight(settings: Settings) -> int:
    rows = list(preflight.rows(settings))
    print(preflight.table(rows))
    return int(any(row.mend for row in rows))


def _status(settings: Settings) -> int:
    server = process.running(settings)
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
    print(f"{settings.served} is as published; models are loaded when Triton is told", file=sys.stderr)
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
    return _number(text, 1, 65535, "port")


def _http_port(text: str) -> int:
    return _number(text, 0, 65535, "port")


def _count(text: str) -> int:
    return _number(text, 0, 1 << 20, "count")


def _seconds(text: str) -> int:
    return _number(text, 0, 86400, "number of whole seconds")


def _rate(text: str) -> int:
    return _number(text, 1, 1 << 31, "rate")


def _number(text: str, least: int, most: int, what: str) -> int:
    if not text.isdecimal() or not least <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"{text} is no {what}: {least} to {most}")
    return int(text)


def _versions(text: str) -> tuple[int, ...]:
    return tuple(_number(part.strip(), 1, 1 << 31, "version") for part in text.split(",") if part.strip())


def _file(text: str) -> Path | None:
    return Path(text) if text else None


#: What each setting is on the command line: how it is read, and what the help says.
_FLAGS: dict[str, tuple[Any, str]] = {
    "repository": (Path, "model repository as published; only read"),
    "state": (Path, "folder for the served copy, log, backends, key and process id"),
    "wheel": (Path, "folder the Triton wheel was installed in"),
    "triton": (_file, "NVIDIA's installation instead of the wheel: /opt/tritonserver in its image"),
    "hardware": (HARDWARE, "what the configs are for; auto: cpu, or with --triton by nvidia-smi"),
    "versions": (_versions, "engine versions to serve side by side, as 1,2; usually the highest alone"),
    "preprocess_instances": (_count, "processes; 0: from the cores"),
    "postprocess_instances": (_count, "processes; 0: from the cores"),
    "core_instances": (_count, "of the network, on each GPU; 0: as its config says"),
    "core_batch": (_count, "photographs that the batcher puts together at most; 0: as its config says"),
    "core_delay_us": (_count, "microseconds that an idle network waits for a batch; usually as its config says"),
    "address": (str, "where gRPC listens"),
    "grpc_port": (_port, ""),
    "metrics_address": (str, "where metrics listen; usually as --address"),
    "metrics_port": (_port, ""),
    "http_port": (_http_port, "0: no HTTP"),
    "tls_cert": (_file, "PEM file: gRPC over TLS"),
    "tls_key": (_file, "PEM file of its key"),
    "tls_ca": (_file, "PEM file of the authority whose clients are let in: mutual TLS"),
    "tls_name": (str, "the name on the server's certificate that the health check asks for, if not its address"),
    "admin_key_file": (_file, "file with the key of the restricted groups; usually a random key in the state folder"),
    "control": (CONTROLS, "explicit: whoever has the key may load and unload models"),
    "trace": (str, "OpenTelemetry collector, http://host:4318/v1/traces"),
    "trace_rate": (_rate, "one request of so many is traced"),
    "cache_mb": (_count, "response cache of restormer, in MiB; 0: none"),
    "start_timeout": (_seconds, "how long a start waits for the first enhanced photograph"),
    "exit_timeout": (_seconds, "how long a stop waits for photographs in flight"),
    "grpc_pool": (_count, "request objects kept for reuse"),
    "grpc_connection_age": (_seconds, "connections are renewed after this; 0: never"),
}


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m server", description="The Triton Inference Server of this project.")
    parser.add_argument("verb", choices=tuple(_VERBS))
    for field in fields(Settings):
        kind, help_text = _FLAGS[field.name]
        # As text, so that argparse checks it as it checks a flag. A choice is not checked there: below.
        default = os.environ.get(f"RESTORMER_{field.name.upper()}") or field.default
        choices = kind if isinstance(kind, tuple) else None
        if choices and default not in choices:
            parser.error(f"RESTORMER_{field.name.upper()}={default}: choose one of {', '.join(choices)}")
        parser.add_argument(
            f"--{field.name.replace('_', '-')}", type=str if choices else kind, choices=choices, default=default,
            help=help_text or None,
        )  # fmt: skip
    return parser


_VERBS = {
    "preflight": _preflight, "start": _start, "stop": _stop, "run": _run, "status": _status, "refresh": _refresh,
    "health": _health, "check-python": _check_python,
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
