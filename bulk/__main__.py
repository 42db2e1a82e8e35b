"""The ``python -m bulk enhance`` command: enhance a folder, a bucket or a list of photographs with Ray."""

import argparse
import json
import re
import sys
from dataclasses import asdict
from typing import Any

from restormer_client import EnhanceError
from restormer_client.cli import (
    Parser,
    add_enhance_options,
    add_server_options,
    enhance_arguments,
    enhancer_arguments,
    parse_count,
    parse_seconds,
)
from restormer_client.folder import error_line

from bulk.errors import BulkError
from bulk.job import Summary, run
from bulk.plan import Job

#: Default requests in flight: enough to keep a CPU server busy, and fewer than its bulk queue holds.
IN_FLIGHT = 8
#: Requests in flight per actor, unless --actors is given.
IN_FLIGHT_PER_ACTOR = 16
TIMEOUT, PATIENCE = 120.0, 600.0
_EXAMPLES = """examples:
  python -m bulk enhance --input photos --output enhanced --server 127.0.0.1:8001
  python -m bulk enhance --input s3://homes/2026 --output s3://homes-enhanced/2026 \\
      --server dns:///triton:8001 --ray-address auto --in-flight 256 --price-per-hour 30
  python -m bulk enhance --input list.parquet --output enhanced --server triton:8001 --shard 3/10

Run the same command again to resume after a crash, to retry failures, or to process added photographs. Finished
outputs are kept; a crash costs at most the photographs in flight.

The folder _manifest of the output holds one Parquet row per photograph: key, source, status, error, checksum, bytes,
seconds, engine. A photograph that cannot be enhanced has a row there with its error, and the exit code is 1; the next
run retries it.

Set --in-flight high enough to keep the servers busy, but not above what their queues hold. Use 8 for each CPU server,
32 for each GPU (docs/scaling.md). Rejected requests are sent again; the summary counts the rejections.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code: 0 all enhanced, 1 not all, 2 wrong usage, 130 interrupted."""
    options = _build_parser().parse_args(arguments)
    try:
        summary = run(_job_from_options(options))
    except (BulkError, EnhanceError, OSError, ValueError) as error:
        print(f"error: {error_line(error)}", file=sys.stderr)
        return 1
    except Exception as error:  # noqa: BLE001 - file systems raise the exceptions of the libraries they use
        print(f"error: {type(error).__name__}: {error_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; run the same command again to resume", file=sys.stderr)
        return 130
    _print_summary(summary, options)
    return 1 if summary.failed else 0


def _build_parser() -> argparse.ArgumentParser:
    examples: dict[str, Any] = {"epilog": _EXAMPLES, "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = Parser(prog="python -m bulk", description="Enhance photographs by the million.", **examples)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="enhance")
    text = "enhance all photographs of a folder, a bucket or a list"
    enhance = verbs.add_parser("enhance", help=text, **examples)
    enhance.add_argument(
        "--input", required=True, metavar="WHERE",
        help="folder or URL (s3://, gs://, …), with subfolders; or a .parquet with columns source and, optionally, key",
    )  # fmt: skip
    enhance.add_argument(
        "--output", required=True, metavar="WHERE", help="folder or URL; same names, created if missing"
    )
    enhance.add_argument(
        "--in-flight", type=parse_count, default=IN_FLIGHT, metavar="N",
        help="requests in flight over all actors (default %(default)s; see below)",
    )  # fmt: skip
    enhance.add_argument(
        "--shard", type=_parse_shard, default=(1, 1), metavar="3/10",
        help="process only this part of the photographs, selected by a hash of the name",
    )  # fmt: skip
    enhance.add_argument(
        "--patience", type=parse_seconds, default=PATIENCE, metavar="SECONDS",
        help="stop the job after this long without a success (default %(default)g)",
    )  # fmt: skip
    enhance.add_argument(
        "--price-per-hour", type=_parse_price, metavar="PRICE",
        help="hourly price of all machines, to report the cost of a thousand photographs",
    )  # fmt: skip
    ray = enhance.add_argument_group("Ray")
    ray.add_argument(
        "--ray-address", metavar="ADDRESS", help="auto, or host:6379 of a cluster (default: start a local Ray)"
    )
    ray.add_argument(
        "--actors", type=parse_count, metavar="N",
        help=f"worker processes, one core each (default: one per {IN_FLIGHT_PER_ACTOR} in flight)",
    )  # fmt: skip
    ray.add_argument("--verbose", action="store_true", help="show Ray's output")
    add_enhance_options(enhance)
    add_server_options(enhance, "--server", TIMEOUT)
    return parser


def _job_from_options(options: argparse.Namespace) -> Job:
    actors = options.actors or max(1, options.in_flight // IN_FLIGHT_PER_ACTOR)
    if actors > options.in_flight:
        raise ValueError(f"--actors {actors} exceeds --in-flight {options.in_flight}: each actor needs at least one")
    return Job(
        input=options.input, output=options.output, server=enhancer_arguments(options),
        options=enhance_arguments(options), in_flight=options.in_flight, actors=actors,
        timeout=options.timeout, patience=options.patience, ray_address=options.ray_address, shard=options.shard,
        price=options.price_per_hour, verbose=options.verbose,
    )  # fmt: skip


def _print_summary(summary: Summary, options: argparse.Namespace) -> None:
    """Print the summary as text to stderr, and as one JSON object to stdout."""
    details = [f"{summary.found} already in the output"] if summary.found else []
    details += [f"{summary.failed} failed (run the same command again to retry them)"] if summary.failed else []
    details += [f"{summary.skipped} skipped: no photograph extension"] if summary.skipped else []
    details += [f"{summary.rejections} rejections by a full queue"] if summary.rejections else []
    details += [f"{summary.photographs_a_second:.2f} photographs per second after Ray's start"]
    print("; ".join([f"{summary.enhanced} enhanced in {summary.seconds:.1f} s", *details]), file=sys.stderr)
    if (cost := summary.cost_per_thousand) is not None:
        print(f"{cost:.4g} per thousand photographs, at {options.price_per_hour:g} per hour", file=sys.stderr)
    print(json.dumps(asdict(summary)))


def _parse_shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} must be NUMBER/COUNT, from 1/10 to 10/10 for ten parts")
    return int(match[1]), int(match[2])


def _parse_price(text: str) -> float:
    try:
        price = float(text)
    except ValueError:
        price = -1.0
    if not 0 <= price < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of 0 or more")
    return price


if __name__ == "__main__":
    sys.exit(main())
