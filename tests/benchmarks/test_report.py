"""The pages and the plots are those of the records; a table shows what its record says."""

import copy
import itertools
import json
import re

import pytest

from benchmarks.report import page, plots, tables
from export.markdown import table
from tests.conftest import ROOT


@pytest.mark.parametrize("name", page.PAGES)
def test_the_tables_of_a_page_are_those_of_the_records(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert text == page.filled(text, page.PAGES[name]), "make report"
    assert set(re.findall(r"<!-- table: ([\w-]+) -->", text)) == page.PAGES[name].keys()


@pytest.fixture(scope="module")
def drawn():
    return plots.drawn_plots()


def test_the_plots_are_those_of_the_records_and_the_page_shows_them(drawn):
    there = {f"docs/plots/{path.name}": path.read_bytes() for path in (ROOT / "docs/plots").iterdir()}
    assert there.keys() == drawn.keys(), "make report"
    assert [name for name, made in drawn.items() if made != there[name]] == [], "make report"
    text = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    assert all(f"({name.removeprefix('docs/')})" in text for name in drawn)


def test_every_colour_of_a_plot_has_one_for_dark_pages(drawn):
    for name, made in drawn.items():
        head, body = made.decode().split("</style>", 1)
        assert "prefers-color-scheme:dark" in head
        assert set(re.findall(r"(?:fill|stroke): (#\w+)", body)) <= set(plots.DARK), name


def test_labels_are_moved_apart_and_no_further():
    assert plots.spread([1.0, 5.0, 9.0], 2.0) == [1.0, 5.0, 9.0]
    assert plots.spread([5.0, 1.0, 5.0], 2.0) == [4.0, 1.0, 6.0]
    assert plots.spread([0.0, 0.1, 0.2, 3.0], 1.0) == pytest.approx([-0.9, 0.1, 1.1, 3.0])


def test_every_make_command_of_a_record_is_a_verb():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in (each for each in tables.RECORDS.values() if each.startswith("make ")):
        assert f"\n{command.split()[1]}: " in makefile


@pytest.mark.parametrize("damage", ["not JSON", "a figure short"])
def test_a_damaged_record_fails_in_one_line_and_writes_nothing(tmp_path, monkeypatch, damage):
    text = (tables.RESULTS / "roofline.json").read_text()
    if damage == "a figure short":
        document = json.loads(text)
        del document["gpus"]
        text = json.dumps(document)
    (tmp_path / "roofline.json").write_text(text[: 100 if damage == "not JSON" else None])
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    monkeypatch.setattr("sys.argv", ["report"])
    written = []
    monkeypatch.setattr(page, "write_bytes", lambda *given: written.append(given))
    with pytest.raises(SystemExit, match=r"^error: .*roofline\.json.*make roofline GPU=h100.*$"):
        page.main()
    assert not written


def test_a_table_without_a_record_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    for name, made in tables.PAGES["docs/performance.md"].items():
        assert name == "records" or "RECORD=benchmarks/results/" in made()
    assert plots.drawn_plots() == {}


def test_a_page_without_a_marker_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "ROOT", tmp_path)
    monkeypatch.setattr(page, "PAGES", {"page.md": {"a": lambda: "| 1 |"}})
    (tmp_path / "page.md").write_text("nothing")
    with pytest.raises(ValueError, match=r"page\.md: expected <!-- table: a -->"):
        page.written_files()


def rows_of(table):
    """The cells of a table's rows, without its head."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]


def figures(speedup, decibels):
    """A runtime's row of a core record whose base takes 10 s."""
    median = 10.0 / speedup
    return {"median_s": median, "least_s": 0.9 * median, "most_s": 1.1 * median, "speedup": speedup,
            "psnr_db": decibels, "precision": "fp32", "memory_mib": None, "ready_s": 1.0, "first_s": 2.0}  # fmt: skip


