"""``python -m bulk enhance``: a folder, a bucket or a list of photographs, through Ray."""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import asdict
from typing import NoReturn

from restormer_client import EnhanceError
from restormer_client.cli import add_server, add_wishes, count, seconds, server_of, wishes_of
from restormer_client.folder import said

from bulk.errors import BulkError
from bulk.job import Job, Summary, run

#: Photographs at the servers at a time. A CPU server lets eight of bulk wait (model_repository/restormer/configs).
IN_FLIGHT = 8
#: Photographs at the servers that one actor looks after, where --actors does not say.
AN_ACTOR = 16
TIMEOUT, PATIENCE = 120.0, 600.0
_EXAMPLES = """examples:
  python -m bulk enhance --input photos --output enhanced --server 127.0.0.1:8001
  python -m bulk enhance --input s3://homes/2026 --output s3://homes-enhanced/2026 \\
      --server dns:///triton:8001 --ray-address auto --in-flight 256 --price-per-hour 30
  python -m bulk enhance --input list.parquet --output enhanced --server triton:8001 --shard 3/10

Run the same command again to go on: after a crash, after photographs failed, after more were added. What is enhanced
stays as it is; what a crash costs is at most the photographs that were at the server.

Beside the outputs lies _manifest, in Parquet: key, source, status, error, checksum, bytes, seconds, engine. A
photograph that cannot be enhanced is a row there, and the exit code is 1; it is tried again by the next run.

How many in flight? As many as the servers need to be busy, and no more than their queues take: 8 for each CPU server,
32 for each GPU (docs/scaling.md). What finds a queue full waits and is counted in the summary as turned_away.
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0 all enhanced, 1 not all, 2 wrong usage, 130 interrupted."""
    options = _parser().parse_args(arguments)
    try:
        summary = run(_job(options))
    except (BulkError, EnhanceError, OSError, ValueError) as error:
        print(f"error: {said(error)}", file=sys.stderr)
        return 1
    except Exception as error:  # noqa: BLE001 - file systems raise what the libraries below them do
        print(f"error: {type(error).__name__}: {said(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where this one stopped", file=sys.stderr)
        return 130
    _tell(summary, options)
    return 1 if summary.failed else 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, as every other error."""
        self.exit(2, f"error: {message} (python -m bulk enhance --help)\n")


def _parser() -> argparse.ArgumentParser:
    how = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        prog="python -m bulk", description="Photographs by the million.", epilog=_EXAMPLES, formatter_class=how
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="enhance")
    enhance = verbs.add_parser(
        "enhance", help="enhance all photographs of a folder, a bucket or a list", epilog=_EXAMPLES, formatter_class=how
    )
    enhance.add_argument(
        "--input", required=True, metavar="WHERE",
        help="folder or URL (s3://, gs://, …), read with its folders; or a .parquet with the column source, and key",
    )  # fmt: skip
    enhance.add_argument("--output", required=True, metavar="WHERE", help="folder or URL; same names, made if missing")
    enhance.add_argument(
        "--in-flight", type=count, default=IN_FLIGHT, metavar="N",
        help="photographs at the servers at a time, over all actors (default %(default)s; see below)",
    )  # fmt: skip
    enhance.add_argument("--shard", type=_shard, default=(1, 1), metavar="3/10", help="only that part of all, by name")
    enhance.add_argument(
        "--patience", type=seconds, default=PATIENCE, metavar="SECONDS",
        help="without a success, the servers overloaded or away, until the job is stopped (default %(default)g)",
    )  # fmt: skip
    enhance.add_argument(
        "--price-per-hour", type=_price, metavar="PRICE", help="of all that works, for the cost of a thousand"
    )
    ray = enhance.add_argument_group("Ray")
    ray.add_argument(
        "--ray-address", metavar="ADDRESS", help="auto, or host:6379 of a cluster (default: a Ray of its own, here)"
    )
    ray.add_argument(
        "--actors", type=count, metavar="N", help=f"processes, a core each (default: one for {AN_ACTOR} in flight)"
    )
    ray.add_argument("--verbose", action="store_true", help="show what Ray says")
    add_wishes(enhance)
    add_server(enhance, "--server", TIMEOUT)
    return parser


def _job(options: argparse.Namespace) -> Job:
    actors = options.actors or max(1, options.in_flight // AN_ACTOR)
    if actors > options.in_flight:
        raise ValueError(f"{actors} actors share {options.in_flight} in flight: at least one each")
    return Job(
        input=options.input, output=options.output, server=server_of(options), wishes=wishes_of(options),
        in_flight=options.in_flight, actors=actors, timeout=options.timeout, patience=options.patience,
        ray_address=options.ray_address, shard=options.shard, price=options.price_per_hour, verbose=options.verbose,
    )  # fmt: skip


def _tell(summary: Summary, options: argparse.Namespace) -> None:
    """The summary for people, and as one JSON object."""
    also = [f"{summary.found} found there"] if summary.found else []
    also += [f"{summary.failed} failed, the same command tries them again"] if summary.failed else []
    also += [f"a queue was full {summary.turned_away} times"] if summary.turned_away else []
    print(
        "; ".join([f"{summary.enhanced} enhanced in {summary.seconds:.1f} s", *also])
        + f"; {summary.photographs_a_second:.2f} a second once Ray was up",
        file=sys.stderr,
    )
    if summary.cost_per_thousand is not None:
        print(
            f"{summary.cost_per_thousand:.4g} per thousand photographs, at {options.price_per_hour:g} an hour",
            file=sys.stderr,
        )
    print(json.dumps(asdict(summary)))


def _shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"{text} is no part of a whole: 1/10 to 10/10, say")
    return int(found[1]), int(found[2])


def _price(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found < 1e9:
        raise argparse.ArgumentTypeError(f"{text} is no price")
    return found


if __name__ == "__main__":
    sys.exit(main())
