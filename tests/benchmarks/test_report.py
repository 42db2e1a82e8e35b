"""The pages on speed are what the report makes of the recorded runs, and of nothing else."""

import copy
import itertools
import json
import re
from pathlib import Path

import pytest

from benchmarks.report import page as report
from benchmarks.report import performance, plots
from demo.table import PAGES
from export.markdown import filled

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def recorded():
    return report.records(report.RESULTS)


@pytest.fixture(scope="module")
def drawn(recorded):
    return report.drawn(recorded)


def test_the_page_is_what_the_report_makes_of_the_recorded_runs(recorded):
    assert (ROOT / "docs/performance.md").read_text(encoding="utf-8") == report.page(recorded), "make report"


@pytest.mark.parametrize("name", PAGES)
def test_the_tables_of_a_page_are_those_of_the_records(name):
    page = (ROOT / name).read_text(encoding="utf-8")
    assert page == filled(page, PAGES[name]), "make report"


def test_the_plots_are_what_the_report_draws_of_the_recorded_runs(drawn):
    there = {path.name: path.read_bytes() for path in (ROOT / "docs/plots").iterdir()}
    assert there.keys() == drawn.keys(), "make report"
    assert [name for name, made in drawn.items() if made != there[name]] == [], "make report"


def test_every_plot_of_the_page_is_drawn(recorded, drawn):
    named = {f"{name}.svg" for name in plots.PLOTS}
    assert {name for name in named if f"(plots/{name})" in report.page(recorded)} == drawn.keys()


def test_what_was_not_recorded_says_which_command_makes_it():
    page = report.page(dict.fromkeys(report.RECORDS))
    for name in ("core", "profile", "profile-standard", "pipeline", "tune", "roofline", "core-gpu"):
        assert f"`{report.again(name)}`" in page


def test_every_command_of_the_report_is_a_verb():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in report.RECORDS.values():
        assert f"\n{command.split()[1]}: " in makefile


def network(weights, **rows):
    """A network's figures as the core's record has them; ``rows``: times as fast, and decibels."""
    figures = {"median_s": 0.01, "least_s": 0.009, "most_s": 0.011, "memory_mib": 512}
    figures |= {"seconds": [0.01, 0.009, 0.011], "precision": "fp32"}
    made = {
        name: figures | {"ready_s": 1.0, "first_s": 0.5, "speedup": speedup, "psnr_db": decibels}
        for name, (speedup, decibels) in rows.items()
    }
    return {"side": 512, "parameters": 800_000, "gflop": 40.0, "weights": weights, "rows": made}


def test_gpu_rows_are_missed_until_they_are_there():
    measured = {"networks": {"demo 512": network("trained", **{"GPU: TensorRT FP16": (100.0, 55.0)})}}
    measured["networks"]["demo 512"]["rows"]["GPU: TensorRT INT8"] = {"not_run": "too little memory"}
    every = [row.removeprefix("GPU: ") for row in performance.GPU_ROWS]
    assert performance.missing_rows(None, measured) == [row for row in every if row != "TensorRT FP16"]


def test_a_gpu_hosts_record_gets_tables_and_what_was_not_run_its_reason(recorded):
    rows = {"PyTorch eager float32, as in the paper": (1.0, plots.SAME), "GPU: TensorRT FP16": (100.0, 55.0)}
    core = {
        "circumstances": recorded["roofline"]["circumstances"],
        "peak": {"gpu_float32_gflops": 8000.0},
        "networks": {"demo 512": network("trained", **rows)},
    }
    core["networks"]["demo 512"]["rows"]["GPU: TensorRT INT8"] = {"not_run": "too little memory"}
    core["networks"]["demo 512"]["rows"]["GPU: TensorRT FP16"]["memory_mib"] = None
    assert "No GPU has run any of this yet" in report.page(recorded)
    page = report.page({**recorded, "core-gpu": core})
    assert "| GPU: TensorRT FP16 | 0.0100 | 0.00900–0.0110 | 3 | 100.00 | 55.0 | – | 50% | 1.50 |" in page
    assert "\nNot run: GPU: TensorRT INT8 (too little memory).\n" in page
    assert "No GPU has run any of this yet" not in page


def test_what_trtexec_timed_on_a_gpu_gets_its_table(recorded):
    profile = {key: value for key, value in recorded["profile"].items() if not key.endswith("_ms")}
    page = report.page({**recorded, "profile-gpu": {**profile, "runtime": "TensorRT", "total_ms": 12.0, "others": []}})
    assert "TensorRT, its layers together 12.0 ms." in page
    assert "No GPU has run any of this yet" not in page


