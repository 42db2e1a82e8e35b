"""The ``restormer-client`` command: enhance a photograph or a folder, or check a server."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any, NoReturn, get_args

from restormer_client import folder
from restormer_client.calls import MAX_TIMEOUT, TIMEOUT, Format
from restormer_client.connection import TLS
from restormer_client.enhancer import Enhancer
from restormer_client.errors import EnhanceError
from restormer_client.files import find_jobs, format_from_name, write_atomically
from restormer_client.folder import error_line
from restormer_client.tiny import TINY_PHOTOGRAPH

#: Seconds to wait for a server to be ready before the first photograph is sent.
READY_TIMEOUT = 5.0
_EXAMPLES = """examples:
  restormer-client enhance in.jpg out.jpg
  restormer-client enhance in.heic out.webp --quality 85 --strength 0.7
  restormer-client enhance --input_dir photos --output_dir out --jobs 8 --report failures.csv
                                   # repeat it to resume: outputs newer than their input are kept
  restormer-client status --url triton:8001 --wait 60
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code: 0 success, 1 failure, 2 wrong usage, 130 interrupted."""
    parser = _build_parser()
    options = parser.parse_args(arguments)
    try:
        with Enhancer(**enhancer_arguments(options)) as enhancer:
            return int(options.run(enhancer, options, parser))
    except (EnhanceError, OSError, ValueError) as error:
        print(f"error: {error_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


class Parser(argparse.ArgumentParser):
    """An argument parser that reports a usage error in one line."""

    def error(self, message: str) -> NoReturn:
        """Print the error and exit with code 2."""
        self.exit(2, f"error: {message} ({self.prog} --help)\n")


def _build_parser() -> Parser:
    parser = Parser(
        prog="restormer-client", description="Enhance photographs on a restormer-triton server.", epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="enhance | status")
    enhance = verbs.add_parser(
        "enhance", help="enhance one photograph, or a folder of them", epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    _add_files(enhance)
    add_enhance_options(enhance)
    enhance.set_defaults(run=_run_enhance)
    status = verbs.add_parser("status", help="check the server by enhancing a tiny photograph")
    status.add_argument(
        "--wait", type=parse_seconds, metavar="SECONDS", help="wait up to this long until the server enhances"
    )
    status.set_defaults(run=_run_status)
    for verb in (enhance, status):
        add_server_options(verb)
    return parser


def _add_files(verb: argparse.ArgumentParser) -> None:
    files = verb.add_argument_group("one photograph")
    files.add_argument("positional_input", nargs="?", type=Path, metavar="input", help="photograph to read")
    files.add_argument("positional_output", nargs="?", type=Path, metavar="output", help="file to write")
    files.add_argument("--input", type=Path, metavar="FILE", help="photograph to read")
    files.add_argument("--output", type=Path, metavar="FILE", help="file to write; replaced only on success")
    many = verb.add_argument_group("a folder of photographs")
    many.add_argument("--input_dir", "--input-dir", type=Path, metavar="FOLDER", help="input folder, with subfolders")
    many.add_argument(
        "--output_dir", "--output-dir", type=Path, metavar="FOLDER", help="output folder; created if missing"
    )
    many.add_argument("--jobs", type=parse_count, default=8, help="requests in flight (default %(default)s)")
    many.add_argument("--report", type=Path, metavar="FILE", help="list of failures and skipped files, .csv or .json")


def add_enhance_options(verb: argparse.ArgumentParser) -> None:
    """Add the options of `Enhancer.enhance`; `enhance_arguments` reads them."""
    group = verb.add_argument_group("output")
    group.add_argument(
        "--format", choices=get_args(Format), help="default: the input's; of one photograph, that of its output's name"
    )
    group.add_argument("--quality", type=int, help="1 to 100 (default 92)")
    group.add_argument("--size", choices=("native", "512"), help="512: the longer side in pixels (default native)")
    group.add_argument("--strength", type=float, help="0, the original photograph, to 1, the full effect (default)")
    group.add_argument("--strip-gps", dest="gps", action="store_const", const="strip", help="remove the GPS position")
    group.add_argument("--tiled", action="store_true", help="process the full resolution in tiles; much slower")


def add_server_options(verb: argparse.ArgumentParser, flag: str = "--url", timeout: float = TIMEOUT) -> None:
    """Add the options of `Enhancer`, and the timeout; `enhancer_arguments` reads them."""
    server = verb.add_argument_group("server")
    url = os.environ.get("RESTORMER_URL") or "127.0.0.1:8001"
    where = "host:port, dns:///host:port (default $RESTORMER_URL, %(default)s)"
    server.add_argument(flag, dest="url", metavar="URL", default=url, help=where)
    server.add_argument(
        "--timeout", type=parse_seconds, default=timeout, help="seconds per photograph (default %(default)g)"
    )
    server.add_argument("--tls-ca", type=Path, metavar="PEM", help="use TLS; authority of the server's certificate")
    server.add_argument("--tls-cert", type=Path, metavar="PEM", help="client certificate, for mutual TLS")
    server.add_argument("--tls-key", type=Path, metavar="PEM", help="client key, for mutual TLS")
    server.add_argument("--tls-name", metavar="NAME", help="name on the server's certificate if not the URL's")
    server.add_argument("--token-file", type=Path, metavar="FILE", help="token sent as authorization: Bearer")


def enhance_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options of `add_enhance_options` as arguments of `Enhancer.enhance`."""
    return {name: getattr(options, name) for name in ("format", "quality", "size", "strength", "gps", "tiled")}


