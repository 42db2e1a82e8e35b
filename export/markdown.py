"""Format tables in Markdown, for terminals and for pages."""

from collections.abc import Iterable, Sequence
from typing import Any

from tabulate import tabulate


def table(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table; columns of figures are aligned to the right.

    A cell is text, or a value: floats get three significant digits, integers get thousands separators, None is a dash.
    """
    cells = [[cell(value) for value in row] for row in rows]
    if not cells:
        return ""
    sides = ["right" if all(map(_is_figure, column)) else "left" for column in zip(*cells, strict=True)]
    return str(tabulate(cells, headers, tablefmt="pipe", disable_numparse=True, colalign=sides))


def cell(value: Any) -> str:
    """Return a cell's text."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return significant(value) if isinstance(value, float) else str(value)


def significant(value: float, digits: int = 3) -> str:
    """Return a figure with this many significant digits: 0.00123, 10.0, 1,230."""
    if value == 0:
        return "0"
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])
    return f"{round(value, digits - 1 - exponent):,.{max(digits - 1 - exponent, 0)}f}"


def _is_figure(text: str) -> bool:
    return text.lstrip("+-")[:1].isdigit() or text in ("", "–")
