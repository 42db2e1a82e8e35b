"""The plots of docs/performance.md, from the records in ``benchmarks/results``: one SVG each.

The same figures give the same bytes: no dates, ids from a fixed salt, text as outlines. A plot brings its own paper and
two sets of colours, and takes the dark one where the reader's system is dark. The colours are those of Okabe and Ito
("Color Universal Design", 2008), which colour-blind people tell apart; nothing is said by colour alone. ``make report``
draws them (``benchmarks/report/__main__.py``).
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from benchmarks.network.core import OURS, ran, trained

INK, MUTED, GRID, PAPER = "#1f2328", "#59636e", "#d8dee4", "#ffffff"
BLUE, ORANGE, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#a3507d"
#: What stands for a colour on a dark page.
DARK = {
    INK: "#e6edf3", MUTED: "#9da7b3", GRID: "#2d333b", PAPER: "#0d1117",
    BLUE: "#56b4e9", ORANGE: "#ff9b57", GREEN: "#2fcf9f", PURPLE: "#e08fbb",
}  # fmt: skip
WIDTH = 8.4  #: inches of 72 points: about the width of a page on GitHub
STYLE = {
    "font.family": "DejaVu Sans", "font.size": 9, "text.color": INK, "axes.labelcolor": MUTED, "axes.edgecolor": MUTED,
    "axes.titlesize": 9.5, "axes.titlecolor": INK, "axes.titlelocation": "left", "axes.linewidth": 0.8,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "axes.facecolor": PAPER, "figure.facecolor": PAPER, "grid.color": GRID, "grid.linewidth": 0.7,
    "xtick.color": MUTED, "ytick.color": MUTED, "lines.linewidth": 1.6, "lines.markersize": 5,
    "svg.hashsalt": "restormer-triton", "svg.fonttype": "path", "figure.constrained_layout.use": True,
}  # fmt: skip
MODELS = {"restormer": (GREEN, "s"), "enhance": (BLUE, "o"), "enhance_tiled": (ORANGE, "^")}
KINDS = {"1x1 convolution": (BLUE, "o"), "depthwise convolution": (ORANGE, "^"), "attention product": (GREEN, "s"),
         "3x3 convolution": (PURPLE, "D"), "LayerNorm": (MUTED, "v")}  # fmt: skip
SAME = 200.0  #: decibels, the most that a record says: the same in every bit
FEW = {"p90": 10, "p99": 100}  #: requests below which a percentile is somebody's bad luck, and not told
LEAST, MOST = 0.3, 3000.0  #: operations a byte: where the roofline begins and ends


def svg(draw: Callable[[Any], Figure], document: dict[str, Any]) -> bytes:
    """A plot as the page shows it."""
    with mpl.rc_context(STYLE):
        made = io.BytesIO()
        draw(document).savefig(made, format="svg", metadata={"Date": None, "Creator": None})
    head, tag, rest = made.getvalue().decode().partition("<defs>")
    return f"{head}<style>{_dark()}</style>\n {tag}{rest}".encode()


def _dark() -> str:
    """Style sheet that swaps every colour for the one of a dark page."""
    swaps = (
        f'[style*="{what}: {light}"]{{{what}:{dark}!important}}'
        for light, dark in DARK.items()
        for what in ("fill", "stroke")
    )
    return f"@media (prefers-color-scheme:dark){{{''.join(swaps)}}}"


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Places as near as may be to those wanted, in their order, and at least ``gap`` apart.

    What is too near is pushed apart evenly, neighbours with it (pools, as in isotonic regression).
    """
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    pools: list[tuple[float, int]] = []  # each: where its first one is, and how many stand `gap` apart
    for index in order:
        pools.append((wanted[index], 1))
        while len(pools) > 1 and pools[-2][0] + pools[-2][1] * gap > pools[-1][0]:
            (later, more), (first, count) = pools.pop(), pools.pop()
            first = (first * count + (later - count * gap) * more) / (count + more)
            pools.append((first, count + more))
    placed = [first + step * gap for first, count in pools for step in range(count)]
    return [place for _, place in sorted(zip(order, placed, strict=True))]


