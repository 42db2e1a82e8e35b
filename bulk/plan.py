"""What there is to do: which photographs, under which names their outputs go, and what is done already.

The list lives in the memory of whoever starts the job (`make benchmark-bulk` measures how much a million take). Beyond
some millions, `shard` takes a part of it by the names alone, so that the parts may run one after another or side by
side.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq
from restormer_client.files import renamed

from bulk import manifest, storage
from bulk.errors import BulkError
from bulk.storage import Place

SCHEMA = pa.schema([pa.field("key", pa.string(), nullable=False), pa.field("source", pa.string(), nullable=False)])


@dataclass(frozen=True)
class Photograph:
    """``source``: where it is read, a path or URL. ``key``: the name of its output."""

    key: str
    source: str


def photographs(input_url: str, output: Place, format: str | None) -> list[Photograph]:
    """All there are, in the order of their keys. Raises `BulkError` where two would become one file."""
    if PurePosixPath(input_url).suffix == ".parquet":
        found = _listed(input_url, format)
    else:
        found = _found(input_url, output, format)
    taken: dict[str, str] = {}
    for photograph in found:
        other = taken.setdefault(photograph.key, photograph.source)
        if other != photograph.source:
            raise BulkError(f"{other} and {photograph.source} would both become {photograph.key}: rename one of them")
    if not taken:
        raise BulkError(f"no photographs in {input_url}")
    return [Photograph(key, taken[key]) for key in sorted(taken)]


def shard(photographs: Iterable[Photograph], part: tuple[int, int]) -> list[Photograph]:
    """The photographs of part ``(number, of)``, from 1 on; a photograph stays in its part, whatever joins."""
    number, of = part
    return [p for p in photographs if zlib.crc32(p.key.encode("utf-8", "surrogateescape")) % of == number - 1]


def left(photographs: Iterable[Photograph], rows: pa.Table, sizes: dict[str, int]) -> list[Photograph]:
    """Those whose output is not there, or is not what the manifest says. ``sizes``: bytes of what is in the output."""
    enhanced = rows.filter(pa.compute.equal(rows.column("status"), manifest.ENHANCED))
    said = zip(enhanced.column("key").to_pylist(), enhanced.column("bytes").to_pylist(), strict=True)
    done = {key for key, size in said if sizes.get(key) == size}
    return [p for p in photographs if p.key not in done]


def blocks(photographs: list[Photograph], size: int) -> Iterator[pa.Table]:
    """So many a block, the last one fewer."""
    for start in range(0, len(photographs), size):
        part = photographs[start : start + size]
        yield pa.table({"key": [p.key for p in part], "source": [p.source for p in part]}, schema=SCHEMA)


def _found(url: str, output: Place, format: str | None) -> Iterator[Photograph]:
    """The photographs of a folder and its folders."""
    folder = storage.place(url)
    if storage.overlap(folder, output):
        raise BulkError(f"{output.url} and {folder.url} are in one another: give another --output")
    if not folder.fs.isdir(folder.root):
        raise BulkError(f"{url} is no folder of photographs, nor a .parquet that lists them")
    for name in folder.names():
        if storage.is_photograph(name):
            yield Photograph(str(renamed(PurePosixPath(name), format)), f"{folder.url}/{name}")


def _listed(url: str, format: str | None) -> Iterator[Photograph]:
    """The photographs of a Parquet file, or of a folder of them: column ``source``, and ``key`` where it has one."""
    rows = _parquet(url)
    if "source" not in rows.column_names:
        raise BulkError(f"{url} has no column 'source': the photographs' paths or URLs, one a row")
    sources = rows.column("source").to_pylist()
    keys = rows.column("key").to_pylist() if "key" in rows.column_names else [None] * len(sources)
    for number, (source, key) in enumerate(zip(sources, keys, strict=True), 1):
        if not isinstance(source, str) or not source or not isinstance(key, str | None):
            raise BulkError(f"{url}, row {number}: source has to be a path or URL, key a name, both text")
        name = PurePosixPath(key or _as_name(source))
        if name.is_absolute() or ".." in name.parts or name.parts[:1] in ((), (manifest.FOLDER,)):
            raise BulkError(f"{url}, row {number}: {str(name)!r} is no name below --output")
        yield Photograph(str(name if key else renamed(name, format)), source)


def _parquet(url: str) -> pa.Table:
    fs, path = storage.reached(url)
    try:
        names = sorted(fs.find(path))
        tables = [pq.read_table(io.BytesIO(fs.cat_file(n))) for n in names if n.endswith(".parquet")]
        if not tables:
            raise BulkError(f"{url} is not there")
        return pa.concat_tables([t.select([c for c in ("source", "key") if c in t.column_names]) for t in tables])
    except pa.ArrowException as error:
        raise BulkError(f"{url} cannot be read as Parquet: {' '.join(str(error).split())}") from error


def _as_name(source: str) -> str:
    """A URL without its protocol, a path without its root: unique as they are."""
    return source.partition("://")[2] or source.lstrip("/")
