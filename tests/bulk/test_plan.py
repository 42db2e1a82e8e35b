"""Planning of a job: photographs of folders and lists, shards, and what remains."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bulk import manifest, plan, storage
from bulk.errors import BulkError
from tests.bulk.test_manifest import make_row


def test_photographs_of_a_folder(photos, output):
    found, others = plan.find_photographs(str(photos), output, None)
    assert others == {"notes.txt": f"{photos}/notes.txt"}
    assert list(found) == ["a.jpg", "b.PNG", "house/c.jpg", "house/rooms/d.tif", "house/rooms/e.webp"]
    assert found["house/c.jpg"] == f"{photos}/house/c.heic"
    assert list(plan.find_photographs(str(photos), output, "avif")[0])[1] == "b.avif"


def test_photographs_of_a_list(tmp_path, output):
    pq.write_table(pa.table({"source": ["/data/b.jpg", "s3://homes/a.heic"]}), tmp_path / "list.parquet")
    url = str(tmp_path / "list.parquet")
    assert plan.find_photographs(url, output, None) == (
        {"data/b.jpg": "/data/b.jpg", "homes/a.jpg": "s3://homes/a.heic"}, {},
    )  # fmt: skip
    assert list(plan.find_photographs(url, output, "webp")[0]) == ["data/b.webp", "homes/a.webp"]


def test_list_with_list(tmp_path, output):
    folder = tmp_path / "lists.parquet"
    folder.mkdir()
    for number in (1, 2):
        pq.write_table(
            pa.table({"source": [f"/{number}.png"], "key": [f"n/{number}.jpg"]}), folder / f"{number}.parquet"
        )
    assert list(plan.find_photographs(str(folder), output, None)[0]) == ["n/1.jpg", "n/2.jpg"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"path": ["/a.jpg"]}, "no column 'source'"),
        ({"source": [1]}, "row 1: source"),
        ({"source": ["/a.jpg", None]}, "row 2: source"),
        ({"source": ["/a.jpg"], "key": ["../a.jpg"]}, "relative name"),
        ({"source": ["/a.jpg"], "key": ["/a.jpg"]}, "relative name"),
        ({"source": ["/a.jpg"], "key": ["_manifest/a.jpg"]}, "relative name"),
        ({"source": ["/a.jpg", "/b.jpg"], "key": ["x.jpg", "x.jpg"]}, "/a.jpg and /b.jpg .* x.jpg"),
        ({"source": pa.array([], pa.string())}, "no photographs in"),
    ],
)
def test_invalid_lists_are_rejected(tmp_path, output, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "list.parquet")
    with pytest.raises(BulkError, match=message):
        plan.find_photographs(str(tmp_path / "list.parquet"), output, None)


def test_missing_and_damaged_lists_are_rejected(tmp_path, output):
    with pytest.raises(BulkError, match="does not exist"):
        plan.find_photographs(str(tmp_path / "list.parquet"), output, None)
    (tmp_path / "list.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(BulkError, match="Parquet"):
        plan.find_photographs(str(tmp_path / "list.parquet"), output, None)


def test_photographs_with_the_same_output_are_rejected(photos, output):
    (photos / "a.heic").write_bytes(b"another")
    with pytest.raises(BulkError, match=r"a.heic and .*a.jpg .* a.jpg"):
        plan.find_photographs(str(photos), output, None)


def test_output_inside_the_input_is_rejected(photos):
    with pytest.raises(BulkError, match="overlap"):
        plan.find_photographs(str(photos), storage.open_folder(f"{photos}/house/enhanced"), None)


def test_missing_and_empty_folders_are_rejected(tmp_path, output):
    with pytest.raises(BulkError, match="not a folder"):
        plan.find_photographs(str(tmp_path / "nowhere"), output, None)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/a.nef").write_bytes(b"raw")
    with pytest.raises(BulkError, match="no photographs in .*1 skipped"):
        plan.find_photographs(str(tmp_path / "empty"), output, None)


def test_shards_partition_the_photographs():
    everything = {f"{n}.jpg": f"/{n}.jpg" for n in range(1000)}
    parts = [plan.select_shard(everything, (number, 7)) for number in range(1, 8)]
    assert sorted(key for part in parts for key in part) == sorted(everything)
    assert min(map(len, parts)) > 100
    half = dict(list(everything.items())[:500])
    assert plan.select_shard(half, (3, 7)) == {key: source for key, source in half.items() if key in parts[2]}


def test_remaining_photographs():
    """A photograph is done if the manifest lists it as enhanced and its output has the recorded size."""
    everything = {f"{name}.jpg": name for name in ("done", "failed", "new", "cut", "gone")}
    rows = manifest.rows_to_table(
        [
            make_row("done.jpg", bytes=3), make_row("failed.jpg", status=manifest.FAILED, bytes=None),
            make_row("cut.jpg", bytes=9), make_row("gone.jpg", bytes=3),
        ]
    )  # fmt: skip
    assert list(plan.remaining(everything, plan.recorded_sizes(rows), {"done.jpg": 3, "cut.jpg": 0})) == [
        "failed.jpg", "new.jpg", "cut.jpg", "gone.jpg",
    ]  # fmt: skip


def test_blocks_partition_the_photographs():
    everything = {str(n): f"/{n}" for n in range(10)}
    blocks = list(plan.split_into_blocks(everything, 4))
    assert [block.num_rows for block in blocks] == [4, 4, 2]
    assert [key for block in blocks for key in block.column("key").to_pylist()] == list(everything)
