"""Write the generated tables of the pages, and the plots of docs/performance.md, from the records (``make report``).

Each table stands between two comments of its page; the text around them is written by hand. Nothing is measured here.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.report import plots, tables
from demo import table as demo
from export.files import write_bytes

ROOT = Path(__file__).parents[2]
PAGES = {**demo.PAGES, **tables.PAGES}


def written_files() -> dict[str, bytes]:
    """Return the pages and the plots by path. Raises `ValueError` for a page without the markers of a table."""
    files = plots.drawn_plots()
    for name, made in PAGES.items():
        try:
            files[name] = filled((ROOT / name).read_text(encoding="utf-8"), made).encode()
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return files


def filled(page: str, made: Mapping[str, Callable[[], str]]) -> str:
    """Return the page with each table between its markers; raise `ValueError` if it lacks a pair of markers."""
    for name, make in made.items():
        begin, end = f"<!-- table: {name} -->", f"<!-- end: {name} -->"
        parts = re.split(f"{re.escape(begin)}.*?{re.escape(end)}", page, flags=re.DOTALL)
        if len(parts) != 2:
            raise ValueError(f"expected {begin} and {end} once, found {len(parts) - 1}")
        page = f"{begin}\n{_narrow(make())}\n{end}".join(parts)
    return page


def _narrow(made: str) -> str:
    """Return the table without the spaces that align it, so that a longer cell changes no other row of a page."""
    return re.sub("-{4,}", "---", re.sub(" {2,}", " ", made))


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    try:
        files = written_files()
    except (tables.RecordError, OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    for name, content in files.items():
        write_bytes(ROOT / name, content)
    print(json.dumps({"wrote": sorted(files)}))


if __name__ == "__main__":
    main()
