"""Encoded photographs to pixels and back, in the colours, the depth and with the metadata they came with.

===========  ==================================================  =========================================
format       decoded                                             comes back as
===========  ==================================================  =========================================
JPEG         baseline, progressive, grey, CMYK, YCCK; of MPO     JPEG, its chroma subsampling kept
             the first picture
PNG          palette, grey, alpha, 16 bits                       PNG, 8 or 16 bits, alpha kept
WebP         lossy, lossless, alpha                              WebP, lossless if it was
TIFF         8 and 16 bits, grey, RGB, CMYK, alpha               TIFF, its lossless compression kept
AVIF         8 bits (deeper ones are reduced)                    AVIF
HEIC         8 bits (deeper ones are reduced)                    JPEG: HEVC encoders are not free to use
===========  ==================================================  =========================================

Pixels are upright: the EXIF orientation is applied on decoding and reset on encoding. RGB and grey pixels stay in the
colour space of their file. CMYK is separated again by its profile; without one its inks have no defined colour, and it
comes back as RGB. A photograph that cannot be read ends in `InvalidPhotograph`, whatever the codec said; damaged
metadata are left behind and do not refuse a photograph.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import pi_heif
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from imaging import deep, jpeg
from imaging.arrays import Pixels, Unit
from imaging.colour import SRGB, Space
from imaging.compiled import area_mean, copy_blocks
from imaging.errors import InvalidPhotograph
from imaging.frame import SIDE, Frame
from imaging.metadata import ORIENTATION, exif_of, renewed_exif, renewed_xmp, xmp_of
from imaging.options import OUTPUTS, QUALITY

pi_heif.register_heif_opener(thumbnails=False)

#: Formats we take.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF")
#: What files of these formats are called, in lower case.
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".avif", ".heic", ".heif")
_NAMES = "JPEG, PNG, WebP, TIFF, AVIF, HEIC"
#: The narrowest photograph, in pixels, and the most its longer side may be of its shorter.
MIN_SIDE, MAX_ASPECT = 16, 32
#: AVIF encoding effort, 0 (slow) to 10; at 6, libavif's default, 12 megapixels take tens of seconds on one core.
AVIF_SPEED = 8

#: Orientation → the upright picture as a view of the stored one (CIPA DC-008, 4.6.4).
_TURNS = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[::-1],
}
_LOSSLESS = ("tiff_adobe_deflate", "tiff_lzw", "raw")  # Pillow's names of the compressions a TIFF keeps
_ON_ITS_SIDE = (5, 6, 7, 8)  # EXIF orientations that swap height and width


@dataclass(frozen=True)
class Limits:
    """The largest photograph that is decoded, read off its header first: in pixels, and in bytes of its file."""

    pixels: int = 100_000_000
    bytes: int = 200_000_000

    @classmethod
    def parsed(cls, model_config: str) -> Limits:
        """From the parameters ``max_pixels`` and ``max_bytes`` of a Triton model's configuration, as JSON."""
        parameters = json.loads(model_config)["parameters"]
        return cls(**{name: int(parameters[f"max_{name}"]["string_value"]) for name in ("pixels", "bytes")})


LIMITS = Limits()


@dataclass(frozen=True)
class Photograph:
    """Upright pixels, HxWxC uint8 or uint16, and what has to come back with them.

    C is 1 (grey), 2 (grey and alpha), 3 (RGB) or 4 (RGB and alpha). ``space`` says what the numbers mean; the pixels of
    a CMYK file (``ink``) have become sRGB. ``exif`` and ``xmp`` are as they were in the file.
    """

    pixels: Pixels
    format: str
    space: Space = SRGB
    ink: Space | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    sampling: str = "420"
    lossless: bool = False
    compression: str = "raw"

    @property
    def has_alpha(self) -> bool:
        return self.pixels.shape[2] in (2, 4)


