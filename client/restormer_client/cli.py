"""``restormer-client``: enhance a photograph, or check a server, from the command line."""

from __future__ import annotations

import argparse
import base64
import os
import sys
import tempfile
import time
from pathlib import Path

from restormer_client.enhancer import TIMEOUT, Enhancer
from restormer_client.errors import EnhanceError

#: A 32x24 JPEG, for `check`.
TINY_PHOTOGRAPH = base64.b64decode(
    """
    /9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAA0JCgsKCA0LCgsODg0PEyAVExISEyccHhcgLikxMC4pLSwzOko+MzZGNywtQFdBRkxOUlNSMj5a
    YVpQYEpRUk//2wBDAQ4ODhMREyYVFSZPNS01T09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT0//wAAR
    CAAYACADASIAAhEBAxEB/8QAGAABAQEBAQAAAAAAAAAAAAAAAwAEAQb/xAAXEAADAQAAAAAAAAAAAAAAAAAAAgNh/8QAGAEAAgMAAAAAAAAA
    AAAAAAAAAwUBBAb/xAAXEQADAQAAAAAAAAAAAAAAAAAAAgMB/9oADAMBAAIRAxEAPwDyKxwZY4a1jgyxwG1SJXMixwVY4bFjgyxwC1RnK5xY
    4MscIiszaZmT6MscGWOEQFm0ZSfT/9k=
    """
)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0 done, 1 failed, 2 wrong usage."""
    options = _parser().parse_args(arguments)
    try:
        with Enhancer(options.url) as enhancer:
            return int(options.run(enhancer, options))
    except (EnhanceError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="restormer-client", description="Client of the restormer-triton server.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    enhance = verbs.add_parser("enhance", help="enhance one photograph")
    enhance.add_argument("input", type=Path, help="photograph to read")
    enhance.add_argument("output", type=Path, help="file to write; replaced only when the photograph is done")
    formats = ("jpeg", "png", "webp", "tiff", "avif")
    enhance.add_argument("--format", choices=formats, help="default: the input's own, whatever the output is called")
    enhance.add_argument("--quality", type=int, help="1 to 100 (default 92)")
    enhance.add_argument("--size", choices=("native", "512"), help="512: the longer side in pixels (default native)")
    enhance.add_argument("--strength", type=float, help="0, the photograph as it was, to 1, the whole effect (default)")
    enhance.add_argument("--strip-gps", dest="gps", action="store_const", const="strip", help="leave the place behind")
    enhance.add_argument("--tiled", action="store_true", help="run over the full resolution in tiles; much slower")
    enhance.set_defaults(run=_enhance)
    check = verbs.add_parser("check", help="wait for the server, then send a tiny photograph through it")
    check.set_defaults(run=_check)
    for verb in (enhance, check):
        verb.add_argument("--url", default="127.0.0.1:8001", help="host:port of the server (default %(default)s)")
        verb.add_argument("--timeout", type=float, default=TIMEOUT, help="seconds (default %(default)s)")
    return parser


def _enhance(enhancer: Enhancer, options: argparse.Namespace) -> int:
    if options.output.is_dir() or not options.output.parent.is_dir():
        wrong = "is a folder" if options.output.is_dir() else "is in a folder that does not exist"
        raise EnhanceError(f"{options.output} {wrong}: name a file to write, in a folder that is there")
    names = ("format", "quality", "size", "strength", "gps", "tiled", "timeout")
    asked = {name: getattr(options, name) for name in names}
    _write(options.output, enhancer.enhance(options.input.read_bytes(), **asked))
    return 0


def _check(enhancer: Enhancer, options: argparse.Namespace) -> int:
    deadline: float = time.monotonic() + options.timeout

    def left() -> float:
        return max(deadline - time.monotonic(), 0.01)

    enhancer.wait_until_ready(left())
    enhancer.enhance(TINY_PHOTOGRAPH, timeout=left())
    print(f"{enhancer.url} enhances (Triton {enhancer.server_version(timeout=left())})")
    return 0


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all: into a file beside it, then renamed."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)  # mkstemp's 0600 is not what a new file is expected to have
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


if __name__ == "__main__":
    sys.exit(main())