def test_the_measured_share_of_the_limit_is_told_where_there_is_one():
    limit = {"gpu": "H100 SXM 80 GB", "precision": "fp16", "limit": 200.0, "measured": 90.0, "share": 0.45}
    assert "reached 90.0 photographs a second, 45% of the 200 " in performance.limit_sentence({"roofline": limit})
    assert "no datasheet" in performance.limit_sentence({"roofline": {"why_not": "no datasheet of a T4"}})
    assert performance.limit_sentence({"roofline": None}) is None
    assert performance.limit_sentence(None) is None


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0012345, "0.00123"),
        (0.9996, "1.00"),
        (9.996, "10.0"),
        (12.345, "12.3"),
        (1234.5, "1,230"),
        (0, "0"),
        (None, "–"),
    ],
)
def test_figures_have_three_digits_that_count(value, shown):
    assert performance.significant(value) == shown


def test_figures_stand_to_the_right_and_words_to_the_left():
    assert performance.table(("a", "b"), [("x", "1.0"), ("y", "–")]) == "| a | b |\n|---|---:|\n| x | 1.0 |\n| y | – |"


def test_labels_are_moved_apart_and_no_further():
    assert plots.spread([1.0, 5.0, 9.0], 2.0) == [1.0, 5.0, 9.0]
    assert plots.spread([5.0, 1.0, 5.0], 2.0) == [4.0, 1.0, 6.0]
    moved = plots.spread([0.0, 0.1, 0.2, 3.0], 1.0)
    assert moved == pytest.approx([-0.9, 0.1, 1.1, 3.0])


def test_a_plot_is_the_same_bytes_twice_and_has_colours_for_dark_pages(recorded, drawn):
    first = drawn["roofline.svg"]
    assert first == plots.svg(plots.roofline, recorded["roofline"])
    assert b"prefers-color-scheme:dark" in first
    assert plots.DARK[plots.PAPER].encode() in first


def test_every_colour_of_a_plot_has_one_for_dark_pages(drawn):
    for name, made in drawn.items():
        body = made.decode().split("</style>", 1)[1]
        strays = set(re.findall(r"(?:fill|stroke): (#\w+)", body)) - set(plots.DARK)
        assert not strays, name


@pytest.mark.parametrize("damage", ["no folder", "no JSON", "a figure short"])
def test_what_cannot_be_told_ends_in_one_line_and_writes_nothing(tmp_path, monkeypatch, recorded, damage):
    results = tmp_path / "results"
    if damage != "no folder":
        results.mkdir()
        document = copy.deepcopy(recorded["roofline"])
        if damage == "a figure short":
            del document["ledger"]
        text = json.dumps(document)
        (results / "roofline.json").write_text(text[: 100 if damage == "no JSON" else None])
    monkeypatch.setattr("sys.argv", ["report", "--results", str(results), "--root", str(tmp_path)])
    said = "--results" if damage == "no folder" else "make roofline GPU=h100"
    with pytest.raises(SystemExit, match=f"^error: .*{said}.*$"):
        report.main()
    assert not (tmp_path / "docs").exists()


def test_the_two_goals_are_one_go_only_on_one_day_and_commit_that_is_whole(recorded):
    network, pipeline = (copy.deepcopy(recorded[name]) for name in ("core", "pipeline"))
    same = {key: network["circumstances"][key] for key in performance.ONE_GO} | {"commit": "c0ffee"}
    network["circumstances"] |= same | {"time": "2026-11-28T10:00:00Z"}
    pipeline["circumstances"] |= same | {"time": "2026-11-28T10:40:00Z"}
    said = performance.goals_sentence(network, pipeline)
    assert "measured at one commit, c0ffee, begun at 10:00 and 10:40 of 2026-11-28: our engine is" in said
    for wrong in ({"commit": "decade"}, {"time": "2026-11-29T10:00:00Z"}, {"memory_gib": 1.0}):
        other = pipeline | {"circumstances": pipeline["circumstances"] | wrong}
        assert "measured not in one go: our engine is" in performance.goals_sentence(network, other)
    for each in (network, pipeline):
        each["circumstances"]["commit"] = "c0ffee+"
    assert "not in one go" in performance.goals_sentence(network, pipeline)
    assert performance.goals_sentence(network, None) is None


