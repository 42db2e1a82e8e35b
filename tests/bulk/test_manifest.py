"""The manifest: parts, one whole, and one row a photograph."""

from datetime import datetime, timedelta, timezone

import pyarrow.parquet as pq
import pytest

from bulk import manifest
from bulk.errors import BulkError
from bulk.manifest import ENHANCED, FAILED, Row

NOON = datetime(2026, 11, 24, 12, tzinfo=timezone.utc)


def row(key, minute=0, status=ENHANCED, **said):
    said = {"checksum": "0" * 64, "bytes": 1, "seconds": 0.5, "engine": "e", **said} if status == ENHANCED else said
    return Row(key=key, source=f"/{key}", status=status, finished=NOON + timedelta(minutes=minute), **said)


def test_the_schema_is_the_rows(output):
    assert manifest.SCHEMA.names == list(Row.__dataclass_fields__)


def test_parts_are_read_and_folded(output):
    manifest.write_part(output, [row("b"), row("a")])
    manifest.write_part(output, [row("c", status=FAILED, error="InvalidPhotograph: no photograph")])
    read = manifest.read(output)
    assert read.column("key").to_pylist() == ["a", "b", "c"]
    assert manifest.fold(output).equals(read)
    assert list(output.below(manifest.FOLDER).names()) == ["manifest.parquet"]
    assert manifest.read(output).equals(read)
    assert manifest.fold(output).equals(read)


def test_one_row_a_photograph(output):
    """An enhanced one before a failed one, then the later."""
    manifest.write_part(output, [row("a", 1, FAILED, error="old"), row("b", 2, bytes=22), row("c", 9)])
    manifest.write_part(output, [row("a", 2, FAILED, error="new"), row("b", 1, bytes=11)])
    manifest.write_part(output, [row("c", 10, FAILED, error="later")])
    found = {each["key"]: each for each in manifest.fold(output).to_pylist()}
    assert len(found) == 3
    assert found["a"]["error"] == "new"
    assert found["b"]["bytes"] == 22
    assert found["c"]["status"] == ENHANCED


def test_a_block_that_is_done_again_replaces_its_part(output):
    manifest.write_part(output, [row("a", 1), row("b", 1)])
    manifest.write_part(output, [row("b", 2), row("a", 2)])
    assert len(list(output.below(manifest.FOLDER).names())) == 1


def test_killed_between_the_whole_and_its_parts(output):
    manifest.write_part(output, [row("a"), row("b")])
    (part,) = output.below(manifest.FOLDER).names()
    kept = output.read(f"{manifest.FOLDER}/{part}")
    before = manifest.fold(output)
    output.write(f"{manifest.FOLDER}/{part}", kept)
    assert manifest.read(output).equals(before)
    assert manifest.fold(output).equals(before)


def test_other_tools_read_it(output):
    """As docs/scaling.md shows."""
    manifest.write_part(output, [row("a"), row("b", status=FAILED, error="InvalidPhotograph: no photograph")])
    manifest.fold(output)
    failed = pq.read_table(f"{output.root}/_manifest/manifest.parquet", filters=[("status", "=", "failed")])
    assert failed.column("key").to_pylist() == ["b"]


def test_nothing_yet(output):
    assert manifest.read(output).num_rows == 0


def test_a_damaged_part_is_named(output):
    manifest.write_part(output, [row("a")])
    (part,) = output.below(manifest.FOLDER).names()
    output.write(f"{manifest.FOLDER}/{part}", b"PAR1 cut short")
    with pytest.raises(BulkError, match=f"{part} is no Parquet of ours: remove it"):
        manifest.read(output)


def test_an_output_belongs_to_one_way_of_enhancing(output):
    wishes = {"format": None, "strength": 0.5, "tiled": False}
    assert not manifest.is_ours(output, wishes)
    manifest.claim(output, wishes)
    assert manifest.is_ours(output, {"strength": 0.5})
    with pytest.raises(BulkError, match=r"was made with strength 0.5, not with no options: give another --output"):
        manifest.is_ours(output, {})


def test_a_folder_that_holds_something_else(output):
    output.write("holiday.jpg", b"mine")
    with pytest.raises(BulkError, match="is not empty"):
        manifest.is_ours(output, {})
