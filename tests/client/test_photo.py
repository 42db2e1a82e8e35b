"""Conversion of every accepted form of a photograph to the bytes of a file."""

import io

import numpy as np
import pytest
from PIL import Image
from restormer_client.photo import photo_bytes

from tests.photographs import encode_image, make_exif, open_image, pixels

JPEG = encode_image(pixels(20, 30))


@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_bytes_are_not_copied(kind):
    data = kind(JPEG)
    assert photo_bytes(data) is data


def test_memoryview_is_cast_to_bytes():
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


def test_arrays_are_encoded_without_loss():
    array = pixels(20, 30)
    assert np.array_equal(np.asarray(open_image(photo_bytes(array))), array)


def test_pillow_images_keep_pixels_exif_and_profile():
    exif = make_exif(6)
    image = Image.open(io.BytesIO(encode_image(pixels(20, 30), exif=exif)))
    image.info["icc_profile"] = b"a profile"
    encoded_image = open_image(photo_bytes(image))
    assert np.array_equal(np.asarray(encoded_image), np.asarray(image))
    assert encoded_image.getexif()[0x0112] == 6
    assert encoded_image.info["icc_profile"] == b"a profile"


@pytest.mark.parametrize("shape", [(0, 4, 3), (4, 4), (4, 4, 4), (1, 4, 4, 3)])
def test_other_arrays_are_rejected(shape):
    with pytest.raises(ValueError, match=r"uint8 \[H, W, 3\]"):
        photo_bytes(np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match="float32"):
        photo_bytes(np.zeros((4, 4, 3), np.float32))


@pytest.mark.parametrize("photo", [None, 3, ["a.jpg"]])
def test_other_types_raise_type_error(photo):
    with pytest.raises(TypeError, match="a path"):
        photo_bytes(photo)


def test_file_opened_as_text_raises(tmp_path):
    (tmp_path / "in.jpg").write_text("x")
    with (tmp_path / "in.jpg").open() as file, pytest.raises(TypeError, match="mode 'rb'"):
        photo_bytes(file)


def test_missing_pillow_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(TypeError, match=r"restormer-client\[pillow\]"):
        photo_bytes(pixels(2, 2))
