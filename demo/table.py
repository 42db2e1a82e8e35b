"""Tables of docs/fidelity.md and docs/demo.md, from the records in ``demo/results``.

``python -m demo.ladder`` writes ``ladder.json``, ``python -m demo.train`` writes ``shipped.json`` and ``curve.json``,
and ``python -m demo.run --record`` writes ``served.json``. ``make report`` then fills the tables into the pages.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

from export.markdown import table

RESULTS = Path(__file__).parent / "results"
SUBJECTS = ("input", "curve", "network")
FIGURES = {"psnr": 1, "l1": 4, "ssim": 3}  # digits
Scenes = dict[str, dict[str, dict[str, float]]]


def gains(scenes: Scenes, subject: str) -> dict[str, float]:
    """Return how many decibels the network is above ``subject``, by scene."""
    return {scene: result["network"]["psnr"] - result[subject]["psnr"] for scene, result in scenes.items()}


def held_out_table() -> str:
    """Compare input, curve and network on the scenes that the network never saw, by kind of views."""
    rows = []
    for kind, scenes in _document("shipped").items():
        above = [gains(scenes, subject) for subject in ("input", "curve")]
        for scene, result in scenes.items():
            psnr, l1, ssim = (
                [f"{result[subject][name]:.{digits}f}" for subject in SUBJECTS] for name, digits in FIGURES.items()
            )
            rows.append([kind, scene, *psnr, *(f"{each[scene]:+.1f}" for each in above), *l1, *ssim])
    subjects = ("input", "global curve", "network")
    psnr, l1, ssim = ([f"{figure}: {subjects[0]}", *subjects[1:]] for figure in ("PSNR (dB)", "L1", "SSIM"))
    return table(["views", "scene", *psnr, "above the input", "above the curve", *l1, *ssim], rows)


def ladder_table() -> str:
    """Compare every stage of every engine of the demo package with PyTorch float32 and with the fused targets."""
    rows = []
    for name, engine in _document("ladder").items():
        for position, stage in enumerate(engine["fidelity"]["ladder"]):
            first = name if position == 0 else ""
            if "reason" in stage:
                rows.append([first, stage["rung"], f"n/a: {stage['reason'].split('; ')[0]}", *[""] * 6])
                continue
            errors = [f"{stage['max_error']:.1e}", f"{stage['mean_error']:.1e}", f"{stage['psnr']:.1f}"]
            truth = stage["truth"]
            against = f"{truth['l1']:.4f}, {truth['psnr']:.2f}, {truth['ssim']:.3f}" if truth else ""
            worst = Path(stage["worst"]).stem
            rows.append([first, stage["rung"], stage["executes"], *errors, f"{stage['ssim']:.5f}", worst, against])
    headers = ("engine", "stage", "executes", "max error", "mean error", "PSNR (dB)", "SSIM", "worst photograph",
               "ground truth: L1, PSNR, SSIM")  # fmt: skip
    return table(headers, rows)


def served_table() -> str:
    """Compare the demo photographs at full resolution, before and after, with their fused targets."""
    served = _document("served")
    first = next(iter(served.values()))
    rows = {
        name: [
            figures["psnr_in"],
            figures["psnr_curve"],
            *(each["photographs"][name]["psnr_out"] for each in served.values()),
        ]
        for name, figures in first["photographs"].items()
    }
    rows["mean"] = [mean(column) for column in zip(*rows.values(), strict=True)]
    headers = ["PSNR (dB)", "input", "global curve", *(f"served, {precision}" for precision in served)]
    return table(headers, [[name, *(f"{value:.1f}" for value in row)] for name, row in rows.items()])


def _document(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return document


#: The tables of each page, by the name in their markers.
PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "docs/fidelity.md": {"ladder": ladder_table},
    "docs/demo.md": {"held-out": held_out_table, "served": served_table},
}
