"""Measure the demo network on held-out scenes, and compare it with the input and the best global curve."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from demo import pairs
from demo.curve import Image, Pair, apply_curve, fit_curve
from export.fidelity import Runner, torch_runner
from export.metrics import Distance, distance
from export.network.restormer import Restormer

Summary = dict[str, float]


def fit_curves(training: dict[str, Image]) -> dict[str, list[list[float]]]:
    """Fit the best global curve for each kind of view, on the training scenes."""
    views = {
        kind: [pair for scene in training.values() for pair in pairs.render_level_pairs(scene, aspect)]
        for kind, aspect in pairs.TEST_KINDS.items()
    }
    return {kind: fit_curve(each).tolist() for kind, each in views.items()}


def compare_held_out(
    network: Restormer, curves: dict[str, list[list[float]]], scenes: dict[str, Image]
) -> dict[str, dict[str, dict[str, Summary]]]:
    """Compare input, curve and network on the same views; return the figures by kind of view, then by scene."""
    run = torch_runner(network)
    return {
        kind: {
            name: _compare(run, np.array(curves[kind]), pairs.render_level_pairs(scene, aspect))
            for name, scene in scenes.items()
        }
        for kind, aspect in pairs.TEST_KINDS.items()
    }


def _compare(run: Runner, curve: np.ndarray, views: list[Pair]) -> dict[str, Summary]:
    methods: dict[str, Callable[[Image], Image]] = {
        "input": lambda image: image,
        "curve": lambda image: apply_curve(curve, image),
        "network": lambda image: run(image.transpose(2, 0, 1)[None])[0].transpose(1, 2, 0).clip(0, 1),
    }
    return {
        name: _summarize([distance(method(image), target) for image, target in views])
        for name, method in methods.items()
    }


def _summarize(distances: list[Distance]) -> Summary:
    """Return mean and standard deviation of each figure over the views."""
    rows = {field.name: [getattr(d, field.name) for d in distances] for field in dataclasses.fields(Distance)}
    return {k: v for n, r in rows.items() for k, v in ((n, float(np.mean(r))), (f"{n}_deviation", float(np.std(r))))}
