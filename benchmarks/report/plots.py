"""The plots of docs/performance.md, from the record of ``make benchmark-core``: one SVG each.

The same figures give the same bytes: no dates, ids from a fixed salt, text as outlines. A plot has two sets of colours
and takes the dark one where the reader's system is dark. The colours are those of Okabe and Ito ("Color Universal
Design", 2008), which colour-blind people can tell apart; text repeats whatever colour shows.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from benchmarks.report.tables import EQUAL_DB, OURS, RecordError, command_of, load_record, measured_rows

INK, MUTED, GRID, PAPER = "#1f2328", "#59636e", "#d8dee4", "#ffffff"
BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"
#: The colours of a dark page.
DARK = {
    INK: "#e6edf3", MUTED: "#9da7b3", GRID: "#2d333b", PAPER: "#0d1117",
    BLUE: "#56b4e9", ORANGE: "#ff9b57", GREEN: "#2fcf9f",
}  # fmt: skip
WIDTH = 8.4  #: inches of 72 points: about the width of a page on GitHub
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans", "font.size": 9, "text.color": INK, "axes.labelcolor": MUTED, "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "axes.axisbelow": True, "axes.facecolor": PAPER, "figure.facecolor": PAPER, "grid.color": GRID,
    "grid.linewidth": 0.7, "xtick.color": MUTED, "ytick.color": MUTED, "lines.linewidth": 1.6, "lines.markersize": 5,
    "svg.hashsalt": "restormer-triton", "svg.fonttype": "path", "figure.constrained_layout.use": True,
}  # fmt: skip


def drawn_plots() -> dict[str, bytes]:
    """Return the plots by path; none if the core was not recorded yet."""
    document = load_record("core")
    try:
        return {f"docs/plots/{name}.svg": svg(draw, document) for name, draw in PLOTS.items() if document}
    except (KeyError, IndexError, TypeError, ValueError, StopIteration) as error:
        raise RecordError(f"core.json lacks {error}, which its plots need: {command_of('core')}") from error


def svg(draw: Callable[[Any], Figure], document: dict[str, Any]) -> bytes:
    """Return a plot as SVG, with a style sheet that swaps its colours on a dark page."""
    with mpl.rc_context(STYLE):
        made = io.BytesIO()
        draw(document).savefig(made, format="svg", metadata={"Date": None, "Creator": None})
    swaps = (
        f'[style*="{what}: {light}"]{{{what}:{dark}!important}}'
        for light, dark in DARK.items()
        for what in ("fill", "stroke")
    )
    head, tag, rest = made.getvalue().decode().partition("<defs>")
    style = f"@media (prefers-color-scheme:dark){{{''.join(swaps)}}}"
    return f"{head}<style>{style}</style>\n {tag}{rest}".encode()


def draw_fidelity(document: dict[str, Any]) -> Figure:
    """Draw fidelity over speed: the runtimes on the trained network, whose decibels are those of photographs."""
    figure, plot = _panel(3.7)
    network = next(each for each in document["networks"].values() if each["weights"] == "trained")
    (_, base), *others = measured_rows(network).items()
    rows = {name: row for name, row in others if row["psnr_db"] < EQUAL_DB}
    for name, row in rows.items():
        ends = [base["median_s"] / row["most_s"], base["median_s"] / row["least_s"]]
        plot.plot(ends, [row["psnr_db"]] * 2, color=_runtime_colour(name), linewidth=1)
        plot.plot(row["speedup"], row["psnr_db"], "o", color=_runtime_colour(name))
    plot.set_xscale("log", base=2)
    plot.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    plot.xaxis.set_minor_formatter(NullFormatter())
    plot.xaxis.set_minor_locator(NullLocator())
    low, high = plot.get_xlim()
    plot.set_xlim(low / 1.1, high * 1.15)
    plot.margins(y=0.12)
    _label_to_the_right(figure, plot, [(name, row["speedup"], row["psnr_db"]) for name, row in rows.items()])
    plot.set(xlabel="times as fast as PyTorch eager float32", ylabel="dB against PyTorch float32")
    return figure


def draw_ladder(document: dict[str, Any]) -> Figure:
    """Draw what each rewrite brought: a bar each, with a mark where the one before it ended."""
    steps = [step for step in document["ladder"] if "median_s" in step]
    figure, plot = _panel(0.9 + 0.36 * len(steps))
    places, first = range(len(steps)), steps[0]["median_s"]
    before = [steps[0]["speedup"], *(step["speedup"] for step in steps[:-1])]
    plot.barh(places, [step["speedup"] for step in steps], color=BLUE, height=0.62)
    for place, (step, previous) in enumerate(zip(steps, before, strict=True)):
        plot.plot([previous] * 2, [place - 0.5, place + 0.31], color=INK, linewidth=0.8, alpha=0.6)
        plot.plot([first / step["most_s"], first / step["least_s"]], [place] * 2, color=INK, linewidth=1)
        text = f"{step['speedup']:.2f}×" + ("" if step["psnr_db"] >= EQUAL_DB else f"   {step['psnr_db']:.0f} dB")
        end = max(first / step["least_s"], previous)
        plot.annotate(text, (end, place), (5, 0), textcoords="offset points", color=INK, va="center", fontsize=8.5)
    plot.set_yticks(places, [textwrap.fill(step["step"], 40) for step in steps], color=INK)
    most = max(step["speedup"] for step in steps)
    plot.set(xlim=(0, most * 1.3), xlabel=f"times as fast as the first ({document['ladder_of']})")
    plot.invert_yaxis()
    plot.grid(axis="y", visible=False)
    plot.tick_params(axis="y", length=0)
    return figure


PLOTS: dict[str, Callable[[Any], Figure]] = {"fidelity": draw_fidelity, "ladder": draw_ladder}


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Return places near those wanted, in their order, and at least ``gap`` apart.

    Places that are too near are pushed apart evenly, with their neighbours (pools, as in isotonic regression).
    """
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    pools: list[tuple[float, int]] = []  # the first place of a pool, and how many stand `gap` apart
    for index in order:
        pools.append((wanted[index], 1))
        while len(pools) > 1 and pools[-2][0] + pools[-2][1] * gap > pools[-1][0]:
            (later, more), (first, count) = pools.pop(), pools.pop()
            first = (first * count + (later - count * gap) * more) / (count + more)
            pools.append((first, count + more))
    placed = [first + step * gap for first, count in pools for step in range(count)]
    return [place for _, place in sorted(zip(order, placed, strict=True))]


def _panel(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height))
    return figure, figure.subplots()


def _label_to_the_right(figure: Figure, plot: Axes, labels: Sequence[tuple[str, float, float]]) -> None:
    """Write names in a column beside the plot, each with a line to its point."""
    low, high = plot.get_ylim()
    gap = (high - low) * 13 / 72 / (figure.get_figheight() * 0.8)  # 13 points of type
    heights = spread([y for *_, y in labels], gap)
    for (name, x, y), height in zip(labels, heights, strict=True):
        plot.annotate(
            name, (x, y), (1.015, height), textcoords=("axes fraction", "data"), color=_runtime_colour(name),
            va="center", weight="bold" if name.startswith(OURS) else "normal", annotation_clip=False, fontsize=8.5,
            arrowprops={"arrowstyle": "-", "color": GRID, "linewidth": 0.8, "shrinkB": 4, "relpos": (0, 0.5)},
        )  # fmt: skip


def _runtime_colour(name: str) -> str:
    families = {OURS: BLUE, "OpenVINO": GREEN, "ONNX Runtime": ORANGE, "TensorRT": GREEN}
    return next((colour for family, colour in families.items() if family in name), MUTED)
