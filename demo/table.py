"""Prints the README's table of the demo network from the measured results (``python -m demo.table``).

The results in ``demo/results`` are written by ``python -m demo.train``: ``shipped.json`` by the run that made the
package, ``fold_<scene>.json`` by the runs that left one interior out.
"""

from __future__ import annotations

import json
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
_SUBJECTS = (("input", "input"), ("curve", "global cubic curve"), ("network", "network"))


def table() -> str:
    """Markdown: the shipped network on its held-out scenes, then each fold, then how far the folds are ahead."""
    shipped = _result("shipped")
    lines = ["| held out | crops | | L1 | PSNR (dB) | SSIM |", "|---|---|---|---|---|---|"]
    lines += _rows(f"{', '.join(shipped['held_out'])} (shipped network)", shipped)
    folds = [_result(path.stem) for path in sorted(RESULTS.glob("fold_*.json"))]
    for fold in folds:
        lines += _rows(f"{fold['held_out'][0]} (fold)", fold)
    gains = {name: [f["network"]["psnr"] - f[name]["psnr"] for f in folds] for name in ("input", "curve")}
    over = {name: sum(values) / len(values) for name, values in gains.items()}
    lines.append("")
    lines.append(
        f"Over the {len(folds)} folds the network is {over['input']:.1f} dB above the input (worst fold "
        f"{min(gains['input']):.1f}) and {over['curve']:.1f} dB above the curve (worst fold {min(gains['curve']):.1f})."
    )
    return "\n".join(lines)


def _result(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def _rows(title: str, result: dict) -> list[str]:
    rows = []
    for key, label in _SUBJECTS:
        figures = [_figure(result[key], name, digits) for name, digits in (("l1", 4), ("psnr", 1), ("ssim", 3))]
        first = (title, str(result["crops"])) if key == "input" else ("", "")
        rows.append(f"| {first[0]} | {first[1]} | {label} | {' | '.join(figures)} |")
    return rows


def _figure(summary: dict[str, float], name: str, digits: int) -> str:
    return f"{summary[name]:.{digits}f} ± {summary[f'{name}_deviation']:.{digits}f}"


if __name__ == "__main__":
    print(table())
