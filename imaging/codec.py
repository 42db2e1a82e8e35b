"""Decode files to pixels, and keep what is needed to encode them alike: colours, depth, metadata.

docs/photographs.md lists what is accepted of each format, and what is kept. Pixels are upright: decoding applies the
EXIF orientation, encoding resets it. RGB and grey pixels stay in the colour space of their file. CMYK is converted back
by its profile; without a profile its colours are undefined, and it is encoded as RGB. Decoding raises
`InvalidPhotograph` for every file that cannot be read, whatever the codec raised; damaged metadata are dropped and do
not make a photograph invalid.
"""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pi_heif
from PIL import Image, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

from imaging import deep, jpeg, naming, png, unsupported
from imaging.arrays import Pixels, Unit, map_strips, to_integers
from imaging.colour import SRGB, Space
from imaging.compiled import copy_blocks
from imaging.errors import InvalidPhotograph
from imaging.frame import SIDE, resize
from imaging.metadata import Metadata, read_metadata
from imaging.options import WRITTEN
from imaging.photograph import LIMITS, Limits, Photograph
from imaging.raw import has_pages, require_developed

pi_heif.register_heif_opener(thumbnails=False)

#: Formats that Pillow may open.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "AVIF", "HEIF")
#: File name extensions of these formats, in lower case.
SUFFIXES = (*WRITTEN, ".heic", ".heif", ".hif")
_NAMES = "JPEG, PNG, WebP, TIFF, BMP, AVIF, HEIC"
#: Minimum of the shorter side in pixels, and maximum of the longer side as a multiple of the shorter.
MIN_SIDE, MAX_ASPECT = 16, 32
#: BMP compressions (BI_RLE8, BI_RLE4) that Pillow decodes in pure Python: up to 4 s for a megabyte of a crafted file.
_RUN_LENGTHS = (1, 2)
_MAX_WEBP_CHUNKS = 1000  # before the pixels; more than real files have
#: The box infe: version, flags, identifier and protection; texts follow (ISO/IEC 14496-12, 8.11.6).
_ITEM = re.compile(rb"infe(.).{7}", re.DOTALL)
_MAX_ITEMS = 10_000  # more than real files have
# ICC profiles for printing are larger than the 1 MiB that Pillow accepts in a compressed chunk of a PNG.
PngImagePlugin.MAX_TEXT_CHUNK = 4 * 1024 * 1024

#: Orientation → the upright image as a view of the stored one (CIPA DC-008, 4.6.4).
_TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[::-1],
}
_SWAPS_SIDES = (5, 6, 7, 8)  # EXIF orientations that swap height and width


def decode(data: bytes, limits: Limits = LIMITS) -> Photograph:
    """Decode the photograph at its own resolution. Raises `InvalidPhotograph`."""
    with _open(data, limits) as (image, metadata, turn):
        pixels, space, ink = _decode_stored(image, data, metadata)
        return Photograph(
            pixels=_turn_upright(pixels, turn),
            format="JPEG" if image.format in ("MPO", "HEIF") else str(image.format),
            space=space,
            ink=ink,
            metadata=metadata,
            sampling=_sampling(image, data, turned=turn in _SWAPS_SIDES),
            lossless=image.format == "WEBP" and _is_lossless_webp(data),
            compression=str(image.info.get("compression", "raw")),
        )


