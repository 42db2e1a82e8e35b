"""Test the command lines of measurements: wrong options exit with one line before anything is measured or written."""

import importlib
import json
import sys

import pytest

from export.files import sha256
from tests.conftest import ROOT, bare_repository

BULK, LOAD, PIPELINE, TUNE = (
    "benchmarks.pipeline.bulk", "tests.acceptance.load", "benchmarks.pipeline.pipeline", "operations.tune"
)  # fmt: skip
MODULES = (
    BULK, LOAD, PIPELINE, TUNE, "benchmarks.network.core", "benchmarks.network.profile", "benchmarks.network.roofline",
    "benchmarks.pipeline.client", "benchmarks.pipeline.imaging", "operations.canary", "operations.served_fidelity",
    "operations.verify_gpu", "tests.acceptance.rolling",
)  # fmt: skip


@pytest.fixture
def run_main(monkeypatch, capsys):
    """Return a function that runs a command line and returns its exit code and the last line of its error."""

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


@pytest.mark.parametrize(
    ("module", "options", "status", "message"),
    [
        (BULK, ["--photos", "docs/none"], 1, "no JPEG in docs/none"),
        (LOAD, ["--photos", "docs/none"], 1, "no JPEG in docs/none"),
        (PIPELINE, ["--perf-analyzer", "no-such-program"], 1, "pip install perf-analyzer"),
        (PIPELINE, ["--perf-analyzer", "true", "--photos", "docs/none"], 1, "no JPEG in docs/none"),
        (PIPELINE, ["--concurrency", "1,x"], 2, "--concurrency"),
        (PIPELINE, ["--rates", "0"], 2, "positive numbers"),
        (PIPELINE, ["--rounds", "0"], 2, "--rounds must be 1 or more"),
        ("operations.canary", ["--repeat", "0"], 2, "--repeat"),
        (TUNE, [], 2, "--slo-p99-ms"),
        (TUNE, ["--slo-p99-ms", "0"], 2, "above 0"),
        (TUNE, ["--slo-p99-ms", "100", "--output", "docs"], 2, "--output: docs is a folder"),
        (TUNE, ["--slo-p99-ms", "100", "--photos", "docs/none"], 1, "no JPEG in docs/none"),
        (TUNE, ["--slo-p99-ms", "100", "--repository", "docs"], 1, "no engine in docs/restormer"),
    ],
)
def test_wrong_options_exit_with_one_line_and_write_nothing(module, options, status, message, run_main, tmp_path):
    files = ["--record", tmp_path / "record.json"]
    files += ["--output", tmp_path / "tuned.env"] if module == TUNE and "--output" not in options else []
    code, line = run_main(module, *options, *files)
    assert code == status
    assert message in line
    assert "\n" not in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("module", MODULES)
def test_unwritable_records_are_rejected_before_anything_is_measured(module, run_main):
    required = {TUNE: ["--slo-p99-ms", "100"]}.get(module, [])
    for record, message in (
        ("docs", "docs is a folder"),
        ("/dev/null", "/dev/null is a device"),
        ("README.md/a.json", "cannot write to"),
        ("/proc/a.json", "cannot write to /proc"),
    ):
        code, line = run_main(module, *required, "--record", record)
        assert code == 2
        assert message in line


def test_tune_without_an_engine_names_the_command_that_builds_one(run_main, tmp_path):
    models, record = bare_repository(tmp_path / "models"), tmp_path / "record.json"
    code, line = run_main(TUNE, "--slo-p99-ms", "100", "--repository", models, "--record", record)
    assert code
    assert "make engine" in line
    assert "\n" not in line
    assert not record.exists()


def test_tune_names_a_damaged_config(run_main, tmp_path):
    models, record = bare_repository(tmp_path / "models"), tmp_path / "record.json"
    engine = models / "restormer/1/model.onnx"
    engine.parent.mkdir()
    engine.touch()
    document = {"sha256": sha256(engine), "precision": "fp32", "package": {"checkpoint_sha256": "0"}}
    engine.with_name("model.onnx.json").write_text(json.dumps(document), encoding="utf-8")
    config = models / "restormer/configs/cpu.pbtxt"
    config.write_text("damaged {", encoding="utf-8")
    code, line = run_main(TUNE, "--slo-p99-ms", "100", "--repository", models, "--record", record)
    assert code
    assert line.startswith(f"error: {config}")
    assert not record.exists()
