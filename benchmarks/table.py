"""Prints the measured figures of the pages from the recorded results (``python -m benchmarks.table``).

The results in ``benchmarks/results`` are written by ``make benchmark-transfer``, ``make benchmark-imaging``,
``make benchmark-client`` and ``make fuzz``, each with ``RECORD=…``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.client import LARGE, LONG
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


def client_tables() -> str:
    """What `make benchmark-client` found: throughput, then a call by itself, then the rest."""
    found = _document("client")
    lines = [
        f"| photographs a second, {found['in_flight']} in flight | `identity`, {LARGE / 1e6:.0f} MB | least–most "
        "| of perf_analyzer | `enhance` | least–most | of perf_analyzer |",
        "|---" * 7 + "|",
    ]
    for name in found["identity"]:
        cells = []
        for model in ("identity", "enhance"):
            row = found[model][name]
            cells += [f"{row['photographs_a_second']:.1f}", f"{row['least']:.1f}–{row['most']:.1f}"]
            cells.append(f"{row['of_perf_analyzer']:.2f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    sizes = list(found["one_at_a_time"])
    lines += [
        "",
        "| one at a time, µs a call | " + " | ".join(f"overhead, {int(s):,} bytes | CPU" for s in sizes) + " |",
        "|---" * (1 + 2 * len(sizes)) + "|",
    ]
    for name in found["one_at_a_time"][sizes[0]]:
        cells = []
        for size in sizes:
            row = found["one_at_a_time"][size][name]
            cells += [f"{row['overhead_us']:,.0f}", f"{row['cpu_us']:,.0f}" if "cpu_us" in row else "–"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    long, deadline, start = found["long"], found["deadline"], found["start"]
    lines += [
        "",
        "- Held at the peak of a call, beside the photograph itself: "
        + ", ".join(f"{name} {row['photographs_held']:.1f} photographs" for name, row in found["held"].items())
        + ".",
        f"- A `map` over {LONG:,} photographs: {long['after_a_tenth_mib']:.0f} MiB after a tenth of them, "
        f"{long['after_all_mib']:.0f} MiB after all.",
        f"- A deadline of 200 ms on a server that takes longer is overrun by {deadline['median_ms']:.1f} ms at the "
        f"median, {deadline['most_ms']:.1f} ms at most ({deadline['calls']} calls).",
        f"- `import restormer_client` takes {start['import_ms']:.0f} ms; the first call imports gRPC and protobuf, "
        f"{start['first_call_imports_ms']:.0f} ms.",
    ]
    return "\n".join(lines)


def _document(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return document


if __name__ == "__main__":
    for made in (transfer_table, cost_table, cost_sentences, fuzz_table, client_tables):
        print(made(), end="\n\n")