def decode_small(data: bytes, limits: Limits = LIMITS, *, side: int = SIDE) -> Pixels | Unit:
    """Decode the photograph stretched to ``side`` x ``side`` pixels, upright, in sRGB. Raises `InvalidPhotograph`.

    A JPEG is shrunk while it is decoded, which is several times as fast as decoding it whole (see `shrink_factor`).
    Returns float32 in [0, 1], or uint16 if the pixels were converted to sRGB.
    """
    with _open(data, limits) as (image, metadata, turn):
        height, width = image.height, image.width
        shrink = shrink_factor(height, width, side)
        pixels, space, _ = _decode_stored(image, data, metadata, at_least=(height // shrink, width // shrink))
        is_shrunk = pixels.shape[:2] == (-(-height // shrink), -(-width // shrink))
        extent = (height / shrink, width / shrink) if is_shrunk else pixels.shape[:2]
        small = resize(pixels[..., : space.channels], (side, side), extent)
        return np.ascontiguousarray(_TURNS[turn](space.to_srgb(small)))


def shrink_factor(height: int, width: int, side: int = SIDE) -> int:
    """Return how many times smaller to decode a JPEG: 1, 2, 4 or 8, with at least 7/4 of ``side`` left on each side.

    docs/decisions/full-resolution.md explains the minimum. Other factors of libjpeg-turbo take longer than these.
    """
    return next((factor for factor in (8, 4, 2) if min(height, width) * 4 >= 7 * side * factor), 1)


def _decode_stored(
    image: Image.Image, data: bytes, metadata: Metadata, *, at_least: tuple[int, int] = (0, 0)
) -> tuple[Pixels, Space, Space | None]:
    """Return the pixels as the file stores them (not upright), their space, and the file's own space if it is CMYK.

    With ``at_least`` (height, width) a JPEG may be shrunk, to no less than that.
    """
    with _errors_mapped(data):
        pixels = _read_pixels(image, data, at_least)
    is_cmyk, is_grey = image.mode == "CMYK", pixels.shape[2] <= 2
    space = naming.space_of("CMYK" if is_cmyk else "GRAY" if is_grey else "RGB", image, data, metadata.exif)
    return _convert_inks(pixels, space) if is_cmyk else (pixels, space, None)


def _read_pixels(image: Image.Image, data: bytes, at_least: tuple[int, int]) -> Pixels:
    """Return what the codec of the file decodes."""
    if deep.is_deep(image, data):
        return deep.decode(image, data)
    if naming.is_hdr(image, data):
        return deep.decode_hdr(image, data)
    if image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB"):
        return jpeg.decode(data, image, at_least=at_least)
    if image.mode == "CMYK":
        if image.format == "JPEG":
            jpeg.require_few_scans(data)
        if any(at_least):
            image.draft(image.mode, at_least[::-1])
        return np.asarray(image)
    converted = _convert_mode(image, data)
    pixels = np.array(converted)
    converted.close()
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _convert_mode(image: Image.Image, data: bytes) -> Image.Image:
    """Convert the image to grey or RGB of eight bits a channel, with or without alpha."""
    if image.mode in ("L", "LA", "RGB", "RGBA") and "transparency" not in image.info:
        return image
    if image.mode == "L" and image.format == "PNG":
        # Pillow scales the pixels to eight bits, but not the transparent value (PNG, third edition, 11.3.1.1).
        white = (1 << data[deep.PNG_DEPTH]) - 1
        image.info["transparency"] = (image.info["transparency"] & white) * 255 // white
    if image.mode in ("1", "L"):
        return image.convert("LA" if "transparency" in image.info else "L")
    if image.mode in ("LA", "La"):
        return image.convert("LA")
    if image.mode in ("P", "PA", "RGB", "RGBA", "RGBX", "YCbCr"):
        has_alpha = "transparency" in image.info or image.mode in ("PA", "RGBA")
        return image.convert("RGBA" if has_alpha else "RGB")
    raise ValueError(f"pixels of the type {image.mode}")  # 12 or 32 bits, floating point, Lab: `unsupported` names it


def _convert_inks(pixels: Pixels, ink: Space) -> tuple[Pixels, Space, Space | None]:
    """Convert CMYK to sRGB; also return the space to convert back to, or None: only a profile defines it."""
    if ink.profile is None:
        return np.array(Image.frombytes("CMYK", pixels.shape[1::-1], pixels.tobytes()).convert("RGB")), SRGB, None
    return map_strips(pixels, 3, np.uint8, lambda strip: to_integers(ink.to_srgb(strip), np.uint8)), SRGB, ink


def _turn_upright(pixels: Pixels, turn: int) -> Pixels:
    """Turn the pixels upright; the result is C-contiguous and writable."""
    if turn == 1:
        return pixels if pixels.flags.c_contiguous and pixels.flags.writeable else pixels.copy()
    view = _TURNS[turn](pixels)
    target = np.empty(view.shape, view.dtype)
    copy_blocks(target, view)
    return target


def _has_several_images(image: Image.Image, data: bytes) -> bool:
    """Return whether the file is an animation or has pages. The first image of an MPO or HEIC is the photograph."""
    if image.format in ("MPO", "HEIF"):
        return False
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # counting the pages would read them all
        return has_pages(data, image.tag_v2.next)
    return bool(getattr(image, "n_frames", 1) > 1)


def _sampling(image: Image.Image, data: bytes, *, turned: bool) -> str:
    """Return the chroma subsampling of a JPEG, AVIF or HEIC."""
    if image.format in ("JPEG", "MPO"):
        return jpeg.sampling_of(image, turned=turned)
    if image.format == "HEIF":
        return str(image.info.get("chroma", 420))
    start = data.find(b"av1C") if image.format == "AVIF" else -1
    # AV1 codec configuration (AV1-ISOBMFF, 2.3.3): two bits of its third byte are the subsampling along x and y.
    bits = (data[start + 6] >> 2) & 3 if 0 <= start < len(data) - 6 else 0
    return {0: "444", 2: "422", 3: "420"}.get(bits, "420")


def _is_lossless_webp(data: bytes) -> bool:
    """Return whether the first chunk with pixels is VP8L (RFC 9649, 2.6)."""
    at = 12
    for _ in range(_MAX_WEBP_CHUNKS):
        if data[at : at + 4] in (b"VP8 ", b"VP8L", b""):
            break
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8 + length + length % 2
    return data[at : at + 4] == b"VP8L"


@contextmanager
def _open(data: bytes, limits: Limits) -> Iterator[tuple[Image.Image, Metadata, int]]:
    """Open the file and check its size without decoding it; yield the image, its metadata and its orientation."""
    if not data:
        raise InvalidPhotograph("the photograph is empty (0 bytes)")
    if len(data) > limits.bytes:
        raise InvalidPhotograph(f"the photograph has {len(data):,} bytes; at most {limits.bytes:,} are allowed")
    require_developed(data)
    _require_text_in_items(data)
    with _errors_mapped(data):
        image = _identify(data)
    with image:
        with _errors_mapped(data):
            _require_supported(image, data, limits)
            turned_by_pillow = image.format == "TIFF" and not deep.is_deep(image, data)
        metadata = read_metadata(image, data)
        yield image, metadata, 1 if turned_by_pillow else metadata.orientation


def _identify(data: bytes) -> Image.Image:
    """Open the file with Pillow, less any damaged metadata that makes Pillow reject it."""
    try:
        return Image.open(io.BytesIO(png.without_extras(data)), formats=FORMATS)
    except (UnidentifiedImageError, ValueError):  # ValueError: the profile is too long for Pillow
        is_jpeg = data[:2] == b"\xff\xd8"
        plain = jpeg.without_profile(data) if is_jpeg else png.without_extras(data, has_profile=False)
        image = Image.open(io.BytesIO(plain), formats=FORMATS)
        image.info["icc_profile"] = None
        return image


def _require_text_in_items(data: bytes) -> None:
    """Raise `InvalidPhotograph` if the text of a HEIC item is not UTF-8: pi_heif 1.4 crashes the process on it."""
    for number, item in enumerate(_ITEM.finditer(data) if data[4:8] == b"ftyp" else ()):
        end = item.start() - 4 + int.from_bytes(data[item.start() - 4 : item.start()], "big")
        start = item.end() + (2 if item[1] == b"\3" else 0)  # the identifier is two bytes longer
        try:
            data[start : min(end, start + 4)].decode(), data[start + 4 : end].decode()
            is_text = True
        except UnicodeDecodeError:
            is_text = False
        if number >= _MAX_ITEMS or not is_text:
            raise InvalidPhotograph("the header of the HEIC or AVIF is damaged: the name of an item is not UTF-8")


def _require_supported(image: Image.Image, data: bytes, limits: Limits) -> None:
    """Raise `InvalidPhotograph` if the size or the layout of the image is not supported."""
    width, height = image.size
    size = f"the photograph has {width}x{height} pixels"
    if width * height > limits.pixels:
        raise InvalidPhotograph(f"{size}; at most {limits.pixels:,} are allowed")
    if min(width, height) < MIN_SIDE:
        raise InvalidPhotograph(f"{size}; each side needs at least {MIN_SIDE}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise InvalidPhotograph(f"{size}; one side may be at most {MAX_ASPECT} times the other")
    if _has_several_images(image, data):
        raise InvalidPhotograph(
            f"the {image.format} has more than one image (an animation, or pages): send a single image"
        )
    if image.format == "BMP" and image.info["compression"] in _RUN_LENGTHS:
        raise InvalidPhotograph("the BMP is run-length encoded: save it uncompressed, or as PNG")


@contextmanager
def _errors_mapped(data: bytes) -> Iterator[None]:
    """Turn the exceptions that a codec raises for a file into `InvalidPhotograph` with a message of one line.

    Wrap only calls of codecs: elsewhere an exception is an error of the server, as is a lack of memory everywhere.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `Limits` applies instead, and damaged EXIF is dropped
            yield
    except (InvalidPhotograph, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise InvalidPhotograph(f"the photograph is too large: {error}") from error
    except Exception as error:
        raise InvalidPhotograph(unsupported.reason(data) or _damage(error)) from error


def _damage(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"not a photograph in {_NAMES}, or its header is damaged or cut off"
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return f"the photograph cannot be decoded ({reason}); is the file complete?"
