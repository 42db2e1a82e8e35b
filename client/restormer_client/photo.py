"""Convert a photograph in any accepted form to the bytes of an image file."""

from __future__ import annotations

import io
import os
from typing import IO, TYPE_CHECKING, Any, Union

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image

#: Bytes of an image file, a path to one, an open binary file, a Pillow image, or a uint8 array of shape ``[H, W, 3]``.
Photo = Union[bytes, bytearray, memoryview, str, "os.PathLike[str]", IO[bytes], "Image", "npt.NDArray[np.uint8]"]


def photo_bytes(photo: Photo) -> bytes | bytearray | memoryview:
    """Return the bytes of an image file without decoding it; bytes are not copied.

    Pillow images and arrays are encoded as PNG, without loss; a Pillow image keeps its EXIF and ICC profile. Prefer
    the original file: it is smaller, and comes back in its own format. Raise `OSError` if a file cannot be read,
    `TypeError` for any other kind of object, `ValueError` for an array of another shape or type.
    """
    if isinstance(photo, (bytes, bytearray)):
        return photo
    if isinstance(photo, memoryview):
        return photo.cast("B")  # raises TypeError if it is not contiguous
    if isinstance(photo, (str, os.PathLike)):
        with open(photo, "rb") as file:
            return file.read()
    if hasattr(photo, "read"):
        data = photo.read()
        if not isinstance(data, bytes):
            raise TypeError("the file was opened as text: open it with mode 'rb'")
        return data
    if hasattr(photo, "__array_interface__") and not hasattr(photo, "save"):
        return _png(_image_from_array(photo))
    if hasattr(photo, "save"):  # a Pillow image, recognized without importing Pillow
        return _png(photo)
    raise TypeError(
        f"a photograph must be bytes, a path, an open binary file, a Pillow image or a uint8 array [H, W, 3], "
        f"not {type(photo).__name__}"
    )


def _image_from_array(array: npt.NDArray[np.uint8]) -> Image:
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != "uint8" or not array.size:
        raise ValueError(f"an array must be uint8 [H, W, 3] (RGB, 0 to 255), not {array.dtype} {list(array.shape)}")
    try:
        from PIL import Image
    except ModuleNotFoundError:
        raise TypeError("arrays need Pillow: pip install 'restormer-client[pillow]'") from None
    return Image.fromarray(array)


def _png(image: Any) -> bytes:
    buffer = io.BytesIO()
    # Level 1: the file is sent once over a fast network, so speed matters more than size.
    image.save(buffer, "PNG", compress_level=1, exif=image.getexif(), icc_profile=image.info.get("icc_profile"))
    return buffer.getvalue()
