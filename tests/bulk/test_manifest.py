"""The manifest: parts, merging, and one row per photograph."""

from datetime import datetime, timedelta, timezone

import pyarrow.parquet as pq
import pytest

from bulk import manifest, storage
from bulk.errors import BulkError
from bulk.manifest import ENHANCED, FAILED

NOON = datetime(2026, 11, 24, 12, tzinfo=timezone.utc)


def make_row(key, minute=0, status=ENHANCED, **fields):
    if status == ENHANCED:
        fields = {"checksum": "0" * 64, "bytes": 1, "seconds": 0.5, "engine": "e", **fields}
    finished = NOON + timedelta(minutes=minute)
    return {"key": key, "source": f"/{key}", "status": status, "rejections": 0, "finished": finished, **fields}


def test_parts_are_read_and_merged(output):
    manifest.write_part(output, [make_row("b"), make_row("a")])
    manifest.write_part(output, [make_row("c", status=FAILED, error="InvalidPhotograph: no photograph")])
    parts = manifest.read_rows(output)
    assert parts.column("key").to_pylist() == ["a", "b", "c"]
    manifest.merge_parts(output)
    assert list(output.below(manifest.FOLDER).names()) == ["manifest.parquet"]
    assert manifest.read_rows(output).equals(parts)


def test_one_row_per_photograph(output):
    """An enhanced row takes precedence over a failed one, then the later one."""
    manifest.write_part(output, [make_row("a", 1, FAILED, error="old"), make_row("b", 2, bytes=22), make_row("c", 9)])
    manifest.write_part(output, [make_row("a", 2, FAILED, error="new"), make_row("b", 1, bytes=11)])
    manifest.write_part(output, [make_row("c", 10, FAILED, error="later")])
    manifest.merge_parts(output)
    rows = {each["key"]: each for each in manifest.read_rows(output).to_pylist()}
    assert len(rows) == 3
    assert rows["a"]["error"] == "new"
    assert rows["b"]["bytes"] == 22
    assert rows["c"]["status"] == ENHANCED


def test_repeated_block_replaces_its_part(output):
    manifest.write_part(output, [make_row("a", 1), make_row("b", 1)])
    manifest.write_part(output, [make_row("b", 2), make_row("a", 2)])
    assert len(list(output.below(manifest.FOLDER).names())) == 1


def test_kill_before_the_parts_are_removed(output):
    manifest.write_part(output, [make_row("a"), make_row("b")])
    (part,) = output.below(manifest.FOLDER).names()
    content = output.read(f"{manifest.FOLDER}/{part}")
    merged = manifest.read_rows(output)
    manifest.merge_parts(output)
    output.write(f"{manifest.FOLDER}/{part}", content)
    assert manifest.read_rows(output).equals(merged)
    manifest.merge_parts(output)
    assert manifest.read_rows(output).equals(merged)


def test_pyarrow_example_of_the_scaling_page(output):
    """Read the manifest as docs/scaling.md shows."""
    manifest.write_part(output, [make_row("a"), make_row("b", status=FAILED, error="InvalidPhotograph: no photograph")])
    manifest.merge_parts(output)
    failed = pq.read_table(f"{output.root}/_manifest/manifest.parquet", filters=[("status", "=", "failed")])
    assert failed.column("key").to_pylist() == ["b"]


def test_empty_output_has_no_rows(output):
    assert manifest.read_rows(output).num_rows == 0


def test_damaged_part_is_named(output):
    manifest.write_part(output, [make_row("a")])
    (part,) = output.below(manifest.FOLDER).names()
    output.write(f"{manifest.FOLDER}/{part}", b"PAR1 cut short")
    with pytest.raises(BulkError, match=part):
        manifest.read_rows(output)


def test_output_is_bound_to_its_options(output):
    options = {"format": None, "strength": 0.5, "tiled": False}
    assert not manifest.check_output(output, options)
    manifest.write_job(output, options)
    assert manifest.check_output(output, {"strength": 0.5})
    with pytest.raises(BulkError, match=r"strength 0\.5"):
        manifest.check_output(output, {})


def test_output_with_other_files_is_rejected(output):
    output.write("holiday.jpg", b"mine")
    with pytest.raises(BulkError, match="not empty"):
        manifest.check_output(output, {})


def test_shards_may_start_together(output, monkeypatch):
    """Another shard writes its temporary file or job.json after this one has looked for job.json."""
    output.write(f"{manifest.FOLDER}/.job.json.{'0' * 32}", b"{")
    assert not manifest.check_output(output, {})

    def exists(folder, name):
        manifest.write_job(folder, {"strength": 0.5})
        folder.write("a.jpg", b"enhanced")
        return False

    monkeypatch.setattr(storage.Folder, "exists", exists)
    assert manifest.check_output(output, {"strength": 0.5})
    with pytest.raises(BulkError, match=r"strength 0\.5"):
        manifest.check_output(output, {})
