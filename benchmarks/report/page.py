"""Write docs/performance.md and its plots from the recorded runs (``make report``).

The words are in ``benchmarks/performance.md.j2``; every figure in them, every table and every plot comes from the JSON
in ``benchmarks/results``, and a test holds the page to it. Nothing is measured here. A section whose record is missing
says which command makes it.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

import jinja2

from benchmarks.report import performance, plots
from benchmarks.report.performance import Document
from demo.table import PAGES
from export.files import write_bytes
from export.markdown import filled

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parents[1] / "results"
TEMPLATE = "performance.md.j2"
#: By name of the record: what makes it. Those of a GPU host lie beside those of this one.
RECORDS = {
    "core": "make benchmark-core",
    "profile": "make profile",
    "profile-standard": "make profile STANDARD=1 PRECISION=int8",
    "pipeline": "make benchmark",
    "tune": "make tune SLO_P99_MS=…",
    "roofline": "make roofline GPU=h100 PRICE=2.5",
    "core-gpu": "make benchmark-core",
    "profile-gpu": "make profile TRTEXEC=…",
    "pipeline-gpu": "make benchmark",
    "tune-gpu": "make tune SLO_P99_MS=…",
}
#: How a missing figure shows.
LACKING = (jinja2.UndefinedError, KeyError, IndexError, TypeError, ValueError, StopIteration)


class ReportError(Exception):
    """A record that the page cannot be made of; the message is one line that says what to do."""


def records(folder: Path) -> dict[str, Document | None]:
    """What was recorded, by name; None where it was not yet. Raises `ReportError` for what is not JSON."""
    found: dict[str, Document | None] = {}
    for name in RECORDS:
        path = folder / f"{name}.json"
        try:
            found[name] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        except ValueError as error:
            raise ReportError(f"{path} is no JSON ({error}): {again(name)}") from None
    return found


def again(name: str) -> str:
    """The command that makes a record."""
    return f"{RECORDS[name]} RECORD=benchmarks/results/{name}.json"


def page(found: dict[str, Document | None]) -> str:
    """docs/performance.md. Raises `ReportError` where a record lacks what the page tells."""
    for name in (name for name, document in found.items() if document):
        try:  # one record at a time first: so it is known which one is short of a figure
            _rendered({**dict.fromkeys(found), name: found[name]})
        except LACKING as error:
            raise ReportError(f"{name}.json lacks what {TEMPLATE} tells of it ({error}): {again(name)}") from error
    return re.sub(r"\n{3,}", "\n\n", _rendered(found)).strip() + "\n"


def _rendered(found: dict[str, Document | None]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, autoescape=False,
    )  # fmt: skip
    environment.globals.update({each.__name__: each for each in performance.SLOTS}, again=again)
    environment.filters["sig"] = performance.significant
    return environment.get_template(TEMPLATE).render({name.replace("-", "_"): each for name, each in found.items()})


def drawn(found: dict[str, Document | None]) -> dict[str, bytes]:
    """The plots by the name of their file, of what was recorded."""
    made = {}
    for name, (record, draw) in plots.PLOTS.items():
        document = found[record]
        if document:
            try:
                made[f"{name}.svg"] = plots.svg(draw, document)
            except LACKING as error:
                raise ReportError(f"{record}.json lacks {error} for the plot {name}: {again(record)}") from error
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the recorded runs")
    parser.add_argument("--root", type=Path, default=ROOT, help="folder that holds docs/")
    arguments = parser.parse_args()
    if not arguments.results.is_dir():
        raise SystemExit(f"error: no folder {arguments.results}: give the recorded runs as --results")
    try:
        found = records(arguments.results)
        files = {f"docs/plots/{name}": made for name, made in drawn(found).items()}
        files["docs/performance.md"] = page(found).encode()
        for name, tables in PAGES.items():
            files[name] = filled((ROOT / name).read_text(encoding="utf-8"), tables).encode()
    except (ReportError, OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    for name, made in files.items():
        write_bytes(arguments.root / name, made)
    absent = [name for name, document in found.items() if document is None]
    for name in absent:
        print(f"  not recorded: {name} ({again(name)})", file=sys.stderr)
    print(json.dumps({"wrote": sorted(files), "not_recorded": absent}))
