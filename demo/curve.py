"""What the demo network has to beat: the best global colour curve, a cubic for each channel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]
Pair = tuple[Image, Image]


def fitted_curve(pairs: Sequence[Pair]) -> NDArray[np.float64]:
    """The best global colour curve: a cubic a channel, least squares over all pixels; [3, 4], highest power first."""
    inputs = np.concatenate([image.reshape(-1, 3)[::5] for image, _ in pairs])
    targets = np.concatenate([image.reshape(-1, 3)[::5] for _, image in pairs])
    return np.stack([np.polyfit(inputs[:, c].astype(np.float64), targets[:, c], 3) for c in range(3)])


def curve_applied(curve: NDArray[np.float64], image: Image) -> Image:
    """The curve of `fitted_curve` on an image, clipped to [0, 1]."""
    channels = [np.polyval(curve[c], image[..., c]) for c in range(3)]
    return np.clip(np.stack(channels, axis=-1), 0.0, 1.0).astype(np.float32)