def test_rows_of_a_gpu_join_those_of_the_processor():
    base = {"networks": {"demo 512": {"rows": {"PyTorch": figures(1.0, 200.0), "other": {"not_run": "no memory"}}}}}
    gpu = {"networks": {"demo 512": {"rows": {"GPU: TensorRT FP16": figures(100.0, 55.0)}}}}
    assert rows_of(tables.networks_table(base, gpu)) == [
        ["PyTorch", "10.0", "1.00", "–"],
        ["GPU: TensorRT FP16", "0.100", "100.00", "55.0"],
    ]
    reasons = rows_of(tables.network_table(base["networks"]["demo 512"] | {"gflop": 1.0}, {"float32_gflops": 1.0}))
    assert [row[-1] for row in reasons] == ["–", "no memory"]
    assert reasons[0][6] == "10%"


def test_steps_whose_rounds_overlap_are_marked():
    first, second, third = figures(1.0, 200.0), figures(1.1, 200.0), figures(2.0, 54.0)
    steps = [each | {"step": name} for name, each in (("a", first), ("b", second), ("c", third))]
    steps.insert(1, {"step": "dead", "not_run": "too little memory"})
    notes = {row[0]: row[-1] for row in rows_of(tables.steps_table(steps))}
    assert notes == {"a": "", "dead": "not run: too little memory", "b": "within the spread", "c": ""}


def test_a_percentile_of_too_few_requests_is_left_out():
    row = {"p50_ms": 1.0, "p90_ms": 2.0, "p99_ms": 3.0}
    shown = {many: [tables.percentile(row | {"requests": many}, name) for name in row] for many in (9, 10, 100)}
    assert shown == {9: [1.0, None, None], 10: [1.0, 2.0, None], 100: [1.0, 2.0, 3.0]}


def test_the_share_of_a_gpus_limit_or_the_reason_is_in_the_table():
    document = tables.load_record("pipeline") | {"small": None, "hardware": "gpu"}
    for limit, shown in (
        ({"limit": 200.0, "share": 0.45}, "45% of 200"),
        ({"why_not": "no datasheet"}, "no datasheet"),
    ):
        (row,) = rows_of(tables.share_table(document | {"roofline": limit}))
        assert (row[0], row[-1]) == ("GPU, published network", shown)


def test_a_full_queue_is_a_row():
    document = copy.deepcopy(tables.load_record("pipeline"))
    document["open"]["enhance"] = [{"asked": 3.0, "rate": None, "rejected": 4}]
    assert rows_of(tables.points_table(document, models=("enhance",)))[-1][:3] == [
        "`enhance`, 3 a second", "–", "its queue was full",
    ]  # fmt: skip


def test_the_chosen_settings_are_marked():
    document = tables.load_record("tune")
    chosen = [row for row in rows_of(tables.tune_table(document)) if "chosen" in row[0]]
    assert [row[5] for row in chosen] == [str(document["chosen"]["core_batch"])]
    assert "chosen" not in tables.tune_table(document | {"chosen": None})


@pytest.mark.parametrize("name", page.PAGES)
def test_every_table_ends_before_the_next_paragraph(name):
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    for line, following in itertools.pairwise(lines):
        if line.startswith("|"):
            assert not following or following.startswith(("|", "<!-- end: ")), following


def test_a_page_gets_its_tables_and_keeps_its_text():
    text = "before\n<!-- table: a -->old<!-- end: a -->\nafter\n"
    once = page.filled(text, {"a": lambda: table(("a", "b"), [("x", 1), ("longer", 2)])})
    assert once.startswith("before\n<!-- table: a -->\n| a | b |\n")
    assert once.endswith("| longer | 2 |\n<!-- end: a -->\nafter\n")
    assert page.filled(once, {"a": lambda: table(("a", "b"), [("x", 1), ("longer", 2)])}) == once


@pytest.mark.parametrize("text", ["", "<!-- table: a -->", "<!-- end: a --><!-- table: a -->"])
def test_a_page_without_both_markers_is_not_filled(text):
    with pytest.raises(ValueError, match="found 0"):
        page.filled(text, {"a": lambda: "| 1 |"})
