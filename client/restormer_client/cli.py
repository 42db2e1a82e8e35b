"""``restormer-client``: enhance a photograph or a folder of them, or look after a server, from the command line."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any, NoReturn, get_args

from restormer_client import folder
from restormer_client.calls import LONGEST, TIMEOUT, Format
from restormer_client.connection import TLS
from restormer_client.enhancer import Enhancer
from restormer_client.errors import EnhanceError
from restormer_client.files import jobs, write
from restormer_client.folder import said
from restormer_client.tiny import TINY_PHOTOGRAPH

#: Seconds a server may take to be ready before the first photograph is sent.
PATIENCE = 5.0
_EXAMPLES = """examples:
  restormer-client enhance in.jpg out.jpg
  restormer-client enhance in.heic out.webp --format webp --quality 85 --strength 0.7
  restormer-client enhance --input_dir photos --output_dir out --jobs 8 --report failures.csv
                                   # again: skips what is there and newer, tries the rest
  restormer-client status --url triton:8001 --wait 60
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        with Enhancer(**server_of(options)) as enhancer:
            return int(options.run(enhancer, options, parser))
    except (EnhanceError, OSError, ValueError) as error:
        print(f"error: {said(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, as every other error."""
        self.exit(2, f"error: {message} (restormer-client --help)\n")


def _parser() -> _Parser:
    parser = _Parser(
        prog="restormer-client", description="Enhances photographs on a restormer-triton server.", epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="enhance | status")
    enhance = verbs.add_parser(
        "enhance", help="enhance one photograph, or a folder of them", epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    _add_files(enhance)
    add_wishes(enhance)
    enhance.set_defaults(run=_enhance)
    status = verbs.add_parser("status", help="say whether the server enhances: sends a tiny photograph through it")
    status.add_argument(
        "--wait", type=seconds, metavar="SECONDS", help="wait so long for the server to be ready and to enhance"
    )
    status.set_defaults(run=_status)
    for verb in (enhance, status):
        add_server(verb)
    return parser


def _add_files(verb: argparse.ArgumentParser) -> None:
    files = verb.add_argument_group("one photograph")
    files.add_argument("positional_input", nargs="?", type=Path, metavar="input", help="photograph to read")
    files.add_argument("positional_output", nargs="?", type=Path, metavar="output", help="file to write")
    files.add_argument("--input", type=Path, metavar="FILE", help="the same, by name")
    files.add_argument("--output", type=Path, metavar="FILE", help="replaced only when the photograph is done")
    many = verb.add_argument_group("a folder of photographs")
    many.add_argument("--input_dir", "--input-dir", type=Path, metavar="FOLDER", help="read with its subfolders")
    many.add_argument("--output_dir", "--output-dir", type=Path, metavar="FOLDER", help="same names; made if missing")
    many.add_argument("--jobs", type=count, default=8, help="photographs on their way at a time (default %(default)s)")
    many.add_argument("--report", type=Path, metavar="FILE", help="what failed and why, .csv or .json")


def add_wishes(verb: argparse.ArgumentParser) -> None:
    """What is asked of each photograph; `wishes_of` reads it."""
    wishes = verb.add_argument_group("what comes back")
    wishes.add_argument(
        "--format", choices=get_args(Format), help="default: the input's own, whatever the output is called"
    )
    wishes.add_argument("--quality", type=int, help="1 to 100 (default 92)")
    wishes.add_argument("--size", choices=("native", "512"), help="512: the longer side in pixels (default native)")
    wishes.add_argument("--strength", type=float, help="0, the photograph as it was, to 1, the whole effect (default)")
    wishes.add_argument("--strip-gps", dest="gps", action="store_const", const="strip", help="leave the place behind")
    wishes.add_argument("--tiled", action="store_true", help="run over the full resolution in tiles; much slower")


def add_server(verb: argparse.ArgumentParser, flag: str = "--url", timeout: float = TIMEOUT) -> None:
    """Where the server is and who we are; `server_of` reads it."""
    server = verb.add_argument_group("the server")
    url = os.environ.get("RESTORMER_URL", "127.0.0.1:8001")
    where = "host:port, dns:///host:port (default $RESTORMER_URL, %(default)s)"
    server.add_argument(flag, dest="url", metavar="URL", default=url, help=where)
    server.add_argument("--timeout", type=seconds, default=timeout, help="seconds a photograph (default %(default)g)")
    server.add_argument("--tls-ca", type=Path, metavar="PEM", help="speak TLS; who signed the server's certificate")
    server.add_argument("--tls-cert", type=Path, metavar="PEM", help="our certificate, for mutual TLS")
    server.add_argument("--tls-key", type=Path, metavar="PEM", help="our key, for mutual TLS")
    server.add_argument("--tls-name", metavar="NAME", help="on the server's certificate, where --url differs")
    server.add_argument("--token-file", type=Path, metavar="FILE", help="sent as authorization: Bearer")


def wishes_of(options: argparse.Namespace) -> dict[str, Any]:
    """What `add_wishes` was given, as the arguments of `Enhancer.enhance`."""
    return {name: getattr(options, name) for name in ("format", "quality", "size", "strength", "gps", "tiled")}


def server_of(options: argparse.Namespace) -> dict[str, Any]:
    """What `add_server` was given, as the arguments of `Enhancer`. Raises `OSError` where the token cannot be read."""
    paths = {"ca": options.tls_ca, "cert": options.tls_cert, "key": options.tls_key, "name": options.tls_name}
    token = options.token_file.read_text(encoding="utf-8").strip() if options.token_file else None
    return {"url": options.url, "tls": TLS(**paths) if any(paths.values()) else None, "token": token}


def _enhance(enhancer: Enhancer, options: argparse.Namespace, parser: _Parser) -> int:
    source, target = options.input or options.positional_input, options.output or options.positional_output
    asked = {**wishes_of(options), "timeout": options.timeout}
    one, many = (source, target), (options.input_dir, options.output_dir)
    if all(many) and not any(one):
        return _folder(enhancer, options, asked)
    if not all(one) or any(many):
        parser.error("give a photograph and the file to write, or --input_dir and --output_dir")
    if target.is_dir() or not target.parent.is_dir():
        wrong = "is a folder" if target.is_dir() else "is in a folder that does not exist"
        raise ValueError(f"{target} {wrong}: name a file to write, in a folder that is there")
    photograph = source.read_bytes()
    if target.exists() and target.samefile(source):
        raise ValueError(f"{target} is the photograph itself: name another file to write")
    enhancer.wait_until_ready(min(PATIENCE, options.timeout))
    write(target, enhancer.enhance(photograph, **asked))
    return 0


def _folder(enhancer: Enhancer, options: argparse.Namespace, asked: dict[str, object]) -> int:
    if options.report and (options.report.is_dir() or not options.report.parent.is_dir()):
        wrong = "is a folder" if options.report.is_dir() else "is in a folder that does not exist"
        raise ValueError(f"{options.report} {wrong}: name a file to write")
    found = jobs(options.input_dir, options.output_dir, options.format)
    if not found:
        raise ValueError(f"no photographs in {options.input_dir}")
    todo = [job for job in found if not job.is_done]
    if len(todo) < len(found):
        print(f"{len(found) - len(todo)} of {len(found)} are done already", file=sys.stderr)
    failures: list[folder.Failed] = []
    try:
        if todo:
            enhancer.wait_until_ready(min(PATIENCE, options.timeout))
            folder.enhance_all(enhancer, todo, failures, parallel=options.jobs, options=asked)  # type: ignore[arg-type]
    finally:
        if options.report:
            folder.report(options.report, failures)
    if failures:
        print(f"error: {len(failures)} of {len(found)} failed; the same command tries them again", file=sys.stderr)
    return 1 if failures else 0


def _status(enhancer: Enhancer, options: argparse.Namespace, parser: _Parser) -> int:
    left = options.timeout
    if options.wait:
        started = time.monotonic()
        enhancer.wait_until_ready(options.wait)
        left = min(left, max(options.wait - (time.monotonic() - started), 1.0))  # the wait is for the photograph too
    health = enhancer.health(timeout=left)
    if not health.live:
        raise EnhanceError(health.reason)
    for model, is_ready in health.models.items():
        print(f"{model:<14} {'ready' if is_ready else 'not ready'}")
    started = time.monotonic()
    enhancer.enhance(TINY_PHOTOGRAPH, timeout=left)
    seconds = time.monotonic() - started
    version = enhancer.metadata(timeout=left).version
    print(f"{enhancer.url} enhances (Triton {version}, a tiny photograph in {seconds:.2f} s)")
    return 0


def seconds(text: str) -> float:
    """A time on a command line."""
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found <= LONGEST:
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds above 0, a day at the most")
    return found


def count(text: str) -> int:
    """A number of things on a command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number from 1 up")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
