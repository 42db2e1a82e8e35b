"""Bilateral guided upsampling (Chen, Adams, Wadhwa and Hasinoff, 2016), to compare our transfer with.

The small pair is splatted into a coarse grid over place and brightness; in each cell an affine model from the three
colours to each colour is fitted by regularised least squares over the cell and its neighbours (the paper's fast
variant), and every full-size pixel looks its model up by its own place and brightness.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

LUMA = np.array([0.25, 0.5, 0.25])
RIDGE = 1e-4


def upsampled(full: np.ndarray, before: np.ndarray, after: np.ndarray, *, cell: int, levels: int) -> np.ndarray:
    """``full`` (HxWx3 in [0, 1]) with the look of the small pair (hxwx3 in [0, 1])."""
    height, width = before.shape[:2]
    shape = (-(-height // cell) + 1, -(-width // cell) + 1, levels)
    y, x = np.mgrid[0:height, 0:width]
    place = [y / cell, x / cell, (before @ LUMA) * (levels - 1)]
    nearest = [np.rint(p).astype(int).ravel() for p in place]
    colours = np.concatenate([before.reshape(-1, 3), np.ones((height * width, 1))], axis=1)
    normal, right = np.zeros((*shape, 4, 4)), np.zeros((*shape, 4, 3))
    np.add.at(normal, tuple(nearest), colours[:, :, None] * colours[:, None, :])
    np.add.at(right, tuple(nearest), colours[:, :, None] * after.reshape(-1, 1, 3))
    spread = (1, 1, 1, 0, 0)
    normal, right = gaussian_filter(normal, spread, mode="nearest"), gaussian_filter(right, spread, mode="nearest")
    # Towards the local gain where a cell says nothing, as in our own transfer: the fairer comparison.
    gain = (right[..., 3, :] + 1e-6) / (normal[..., 3, :3] + 1e-6)
    weight = RIDGE * (normal[..., 3:, 3:] + 1e-3)
    prior = np.concatenate([np.einsum("ij,...j->...ij", np.eye(3), gain), np.zeros((*shape, 1, 3))], axis=-2)
    model = np.linalg.solve(normal + weight * np.eye(4), right + weight * prior)
    result = np.empty_like(full)
    columns = (np.arange(full.shape[1]) + 0.5) * width / full.shape[1] - 0.5
    for top in range(0, full.shape[0], 128):
        strip = full[top : top + 128]
        rows = (np.arange(top, top + len(strip)) + 0.5) * height / full.shape[0] - 0.5
        luma = (strip @ LUMA) * (levels - 1)
        at = [np.broadcast_to(rows[:, None] / cell, luma.shape), np.broadcast_to(columns / cell, luma.shape), luma]
        found = [map_coordinates(model[..., i, j], at, order=1, mode="nearest") for i in range(4) for j in range(3)]
        coefficients = np.stack(found, -1).reshape(*luma.shape, 4, 3)
        result[top : top + 128] = np.einsum("yxi,yxij->yxj", strip, coefficients[..., :3, :]) + coefficients[..., 3, :]
    return np.clip(result, 0, 1)
