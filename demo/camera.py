"""Simulate a camera: from linear radiance, one exposure and the exposure fusion of a bracket.

All training, test and demo images come from these functions, so that a "photograph" and its "HDR-looking" target
differ only by what is written here.

Images are HxWx3 float32. *Radiance* is linear, non-negative, with an arbitrary scale. All other images are sRGB-encoded
(IEC 61966-2-1) in [0, 1].
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from demo.curve import Image

#: The bracket that a real-estate photographer shoots, in stops around the single exposure.
BRACKET_STOPS = (-3.0, -1.0, 1.0, 3.0)
#: Of auto-exposure: the share of the pixels that clip, and the range of the log-average (linear; 0.18 is middle grey).
CLIPPED_SHARE = 0.05
LOG_AVERAGE_RANGE = (0.05, 0.14)
#: The largest half float; replaces infinite pixels.
BRIGHTEST = 65504.0
LUMINANCE = np.array([0.2126, 0.7152, 0.0722], np.float32)


def radiance_from_exr(path: Path) -> Image:
    """Read an equirectangular panorama as radiance; negative pixels become 0, infinite ones `BRIGHTEST`."""
    import OpenEXR  # a training-time dependency only

    with OpenEXR.File(str(path)) as file:
        channels = file.channels()
        pixels = channels["RGB"].pixels if "RGB" in channels else np.stack([channels[c].pixels for c in "RGB"], -1)
    pixels = np.asarray(pixels, np.float32)[..., :3]
    return np.maximum(np.nan_to_num(pixels, posinf=BRIGHTEST, neginf=0.0), 0.0)


def render_view(panorama: Image, *, yaw: float, pitch: float, field_of_view: float, size: tuple[int, int]) -> Image:
    """Render a perspective view of a panorama. Angles are in degrees, ``size`` is (height, width).

    Pixels are interpolated bilinearly in the logarithm.
    """
    height, width = size
    focal = width / 2 / np.tan(np.radians(field_of_view) / 2)
    x, y = np.meshgrid(np.arange(width) - (width - 1) / 2, np.arange(height) - (height - 1) / 2)
    tilt = np.radians(pitch)
    up, forward = -y * np.cos(tilt) + focal * np.sin(tilt), y * np.sin(tilt) + focal * np.cos(tilt)
    longitude = np.arctan2(x, forward) + np.radians(yaw)
    latitude = np.arctan2(up, np.hypot(x, forward))
    rows, columns = panorama.shape[:2]
    map_x = (longitude / (2 * np.pi) + 0.5) % 1.0 * columns - 0.5
    map_y = (0.5 - latitude / np.pi) * rows - 0.5
    wrapped = np.concatenate([panorama[:, -4:], panorama, panorama[:, :4]], axis=1)
    # In the logarithm, a lamp of 10,000 does not spread over its neighbours.
    logs = cv2.remap(
        np.log(wrapped + 1e-4), (map_x + 4).astype(np.float32), map_y.astype(np.float32), cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )  # fmt: skip
    return np.maximum(np.exp(logs) - 1e-4, 0.0).astype(np.float32)


def auto_exposure_gain(radiance: Image) -> float:
    """Return the gain of the single exposure.

    The brightest 5 % of the pixels clip (lamps; the window does not), but the log-average luminance stays
    between 0.05 and 0.14: the room is dark, but not black.
    """
    luminance = np.maximum(radiance @ LUMINANCE, 1e-6)
    highlights = 1.0 / np.quantile(luminance, 1 - CLIPPED_SHARE)
    log_average = float(np.exp(np.log(luminance).mean()))
    low, high = LOG_AVERAGE_RANGE
    return float(np.clip(highlights, low / log_average, high / log_average))


def srgb_from_linear(linear: Image) -> Image:
    """Clip linear values to [0, 1] and encode them as sRGB."""
    clipped = np.clip(linear, 0.0, 1.0)
    encoded: Image = np.where(clipped <= 0.0031308, 12.92 * clipped, 1.055 * clipped ** (1 / 2.4) - 0.055)
    return encoded.astype(np.float32)


def linear_from_srgb(image: Image) -> Image:
    """Invert `srgb_from_linear` in [0, 1]."""
    return np.where(image <= 0.04045, image / 12.92, ((image + 0.055) / 1.055) ** 2.4).astype(np.float32)


def expose(radiance: Image, gain: float, rng: np.random.Generator) -> Image:
    """Simulate the single exposure: clipped, with shot and read noise, in 8 bits."""
    signal = np.clip(radiance * gain, 0.0, 1.0)
    deviation = np.sqrt(signal * 2e-4 + 1e-6).astype(np.float32)
    noisy = signal + deviation * rng.standard_normal(signal.shape, np.float32)
    return np.round(srgb_from_linear(noisy) * 255).astype(np.float32) / np.float32(255)


def fuse_bracket(radiance: Image, gain: float) -> Image:
    """Fuse the exposures of the bracket (Mertens, Kautz, Van Reeth: Exposure Fusion, 2007), weights 1, 1, 1."""
    bracket = [_bytes_from_unit(srgb_from_linear(radiance * gain * 2.0**stops)) for stops in BRACKET_STOPS]
    result = cv2.createMergeMertens(1.0, 1.0, 1.0).process(bracket)
    return np.clip(result, 0.0, 1.0).astype(np.float32)


def stretch(image: Image, side: int) -> Image:
    """Stretch an image of any aspect ratio to a square: in 8 bits, bilinear with antialiasing."""
    picture = pillow_from_unit(image).resize((side, side), PillowImage.Resampling.BILINEAR)
    return np.asarray(picture, np.float32) / np.float32(255)


def pillow_from_unit(image: Image) -> PillowImage.Image:
    """Convert an image in [0, 1] to a Pillow image of 8 bits."""
    return PillowImage.fromarray(_bytes_from_unit(image))


def _bytes_from_unit(image: Image) -> NDArray[np.uint8]:
    return np.round(image * 255).astype(np.uint8)
