"""A straight line through measured points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Line:
    """Least squares: ``constant`` at 0, ``slope`` a unit, and the share of the variance explained (R²)."""

    constant: float
    slope: float
    r2: float


def line(xs: Sequence[float], ys: Sequence[float]) -> Line:
    """The line through two points or more. R² is 1 where the points do not differ in height."""
    slope, constant = np.polyfit(xs, ys, 1)
    left = np.sum((constant + slope * np.asarray(xs, float) - ys) ** 2)
    variance = np.sum((np.asarray(ys, float) - np.mean(ys)) ** 2)
    return Line(float(constant), float(slope), float(1 - left / variance) if variance else 1.0)
