"""Encoded photographs to pixels and back, by Pillow.

Pixels are upright HxWx3 uint8 RGB: the EXIF orientation is applied on decoding and its tag reset on encoding, so
that no viewer turns the picture twice. An RGB profile and the EXIF data travel with the photograph; pixel values are
enhanced in the photograph's own colour space. Grey, palette and CMYK photographs come back as RGB, 16-bit ones in
8 bits, and transparency is dropped.

A photograph that cannot be read ends in `InvalidPhotograph`, whatever the codec said; damaged EXIF data are left behind
and do not refuse a photograph.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from imaging.errors import InvalidPhotograph
from imaging.frame import SIDE, Frame

#: Formats we take; each comes back in its own.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF")
#: What files of these formats are called, in lower case.
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff")
#: The most pixels we decode: a 102-megapixel medium-format photograph passes.
MAX_PIXELS = 108_000_000
QUALITY = 92

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_ITS_SIDE = (5, 6, 7, 8)  # EXIF orientations that swap height and width
#: EXIF tags that tell about the photograph (description, camera, date, author, rights, Exif and GPS blocks). The
#: others of a TIFF tell how its bytes lie, and would corrupt the new file.
_DESCRIPTIVE = {0x010E, 0x010F, 0x0110, _ORIENTATION, 0x0131, 0x0132, 0x013B, 0x8298, 0x8769, 0x8825}


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
        exif = _exif(image)
        pixels = np.asarray(_upright(_rgb(image), exif))
        if _ORIENTATION in exif:
            exif[_ORIENTATION] = 1
        kind = "JPEG" if image.format == "MPO" else str(image.format)
        return Photograph(pixels, kind, _rgb_profile(image), exif.tobytes() if exif else None)


def decode_small(data: bytes, *, side: int = SIDE) -> NDArray[np.uint8]:
    """The photograph with its longer side at ``side`` pixels, upright, HxWx3 uint8. Raises `InvalidPhotograph`.

    A JPEG is shrunk while it is decoded (to no less than twice the side), which is several times faster than
    decoding it whole.
    """
    with _opened(data) as image:
        exif = _exif(image)
        on_its_side = exif.get(_ORIENTATION) in _ON_ITS_SIDE
        frame = Frame.of(*((image.width, image.height) if on_its_side else (image.height, image.width)), side=side)
        size = (frame.height, frame.width) if on_its_side else (frame.width, frame.height)
        image.draft("RGB", (size[0] * 2, size[1] * 2))
        shrinks = image.width > size[0]
        small = _rgb(image).resize(size, Image.Resampling.BOX if shrinks else Image.Resampling.BICUBIC)
        return np.asarray(_upright(small, exif))


def encode(photograph: Photograph, *, quality: int = QUALITY) -> bytes:
    """The photograph as a file of its own format, ICC profile and EXIF included; JPEG at ``quality``, 4:2:0."""
    options: dict[str, object] = {"quality": quality} if photograph.format in ("JPEG", "WEBP") else {}
    if photograph.icc_profile:
        options["icc_profile"] = photograph.icc_profile
    if photograph.exif:
        options["exif"] = photograph.exif
    with _complaints():
        buffer = io.BytesIO()
        Image.fromarray(photograph.pixels).save(buffer, photograph.format, **options)
        return buffer.getvalue()


def _rgb(image: Image.Image) -> Image.Image:
    """Three channels of eight bits. 16-bit grey is scaled (Pillow would clip it); float pixels have no white point."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise InvalidPhotograph("the photograph has 32-bit or floating-point pixels: send 8 or 16 bits a channel")
    return image.convert("RGB")


def _upright(image: Image.Image, exif: Image.Exif) -> Image.Image:
    turn = _TURNS.get(exif.get(_ORIENTATION, 1))
    return image if turn is None else image.transpose(turn)


def _exif(image: Image.Image) -> Image.Exif:
    """What EXIF tells about the photograph; nothing if it is damaged."""
    try:
        exif = image.getexif()
        if image.format == "TIFF":
            for tag in set(exif) - _DESCRIPTIVE:
                del exif[tag]
        exif.tobytes()
        return exif
    except Exception:  # noqa: BLE001  a damaged block makes the parser raise anything; the pixels are still good
        return Image.Exif()


def _rgb_profile(image: Image.Image) -> bytes | None:
    """The ICC profile, if it describes RGB: the result is RGB whatever came in (ICC.1:2022, bytes 16 to 19)."""
    profile = image.info.get("icc_profile")
    return profile if isinstance(profile, bytes) and profile[16:20] == b"RGB " else None


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """The image behind the bytes, its size checked from its header."""
    if not data:
        raise InvalidPhotograph("the photograph is empty (0 bytes)")
    with _complaints(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise InvalidPhotograph(
                f"the photograph has {image.width}x{image.height} pixels; at most {MAX_PIXELS:,} are taken"
            )
        yield image


@contextmanager
def _complaints() -> Iterator[None]:
    """The one gate: whatever a codec raises over a foreign file becomes `InvalidPhotograph`, in one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MAX_PIXELS is our bound, and damaged EXIF is left behind
            yield
    except InvalidPhotograph:
        raise
    except UnidentifiedImageError as error:
        raise InvalidPhotograph(f"not a photograph in {', '.join(FORMATS)}: no such file header") from error
    except Image.DecompressionBombError as error:
        raise InvalidPhotograph(f"the photograph is too large: {error}") from error
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InvalidPhotograph(f"the photograph cannot be decoded ({reason}); is the file whole?") from error