def enhancer_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options of `add_server_options` as arguments of `Enhancer`. Raise `OSError` for an unreadable file."""
    paths = {"ca": options.tls_ca, "cert": options.tls_cert, "key": options.tls_key, "name": options.tls_name}
    token = options.token_file.read_text(encoding="utf-8").strip() if options.token_file else None
    return {"url": options.url, "tls": TLS(**paths) if any(paths.values()) else None, "token": token}


def _run_enhance(enhancer: Enhancer, options: argparse.Namespace, parser: Parser) -> int:
    source, target = options.input or options.positional_input, options.output or options.positional_output
    arguments = {**enhance_arguments(options), "timeout": options.timeout}
    one, many = (source, target), (options.input_dir, options.output_dir)
    if all(many) and not any(one):
        return _enhance_folder(enhancer, options, arguments)
    if not all(one) or any(many):
        parser.error("give an input and an output file, or --input_dir and --output_dir")
    if source.is_dir():
        raise ValueError(f"{source} is a folder: use --input_dir {source} --output_dir FOLDER")
    _check_writable(target)
    arguments["format"] = format_from_name(target, options.format)
    photograph = source.read_bytes()
    if target.exists() and target.samefile(source):
        raise ValueError(f"{target} is the input itself: choose another output file")
    enhancer.wait_until_ready(min(READY_TIMEOUT, options.timeout))
    write_atomically(target, enhancer.enhance(photograph, **arguments))
    return 0


def _check_writable(path: Path) -> None:
    """Raise `ValueError` if the path is a folder, or is in a folder that does not exist."""
    if path.is_dir() or not path.parent.is_dir():
        reason = "is a folder" if path.is_dir() else "is in a folder that does not exist"
        raise ValueError(f"{path} {reason}: give the path of a file in an existing folder")


def _enhance_folder(enhancer: Enhancer, options: argparse.Namespace, arguments: dict[str, object]) -> int:
    if options.report:
        _check_writable(options.report)
    jobs, others = find_jobs(options.input_dir, options.output_dir, options.format)
    skipped = f"{len(others)} skipped: no photograph extension"
    if not jobs:
        raise ValueError(f"no photographs in {options.input_dir}{f' ({skipped})' if others else ''}")
    todo = [job for job in jobs if not job.is_done]
    if len(todo) < len(jobs):
        print(f"{len(jobs) - len(todo)} of {len(jobs)} are already done", file=sys.stderr)
    failures: list[folder.FailedPhoto] = []
    try:
        if todo:
            enhancer.wait_until_ready(min(READY_TIMEOUT, options.timeout))
            folder.enhance_all(enhancer, todo, failures, parallel=options.jobs, options=arguments)  # type: ignore[arg-type]
    finally:
        if options.report:
            folder.write_report(options.report, [*failures, *map(folder.skipped, others)])
    if others:
        print(f"{len(todo) - len(failures)} enhanced, {skipped}", file=sys.stderr)
    if failures:
        print(f"error: {len(failures)} of {len(jobs)} failed; run the command again to retry them", file=sys.stderr)
    return 1 if failures else 0


def _run_status(enhancer: Enhancer, options: argparse.Namespace, parser: Parser) -> int:
    timeout = options.timeout
    if options.wait:
        started = time.monotonic()
        enhancer.wait_until_ready(options.wait)
        timeout = min(timeout, max(options.wait - (time.monotonic() - started), 1.0))  # --wait covers the rest too
    health = enhancer.health(timeout=timeout)
    if not health.live:
        raise EnhanceError(health.reason)
    for model, is_ready in health.models.items():
        print(f"{model:<14} {'ready' if is_ready else 'not ready'}")
    started = time.monotonic()
    enhancer.enhance(TINY_PHOTOGRAPH, timeout=timeout)
    seconds = time.monotonic() - started
    version = enhancer.metadata(timeout=timeout).version
    print(f"{enhancer.url} enhances (Triton {version}, a tiny photograph in {seconds:.2f} s)")
    return 0


def parse_seconds(text: str) -> float:
    """Parse a duration given on the command line."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= MAX_TIMEOUT:
        raise argparse.ArgumentTypeError(f"{text!r} must be more than 0 and at most {MAX_TIMEOUT:.0f} seconds")
    return value


def parse_count(text: str) -> int:
    """Parse a positive integer given on the command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be an integer of 1 or more")
    return int(text)
