"""How far one picture is from another: L1, PSNR, SSIM. Images are HxWx3 floats in [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.floating]


@dataclass(frozen=True, kw_only=True)
class Distance:
    """Mean absolute error, peak signal-to-noise ratio (dB, peak 1) and structural similarity."""

    l1: float
    psnr: float
    ssim: float


def psnr(image: Image, reference: Image) -> float:
    """Peak signal-to-noise ratio in decibels, peak value 1; infinite for equal images."""
    error = float(np.mean(np.square(np.asarray(image, np.float64) - np.asarray(reference, np.float64))))
    return float("inf") if error == 0 else -10.0 * float(np.log10(error))


def distance(image: Image, reference: Image) -> Distance:
    """All three figures. SSIM as in Wang et al. 2004 (Gaussian window, deviation 1.5), by scikit-image."""
    from skimage.metrics import structural_similarity  # slow to import, and most callers want no more than `psnr`

    ssim = structural_similarity(
        image, reference, data_range=1.0, channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    return Distance(l1=float(np.mean(np.abs(image - reference))), psnr=psnr(image, reference), ssim=float(ssim))
