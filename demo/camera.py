"""A simulated camera: linear radiance in; one exposure, and the exposure fusion of a bracket, out.

Everything the demo trains on, measures against and shows is made by these functions, so that the
"photograph" and its "HDR-looking" target differ by nothing but what is written here.

Images are HxWx3 float32. *Radiance* is linear, scaled arbitrarily, non-negative. *Rendered* images are
sRGB-encoded (IEC 61966-2-1) in [0, 1].
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

Image = NDArray[np.float32]

#: The bracket an agency's photographer shoots, in stops around the single exposure.
BRACKET_STOPS = (-3.0, -1.0, 1.0, 3.0)
#: Auto-exposure: this share of the pixels may clip ...
CLIPPED_SHARE = 0.05
#: ... unless the log-average would then leave this range (linear; 0.18 is middle grey).
LOG_AVERAGE_RANGE = (0.05, 0.14)
#: What an infinite pixel of a half-float panorama stood for at least.
BRIGHTEST = 65504.0
LUMINANCE = np.array([0.2126, 0.7152, 0.0722], np.float32)


def radiance_from_exr(path: Path) -> Image:
    """An equirectangular panorama as radiance; negative pixels become 0, infinite ones the largest half float."""
    import OpenEXR  # a training-time dependency only

    with OpenEXR.File(str(path)) as file:
        channels = file.channels()
        pixels = channels["RGB"].pixels if "RGB" in channels else np.stack([channels[c].pixels for c in "RGB"], -1)
    pixels = np.asarray(pixels, np.float32)[..., :3]
    return np.maximum(np.nan_to_num(pixels, posinf=BRIGHTEST, neginf=0.0), 0.0)


def view(panorama: Image, *, yaw: float, pitch: float, field_of_view: float, size: tuple[int, int]) -> Image:
    """A perspective view of a panorama: angles in degrees, ``size`` is (height, width), bilinear in the logarithm."""
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
    # Interpolating the logarithm keeps a lamp of 10,000 from ringing over its neighbours.
    logs = cv2.remap(
        np.log(wrapped + 1e-4), (map_x + 4).astype(np.float32), map_y.astype(np.float32), cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )  # fmt: skip
    return np.maximum(np.exp(logs) - 1e-4, 0.0).astype(np.float32)


def auto_exposure(radiance: Image) -> float:
    """The gain of the single exposure.

    Rule: the brightest 5 % of the pixels clip (expose for the window, let the lamps go), but the log-average
    luminance stays between 0.05 and 0.14, so that the room is dark, never black and never fully exposed.
    """
    luminance = np.maximum(radiance @ LUMINANCE, 1e-6)
    highlights = 1.0 / np.quantile(luminance, 1 - CLIPPED_SHARE)
    log_average = float(np.exp(np.log(luminance).mean()))
    low, high = LOG_AVERAGE_RANGE
    return float(np.clip(highlights, low / log_average, high / log_average))


def rendered(linear: Image) -> Image:
    """sRGB encoding of linear values, clipped to [0, 1]."""
    clipped = np.clip(linear, 0.0, 1.0)
    return np.where(clipped <= 0.0031308, 12.92 * clipped, 1.055 * clipped ** (1 / 2.4) - 0.055).astype(np.float32)


def linear_from_rendered(image: Image) -> Image:
    """The inverse of `rendered` inside [0, 1]."""
    return np.where(image <= 0.04045, image / 12.92, ((image + 0.055) / 1.055) ** 2.4).astype(np.float32)


def photograph(radiance: Image, gain: float, rng: np.random.Generator) -> Image:
    """The single exposure: clipped, with shot and read noise, in 8 bits."""
    signal = np.clip(radiance * gain, 0.0, 1.0)
    deviation = np.sqrt(signal * 2e-4 + 1e-6).astype(np.float32)
    noisy = signal + deviation * rng.standard_normal(signal.shape, np.float32)
    return np.round(rendered(noisy) * 255).astype(np.float32) / 255


def fused(radiance: Image, gain: float) -> Image:
    """Exposure fusion of the bracket (Mertens, Kautz, Van Reeth: Exposure Fusion, 2007), weights 1, 1, 1."""
    bracket = [np.round(rendered(radiance * gain * 2.0**stops) * 255).astype(np.uint8) for stops in BRACKET_STOPS]
    result = cv2.createMergeMertens(1.0, 1.0, 1.0).process(bracket)
    return np.clip(result, 0.0, 1.0).astype(np.float32)


def stretched(image: Image, side: int) -> Image:
    """Stretch to a square, whatever the aspect ratio: on 8 bits, bilinear with antialiasing."""
    picture = PillowImage.fromarray(np.round(image * 255).astype(np.uint8))
    return np.asarray(picture.resize((side, side), PillowImage.Resampling.BILINEAR), np.float32) / 255
