"""Files in and out: on a disk, and on a file system that is none (fsspec's memory)."""

import os
import pickle
from uuid import uuid4

import pytest

from bulk import storage
from bulk.errors import BulkError


@pytest.fixture(params=["disk", "memory"])
def place(request, tmp_path):
    return storage.place(str(tmp_path / "out") if request.param == "disk" else f"memory://{uuid4().hex}/out")


def test_a_file_is_written_read_and_removed(place):
    assert not place.exists("rooms/a.jpg")
    place.write("rooms/a.jpg", b"one")
    place.write("rooms/a.jpg", b"another")
    assert place.read("rooms/a.jpg") == b"another"
    assert place.sizes() == {"rooms/a.jpg": 7}
    assert place.below("rooms").sizes() == {"a.jpg": 7}
    place.remove("rooms/a.jpg")
    place.remove("rooms/a.jpg")
    assert place.sizes() == {}


def test_a_write_that_fails_leaves_nothing(place, monkeypatch):
    def full(*_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    monkeypatch.setattr(type(place.fs), "mv", full)
    with pytest.raises(OSError, match="No space left"):
        place.write("a.jpg", b"one")
    assert place.sizes() == {}


def test_what_a_killed_write_leaves_is_known_by_its_name(place, monkeypatch):
    """Stopped where the file is written, and not yet in its place: nothing cleans up after a kill."""
    beside = []

    def killed(source, _target, *_args, **_options):
        beside.append(str(source).rpartition("/")[2])
        raise OSError("stands for the kill")

    monkeypatch.setattr(os, "replace", killed)
    monkeypatch.setattr(type(place.fs), "mv", lambda _self, *paths, **options: killed(*paths, **options))
    with pytest.raises(OSError, match="kill"):
        place.write("kitchen.jpg", b"one")
    (name,) = beside
    assert storage.is_leftover(name)
    assert not storage.is_photograph(name)
    assert not any(map(storage.is_leftover, ("kitchen.jpg", ".DS_Store", "job.json", "part-0123.parquet")))


def test_a_place_travels(place):
    place.write("a.jpg", b"one")
    assert pickle.loads(pickle.dumps(place)).url == place.url


def test_the_url_of_a_disk_is_a_path(tmp_path):
    assert storage.place(f"file://{tmp_path}/out").url == f"{tmp_path}/out"
    assert storage.place("memory://bucket/out/").url == "memory:///bucket/out"


@pytest.mark.parametrize("url", ["nonsense://bucket/photos", ""])
def test_a_url_that_nothing_reaches(url):
    with pytest.raises(BulkError, match="nonsense|names no folder"):
        storage.place(url) if url else storage.place("memory://")


def test_photographs_by_their_names():
    assert all(map(storage.is_photograph, ("a.jpg", "rooms/A.JPEG", "x/y/z.heic")))
    assert not any(map(storage.is_photograph, ("a.txt", ".a.jpg", ".cache/a.jpg", "jpg")))


def test_places_that_overlap(tmp_path):
    here, inside = storage.place(str(tmp_path)), storage.place(str(tmp_path / "out"))
    (tmp_path / "link").symlink_to(tmp_path / "out")
    assert storage.overlap(here, inside)
    assert storage.overlap(inside, here)
    assert storage.overlap(inside, storage.place(str(tmp_path / "link")))
    assert not storage.overlap(inside, storage.place(str(tmp_path / "output")))
    assert not storage.overlap(here, storage.place(f"memory://{tmp_path}"))