def told(row: dict[str, Any], name: str) -> float | None:
    """A percentile of a row's latency in ms, by its name; none where the requests are too few for it."""
    value: float = row[f"{name}_ms"]
    return value if (row.get("requests") or 0) >= FEW.get(name, 0) else None


def pipeline(document: dict[str, Any]) -> Figure:
    """Throughput over latency: a line a model, a point a number in flight; hollow: sent at a rate, whoever waits."""
    figure, plot = _panel(3.9)
    labels: list[tuple[str, str, float, float]] = []  # words, colour, and the point they belong to
    for model, rows in document["closed"].items():
        colour, marker = MODELS[model]
        _operating_points(plot, rows, colour, marker, filled=True)
        plot.plot([row["p50_ms"] / 1e3 for row in rows], [row["rate"] for row in rows], color=colour)
        for row in rows:
            # Above the spread of the rounds; of `enhance` below, because `restormer` is above it.
            end, offset, along = ("least", -4, "top") if model == "enhance" else ("most", 4, "bottom")
            _say(
                plot, row["p50_ms"] / 1e3, row[end], str(row["concurrency"]), MUTED, (0, offset), along=along, size=7.5
            )
        sent = [row for row in document["open"].get(model, []) if row["rate"] is not None]
        _operating_points(plot, sent, colour, marker, filled=False)
        labels.append((model, colour, (told(rows[-1], "p99") or rows[-1]["p50_ms"]) / 1e3, rows[-1]["rate"]))
    plot.set(xscale="log", ylim=(0, plot.get_ylim()[1] * 1.08), ylabel="photographs a second",
             xlabel="seconds a photograph: the median, and a line to the 99th percentile of 100 and more")  # fmt: skip
    plot.set_xlim(plot.get_xlim()[0] / 1.1, plot.get_xlim()[1] * 1.1)
    _plain(plot.xaxis, "{:g}", at=_readable(plot.get_xlim()))
    # The points are medians of all rounds, and what the parts allowed went up and down with the machine meanwhile.
    bounds = [each["allowed"] for each in document["rounds"]]
    plot.axhspan(min(bounds), max(bounds), color=BLUE, alpha=0.12, linewidth=0)
    labels.append(("what enhance's parts allow, by round", BLUE, plot.get_xlim()[1], max(bounds)))
    _labels_to_the_right(plot, labels, bold=("enhance",))
    return figure


def _operating_points(plot: Axes, rows: Sequence[dict[str, Any]], colour: str, marker: str, *, filled: bool) -> None:
    """Median latency and rate, a line to the latency's 99th percentile, and the least and most rate of the rounds."""
    for row in rows:
        median, rate = row["p50_ms"] / 1e3, row["rate"]
        if slowest := told(row, "p99"):
            plot.plot([median, slowest / 1e3], [rate, rate], color=colour, linewidth=0.9, alpha=0.55)
        plot.plot([median, median], [row["least"], row["most"]], color=colour, linewidth=0.9)
        face = colour if filled else PAPER
        plot.plot(median, rate, marker, color=colour, markerfacecolor=face, markeredgewidth=1.2)


def core(document: dict[str, Any]) -> Figure:
    """Fidelity against speed: the runtimes on the demo network, whose decibels mean something."""
    figure, plot = _panel(3.7)
    (_, base), *others = ran(document["networks"][trained(document)]).items()
    rows = {name: row for name, row in others if row["psnr_db"] < SAME}
    for name, row in rows.items():
        colour = _runtime_colour(name)
        plot.plot(
            [base["median_s"] / row["most_s"], base["median_s"] / row["least_s"]],
            [row["psnr_db"]] * 2,
            color=colour,
            linewidth=1,
        )
        plot.plot(row["speedup"], row["psnr_db"], "o", color=colour)
    plot.set_xscale("log", base=2)
    _plain(plot.xaxis, "{:g}×")
    plot.set_xlim(plot.get_xlim()[0] / 1.1, plot.get_xlim()[1] * 1.15)
    plot.margins(y=0.12)
    labels = [(name, _runtime_colour(name), row["speedup"], row["psnr_db"]) for name, row in rows.items()]
    _labels_to_the_right(plot, labels, bold=[name for name in rows if name.startswith(OURS)])
    plot.set(xlabel="times as fast as PyTorch eager float32", ylabel="dB against PyTorch float32")
    return figure


