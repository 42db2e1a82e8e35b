"""Plan a job: list the photographs, name their outputs, and find those that remain.

The list is held in memory by the process that starts the job (`make benchmark-bulk` measures a million). For more than
a few million, `select_shard` selects a part by name, so that the parts can run one after another or in parallel.
"""

import io
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from restormer_client.files import is_photograph, output_path

from bulk import manifest, storage
from bulk.errors import BulkError
from bulk.storage import Folder

#: Path or URL of each photograph, by the name of its output (the key).
Photographs = dict[str, str]
SCHEMA = pa.schema([pa.field("key", pa.string(), nullable=False), pa.field("source", pa.string(), nullable=False)])


@dataclass(frozen=True, kw_only=True)
class Job:
    """Settings of a job. ``server`` holds the arguments of `Enhancer`, ``options`` those of `Enhancer.enhance`.

    ``in_flight``: requests in flight over all ``actors``. ``shard``: part ``(number, count)``. ``patience``: seconds
    without a success, on an overloaded or unreachable server, after which the job stops. ``ray_address``: None starts a
    local Ray. ``price``: of all machines, per hour.
    """

    input: str
    output: str
    server: dict[str, Any]
    options: dict[str, Any]
    in_flight: int
    actors: int
    timeout: float
    patience: float
    ray_address: str | None = None
    shard: tuple[int, int] = (1, 1)
    price: float | None = None
    verbose: bool = False

    @property
    def in_flight_per_actor(self) -> int:
        """Maximum requests in flight of one actor."""
        return self.in_flight // self.actors


def find_photographs(input_url: str, output: Folder, format: str | None) -> tuple[Photographs, Photographs]:
    """Return all photographs of the input, sorted by key, and the other files of a folder, by their own names.

    Raise `BulkError` if two photographs have the same key.
    """
    listed: Iterable[tuple[str, str]]
    others: Photographs = {}
    if PurePosixPath(input_url).suffix == ".parquet":
        listed = _read_list(input_url, format)
    else:
        files = _scan_folder(input_url, output)
        listed = ((str(output_path(PurePosixPath(n), format)), url) for n, url in files.items() if is_photograph(n))
        others = {name: url for name, url in files.items() if not is_photograph(name)}
    sources: Photographs = {}
    for key, source in listed:
        other = sources.setdefault(key, source)
        if other != source:
            raise BulkError(f"{other} and {source} would both be written to {key}: rename one of them")
    if not sources:
        skipped = f" ({len(others)} skipped: no photograph extension)" if others else ""
        raise BulkError(f"no photographs in {input_url}{skipped}")
    return dict(sorted(sources.items())), others


def select_shard(photographs: Photographs, part: tuple[int, int]) -> Photographs:
    """Return the photographs of part ``(number, count)``, numbered from 1. The part depends on the key alone, so that
    it does not change when photographs are added."""
    number, count = part
    return {
        key: source
        for key, source in photographs.items()
        if zlib.crc32(key.encode("utf-8", "surrogateescape")) % count == number - 1
    }


def recorded_sizes(rows: pa.Table) -> dict[str, int]:
    """Return the bytes of each enhanced photograph's output, by the manifest."""
    enhanced = rows.filter(pa.compute.equal(rows.column("status"), manifest.ENHANCED))
    return dict(zip(enhanced.column("key").to_pylist(), enhanced.column("bytes").to_pylist(), strict=True))


def remaining(photographs: Photographs, recorded: dict[str, int], sizes: dict[str, int]) -> Photographs:
    """Return the photographs without an output of the recorded size. ``sizes``: bytes of each file in the output."""
    return {key: source for key, source in photographs.items() if not sizes.get(key) or sizes[key] != recorded.get(key)}


def damaged_outputs(todo: Photographs, recorded: dict[str, int], sizes: dict[str, int]) -> list[str]:
    """Return the outputs of remaining photographs that are empty or do not have the recorded size."""
    return [key for key in todo if key in sizes and (not sizes[key] or key in recorded)]


def split_into_blocks(photographs: Photographs, size: int) -> Iterator[pa.Table]:
    """Split the photographs into Arrow tables of ``size`` rows."""
    keys, sources = list(photographs), list(photographs.values())
    for start in range(0, len(keys), size):
        end = start + size
        yield pa.table({"key": keys[start:end], "source": sources[start:end]}, schema=SCHEMA)


def _scan_folder(url: str, output: Folder) -> dict[str, str]:
    """Return the files of a folder and its subfolders that are not hidden, by their names in it."""
    folder = storage.open_folder(url)
    if storage.folders_overlap(folder, output):
        raise BulkError(f"{output.url} and {folder.url} overlap: choose another --output")
    if not folder.fs.isdir(folder.root):
        raise BulkError(f"{url} is not a folder of photographs: give a folder, or a .parquet that lists photographs")
    return {name: f"{folder.url}/{name}" for name in folder.names() if not storage.is_hidden(name)}


def _read_list(url: str, format: str | None) -> Iterator[tuple[str, str]]:
    """Read the photographs listed in a Parquet file or in a folder of them: columns ``source`` and, optionally,
    ``key``."""
    rows = _read_parquet(url)
    if "source" not in rows.column_names:
        raise BulkError(f"{url} has no column 'source': it must hold the path or URL of a photograph in each row")
    sources = rows.column("source").to_pylist()
    keys = rows.column("key").to_pylist() if "key" in rows.column_names else [None] * len(sources)
    for number, (source, key) in enumerate(zip(sources, keys, strict=True), 1):
        if not isinstance(source, str) or not source or not isinstance(key, str | None):
            raise BulkError(f"{url}, row {number}: source must be a path or URL, and key a name, both as text")
        # Without a key: the URL without its protocol, or the path without its root.
        name = PurePosixPath(key or source.partition("://")[2] or source.lstrip("/"))
        if name.is_absolute() or ".." in name.parts or name.parts[:1] in ((), (manifest.FOLDER,)):
            raise BulkError(f"{url}, row {number}: {str(name)!r} must be a relative name inside --output")
        yield str(name if key else output_path(name, format)), source


def _read_parquet(url: str) -> pa.Table:
    fs, path = storage.resolve(url)
    try:
        names = sorted(fs.find(path))
        tables = [pq.read_table(io.BytesIO(fs.cat_file(n))) for n in names if n.endswith(".parquet")]
        if not tables:
            raise BulkError(f"{url} does not exist")
        return pa.concat_tables([t.select([c for c in ("source", "key") if c in t.column_names]) for t in tables])
    except pa.ArrowException as error:
        raise BulkError(f"{url} cannot be read as Parquet: {' '.join(str(error).split())}") from error
