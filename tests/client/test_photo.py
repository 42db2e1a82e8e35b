"""A photograph in every form a caller may hold it."""

import io

import numpy as np
import pytest
from PIL import Image
from restormer_client.photo import photo_bytes

from tests.photographs import encoded, exif_with, opened, pixels

JPEG = encoded(pixels(20, 30))


@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_bytes_are_not_copied(kind):
    data = kind(JPEG)
    assert photo_bytes(data) is data


def test_a_view_is_taken_as_its_bytes():
    data = bytearray(JPEG[: len(JPEG) // 4 * 4])
    view = photo_bytes(memoryview(data).cast("I"))
    assert (bytes(view), len(view), view.obj) == (data, len(data), data)
    with pytest.raises(TypeError):
        photo_bytes(memoryview(data)[::2])


def test_paths_and_open_files(tmp_path):
    path = tmp_path / "in.jpg"
    path.write_bytes(JPEG)
    with path.open("rb") as file:
        assert photo_bytes(path) == photo_bytes(str(path)) == photo_bytes(file) == photo_bytes(io.BytesIO(JPEG)) == JPEG


def test_arrays_travel_without_loss():
    array = pixels(20, 30)
    assert np.array_equal(np.asarray(opened(photo_bytes(array))), array)


def test_pillow_images_keep_pixels_exif_and_profile():
    exif = exif_with(6)
    image = Image.open(io.BytesIO(encoded(pixels(20, 30), exif=exif)))
    image.info["icc_profile"] = b"a profile"
    sent = opened(photo_bytes(image))
    assert np.array_equal(np.asarray(sent), np.asarray(image))
    assert sent.getexif()[0x0112] == 6
    assert sent.info["icc_profile"] == b"a profile"


@pytest.mark.parametrize("shape", [(0, 4, 3), (4, 4), (4, 4, 4), (1, 4, 4, 3)])
def test_other_arrays_are_refused(shape):
    with pytest.raises(ValueError, match=r"uint8 \[H, W, 3\]"):
        photo_bytes(np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match="float32"):
        photo_bytes(np.zeros((4, 4, 3), np.float32))


@pytest.mark.parametrize("photo", [None, 3, ["a.jpg"]])
def test_anything_else_is_a_programming_error(photo):
    with pytest.raises(TypeError, match="a photograph is bytes, a path"):
        photo_bytes(photo)


def test_a_file_opened_as_text(tmp_path):
    (tmp_path / "in.jpg").write_text("x")
    with (tmp_path / "in.jpg").open() as file, pytest.raises(TypeError, match="mode 'rb'"):
        photo_bytes(file)


def test_arrays_say_that_they_need_pillow(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(TypeError, match=r"restormer-client\[pillow\]"):
        photo_bytes(pixels(2, 2))