def ladder(document: dict[str, Any]) -> Figure:
    """What each step brought: bars, each from where the one before it ended."""
    steps = [step for step in document["ladder"] if "median_s" in step]
    figure, plot = _panel(0.9 + 0.36 * len(steps))
    places, first = range(len(steps)), steps[0]["median_s"]
    before = [steps[0]["speedup"], *(step["speedup"] for step in steps[:-1])]
    plot.barh(places, [step["speedup"] for step in steps], color=BLUE, height=0.62)
    most = max(step["speedup"] for step in steps)
    for place, (step, previous) in enumerate(zip(steps, before, strict=True)):
        plot.plot([previous] * 2, [place - 0.5, place + 0.31], color=INK, linewidth=0.8, alpha=0.6)
        words = f"{step['speedup']:.2f}×" + ("" if step["psnr_db"] >= SAME else f"   {step['psnr_db']:.0f} dB")
        plot.plot([first / step["most_s"], first / step["least_s"]], [place] * 2, color=INK, linewidth=1)
        _say(plot, max(first / step["least_s"], previous), place, words, INK, (5, 0), "left", "center", size=8.5)
    plot.set_yticks(places, [textwrap.fill(step["step"], 40) for step in steps], color=INK)
    plot.set(xlim=(0, most * 1.3), xlabel=f"times as fast as the first ({document['ladder_of']})")
    plot.invert_yaxis()
    plot.grid(axis="y", visible=False)
    plot.tick_params(axis="y", length=0)
    return figure


def roofline(document: dict[str, Any]) -> Figure:
    """The layers of the float16 network under a GPU's roofs, and what they take there. A calculation."""
    figure = Figure(figsize=(WIDTH, 5.6))
    roof, lanes = figure.subplots(2, 1, sharex=True, height_ratios=(1.25, 1))
    _roofs(roof, document["roofs"])
    found, row = document["shapes"]["fp16"], document["precisions"]["fp16"]
    kinds = {kind: each for kind, each in row["kinds"].items() if each["ms"] >= row["fused_ms"] / 200}
    for shape in found:
        if shape["kind"] not in kinds:
            continue
        colour, marker = KINDS.get(shape["kind"], (MUTED, "o"))
        area = 10 + 1500 * shape["layers"] * shape["ms"] / row["fused_ms"]
        look = {"s": area, "c": colour, "marker": marker, "alpha": 0.6, "linewidths": 0.6, "edgecolors": PAPER}
        x = max(2e3 * shape["gmacs"] / shape["megabytes"], LEAST)
        lanes.scatter(x, list(kinds).index(shape["kind"]), clip_on=False, **look)
        if shape["gmacs"]:
            roof.scatter(x, 2 * shape["gmacs"] / shape["ms"], **look)
    words = (
        f"{kind}\n{each['ms']:.2f} ms, {each['bound_by_memory']} of {each['layers']}" for kind, each in kinds.items()
    )
    lanes.set_yticks(range(len(kinds)), list(words), color=INK, fontsize=8.5)
    lanes.set(ylim=(len(kinds) - 0.4, -0.6), xlabel="operations a byte that passes memory (LayerNorm: next to none)")
    lanes.tick_params(axis="y", length=0)
    _plain(roof.xaxis, "{:,g}")
    roof.set_title(f"{document['gpu']}, float16: a calculation from its datasheet, not a measurement")
    return figure


