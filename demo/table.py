"""Write the tables of the measured results into docs/fidelity.md and docs/demo.md (``python -m demo.table``).

The results in ``demo/results`` are written by ``python -m demo.ladder`` (``ladder.json``), ``python -m demo.train``
(``shipped.json``, ``curve.json``) and ``python -m demo.run --record`` (``served.json``). Each table stands between two
comments of its page; the text around them is written by hand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
SUBJECTS = ("input", "curve", "network")
FIGURES = {"psnr": 1, "l1": 4, "ssim": 3}  # digits
Scenes = dict[str, dict[str, dict[str, float]]]


def gains(scenes: Scenes, subject: str) -> dict[str, float]:
    """Return how many decibels the network is above ``subject``, by scene."""
    return {scene: result["network"]["psnr"] - result[subject]["psnr"] for scene, result in scenes.items()}


def held_out_table() -> str:
    """Compare input, curve and network on the scenes that the network never saw, by kind of views."""
    lines = [
        "| views | scene | PSNR (dB): input | global curve | network | above the input | above the curve "
        "| L1: input | global curve | network | SSIM: input | global curve | network |",
        "|---" * 13 + "|",
    ]
    for kind, scenes in _document("shipped").items():
        above = [gains(scenes, subject) for subject in ("input", "curve")]
        for scene, result in scenes.items():
            psnr, l1, ssim = (
                [f"{result[subject][name]:.{digits}f}" for subject in SUBJECTS] for name, digits in FIGURES.items()
            )
            cells = [kind, scene, *psnr, *(f"{each[scene]:+.1f}" for each in above), *l1, *ssim]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def ladder_table() -> str:
    """Compare every stage of every engine of the demo package with PyTorch float32 and with the fused targets."""
    lines = [
        "| engine | stage | executes | max error | mean error | PSNR (dB) | SSIM | worst photograph "
        "| ground truth: L1, PSNR, SSIM |",
        "|---" * 9 + "|",
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
    """Compare the demo photographs at full resolution, before and after, with their fused targets."""
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


def _row(title: str, *values: float) -> str:
    return f"| {title} | {' | '.join(f'{value:.1f}' for value in values)} |"


#: The tables of each page, by the name in their markers.
PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "docs/fidelity.md": {"ladder": ladder_table},
    "docs/demo.md": {"held-out": held_out_table, "served": served_table},
}


def filled(text: str, tables: Mapping[str, Callable[[], str]]) -> str:
    """Put each table between its markers; raise `ValueError` if a page does not have both, once."""
    for name, table in tables.items():
        begin, end = f"<!-- table: {name} -->", f"<!-- end: {name} -->"
        parts = re.split(f"{begin}.*?{end}", text, flags=re.DOTALL)
        if len(parts) != 2:
            raise ValueError(f"expected {begin} and {end} once, found {len(parts) - 1}")
        text = f"{begin}\n\n{table()}\n\n{end}".join(parts)
    return text


def main() -> None:
    for name, tables in PAGES.items():
        page = ROOT / name
        try:
            text = filled(page.read_text(encoding="utf-8"), tables)
        except (OSError, ValueError) as error:
            raise SystemExit(f"error: {name}: {error}") from None
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
