"""The manifest: the result of each photograph in Parquet, one row per photograph or skipped file.

It is the folder ``_manifest`` of the output. Each block of photographs writes a part when it is done (`write_part`),
and a run merges the parts into ``manifest.parquet`` when it ends (`merge_parts`). A killed run leaves parts, so
`read_rows` reads both. If a photograph has several rows, an enhanced row takes precedence over a failed one, then the
later one.
"""

import hashlib
import io
import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bulk.errors import BulkError
from bulk.storage import Folder, is_leftover

FOLDER = "_manifest"
_MERGED, _PART, _JOB = "manifest.parquet", "part-", "job.json"
ENHANCED, FAILED, SKIPPED = "enhanced", "failed", "skipped"

#: Result of one photograph, one row each. ``seconds`` and ``engine`` are empty for an output of an earlier run that was
#: killed before it wrote the row.
Row = dict[str, Any]
SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),  # name of the output, relative to --output
        pa.field("source", pa.string(), nullable=False),  # path or URL of the photograph
        pa.field("status", pa.string(), nullable=False),
        pa.field("error", pa.string()),  # one line, if it failed
        pa.field("checksum", pa.string()),  # SHA-256 of the output, in hexadecimal
        pa.field("bytes", pa.int64()),  # size of the output
        pa.field("seconds", pa.float64()),  # duration of the request, including the server's queues
        pa.field("engine", pa.string()),  # versions of the engine and of Triton
        pa.field("rejections", pa.int32()),  # by a full queue
        pa.field("finished", pa.timestamp("ms", tz="UTC")),
    ]
)


def rows_to_table(rows: Sequence[Row]) -> pa.Table:
    """Convert rows to an Arrow table; a field that a row lacks is empty."""
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def write_part(output: Folder, rows: Sequence[Row]) -> None:
    """Write the rows of a block. The file name is a hash of their keys, so that a repeated block replaces its part."""
    digest = hashlib.sha256("\n".join(sorted(row["key"] for row in rows)).encode("utf-8", "surrogateescape"))
    output.write(f"{FOLDER}/{_PART}{digest.hexdigest()[:32]}.parquet", _encode_parquet(rows_to_table(rows)))


def read_rows(output: Folder) -> pa.Table:
    """Return the current row of each photograph, sorted by key. Raise `BulkError` if a file is damaged."""
    return _latest_rows([_read_file(output, name) for name in _list_files(output)])


def merge_parts(output: Folder) -> None:
    """Merge all parts into ``manifest.parquet``.

    If the process is killed in between, parts remain whose rows are already merged, which is harmless.
    """
    names, merged = _list_files(output), read_rows(output)
    if names != [_MERGED]:
        output.write(f"{FOLDER}/{_MERGED}", _encode_parquet(merged))
    for name in names:
        if name != _MERGED:
            output.remove(f"{FOLDER}/{name}")


def check_output(output: Folder, options: dict[str, Any]) -> bool:
    """Return whether an earlier run started this output with the same ``options``; False if the output is empty.

    Raise `BulkError` if the options differ, because one output must not mix them, or if the folder holds other files.
    """
    if not output.exists(f"{FOLDER}/{_JOB}"):
        # Another shard may start at this moment: it writes a temporary file, then job.json, then photographs.
        names = {name for name in output.names() if not is_leftover(name)}
        if not names:
            return False
        if f"{FOLDER}/{_JOB}" not in names:
            raise BulkError(f"{output.url} is not empty and is not the output of a bulk job: use an empty --output")
    given, recorded = _given_options(options), json.loads(output.read(f"{FOLDER}/{_JOB}"))
    if recorded != given:
        raise BulkError(
            f"{output.url} was started with {_format_options(recorded)}, not with {_format_options(given)}: "
            "use the same options or another --output"
        )
    return True


def write_job(output: Folder, options: dict[str, Any]) -> None:
    """Record the options of the job before its first photograph."""
    output.write(f"{FOLDER}/{_JOB}", json.dumps(_given_options(options)).encode())


def _given_options(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value not in (None, False)}


def _format_options(options: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(options.items())) or "no options"


def _list_files(output: Folder) -> list[str]:
    names = output.below(FOLDER).names()
    return sorted(name for name in names if name == _MERGED or (name.startswith(_PART) and name.endswith(".parquet")))


def _read_file(output: Folder, name: str) -> pa.Table:
    try:
        return pq.read_table(io.BytesIO(output.read(f"{FOLDER}/{name}")), schema=SCHEMA)
    except pa.ArrowException as error:
        path = f"{output.url}/{FOLDER}/{name}"
        raise BulkError(f"{path} is damaged: delete it; the outputs of its photographs are kept") from error


def _latest_rows(tables: list[pa.Table]) -> pa.Table:
    rows = pa.concat_tables([SCHEMA.empty_table(), *tables])
    # "enhanced" sorts before "failed" and "skipped".
    rows = rows.sort_by([("key", "ascending"), ("status", "ascending"), ("finished", "descending")])
    keys = rows.column("key").combine_chunks()
    if len(keys) < 2:
        return rows
    is_first = pa.compute.not_equal(keys.slice(1), keys.slice(0, len(keys) - 1))
    return rows.filter(pa.concat_arrays([pa.array([True]), is_first]))


def _encode_parquet(rows: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(rows, buffer)
    return buffer.getvalue()
