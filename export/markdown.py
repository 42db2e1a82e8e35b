"""Tables in Markdown, for terminals and for pages, and the marked places of a page that generated tables fill."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
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


def filled(page: str, tables: Mapping[str, Callable[[], str]]) -> str:
    """Return the page with each table between its markers; raise `ValueError` if it lacks a pair of markers."""
    for name, make in tables.items():
        begin, end = f"<!-- table: {name} -->", f"<!-- end: {name} -->"
        parts = re.split(f"{re.escape(begin)}.*?{re.escape(end)}", page, flags=re.DOTALL)
        if len(parts) != 2:
            raise ValueError(f"expected {begin} and {end} once, found {len(parts) - 1}")
        page = f"{begin}\n{_narrow(make())}\n{end}".join(parts)
    return page


def _narrow(made: str) -> str:
    """Return the table without the spaces that align it, so that a longer cell changes no other row of a page."""
    return re.sub("-{4,}", "---", re.sub(" {2,}", " ", made))
