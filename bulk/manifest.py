"""The manifest: what became of each photograph, in Parquet, one row a photograph.

It lies in ``_manifest`` of the output. Each block of photographs writes a part when it is done (`write_part`), and the
end of a run folds the parts into ``manifest.parquet`` (`fold`). A run that is killed leaves parts: a reader takes both
(`read`). Where a photograph has several rows, an enhanced one counts before a failed one, then the later.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bulk.errors import BulkError
from bulk.storage import Place

FOLDER = "_manifest"
_WHOLE, _PART, _JOB = "manifest.parquet", "part-", "job.json"
ENHANCED, FAILED = "enhanced", "failed"

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),  # the output's name, below --output
        pa.field("source", pa.string(), nullable=False),  # where the photograph was read
        pa.field("status", pa.string(), nullable=False),
        pa.field("error", pa.string()),  # one line, if it failed
        pa.field("checksum", pa.string()),  # SHA-256 of the output, in hexadecimal
        pa.field("bytes", pa.int64()),  # of the output
        pa.field("seconds", pa.float64()),  # from sending it to its answer, the server's queues included
        pa.field("engine", pa.string()),  # what the server said it runs
        pa.field("turned_away", pa.int32()),  # how often a queue was full
        pa.field("finished", pa.timestamp("ms", tz="UTC")),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """What became of one photograph; the fields are `SCHEMA`'s.

    ``seconds`` and ``engine`` are None where an output was found there: the run that made it was killed before it
    could say.
    """

    key: str
    source: str
    status: str
    error: str | None = None
    checksum: str | None = None
    bytes: int | None = None
    seconds: float | None = None
    engine: str | None = None
    turned_away: int = 0
    finished: datetime


def table(rows: Iterable[Row]) -> pa.Table:
    """Rows as Arrow."""
    return pa.Table.from_pylist([asdict(row) for row in rows], schema=SCHEMA)


def checksum(data: bytes) -> str:
    """Of an output."""
    return hashlib.sha256(data).hexdigest()


def write_part(output: Place, rows: Sequence[Row]) -> None:
    """The rows of a block. The name says which photographs: a block that is done again replaces its own."""
    named = hashlib.sha256("\n".join(sorted(row.key for row in rows)).encode("utf-8", "surrogateescape"))
    output.write(f"{FOLDER}/{_PART}{named.hexdigest()[:32]}.parquet", _parquet(table(rows)))


def read(output: Place) -> pa.Table:
    """The latest row of each photograph, in the order of the keys. Raises `BulkError` where a file is damaged."""
    return _latest([_read(output, name) for name in _names(output)])


def fold(output: Place) -> pa.Table:
    """All parts into ``manifest.parquet``, and returns what is in it.

    Killed in between it leaves parts whose rows are in it already, which changes nothing.
    """
    names = _names(output)
    whole = _latest([_read(output, name) for name in names])
    if names != [_WHOLE]:
        output.write(f"{FOLDER}/{_WHOLE}", _parquet(whole))
    for name in names:
        if name != _WHOLE:
            output.remove(f"{FOLDER}/{name}")
    return whole


def is_ours(output: Place, wishes: dict[str, Any]) -> bool:
    """Whether the output was begun by the same job, so that it goes on; False where there is nothing yet.

    ``wishes`` is what is asked of the server for each photograph. Raises `BulkError` where it was another, since no
    output is to hold what two ways of enhancing made, or where the folder holds something else.
    """
    if output.exists(f"{FOLDER}/{_JOB}"):
        asked, found = _asked(wishes), json.loads(output.read(f"{FOLDER}/{_JOB}"))
        if found != asked:
            raise BulkError(
                f"{output.url} was made with {_said(found)}, not with {_said(asked)}: give another --output, or the "
                "same options"
            )
        return True
    if any(True for _ in output.names()):
        raise BulkError(f"{output.url} is not empty, and no job of ours made it: give an --output that is")
    return False


def claim(output: Place, wishes: dict[str, Any]) -> None:
    """Writes down what is asked of the server, before the first photograph."""
    output.write(f"{FOLDER}/{_JOB}", json.dumps(_asked(wishes)).encode())


def _asked(wishes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in wishes.items() if value not in (None, False)}


def _said(asked: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(asked.items())) or "no options"


def _names(output: Place) -> list[str]:
    names = output.below(FOLDER).names()
    return sorted(name for name in names if name == _WHOLE or (name.startswith(_PART) and name.endswith(".parquet")))


def _read(output: Place, name: str) -> pa.Table:
    try:
        return pq.read_table(io.BytesIO(output.read(f"{FOLDER}/{name}")), schema=SCHEMA)
    except pa.ArrowException as error:
        where = f"{output.url}/{FOLDER}/{name}"
        raise BulkError(f"{where} is no Parquet of ours: remove it, its photographs' outputs are kept") from error


def _latest(tables: list[pa.Table]) -> pa.Table:
    rows = pa.concat_tables([SCHEMA.empty_table(), *tables])
    # "enhanced" sorts before "failed".
    rows = rows.sort_by([("key", "ascending"), ("status", "ascending"), ("finished", "descending")])
    keys = rows.column("key").combine_chunks()
    if len(keys) < 2:
        return rows
    is_first = pa.compute.not_equal(keys.slice(1), keys.slice(0, len(keys) - 1))
    return rows.filter(pa.concat_arrays([pa.array([True]), is_first]))


def _parquet(rows: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(rows, buffer)
    return buffer.getvalue()