def test_the_bound_of_a_profile_is_told_by_kind():
    rows = [("1x1 convolution", 60.0, 30.0, 9.0), ("elementwise", 20.0, None, 0), ("attention product", 20.0, 2.0, 1.0)]
    document = {"runtime": "OpenVINO", "total_ms": 100.0}
    document["kinds"] = [dict(zip(("kind", "ms", "least_ms", "gflop"), row, strict=True)) for row in rows]
    said = performance.bound_sentence(document)
    assert "those that multiply take 80.0, where a matrix product of this machine in the same precisions" in said
    assert "would take 32.0. " in said
    assert "1x1 convolution 30.0 (50% of the peak), attention product 18.0 (10% of the peak). The other 20.0 ms" in said
    assert "multiply nothing: elementwise." in said
    assert "would be 1.25 times as fast, and at the peak 3.1 times." in said
    assert performance.bound_sentence(document | {"kinds": document["kinds"][1:2]}) is None
    document["kinds"][0]["least_ms"] = None  # in a precision whose peak nobody measured
    assert performance.bound_sentence(document) is None


def light(least, most):
    return {"parts_ms": 100.0, "ensemble_ms": 110.0, "added_ms": 10.0, "between_ms": 5.0, "least": least, "most": most}


def test_what_the_ensemble_adds_is_doubted_only_where_the_rounds_disagree():
    document = {"light": light(-20.0, 40.0), "small": {"light": light(8.0, 12.0)}}
    said = performance.light_sentence(document)
    assert said.startswith("With the published network not every round finds")
    assert "a small one" not in said
    assert "In every round" in performance.light_sentence({"light": light(8.0, 12.0), "small": None})
    assert "| a small one, random weights | 100 | 110 | 10.0 | 8.00–12.0 | 5.00 |" in performance.light_table(document)


def test_the_limits_sentences_follow_their_figures():
    precisions = {"fp16": {"memory_share": 0.9, "fused_ms": 10.0}, "int8": {"fused_ms": 8.0}}
    document = {"precisions": precisions, "gpu": "B", "roofs": {"bandwidth": 2.0}, "cores_of": None}
    document["gpus"] = {"b": {"name": "B", "bandwidth": 2.0, "fused_ms": {"fp16": 10.0}}}
    assert "for 90% of its time: bytes count, not arithmetic. INT8 gains 25%:" in performance.int8_sentence(document)
    assert performance.bandwidth_sentence(document) is None
    assert "its record does not name" in performance.cores_sentence(document)
    precisions["fp16"]["memory_share"], precisions["int8"]["fused_ms"] = 0.3, 11.0
    assert "arithmetic counts, not bytes. INT8 gains nothing" in performance.int8_sentence(document)
    document["gpus"]["c"] = {"name": "C", "bandwidth": 4.0, "fused_ms": {"fp16": 5.0}}
    assert performance.bandwidth_sentence(document).startswith("C has 2.00 times B's bandwidth, and allows 2.00")


def test_no_paragraph_of_the_page_becomes_a_row_of_the_table_before_it(recorded):
    lines = report.page(recorded).splitlines()
    for line, following in itertools.pairwise(lines):
        if line.startswith("|"):
            assert not following or following.startswith("|"), following


def test_what_waiting_costs_is_told_where_it_costs_anything():
    document = {"cpu_ms": {"served": {"preprocess": 35.0}, "alone": {"preprocess": 25.0}}, "reached": 2.0}
    said = performance.waiting_sentence(document)
    assert "preprocess takes 10.0 ms more, 2.0% of a core" in said
    document["cpu_ms"]["alone"]["preprocess"] = 36.0
    assert performance.waiting_sentence(document) is None


def test_the_first_call_is_told_beside_a_later_one():
    rows = {"one": {"median_s": 2.0, "first_s": 3.0}, "two": {"median_s": 2.0, "first_s": 2.0}, "no": {"not_run": ""}}
    said = performance.packing_sentence({"settings": {"rows": rows}})
    assert said.startswith("A first call takes 1.00 to 1.50 times a later one:")
    assert performance.packing_sentence({"settings": {"rows": {"no": {"not_run": ""}}}}) is None


def test_a_percentile_of_too_few_requests_is_not_told():
    row = {"p50_ms": 1.0, "p90_ms": 2.0, "p99_ms": 3.0}
    told = {
        many: [plots.told(row | {"requests": many}, name) for name in ("p50", "p90", "p99")] for many in (9, 10, 100)
    }
    assert told == {9: [1.0, None, None], 10: [1.0, 2.0, None], 100: [1.0, 2.0, 3.0]}


def test_what_was_tuned_says_whether_the_servers_own_choice_stays():
    own = {**dict.fromkeys(performance.TUNED, 1), "p99_ms": 500.0, "rate": 1.5}
    other = own | {"core_batch": 2}
    document = {"slo_p99_ms": 4000, "rate": 1.5, "tried": [own, other], "best": other}
    assert "What the server chooses by itself meets that" in performance.tune_sentence(document | {"chosen": own})
    assert "Chosen, and loaded again in turns" in performance.tune_sentence(document | {"chosen": other})
    assert "Nothing tried meets that" in performance.tune_sentence(document | {"chosen": None})
