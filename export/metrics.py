"""Measure the distance between two pictures: L1, PSNR, SSIM. Images are HxWx3 floats in [0, 1]."""

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
    """Return the peak signal-to-noise ratio in dB, peak value 1; infinite for equal images."""
    error = float(np.mean(np.square(np.asarray(image, np.float64) - np.asarray(reference, np.float64))))
    return float("inf") if error == 0 else -10.0 * float(np.log10(error))


def figures(output: Image, target: NDArray[np.uint8]) -> dict[str, float]:
    """Compare an output in [0, 1] with a target of 8 bits, by the four metrics that packages state.

    SSIM has two forms: scikit-image's mean over 7x7 windows on 8 bits, and `global_ssim`. PSNR of equal images is 200.
    """
    from skimage.metrics import structural_similarity

    image, reference = output.astype(np.float64), target / 255.0
    windowed = structural_similarity(target, np.round(image * 255).astype(np.uint8), channel_axis=2, data_range=255)
    return {
        "l1": float(np.abs(image - reference).mean()),
        "psnr": min(psnr(image, reference), 200.0),  # infinity is not JSON
        "ssim_windowed": float(windowed),
        "ssim_global": global_ssim(image, reference),
    }


def global_ssim(image: Image, reference: Image) -> float:
    """Return one structural similarity over all pixels and channels together, without windows."""
    c1, c2, m, n = 0.01**2, 0.03**2, image.mean(), reference.mean()
    covariance = ((image - m) * (reference - n)).mean()
    variances = image.var(ddof=1) + reference.var(ddof=1)
    return float((2 * m * n + c1) * (2 * covariance + c2) / ((m**2 + n**2 + c1) * (variances + c2)))


def distance(image: Image, reference: Image) -> Distance:
    """Measure all three. SSIM is that of Wang et al. 2004 (Gaussian window, deviation 1.5), by scikit-image."""
    from skimage.metrics import structural_similarity  # slow to import, and most callers only use `psnr`

    ssim = structural_similarity(
        image, reference, data_range=1.0, channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    return Distance(l1=float(np.mean(np.abs(image - reference))), psnr=psnr(image, reference), ssim=float(ssim))
