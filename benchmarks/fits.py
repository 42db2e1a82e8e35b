"""A straight line through measured points, and where a line bends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

#: A bend is believed if two lines that meet leave at most this share of what one line leaves of the squares,
LEFT = 0.25
#: and if the second rises by this much more or less than the first.
TURNED = 0.1


@dataclass(frozen=True)
class Line:
    """Least squares: ``constant`` at 0, ``slope`` a unit, and the share of the variance explained (R²)."""

    constant: float
    slope: float
    r2: float


@dataclass(frozen=True)
class Bend:
    """Two lines that meet at ``at``: their slopes before and after."""

    at: float
    before: float
    after: float


def line(xs: Sequence[float], ys: Sequence[float]) -> Line:
    """The line through two points or more. R² is 1 where the points do not differ in height."""
    coefficients, squares = _least(np.stack([np.ones(len(xs)), np.asarray(xs, float)], axis=1), ys)
    variance = float(np.sum((np.asarray(ys, float) - np.mean(ys)) ** 2))
    return Line(*(float(each) for each in coefficients), 1 - squares / variance if variance else 1.0)


def bend(xs: Sequence[float], ys: Sequence[float]) -> Bend | None:
    """Where one line becomes another, at one of the points; None where one is enough, or the points are under five."""
    if len(xs) < 5:
        return None
    places = np.asarray(xs, float)
    _, whole = _least(np.stack([np.ones(len(xs)), places], axis=1), ys)
    tried = []
    for at in places[1:-1]:
        columns = np.stack([np.ones(len(xs)), places, np.maximum(places - at, 0)], axis=1)
        (_, slope, more), left = _least(columns, ys)
        tried.append((left, Bend(float(at), float(slope), float(slope + more))))
    left, found = min(tried, key=lambda each: each[0])
    steepest = max(abs(found.before), abs(found.after))
    if left > LEFT * whole or not steepest or abs(found.after - found.before) < TURNED * steepest:
        return None
    return found


def _least(columns: np.ndarray, ys: Sequence[float]) -> tuple[np.ndarray, float]:
    """The coefficients that leave the least, and the squares that are left."""
    wanted = np.asarray(ys, float)
    coefficients = np.linalg.lstsq(columns, wanted, rcond=None)[0]
    return coefficients, float(np.sum((columns @ coefficients - wanted) ** 2))