def decode(data: bytes, limits: Limits = LIMITS) -> Photograph:
    """The photograph at its own resolution. Raises `InvalidPhotograph`."""
    with _opened(data, limits) as (image, turn):
        exif = exif_of(image)
        kind = {"MPO": "JPEG", "HEIF": "JPEG"}.get(str(image.format), str(image.format))
        info = image.info
        pixels, space, ink = _stored(image, data)
        return Photograph(
            pixels=_upright(pixels, turn),
            format=kind,
            space=space,
            ink=ink,
            exif=exif.tobytes() if len(exif) else None,
            xmp=xmp_of(image),
            sampling=jpeg.sampling_of(image, turned=turn in _ON_ITS_SIDE) if image.format in ("JPEG", "MPO") else "444",
            lossless=image.format == "WEBP" and _is_lossless_webp(data),
            compression=str(info.get("compression", "raw")),
        )


def decode_small(data: bytes, limits: Limits = LIMITS, *, side: int = SIDE) -> Pixels | Unit:
    """The photograph with its longer side at ``side`` pixels, upright, HxWx3 in sRGB. Raises `InvalidPhotograph`.

    A JPEG is shrunk while it is decoded (to no less than twice the side), several times as fast as decoding it whole.
    uint8, or what the conversion to sRGB gives.
    """
    with _opened(data, limits) as (image, turn):
        frame = Frame.of(image.height, image.width, side=side)
        at_least = (2 * frame.height, 2 * frame.width)
        if _is_fast(image):
            pixels, space = jpeg.decode(data, image, at_least=at_least), _space(image)
        else:
            image.draft(image.mode, at_least[::-1])  # of a CMYK JPEG
            pixels, space, _ = _stored(image, data)
            if deep.is_deep(image, data):  # on its side, if need be, where Pillow has told the upright size
                frame = Frame.of(*pixels.shape[:2], side=side)
        small = resized(pixels[..., : space.channels], (frame.width, frame.height))
        return np.ascontiguousarray(_turned(space.to_srgb(small), turn))


def encode(photograph: Photograph, *, format: str = "", quality: int = QUALITY, gps: bool = True) -> bytes:
    """The photograph as a file, with its colours and metadata.

    ``format``: a key of `OUTPUTS`, or empty for its own. What a format cannot hold is reduced: alpha over white, 16
    bits to 8, grey and CMYK to RGB.
    """
    kind = OUTPUTS.get(format, photograph.format)
    photograph = _fitting(photograph, kind)
    height, width = photograph.pixels.shape[:2]
    exif = renewed_exif(photograph.exif, width=width, height=height, gps=gps)
    xmp = renewed_xmp(photograph.xmp, gps=gps)
    with _complaints("encoded"):
        if photograph.ink:
            return _encoded_inks(photograph, kind, quality, exif, xmp)
        if photograph.pixels.dtype == np.uint16:
            profile, compression = photograph.space.profile, photograph.compression
            return deep.encode(photograph.pixels, kind, profile=profile, compression=compression, exif=exif, xmp=xmp)
        if kind == "JPEG":
            return jpeg.encode(
                photograph.pixels,
                quality=quality,
                sampling=photograph.sampling,
                profile=photograph.space.profile,
                exif=exif.tobytes() if exif else None,
                xmp=xmp,
            )
        pixels = photograph.pixels[..., 0] if photograph.pixels.shape[2] == 1 else photograph.pixels
        return _saved(Image.fromarray(pixels), kind, photograph, quality, photograph.space.profile, exif, xmp)


