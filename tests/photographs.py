"""Make photographs for the tests."""

import io
import struct
import warnings
import zlib
from functools import cache
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
from PIL import Image
from skimage.color import lab2rgb, rgb2lab

#: A HEIC of 240x320 upright pixels: `pixels()` turned by EXIF orientation 6, in Display P3. Encoded with pillow-heif,
#: which is not a dependency because its encoder is GPL.
HEIC = Path(__file__).parent / "data/photograph.heic"
#: A HEIC of 70x50 pixels in PQ and BT.2020 with 10 bits, encoded likewise.
HDR_HEIC = HEIC.with_name("hdr.heic")

XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" xmlns:exif="http://ns.adobe.com/exif/1.0/"'
    b' xmlns:dc="http://purl.org/dc/elements/1.1/" tiff:Orientation="1" exif:GPSLatitude="48,8.2N" dc:format="house">'
    b"<exif:GPSLongitude>11,34.5E</exif:GPSLongitude></rdf:Description></rdf:RDF></x:xmpmeta>"
)


def pixels(height=240, width=320, seed=0):
    """Make a smooth scene with fine grain, HxWx3 uint8, in which errors of codecs and filters show."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    smooth = np.stack([0.3 + 0.5 * x, 0.2 + 0.4 * y, 0.5 - 0.3 * x * y], axis=-1)
    return np.clip((smooth + rng.normal(0, 0.03, smooth.shape)) * 255, 0, 255).astype(np.uint8)


def encode_image(array, kind="JPEG", **options):
    """Encode pixels or a Pillow image; ``options`` are those of Pillow's ``save``."""
    buffer = io.BytesIO()
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(buffer, kind, **({"quality": 95} | options if kind in ("JPEG", "WEBP", "AVIF") else options))
    return buffer.getvalue()


def resize_bilinear(values, shape):
    """Resize HxWxC values with Pillow's bilinear filter, plane by plane in float32."""
    planes = [Image.fromarray(np.ascontiguousarray(values[..., c], np.float32)) for c in range(values.shape[2])]
    return np.stack([np.asarray(plane.resize(shape[::-1], Image.Resampling.BILINEAR)) for plane in planes], axis=2)


def encode_16_bits(kind, array, *, compressed=False):
    """Encode a PNG or TIFF of 16 bits per channel with OpenCV, independently of the code under test."""
    array = array[..., {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[array.shape[2]]]
    options = [cv2.IMWRITE_TIFF_COMPRESSION, 5 if compressed else 1] if kind == "TIFF" else []
    succeeded, data = cv2.imencode(f".{kind.lower()}", array, options)
    assert succeeded
    return data.tobytes()


def pixels_16_bits(channels=3, height=240, width=320):
    """Make a ramp that needs more than 8 bits, HxWxC uint16."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [10_000 + 97 * x + 31 * y * (c + 1) for c in range(channels)]
    return np.stack(planes, axis=2).astype(np.uint16)


def with_chunks(png, **bodies):
    """Return the PNG with these chunks, of four letters each, after IHDR."""
    chunks = b""
    for name, body in bodies.items():
        kind = name.encode() + body
        chunks += struct.pack(">I", len(body)) + kind + struct.pack(">I", zlib.crc32(kind))
    return png[:33] + chunks + png[33:]


def make_exif(orientation, **gps):
    """Return the EXIF of a camera, with a position if any keyword is given."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "Camera maker"
    exif.get_ifd(0x8769)[0x829A] = 0.01  # exposure time
    exif.get_ifd(0x8769)[0xA002] = 9999  # a wrong width
    if gps:
        exif.get_ifd(0x8825).update({1: "N", 2: (48.0, 8.0, 12.0)})
    return exif.tobytes()


def open_image(data):
    return Image.open(io.BytesIO(data))


def png_chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@cache
def profile(name):
    """Return an ICC profile: ``p3`` or ``srgb`` (RGB), ``cmyk``, or ``grey`` (gamma 1.8)."""
    if name in ("cmyk", "grey"):
        return {"cmyk": _cmyk_profile, "grey": _grey_profile}[name]()
    if name == "p3":
        chromaticities = {
            "whitepoint": [0.3127, 0.3290, 1],
            "primaries": [0.68, 0.32, 1, 0.265, 0.69, 1, 0.15, 0.06, 1],
        }
        return imagecodecs.cms_profile("rgb", gamma=2.2, **chromaticities)
    return imagecodecs.cms_profile(name)


def _cmyk_profile():
    """Make a simple CMYK profile: inks subtract from white, and half of their common part is printed as black."""

    def lab8(rgb):
        lab = rgb2lab(rgb.reshape(-1, 1, 3)).reshape(-1, 3)
        return np.rint(np.stack([lab[:, 0] * 2.55, lab[:, 1] + 128, lab[:, 2] + 128], 1)).clip(0, 255).astype(np.uint8)

    def mesh(steps, channels):
        return np.stack(np.meshgrid(*[steps] * channels, indexing="ij"), -1).reshape(-1, channels)

    inks = mesh(np.linspace(0, 1, 9), 4)
    to_lab = lab8((1 - inks[:, :3]) * (1 - inks[:, 3:]))
    lab = mesh(np.linspace(0, 255, 33), 3)
    with warnings.catch_warnings(action="ignore"):  # most of Lab is outside sRGB, and is clipped
        rgb = lab2rgb(np.stack([lab[:, 0] / 2.55, lab[:, 1] - 128, lab[:, 2] - 128], 1).reshape(-1, 1, 3))
    rgb = rgb.reshape(-1, 3)
    black = (1 - rgb).min(1, keepdims=True) / 2
    from_lab = np.rint(np.hstack([1 - rgb / (1 - black), black]).clip(0, 1) * 255).astype(np.uint8)
    tags = {b"A2B0": _lut8(4, 3, 9, to_lab), b"A2B1": _lut8(4, 3, 9, to_lab)}
    tags |= {b"B2A0": _lut8(3, 4, 33, from_lab), b"B2A1": _lut8(3, 4, 33, from_lab)}
    return _profile(b"prtr", b"CMYK", b"Lab ", tags)


def _lut8(inputs, outputs, grid, table):
    """Make an 8-bit lookup table with linear curves (ICC.1:2001-04, 6.5.8)."""
    straight = bytes(range(256))
    head = b"mft1\0\0\0\0" + bytes([inputs, outputs, grid, 0])
    unity = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    return head + unity + straight * inputs + table.tobytes() + straight * outputs


def _grey_profile():
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": b"curv\0\0\0\0" + struct.pack(">IHxx", 1, round(1.8 * 256))})


def _profile(kind, model, connection, tags):
    """Make a minimal ICC version 2 profile (ICC.1:2001-04, 6.1 to 6.3)."""
    text = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + b"\0" * 78
    tags = {
        b"desc": text,
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061),
        **tags,
    }
    start, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for tag, data in tags.items():
        table += tag + struct.pack(">II", start + len(body), len(data))
        body += data + b"\0" * (-len(data) % 4)
    head = struct.pack(">I4sI4s4s4s", start + len(body), b"none", 0x02100000, kind, model, connection)
    head += struct.pack(">6H4s4sI4s4s8sI", 2026, 1, 1, 0, 0, 0, b"acsp", b"", 0, b"", b"", b"", 0)
    head += struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body
