"""What a list of a million photographs takes before the first is sent (run by the bulk environment for
``make benchmark-bulk``): reading the list, reading a manifest of as many rows, and finding what is left.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from datetime import datetime, timezone

import pyarrow as pa
import pyarrow.parquet as pq

from bulk import manifest, plan, storage

COUNT = 1_000_000
LEFT = 1000  #: photographs that the manifest does not have


def main() -> None:
    """Prints seconds and MiB as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        output = storage.place(f"{folder}/out")
        sources = [f"s3://homes-of-2026/agency-{n % 997:03}/house-{n // 30:06}/{n:08}.jpg" for n in range(COUNT)]
        keys = [source.partition("://")[2] for source in sources]
        pq.write_table(pa.table({"source": sources}), f"{folder}/list.parquet")
        output.write(f"{manifest.FOLDER}/manifest.parquet", _parquet(keys[LEFT:], sources[LEFT:]))
        sizes = dict.fromkeys(keys, 1)
        del sources, keys
        before, started = _peak_mib(), time.perf_counter()
        everything = plan.photographs(f"{folder}/list.parquet", output, None)
        listed, rows = time.perf_counter(), manifest.read(output)
        read, left = time.perf_counter(), plan.left(everything, rows, sizes)
        ended = time.perf_counter()
    if len(left) != LEFT:
        sys.exit(f"error: {len(left)} photographs are left of {LEFT}")
    print(
        json.dumps(
            {
                "photographs": COUNT, "list_seconds": listed - started, "manifest_seconds": read - listed,
                "left_seconds": ended - read, "mib_before": before, "mib_peak": _peak_mib(),
            }
        )
    )  # fmt: skip


def _parquet(keys: list[str], sources: list[str]) -> bytes:
    count, now = len(keys), datetime.now(timezone.utc)
    columns = {
        "key": keys, "source": sources, "status": ["enhanced"] * count, "error": [None] * count,
        "checksum": [f"{number:064x}" for number in range(count)], "bytes": [1] * count, "seconds": [0.5] * count,
        "engine": ["restormer 1, Triton 2.51.0"] * count, "turned_away": [0] * count, "finished": [now] * count,
    }  # fmt: skip
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table(columns, schema=manifest.SCHEMA), buffer)
    return bytes(buffer.getvalue())


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
