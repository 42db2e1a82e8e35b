"""Prints the README's figures from the measured results (``python -m demo.table``).

The results in ``demo/results`` are written by ``python -m demo.train`` (``shipped.json`` by the run that made the
package, ``fold_<scene>.json`` by the runs that left one interior out) and by ``python -m demo.run --record``
(``served.json``).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).parent / "results"
SUBJECTS = {"input": "input", "curve": "global cubic curve", "network": "network"}
FIGURES = {"l1": ("L1", 4), "psnr": ("PSNR (dB)", 1), "ssim": ("SSIM", 3)}
Scenes = dict[str, dict[str, dict[str, float]]]


def folds() -> Scenes:
    """Figures of every fold by its held-out scene."""
    return {scene: r for path in sorted(RESULTS.glob("fold_*.json")) for scene, r in _document(path.stem).items()}


def gains(scenes: Scenes, subject: str) -> list[float]:
    """Decibels the network is above ``subject``, scene by scene."""
    return [result["network"]["psnr"] - result[subject]["psnr"] for result in scenes.values()]


def held_out_table() -> str:
    """Mean ± deviation over held-out scenes, of the folds and of the shipped network."""
    lines = ["| held-out scenes | | L1 | PSNR (dB) | SSIM |", "|---|---|---|---|---|"]
    groups = {"the five folds": folds(), "the shipped network": _document("shipped")}
    for title, scenes in groups.items():
        for key, label in SUBJECTS.items():
            cells = [_spread([r[key][f] for r in scenes.values()], digits) for f, (_, digits) in FIGURES.items()]
            first = f"{title}: {', '.join(scenes)}" if key == "input" else ""
            lines.append(f"| {first} | {label} | {' | '.join(cells)} |")
    over = {subject: gains(folds(), subject) for subject in ("input", "curve")}
    lines.append("")
    lines.append(
        f"Over the folds the network is {np.mean(over['input']):.1f} dB above the input (least: "
        f"{min(over['input']):.1f}) and {np.mean(over['curve']):.1f} dB above the curve "
        f"(least: {min(over['curve']):.1f})."
    )
    return "\n".join(lines)


def ladder_table() -> str:
    """Every rung of every engine of the demo package, against PyTorch float32 and against the fused targets."""
    lines = [
        "| engine | rung | executes | max error | mean error | PSNR (dB) | SSIM | worst | the truth: L1, PSNR, SSIM |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, engine in _document("ladder").items():
        for position, rung in enumerate(engine["fidelity"]["ladder"]):
            first = name if position == 0 else ""
            if "reason" in rung:
                lines.append(f"| {first} | {rung['rung']} | n/a: {rung['reason'].split('; ')[0]} | | | | | | |")
                continue
            errors = f"{rung['max_error']:.1e} | {rung['mean_error']:.1e} | {rung['psnr']:.1f} | {rung['ssim']:.5f}"
            truth = rung["truth"]
            against = f"{truth['l1']:.4f}, {truth['psnr']:.2f}, {truth['ssim']:.3f}" if truth else ""
            worst = Path(rung["worst"]).stem
            lines.append(f"| {first} | {rung['rung']} | {rung['executes']} | {errors} | {worst} | {against} |")
    return "\n".join(lines)


def served_table() -> str:
    """The demo photographs at full resolution, against their fused targets."""
    served = _document("served")
    lines = ["| PSNR (dB) | input | global curve | " + " | ".join(f"served, {p}" for p in served) + " |"]
    lines.append("|---" * (3 + len(served)) + "|")
    first = next(iter(served.values()))
    for name, figures in first["photographs"].items():
        outs = [served[p]["photographs"][name]["psnr_out"] for p in served]
        lines.append(_row(name, figures["psnr_in"], figures["psnr_curve"], *outs))
    lines.append(_row("mean", first["psnr_in"], first["psnr_curve"], *(f["psnr_out"] for f in served.values())))
    return "\n".join(lines)


def _document(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def _spread(values: list[float], digits: int) -> str:
    return f"{np.mean(values):.{digits}f} ± {np.std(values):.{digits}f}"


def _row(title: str, *values: float) -> str:
    return f"| {title} | {' | '.join(f'{value:.1f}' for value in values)} |"


if __name__ == "__main__":
    print("\n\n".join((ladder_table(), held_out_table(), served_table())))
