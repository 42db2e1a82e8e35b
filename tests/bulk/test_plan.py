"""What there is to do, and what is left of it."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bulk import manifest, plan, storage
from bulk.errors import BulkError
from bulk.plan import Photograph
from tests.bulk.test_manifest import row


def keys(photographs):
    return [p.key for p in photographs]


def test_the_photographs_of_a_folder(photos, output):
    found = plan.photographs(str(photos), output, None)
    assert keys(found) == ["a.jpg", "b.PNG", "house/c.jpg", "house/rooms/d.tif", "house/rooms/e.webp"]
    assert found[2].source == f"{photos}/house/c.heic"
    assert keys(plan.photographs(str(photos), output, "avif"))[1] == "b.avif"


def test_the_photographs_of_a_list(tmp_path, output):
    pq.write_table(pa.table({"source": ["/data/b.jpg", "s3://homes/a.heic"]}), tmp_path / "list.parquet")
    found = plan.photographs(str(tmp_path / "list.parquet"), output, None)
    assert found == [Photograph("data/b.jpg", "/data/b.jpg"), Photograph("homes/a.jpg", "s3://homes/a.heic")]
    assert keys(plan.photographs(str(tmp_path / "list.parquet"), output, "webp")) == ["data/b.webp", "homes/a.webp"]


def test_a_list_may_say_the_names(tmp_path, output):
    folder = tmp_path / "lists.parquet"
    folder.mkdir()
    for number in (1, 2):
        pq.write_table(
            pa.table({"source": [f"/{number}.png"], "key": [f"n/{number}.jpg"]}), folder / f"{number}.parquet"
        )
    assert keys(plan.photographs(str(folder), output, None)) == ["n/1.jpg", "n/2.jpg"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"path": ["/a.jpg"]}, "no column 'source'"),
        ({"source": [1]}, "row 1: source has to be a path"),
        ({"source": ["/a.jpg", None]}, "row 2: source has to be a path"),
        ({"source": ["/a.jpg"], "key": ["../a.jpg"]}, "no name below"),
        ({"source": ["/a.jpg"], "key": ["/a.jpg"]}, "no name below"),
        ({"source": ["/a.jpg"], "key": ["_manifest/a.jpg"]}, "no name below"),
        ({"source": ["/a.jpg", "/b.jpg"], "key": ["x.jpg", "x.jpg"]}, "/a.jpg and /b.jpg would both become x.jpg"),
        ({"source": pa.array([], pa.string())}, "no photographs in"),
    ],
)
def test_a_list_that_is_wrong(tmp_path, output, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "list.parquet")
    with pytest.raises(BulkError, match=message):
        plan.photographs(str(tmp_path / "list.parquet"), output, None)


def test_a_list_that_is_none(tmp_path, output):
    with pytest.raises(BulkError, match="is not there"):
        plan.photographs(str(tmp_path / "list.parquet"), output, None)
    (tmp_path / "list.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(BulkError, match="cannot be read as Parquet"):
        plan.photographs(str(tmp_path / "list.parquet"), output, None)


def test_two_that_would_become_one(photos, output):
    (photos / "a.heic").write_bytes(b"another")
    with pytest.raises(BulkError, match=r"a.heic and .*a.jpg would both become a.jpg"):
        plan.photographs(str(photos), output, None)


def test_an_output_in_the_input_is_refused(photos):
    with pytest.raises(BulkError, match="in one another"):
        plan.photographs(str(photos), storage.place(f"{photos}/house/enhanced"), None)


def test_no_folder_and_no_photographs(tmp_path, output):
    with pytest.raises(BulkError, match="no folder of photographs"):
        plan.photographs(str(tmp_path / "nowhere"), output, None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BulkError, match="no photographs in"):
        plan.photographs(str(tmp_path / "empty"), output, None)


def test_the_parts_of_a_job_are_the_whole():
    everything = [Photograph(f"{n}.jpg", f"/{n}.jpg") for n in range(1000)]
    parts = [plan.shard(everything, (number, 7)) for number in range(1, 8)]
    assert sorted(p.key for part in parts for p in part) == sorted(keys(everything))
    assert min(map(len, parts)) > 100
    assert plan.shard(everything[:500], (3, 7)) == [p for p in parts[2] if p in everything[:500]]


def test_what_is_left():
    """Done is what the manifest calls enhanced, and lies there with as many bytes as it says."""
    everything = [Photograph(f"{name}.jpg", name) for name in ("done", "failed", "new", "cut", "gone")]
    rows = manifest.table(
        [
            row("done.jpg", bytes=3), row("failed.jpg", status=manifest.FAILED, bytes=None),
            row("cut.jpg", bytes=9), row("gone.jpg", bytes=3),
        ]
    )  # fmt: skip
    assert keys(plan.left(everything, rows, {"done.jpg": 3, "cut.jpg": 0})) == [
        "failed.jpg", "new.jpg", "cut.jpg", "gone.jpg",
    ]  # fmt: skip


def test_blocks_are_small_and_hold_everything():
    everything = [Photograph(str(n), f"/{n}") for n in range(10)]
    found = list(plan.blocks(everything, 4))
    assert [block.num_rows for block in found] == [4, 4, 2]
    assert [key for block in found for key in block.column("key").to_pylist()] == keys(everything)
