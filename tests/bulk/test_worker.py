"""One actor, without Ray: what it makes of photographs, and of a server in trouble (`FakeTriton`)."""

import asyncio
import threading
from datetime import datetime, timezone

import pytest
from restormer_client import (
    AccessDenied,
    AsyncEnhancer,
    InvalidOption,
    InvalidPhotograph,
    ModelNotReady,
    Overloaded,
    ServerError,
    ServerUnavailable,
)
from restormer_client.testing import FakeTriton

from bulk import manifest, plan, storage, worker
from bulk.errors import BulkError
from bulk.plan import Photograph
from bulk.worker import Settings, Worker


@pytest.fixture(autouse=True)
def no_long_pauses(monkeypatch):
    """Overloaded says itself after how long to come back; for other troubles `Pace` takes its default."""
    monkeypatch.setattr(Overloaded, "retry_after", 0.05)


def photographs(folder, count):
    for number in range(count):
        (folder / f"{number:02}.jpg").write_bytes(b"photograph %d" % number)
    return [Photograph(f"{number:02}.jpg", str(folder / f"{number:02}.jpg")) for number in range(count)]


def done(triton, output, todo, *, in_flight=4, patience=60.0, timeout=10.0, at_once=1, **wishes):
    """The rows of all blocks; ``at_once`` of them at a time, as Ray does."""

    async def run():
        async with AsyncEnhancer(triton.url) as enhancer:
            called = Worker(
                Settings(
                    enhancer=enhancer, output=output, in_flight=in_flight, patience=patience, timeout=timeout,
                    wishes=wishes,
                )
            )  # fmt: skip

            async def block(table):
                return [row async for rows in called(table) for row in rows.to_pylist()]

            size = -(-len(todo) // at_once)
            return [row for rows in await asyncio.gather(*map(block, plan.blocks(todo, size))) for row in rows]

    return asyncio.run(run())


def test_photographs_are_enhanced_and_written_down(tmp_path, output):
    before = datetime.now(timezone.utc)
    with FakeTriton() as triton:
        rows = done(triton, output, photographs(tmp_path, 5), strength=0.5)
    assert [output.read(row["key"]) for row in rows] == [b"photograph %d" % number for number in range(5)]
    assert {request.priority for request in triton.requests} == {2}
    assert {request.parameters["strength"] for request in triton.requests} == {"0.5"}
    row = rows[3]
    assert row["status"] == "enhanced"
    assert row["checksum"] == manifest.checksum(b"photograph 3")
    assert row["bytes"] == len(b"photograph 3")
    assert row["engine"] == "restormer 1, Triton 0.0.0 (fake)"
    assert 0 < row["seconds"] < 10
    assert row["finished"] >= before.replace(microsecond=0)
    assert manifest.read(output).to_pylist() == rows


def test_a_bad_photograph_is_a_row(tmp_path, output):
    todo = [*photographs(tmp_path, 2), Photograph("gone.jpg", str(tmp_path / "gone.jpg"))]

    def answer(request):
        if request.photo == b"photograph 0":
            raise InvalidPhotograph("this is no photograph")
        return request.photo

    with FakeTriton(answer, answer) as triton:
        rows = {row["key"]: row for row in done(triton, output, todo)}
    assert rows["00.jpg"]["error"] == "InvalidPhotograph: this is no photograph"
    assert rows["01.jpg"]["status"] == "enhanced"
    assert rows["gone.jpg"]["error"] == f"FileNotFoundError: {tmp_path}/gone.jpg: No such file or directory"
    assert set(output.sizes()) == {"01.jpg", *(name for name in output.sizes() if name.startswith("_manifest/"))}


def test_a_source_that_nothing_reaches_is_a_row(tmp_path, output):
    todo = [Photograph("a.jpg", "nonsense://bucket/a.jpg")]
    with FakeTriton() as triton:
        (row,) = done(triton, output, todo)
    assert "nonsense" in row["error"]


def test_an_output_that_is_there_is_not_made_again(tmp_path, output):
    output.write("01.jpg", b"made before")
    with FakeTriton() as triton:
        rows = done(triton, output, photographs(tmp_path, 3))
    assert len(triton.requests) == 2
    assert rows[1]["checksum"] == manifest.checksum(b"made before")
    assert rows[1]["seconds"] is rows[1]["engine"] is None


def test_no_more_are_at_the_server_than_said_over_two_blocks(tmp_path, output):
    """And as many: three photographs wait for each other there, or none would ever come back."""
    there, most, together = [], [], threading.Barrier(3)

    def answer(request):
        there.append(request)
        most.append(len(there))
        together.wait(timeout=10)
        there.pop()
        return request.photo

    with FakeTriton(*[answer] * 12) as triton:
        rows = done(triton, output, photographs(tmp_path, 12), in_flight=3, at_once=2)
    assert {row["status"] for row in rows} == {"enhanced"}
    assert max(most) == 3


@pytest.mark.parametrize("trouble", [Overloaded, ModelNotReady])
def test_a_server_that_has_no_place_is_waited_for(tmp_path, output, trouble):
    with FakeTriton(trouble, trouble, b"enhanced") as triton:
        (row,) = done(triton, output, photographs(tmp_path, 1))
    assert row["status"] == "enhanced"
    assert row["turned_away"] == (2 if trouble is Overloaded else 0)
    assert len(triton.requests) == 3


def test_a_server_that_went_away_is_waited_for(tmp_path, output):
    with FakeTriton() as triton:
        todo = photographs(tmp_path, 4)
        triton.stop()
        threading.Timer(1.0, triton.start).start()
        rows = done(triton, output, todo, timeout=0.5)
    assert {row["status"] for row in rows} == {"enhanced"}


def test_a_photograph_that_breaks_the_server_is_given_up(tmp_path, output):
    with FakeTriton(*[ServerError] * worker.TRIES) as triton:
        rows = done(triton, output, photographs(tmp_path, 2), in_flight=1)
    broken, fine = sorted(rows, key=lambda row: row["status"], reverse=True)
    assert broken["error"].startswith("ServerError: ")
    assert fine["status"] == "enhanced"
    assert len(triton.requests) == worker.TRIES + 1


@pytest.mark.parametrize(
    ("trouble", "message"), [(InvalidOption("unknown parameter 'x'"), "unknown parameter"), (AccessDenied, "refuses")]
)
def test_what_is_wrong_with_all_of_them_ends_the_job(tmp_path, output, trouble, message):
    with FakeTriton(b"one", b"two", trouble) as triton, pytest.raises(BulkError, match=message):
        done(triton, output, photographs(tmp_path, 9), in_flight=1)
    assert len(triton.requests) <= 4  # the next may have been on its way
    assert sorted(output.read(key) for key in manifest.read(output).column("key").to_pylist()) == [b"one", b"two"]


@pytest.mark.parametrize("trouble", [Overloaded, ServerUnavailable, ServerError])
def test_patience_ends(tmp_path, output, trouble):
    with FakeTriton(*[trouble] * 1000) as triton, pytest.raises(BulkError, match="nothing was enhanced for 0.3 s"):
        done(triton, output, photographs(tmp_path, 9), patience=0.3, timeout=0.1)
    assert not any(map(storage.is_photograph, output.sizes()))


def test_an_output_that_cannot_be_written_ends_the_job(tmp_path, output):
    output.write("house", b"a file where a folder has to be")
    todo = [Photograph("house/a.jpg", photographs(tmp_path, 1)[0].source)]
    with FakeTriton() as triton, pytest.raises(BulkError, match="out, house/a.jpg: FileExistsError: "):
        done(triton, output, todo)
