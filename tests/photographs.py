"""Photographs made for the tests."""

import io

import numpy as np
from PIL import Image


def pixels(height=240, width=320, seed=0):
    """A smooth scene with fine grain, HxWx3 uint8: something a codec and a filter can get wrong."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    smooth = np.stack([0.3 + 0.5 * x, 0.2 + 0.4 * y, 0.5 - 0.3 * x * y], axis=-1)
    return np.clip((smooth + rng.normal(0, 0.03, smooth.shape)) * 255, 0, 255).astype(np.uint8)


def encoded(array, kind="JPEG", **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **({"quality": 95} | options if kind in ("JPEG", "WEBP") else options))
    return buffer.getvalue()


def exif_with(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "Camera maker"
    return exif.tobytes()


def opened(data):
    return Image.open(io.BytesIO(data))