def _roofs(plot: Axes, roofs: dict[str, Any]) -> None:
    """What memory and arithmetic allow, by operations a byte."""
    intensity = np.logspace(np.log10(LEAST), np.log10(MOST), 201)
    tops = (("tensor cores, float16", roofs["tensor"]["FLOAT16"]), ("CUDA cores, float16", roofs["vector"]["FLOAT16"]),
            ("CUDA cores, float32", roofs["vector"]["FLOAT"]))  # fmt: skip
    for words, top in tops:
        plot.plot(intensity, np.minimum(intensity * roofs["bandwidth"], top) / 1e12, color=INK, linewidth=1)
        _say(plot, intensity[-1], top / 1e12, f"{words}: {top / 1e12:,.0f}", INK, (0, 3), "right", size=8)
    at = 3.0
    _say(plot, at, at * roofs["bandwidth"] / 1e12, f"memory: {roofs['bandwidth'] / 1e12:g} TB/s", INK, (-6, 0), "right",
         size=8)  # fmt: skip
    plot.set(
        xscale="log", yscale="log", xlim=(LEAST, intensity[-1]), ylim=(1, 2.5e3), ylabel="tera-operations a second"
    )
    _plain(plot.yaxis, "{:,g}")


def _panel(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height))
    return figure, figure.subplots()


def _say(
    plot: Axes, x: float, y: float, words: str, colour: str, offset: tuple[float, float], across: str = "center",
    along: str = "bottom", *, size: float = 9, weight: str = "normal", rotation: float = 0,
) -> None:  # fmt: skip
    """Words beside a point, ``offset`` in points of type."""
    plot.annotate(words, (x, y), offset, textcoords="offset points", color=colour, ha=across, va=along, fontsize=size,
                  weight=weight, rotation=rotation, rotation_mode="anchor", annotation_clip=False)  # fmt: skip


def _labels_to_the_right(plot: Axes, labels: Sequence[tuple[str, str, float, float]], bold: Sequence[str]) -> None:
    """Words in a column beside the plot, each with a line to its point; a label: words, colour, x, y."""
    low, high = plot.get_ylim()
    gap = (high - low) * 13 / 72 / (plot.figure.get_figheight() * 0.8)  # 13 points of type
    heights = spread([y for *_, y in labels], gap)
    for (words, colour, x, y), height in zip(labels, heights, strict=True):
        plot.annotate(
            words, (x, y), (1.015, height), textcoords=("axes fraction", "data"), color=colour, va="center",
            weight="bold" if words in bold else "normal", annotation_clip=False, fontsize=8.5,
            arrowprops={"arrowstyle": "-", "color": GRID, "linewidth": 0.8, "shrinkB": 4, "relpos": (0, 0.5)},
        )  # fmt: skip


def _runtime_colour(name: str) -> str:
    families = {OURS: BLUE, "OpenVINO": GREEN, "ONNX Runtime": ORANGE, "TensorRT": GREEN}
    return next((colour for family, colour in families.items() if family in name), MUTED)


def _readable(ends: Iterable[float]) -> list[float]:
    """1, 2 and 5 of every decade between two ends."""
    low, high = ends
    steps = (digit * 10.0**power for power in range(-4, 6) for digit in (1, 2, 5))
    return [round(step, 6) for step in steps if low <= step <= high]


def _plain(axis: Any, form: str, at: Sequence[float] | None = None) -> None:
    """Figures in full on a logarithmic axis."""
    if at is not None:
        axis.set_ticks(at)
    axis.set_major_formatter(FuncFormatter(lambda value, _: form.format(value)))
    axis.set_minor_formatter(NullFormatter())
    axis.set_minor_locator(NullLocator())


#: By name of the file: which record it is drawn from, and how.
PLOTS: dict[str, tuple[str, Callable[[Any], Figure]]] = {
    "throughput": ("pipeline", pipeline),
    "fidelity": ("core", core),
    "ladder": ("core", ladder),
    "roofline": ("roofline", roofline),
}
