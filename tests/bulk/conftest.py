"""Fixtures: an output folder, and photographs for `FakeTriton` and the memory file system."""

import pytest

from bulk import storage


@pytest.fixture
def output(tmp_path):
    return storage.open_folder(str(tmp_path / "out"))


@pytest.fixture
def photos(tmp_path):
    """Return a folder of five photographs in subfolders, a letter, and a hidden file."""
    folder = tmp_path / "photos"
    (folder / "house/rooms").mkdir(parents=True)
    for name in ("a.jpg", "b.PNG", "house/c.heic", "house/rooms/d.tif", "house/rooms/e.webp"):
        (folder / name).write_bytes(name.encode())
    for name in ("notes.txt", ".hidden.jpg"):
        (folder / name).write_bytes(b"none")
    return folder