def _stored(image: Image.Image, data: bytes) -> tuple[Pixels, Space, Space | None]:
    """Pixels as the file stores them (not upright), their space, and the file's inks if it is CMYK."""
    if deep.is_deep(image, data):
        pixels: Pixels = deep.decode(data)
        if sorted(pixels.shape[:2]) != sorted(image.size) or pixels.dtype != np.uint16:
            raise InvalidPhotograph("the file's 16-bit layout is not one of grey, RGB or CMYK, with or without alpha")
        if image.mode == "CMYK":
            return _inks((pixels[..., :4] // 257).astype(np.uint8), image)
        model = "GRAY" if pixels.shape[2] <= 2 else "RGB"
        return pixels[..., :4], Space.of(model, image.info.get("icc_profile")), None
    if _is_fast(image):
        return jpeg.decode(data, image), _space(image), None
    if image.mode == "CMYK":
        return _inks(np.asarray(image), image)
    image = _plain(image)
    pixels = np.array(image)
    image.close()
    return pixels if pixels.ndim == 3 else pixels[..., None], _space(image), None


def _plain(image: Image.Image) -> Image.Image:
    """Grey or RGB of eight bits a channel, with or without alpha."""
    if image.mode in ("L", "LA", "RGB", "RGBA") and "transparency" not in image.info:
        return image
    if image.mode in ("1", "L"):
        return image.convert("LA" if "transparency" in image.info else "L")
    if image.mode == "LA":
        return image
    if image.mode in ("P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "La", "YCbCr"):
        seen_through = "transparency" in image.info or image.mode in ("PA", "RGBA", "RGBa", "La")
        return image.convert("RGBA" if seen_through else "RGB")
    raise InvalidPhotograph(
        f"the photograph has pixels of the kind {image.mode} (32 bits, floating point or Lab): "
        "send 8 or 16 bits a channel, in grey, RGB or CMYK"
    )


def _space(image: Image.Image) -> Space:
    return Space.of("GRAY" if image.mode in ("1", "L", "LA") else "RGB", image.info.get("icc_profile"))


def _is_fast(image: Image.Image) -> bool:
    """Whether libjpeg-turbo reads it."""
    return image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB")


def _inks(pixels: Pixels, image: Image.Image) -> tuple[Pixels, Space, Space | None]:
    """CMYK as sRGB, and the space to separate it for again: none without a profile, which alone gives inks a colour."""
    ink = Space.of("CMYK", image.info.get("icc_profile"))
    if ink.profile is None:
        return np.array(Image.frombytes("CMYK", pixels.shape[1::-1], pixels.tobytes()).convert("RGB")), SRGB, None
    return np.rint(ink.to_srgb(pixels) / np.float32(257)).astype(np.uint8), SRGB, ink


def resized(pixels: Pixels, size: tuple[int, int]) -> Unit:
    """HxWxC pixels at another size (width, height), float32 in [0, 1]: means when shrunk, bicubic when enlarged."""
    white = np.float32(np.iinfo(pixels.dtype).max)
    if pixels.shape[1] >= size[0] and pixels.shape[0] >= size[1]:
        small: Unit = area_mean(np.require(pixels, requirements=["C", "W"]), size[1], size[0])
        return small / white
    planes = [Image.fromarray(pixels[..., c].astype(np.float32)) for c in range(pixels.shape[2])]
    larger = [np.asarray(plane.resize(size, Image.Resampling.BICUBIC)) for plane in planes]
    return np.clip(np.stack(larger, axis=2) / white, 0, 1)


def _turned(pixels: Pixels | Unit, turn: int) -> Pixels | Unit:
    return _TURNS[turn](pixels) if turn in _TURNS else pixels


def _upright(pixels: Pixels, turn: int) -> Pixels:
    """The pixels upright, C-contiguous and writable."""
    if turn not in _TURNS:
        return pixels if pixels.flags.c_contiguous and pixels.flags.writeable else pixels.copy()
    view = _TURNS[turn](pixels)
    target = np.empty(view.shape, view.dtype)
    copy_blocks(target, view)
    return target


def _is_lossless_webp(data: bytes) -> bool:
    """Whether the first chunk of pixels is VP8L (RFC 9649, 2.6)."""
    return b"VP8L" in data[12:16] or (data[12:16] == b"VP8X" and data.find(b"VP8L") >= 0 > data.find(b"VP8 "))


def _fitting(photograph: Photograph, kind: str) -> Photograph:
    """The photograph with no more than the format can hold."""
    pixels = photograph.pixels
    if pixels.dtype == np.uint16 and kind not in ("PNG", "TIFF"):
        pixels = np.rint(pixels / np.float32(257)).astype(np.uint8)
    if photograph.has_alpha and kind == "JPEG":
        white = np.iinfo(pixels.dtype).max
        part = pixels[..., -1:] / np.float32(white)
        pixels = np.rint(pixels[..., :-1] * part + white * (1 - part)).astype(pixels.dtype)
    if pixels.shape[2] <= 2 and kind in ("WEBP", "AVIF"):
        return replace(
            photograph,
            pixels=np.concatenate([np.repeat(pixels[..., :1], 3, 2), pixels[..., 1:]], 2),
            space=Space(),
        )
    ink = photograph.ink if kind in ("JPEG", "TIFF") and pixels.dtype == np.uint8 else None
    return replace(photograph, pixels=pixels, ink=ink)


def _encoded_inks(photograph: Photograph, kind: str, quality: int, exif: Image.Exif | None, xmp: bytes | None) -> bytes:
    """Separated again for the press it came from."""
    assert photograph.ink is not None
    inks = photograph.ink.separated(photograph.pixels, np.uint8)
    image = Image.frombytes("CMYK", inks.shape[1::-1], inks.tobytes())
    return _saved(image, kind, photograph, quality, photograph.ink.profile, exif, xmp)


def _saved(
    image: Image.Image,
    kind: str,
    photograph: Photograph,
    quality: int,
    profile: bytes | None,
    exif: Image.Exif | None,
    xmp: bytes | None,
) -> bytes:
    """By Pillow, in the formats and colours that have no faster way."""
    options: dict[str, object] = {"icc_profile": profile} if profile else {}
    if exif:
        options["exif"] = exif
    match kind:
        case "JPEG":
            options |= {"quality": quality, "subsampling": 0 if photograph.sampling == "444" else 2}
        case "WEBP":
            options |= {"quality": quality, "lossless": photograph.lossless, "exact": True}
        case "AVIF":
            options |= {"quality": quality, "speed": AVIF_SPEED, "max_threads": 1}
        case "TIFF":
            options["compression"] = photograph.compression if photograph.compression in _LOSSLESS else _LOSSLESS[0]
        case "PNG":
            options["compress_level"] = 4
    if xmp and kind == "PNG":
        options["pnginfo"] = text = PngImagePlugin.PngInfo()
        text.add_itxt("XML:com.adobe.xmp", xmp.decode("utf-8", errors="replace"))
    elif xmp and kind == "TIFF":
        options["exif"] = exif = exif or Image.Exif()
        exif[deep.XMP_TAG] = xmp
    elif xmp:
        options["xmp"] = xmp
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@contextmanager
def _opened(data: bytes, limits: Limits) -> Iterator[tuple[Image.Image, int]]:
    """The image behind the bytes and its EXIF orientation, its size checked from its header; nothing is decoded yet."""
    if not data:
        raise InvalidPhotograph("the photograph is empty (0 bytes)")
    if len(data) > limits.bytes:
        raise InvalidPhotograph(f"the photograph has {len(data):,} bytes; at most {limits.bytes:,} are taken")
    with _complaints("decoded"), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        width, height = image.size
        if width * height > limits.pixels:
            raise InvalidPhotograph(f"the photograph has {width}x{height} pixels; at most {limits.pixels:,} are taken")
        if min(width, height) < MIN_SIDE:
            raise InvalidPhotograph(f"the photograph has {width}x{height} pixels; each side needs at least {MIN_SIDE}")
        if max(width, height) > MAX_ASPECT * min(width, height):
            raise InvalidPhotograph(
                f"the photograph has {width}x{height} pixels; the longer side may be {MAX_ASPECT} times the shorter"
            )
        if image.format not in ("MPO", "HEIF") and getattr(image, "n_frames", 1) > 1:
            raise InvalidPhotograph(
                f"the {image.format} has {image.n_frames} pictures (an animation, or pages): send one still picture"  # type: ignore[attr-defined]
            )
        turned_by_pillow = image.format == "TIFF" and not deep.is_deep(image, data)
        yield image, 1 if turned_by_pillow else int(exif_of(image).get(ORIENTATION, 1) or 1)


@contextmanager
def _complaints(done: str) -> Iterator[None]:
    """The one gate: whatever a codec raises over a foreign file becomes `InvalidPhotograph`, in one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # our limits are the bound, and damaged EXIF is left behind
            yield
    except InvalidPhotograph:
        raise
    except UnidentifiedImageError as error:
        raise InvalidPhotograph(f"not a photograph in {_NAMES}, or its header is damaged or cut off") from error
    except Image.DecompressionBombError as error:
        raise InvalidPhotograph(f"the photograph is too large: {error}") from error
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InvalidPhotograph(f"the photograph cannot be {done} ({reason}); is the file whole?") from error
