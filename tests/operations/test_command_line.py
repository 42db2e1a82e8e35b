"""What every benchmark's command line does: bad options end in one line, before anything is measured or written."""

import importlib
import json
import sys

import pytest

from operations import command_line
from tests.conftest import ROOT, bare_repository

BULK, LOAD, PIPELINE, TUNE = (
    "benchmarks.pipeline.bulk", "tests.acceptance.load", "benchmarks.pipeline.pipeline", "operations.tune"
)  # fmt: skip
MODULES = (
    BULK, LOAD, PIPELINE, TUNE, "benchmarks.network.core", "benchmarks.network.layers", "benchmarks.network.roofline",
    "benchmarks.pipeline.client", "benchmarks.pipeline.frame", "benchmarks.pipeline.imaging",
    "benchmarks.pipeline.transfer", "operations.canary", "operations.verify_gpu", "tests.acceptance.rolling",
)  # fmt: skip


@pytest.fixture
def ended(monkeypatch, capsys):
    """Runs a benchmark's command line, and gives its exit status and the last line that it said of its end."""

    def run(module, *arguments):
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", [module, *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            importlib.import_module(module).main()
        printed = capsys.readouterr()
        assert not printed.out
        if isinstance(end.value.code, str):
            return 1, end.value.code
        return end.value.code, printed.err.strip().splitlines()[-1]

    return run


NO_PHOTOS = "error: no JPEG in docs/none: name a folder with --photos"


@pytest.mark.parametrize(
    ("module", "options", "status", "words"),
    [
        (BULK, ["--photos", "docs/none"], 1, NO_PHOTOS),
        (LOAD, ["--photos", "docs/none"], 1, NO_PHOTOS),
        (PIPELINE, ["--perf-analyzer", "no-such-program"], 1, "pip install perf-analyzer"),
        (PIPELINE, ["--perf-analyzer", "true", "--photos", "docs/none"], 1, NO_PHOTOS),
        (PIPELINE, ["--concurrency", "1,x"], 2, "--concurrency"),
        (PIPELINE, ["--rates", "0"], 2, "numbers above zero"),
        (PIPELINE, ["--rounds", "0"], 2, "--rounds: 1 or more"),
        (TUNE, [], 2, "--slo-p99-ms"),
        (TUNE, ["--slo-p99-ms", "0"], 2, "above 0"),
        (TUNE, ["--slo-p99-ms", "100", "--photos", "docs/none"], 1, NO_PHOTOS),
        (
            TUNE,
            ["--slo-p99-ms", "100", "--repository", "docs"],
            1,
            "no engine in docs/restormer: make engine PRECISION=fp32",
        ),
    ],
)
def test_bad_options_end_in_one_line_and_write_nothing(module, options, status, words, ended, tmp_path):
    files = ["--record", tmp_path / "record.json"]
    files += ["--output", tmp_path / "tuned.env"] if module == TUNE else []
    found, said = ended(module, *options, *files)
    assert found == status
    assert words in said
    assert "\n" not in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("module", MODULES)
def test_a_record_that_cannot_be_written_is_refused_before_anything_is_measured(module, ended):
    required = {TUNE: ["--slo-p99-ms", "100"]}.get(module, [])
    for record, words in (
        ("docs", "docs is a folder: name a file"),
        ("/dev/null", "/dev/null is no file: name a file"),
        ("README.md/a.json", "nothing can be written into"),
        ("/proc/a.json", "nothing can be written into /proc"),
    ):
        status, said = ended(module, *required, "--record", record)
        assert status == 2
        assert words in said


def test_the_file_of_the_settings_is_refused_likewise(ended):
    status, said = ended(TUNE, "--slo-p99-ms", "100", "--output", "docs")
    assert status == 2
    assert said.endswith("--output: docs is a folder: name a file")


def test_without_an_engine_it_says_which_command_makes_one_and_writes_nothing(ended, tmp_path):
    models, record = bare_repository(tmp_path / "models"), tmp_path / "record.json"
    status, said = ended(TUNE, "--slo-p99-ms", "100", "--repository", models, "--record", record)
    assert status
    assert "make engine" in said
    assert "\n" not in said
    assert not record.exists()


def test_figures_are_kept_beside_those_of_earlier_runs(tmp_path, capsys):
    record = tmp_path / "new" / "record.json"
    command_line.finish({"a": 1, "b": 1}, record)
    command_line.finish({"b": 2}, record, {**command_line.earlier(record), "b": 2})
    assert json.loads(record.read_text(encoding="utf-8")) == {"a": 1, "b": 2}
    assert capsys.readouterr().out.splitlines() == ['{"a": 1, "b": 1}', '{"b": 2}']
    assert command_line.earlier(tmp_path / "none.json") == command_line.earlier(None) == {}
