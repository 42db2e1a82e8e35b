"""The actor without Ray: its rows, and its reaction to a failing server (`FakeTriton`)."""

import asyncio
import hashlib
import threading
from datetime import datetime, timezone

import pytest
from restormer_client import (
    AccessDenied,
    InvalidOption,
    InvalidPhotograph,
    ModelNotReady,
    Overloaded,
    ServerError,
    ServerUnavailable,
)
from restormer_client.files import is_photograph
from restormer_client.testing import FakeTriton

from bulk import manifest, plan
from bulk.errors import BulkError
from bulk.plan import Job
from bulk.worker import MAX_TRIES, Worker


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    """Shorten the pause after a rejection; `Backoff` uses the same default for other errors."""
    monkeypatch.setattr(Overloaded, "retry_after", 0.05)


def photographs(folder, count):
    for number in range(count):
        (folder / f"{number:02}.jpg").write_bytes(b"photograph %d" % number)
    return {f"{number:02}.jpg": str(folder / f"{number:02}.jpg") for number in range(count)}


def process(triton, output, todo, *, in_flight=4, patience=60.0, timeout=10.0, block_count=1, **options):
    """Process the photographs in ``block_count`` concurrent blocks, as Ray does, and return all rows."""

    async def run():
        job = Job(
            input="", output=output.root, server={"url": triton.url}, options=options, in_flight=in_flight, actors=1,
            timeout=timeout, patience=patience,
        )  # fmt: skip
        worker = Worker(job, output)

        async def process_block(table):
            return [row async for rows in worker(table) for row in rows.to_pylist()]

        size = -(-len(todo) // block_count)
        blocks = plan.split_into_blocks(todo, size)
        return [row for rows in await asyncio.gather(*map(process_block, blocks)) for row in rows]

    return asyncio.run(run())


def test_photographs_are_enhanced_and_recorded(tmp_path, output):
    before = datetime.now(timezone.utc)
    with FakeTriton() as triton:
        rows = process(triton, output, photographs(tmp_path, 5), strength=0.5)
    assert [output.read(row["key"]) for row in rows] == [b"photograph %d" % number for number in range(5)]
    assert {request.priority for request in triton.requests} == {2}
    assert {request.parameters["strength"] for request in triton.requests} == {"0.5"}
    row = rows[3]
    assert row["status"] == "enhanced"
    assert row["checksum"] == hashlib.sha256(b"photograph 3").hexdigest()
    assert row["bytes"] == len(b"photograph 3")
    assert row["engine"] == "restormer 1, Triton 0.0.0 (fake)"
    assert 0 < row["seconds"] < 10
    assert row["finished"] >= before.replace(microsecond=0)
    assert manifest.read_rows(output).to_pylist() == rows


def test_bad_photograph_becomes_a_failed_row(tmp_path, output):
    todo = {**photographs(tmp_path, 2), "gone.jpg": str(tmp_path / "gone.jpg")}

    def answer(request):
        if request.photo == b"photograph 0":
            raise InvalidPhotograph("not a photograph")
        return request.photo

    with FakeTriton(answer, answer) as triton:
        rows = {row["key"]: row for row in process(triton, output, todo)}
    assert rows["00.jpg"]["error"] == "InvalidPhotograph: not a photograph"
    assert rows["01.jpg"]["status"] == "enhanced"
    assert rows["gone.jpg"]["error"].startswith(f"FileNotFoundError: {tmp_path}/gone.jpg")
    assert set(output.sizes()) == {"01.jpg", *(name for name in output.sizes() if name.startswith("_manifest/"))}


def test_unsupported_source_becomes_a_failed_row(tmp_path, output):
    todo = {"a.jpg": "nonsense://bucket/a.jpg"}
    with FakeTriton() as triton:
        (row,) = process(triton, output, todo)
    assert "nonsense" in row["error"]


def test_existing_output_is_kept(tmp_path, output):
    output.write("01.jpg", b"made before")
    with FakeTriton() as triton:
        rows = process(triton, output, photographs(tmp_path, 3))
    assert len(triton.requests) == 2
    assert rows[1]["checksum"] == hashlib.sha256(b"made before").hexdigest()
    assert rows[1]["seconds"] is rows[1]["engine"] is None


def test_requests_in_flight_are_bounded_over_two_blocks(tmp_path, output):
    """The barrier checks that three requests are in flight, the assertion that there are not more."""
    in_flight, counts, barrier = [], [], threading.Barrier(3)

    def answer(request):
        in_flight.append(request)
        counts.append(len(in_flight))
        barrier.wait(timeout=10)
        in_flight.pop()
        return request.photo

    with FakeTriton(*[answer] * 12) as triton:
        rows = process(triton, output, photographs(tmp_path, 12), in_flight=3, block_count=2)
    assert {row["status"] for row in rows} == {"enhanced"}
    assert max(counts) == 3


@pytest.mark.parametrize("error", [Overloaded, ModelNotReady])
def test_rejected_photographs_are_sent_again(tmp_path, output, error):
    with FakeTriton(error, error, b"enhanced") as triton:
        (row,) = process(triton, output, photographs(tmp_path, 1))
    assert row["status"] == "enhanced"
    assert row["rejections"] == (2 if error is Overloaded else 0)
    assert len(triton.requests) == 3


def test_worker_survives_a_server_restart(tmp_path, output):
    with FakeTriton() as triton:
        todo = photographs(tmp_path, 4)
        triton.stop()
        threading.Timer(1.0, triton.start).start()
        rows = process(triton, output, todo, timeout=0.5)
    assert {row["status"] for row in rows} == {"enhanced"}


def test_retries_of_one_photograph_are_limited(tmp_path, output):
    with FakeTriton(*[ServerError] * MAX_TRIES) as triton:
        rows = process(triton, output, photographs(tmp_path, 2), in_flight=1)
    broken, fine = sorted(rows, key=lambda row: row["status"], reverse=True)
    assert broken["error"].startswith("ServerError: ")
    assert fine["status"] == "enhanced"
    assert len(triton.requests) == MAX_TRIES + 1


@pytest.mark.parametrize(
    ("error", "message"), [(InvalidOption("unknown parameter 'x'"), "unknown parameter"), (AccessDenied, "denied")]
)
def test_errors_that_affect_every_photograph_stop_the_job(tmp_path, output, error, message):
    with FakeTriton(b"one", b"two", error) as triton, pytest.raises(BulkError, match=message):
        process(triton, output, photographs(tmp_path, 9), in_flight=1)
    assert len(triton.requests) <= 4  # another request may have been in flight
    assert sorted(output.read(key) for key in manifest.read_rows(output).column("key").to_pylist()) == [b"one", b"two"]


@pytest.mark.parametrize("error", [Overloaded, ServerUnavailable, ServerError])
def test_job_stops_when_the_patience_is_exhausted(tmp_path, output, error):
    with FakeTriton(*[error] * 1000) as triton, pytest.raises(BulkError, match=r"for 0\.3 s"):
        process(triton, output, photographs(tmp_path, 9), patience=0.3, timeout=0.1)
    assert not any(map(is_photograph, output.sizes()))


def test_unwritable_output_stops_the_job(tmp_path, output):
    output.write("house", b"a file where a folder is needed")
    todo = {"house/a.jpg": photographs(tmp_path, 1)["00.jpg"]}
    with FakeTriton() as triton, pytest.raises(BulkError, match=r"house/a\.jpg: FileExistsError"):
        process(triton, output, todo)
