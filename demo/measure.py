"""Measure the demo network on scenes it never saw, beside the input and the best global curve."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch

from demo import pairs
from demo.camera import Image
from demo.curve import Pair, curve_applied, fitted_curve
from export.metrics import Distance, distance
from export.network.restormer import Restormer

Summary = dict[str, float]


def curves(training: dict[str, Image]) -> dict[str, list[list[float]]]:
    """Fit the best global curve for each kind of views, on the training scenes."""
    views = {
        kind: [pair for scene in training.values() for pair in pairs.level_pairs(scene, aspect)]
        for kind, aspect in pairs.TEST_KINDS.items()
    }
    return {kind: fitted_curve(each).tolist() for kind, each in views.items()}


def held_out(
    network: Restormer, curves: dict[str, list[list[float]]], scenes: dict[str, Image]
) -> dict[str, dict[str, dict[str, Summary]]]:
    """Compare input, curve and network on the same views: by kind of views, then by scene."""
    return {
        kind: {
            name: _comparison(network, np.array(curves[kind]), pairs.level_pairs(scene, aspect))
            for name, scene in scenes.items()
        }
        for kind, aspect in pairs.TEST_KINDS.items()
    }


def _comparison(network: Restormer, curve: np.ndarray, views: list[Pair]) -> dict[str, Summary]:
    ways: dict[str, Callable[[Image], Image]] = {
        "input": lambda image: image,
        "curve": lambda image: curve_applied(curve, image),
        "network": lambda image: enhanced(network, image),
    }
    return {name: _summary([distance(way(image), target) for image, target in views]) for name, way in ways.items()}


def enhanced(network: Restormer, image: Image) -> Image:
    """Run the network on one HxWx3 image, float32, clamped to [0, 1]."""
    with torch.inference_mode():
        output = network(torch.from_numpy(image).permute(2, 0, 1)[None])
    return output[0].permute(1, 2, 0).clamp(0, 1).numpy()


def _summary(distances: list[Distance]) -> Summary:
    """Mean and deviation over the views of the three figures."""
    rows = {field.name: [getattr(d, field.name) for d in distances] for field in dataclasses.fields(Distance)}
    return {k: v for n, r in rows.items() for k, v in ((n, float(np.mean(r))), (f"{n}_deviation", float(np.std(r))))}
