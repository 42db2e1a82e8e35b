"""Fit and apply the baseline of the demo network: the best global colour curve, a cubic for each channel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]
Pair = tuple[Image, Image]


def fit_curve(pairs: Sequence[Pair]) -> NDArray[np.float64]:
    """Fit a cubic for each channel by least squares to every fifth pixel; return [3, 4], highest power first."""
    inputs = np.concatenate([image.reshape(-1, 3)[::5] for image, _ in pairs])
    targets = np.concatenate([image.reshape(-1, 3)[::5] for _, image in pairs])
    return np.stack([np.polyfit(inputs[:, c].astype(np.float64), targets[:, c], 3) for c in range(3)])


def apply_curve(curve: NDArray[np.float64], image: Image) -> Image:
    """Apply the curve of `fit_curve` to an image, and clip to [0, 1]."""
    channels = np.stack([np.polyval(curve[c], image[..., c]) for c in range(3)], axis=-1)
    return channels.clip(0.0, 1.0).astype(np.float32)
