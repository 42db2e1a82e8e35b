"""Storage on a disk and on a file system that is not a disk (fsspec's memory)."""

import os
import pickle
from uuid import uuid4

import pytest

from bulk import storage
from bulk.errors import BulkError


@pytest.fixture(params=["disk", "memory"])
def folder(request, tmp_path):
    return storage.open_folder(str(tmp_path / "out") if request.param == "disk" else f"memory://{uuid4().hex}/out")


def test_files_are_written_read_and_removed(folder):
    assert not folder.exists("rooms/a.jpg")
    folder.write("rooms/a.jpg", b"one")
    folder.write("rooms/a.jpg", b"another")
    assert folder.read("rooms/a.jpg") == b"another"
    assert folder.sizes() == {"rooms/a.jpg": 7}
    assert folder.below("rooms").sizes() == {"a.jpg": 7}
    folder.remove("rooms/a.jpg")
    folder.remove("rooms/a.jpg")
    assert folder.sizes() == {}


def test_failed_write_leaves_no_file(folder, monkeypatch):
    def fail(*_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    monkeypatch.setattr(type(folder.fs), "mv", fail)
    with pytest.raises(OSError, match="No space left"):
        folder.write("a.jpg", b"one")
    assert folder.sizes() == {}


def test_content_is_on_the_disk_before_the_file_has_its_name(tmp_path, monkeypatch):
    """Otherwise a power loss leaves an empty file with the name of an output."""
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    monkeypatch.setattr(os, "replace", lambda *_: synced.append("renamed"))
    storage.open_folder(str(tmp_path)).write("a.jpg", b"one")
    assert synced == [3, "renamed"]


def test_leftovers_of_killed_writes_are_recognized(folder, monkeypatch):
    """A kill between writing the temporary file and renaming it leaves that file."""
    temporary = []

    def fail(source, _target, *_args, **_options):
        temporary.append(str(source).rpartition("/")[2])
        raise OSError("simulated kill")

    monkeypatch.setattr(os, "replace", fail)
    monkeypatch.setattr(type(folder.fs), "mv", lambda _self, *paths, **options: fail(*paths, **options))
    with pytest.raises(OSError, match="kill"):
        folder.write("kitchen.jpg", b"one")
    (name,) = temporary
    assert storage.is_leftover(name)
    assert storage.is_hidden(name)  # not a photograph
    assert not any(map(storage.is_leftover, ("kitchen.jpg", ".DS_Store", "job.json", "part-0123.parquet")))


def test_folders_pickle(folder):
    folder.write("a.jpg", b"one")
    assert pickle.loads(pickle.dumps(folder)).url == folder.url


def test_url_of_a_local_folder_is_a_path(tmp_path):
    assert storage.open_folder(f"file://{tmp_path}/out").url == f"{tmp_path}/out"
    assert storage.open_folder("memory://bucket/out/").url == "memory:///bucket/out"


@pytest.mark.parametrize("url", ["nonsense://bucket/photos", ""])
def test_unsupported_urls_are_rejected(url):
    with pytest.raises(BulkError, match="nonsense|folder"):
        storage.open_folder(url) if url else storage.open_folder("memory://")


def test_files_with_a_dot_in_their_path_are_hidden():
    assert all(map(storage.is_hidden, (".a.jpg", ".cache/a.jpg")))
    assert not any(map(storage.is_hidden, ("a.jpg", "rooms/A.JPEG")))


def test_overlapping_folders_are_detected(tmp_path):
    here, inside = storage.open_folder(str(tmp_path)), storage.open_folder(str(tmp_path / "out"))
    (tmp_path / "link").symlink_to(tmp_path / "out")
    assert storage.folders_overlap(here, inside)
    assert storage.folders_overlap(inside, here)
    assert storage.folders_overlap(inside, storage.open_folder(str(tmp_path / "link")))
    assert not storage.folders_overlap(inside, storage.open_folder(str(tmp_path / "output")))
    assert not storage.folders_overlap(here, storage.open_folder(f"memory://{tmp_path}"))
