"""Prints the figures of docs/photographs.md from the recorded results (``python -m benchmarks.table``).

The results in ``benchmarks/results`` are written by ``make benchmark-transfer``, ``make benchmark-imaging`` and
``make fuzz``, each with ``RECORD=…``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.imaging import GPU_RATE, REFERENCE

RESULTS = Path(__file__).parent / "results"


def transfer_table() -> str:
    """Ways to full resolution: with the true look, and with the network's."""
    document = _document("transfer")
    titles = {"true look": "with the true look", "network": "with the network's look"}
    lines = ["| | PSNR (dB) | SSIM | fine detail |", "|---|---|---|---|"]
    for key, title in titles.items():
        lines.append(f"| *{title}* | | | |")
        for way, row in document[key].items():
            lines.append(f"| {way} | {row['psnr']:.2f} | {row['ssim']:.3f} | {row['detail']:.2f} |")
    return "\n".join(lines)


def cost_table() -> str:
    """What a photograph costs around the network, by its size."""
    titles = ("megapixels", "file (MB)", "floor (ms)", "preprocess (ms)", "postprocess (ms)", "ratio", "bytes a pixel")
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for size, row in _document("imaging")["sizes"].items():
        cells = [f"{row[name]:.0f}" for name in ("floor", "preprocess", "postprocess")]
        memory = f"{row['bytes_a_pixel']:.1f}"
        lines.append(f"| {size} | {row['bytes'] / 1e6:.1f} | {' | '.join(cells)} | {row['ratio']:.2f} | {memory} |")
    return "\n".join(lines)


def cost_sentences() -> str:
    """The rest of what `make benchmark-imaging` found."""
    found = _document("imaging")
    main, fit, first = found["sizes"][str(REFERENCE)], found["fit"], found["first_request"]
    stages = ", ".join(f"{name} {main[name]:.0f}" for name in ("decode small", "decode", "fit", "apply", "encode"))
    starts = "; ".join(
        f"{name}: import {row['import']:.0f}, first {row['first']:.0f}, second {row['second']:.0f}"
        for name, row in first.items()
    )
    others = ", ".join(f"{name} {value:.0f}" for name, value in found["other_files"].items())
    lines = [
        f"- At {REFERENCE} megapixels: **{found['ratio']:.2f} times the floor**; the obvious way with Pillow and",
        f"  NumPy takes {found['naive_ratio']:.1f} times. By stage, in ms: {stages}.",
        f"- CPU time grows by {fit['ms_a_megapixel']:.1f} ms a megapixel, and {fit['ms_fixed']:.0f} ms whatever the",
        f"  size (R² {fit['r_squared']:.4f}).",
        f"- {found['photographs_a_second_a_core']:.1f} photographs of {REFERENCE} megapixels a second a core; beside",
        f"  a GPU that runs the network {GPU_RATE} times a second,",
        f"  {found[f'cores_beside_{GPU_RATE}_a_second']:.1f} cores (a calculation).",
        f"- The first photograph of a process, wall ms: {starts}.",
        f"- Other files of {REFERENCE} megapixels, preprocess and postprocess together, in ms: {others}.",
    ]
    return "\n".join(lines)


def cost_line() -> str:
    """The one figure of the README."""
    found = _document("imaging")
    return (
        f"{found['ratio']:.2f} times the CPU time of libjpeg-turbo decoding and encoding it, at {REFERENCE} megapixels"
    )


def fuzz_table() -> str:
    """What came of the damaged photographs."""
    lines = ["| | files | enhanced | refused | wrong | memory grown (MiB) |", "|---|---|---|---|---|---|"]
    for name, row in _document("fuzz").items():
        cells = [f"{row[column]:,}" for column in ("files", "enhanced", "refused")]
        lines.append(f"| {name} | {' | '.join(cells)} | {len(row['wrong'])} | {row['growth_mib']} |")
    return "\n".join(lines)


def _document(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return document


if __name__ == "__main__":
    for made in (transfer_table, cost_table, cost_sentences, fuzz_table):
        print(made(), end="\n\n")
