"""Encoded photographs to pixels and back, by Pillow.

Pixels are upright HxWx3 uint8 RGB: the EXIF orientation is applied on decoding and its tag reset on encoding, so
that no viewer turns the picture twice. The ICC profile and the EXIF data travel with the photograph unchanged;
pixel values are enhanced in the photograph's own colour space.

A photograph that cannot be read ends in `InvalidPhotograph`, whatever the codec said.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from imaging.errors import InvalidPhotograph
from imaging.frame import SIDE, Frame

#: Formats we take; each comes back in its own.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF")
#: The most pixels we decode: a 102-megapixel medium-format photograph passes.
MAX_PIXELS = 108_000_000
QUALITY = 92

_ORIENTATION_TAG = 0x0112
_TRANSPOSED = (5, 6, 7, 8)  # EXIF orientations that swap height and width


@dataclass(frozen=True)
class Photograph:
    """Upright pixels (HxWx3 uint8 RGB), and what has to come back with them."""

    pixels: NDArray[np.uint8]
    format: str
    icc_profile: bytes | None = None
    exif: bytes | None = None


def decode(data: bytes) -> Photograph:
    """The photograph at its own resolution. Raises `InvalidPhotograph`."""
    with _opened(data) as image:
        icc_profile = image.info.get("icc_profile")
        pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        exif = image.getexif()
        if _ORIENTATION_TAG in exif:
            exif[_ORIENTATION_TAG] = 1
        return Photograph(pixels, str(image.format), icc_profile, exif.tobytes() if exif else None)


def decode_small(data: bytes, *, side: int = SIDE) -> NDArray[np.uint8]:
    """The photograph with its longer side at ``side`` pixels, upright, HxWx3 uint8. Raises `InvalidPhotograph`.

    A JPEG is shrunk while it is decoded (to no less than twice the side), which is several times faster than
    decoding it whole.
    """
    with _opened(data) as image:
        turned = image.getexif().get(_ORIENTATION_TAG) in _TRANSPOSED
        height, width = (image.width, image.height) if turned else (image.height, image.width)
        frame = Frame.of(height, width, side=side)
        size = (frame.height, frame.width) if turned else (frame.width, frame.height)
        image.draft("RGB", (size[0] * 2, size[1] * 2))
        small = image.convert("RGB").resize(size, Image.Resampling.BOX if image.width > size[0] else None)
        small.info = image.info
        small.getexif().update(image.getexif())
        return np.asarray(ImageOps.exif_transpose(small))


def encode(photograph: Photograph, *, quality: int = QUALITY) -> bytes:
    """The photograph as a file of its own format, ICC profile and EXIF included; 4:2:0 JPEG at ``quality``."""
    options: dict[str, object] = {"quality": quality} if photograph.format in ("JPEG", "WEBP") else {}
    if photograph.icc_profile:
        options["icc_profile"] = photograph.icc_profile
    if photograph.exif:
        options["exif"] = photograph.exif
    buffer = io.BytesIO()
    Image.fromarray(photograph.pixels).save(buffer, photograph.format, **options)
    return buffer.getvalue()


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """The image behind the bytes, checked from its header; every complaint of Pillow becomes ours."""
    if not data:
        raise InvalidPhotograph("the photograph is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS is our bound
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise InvalidPhotograph(
                        f"the photograph has {image.width}x{image.height} pixels; at most {MAX_PIXELS:,} are taken"
                    )
                yield image
    except UnidentifiedImageError as error:
        raise InvalidPhotograph(f"not a photograph in {', '.join(FORMATS)}: {data[:8]!r}... is no such file") from error
    except Image.DecompressionBombError as error:
        raise InvalidPhotograph(f"the photograph is too large: {error}") from error
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError) as error:
        if isinstance(error, InvalidPhotograph):
            raise
        raise InvalidPhotograph(f"the photograph cannot be decoded ({error}); is the file whole?") from error
