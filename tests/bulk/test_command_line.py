"""``python -m bulk`` without Ray: usage, errors at the start, and jobs that are already done."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from restormer_client import InvalidOption
from restormer_client.testing import FakeTriton

from bulk import manifest, worker
from bulk.__main__ import IN_FLIGHT, IN_FLIGHT_PER_ACTOR, PATIENCE, _build_parser, main
from server.assemble import read_config
from tests.bulk.test_manifest import make_row

UNREACHABLE = "127.0.0.1:9"


@pytest.fixture
def run(capsys):
    def call(*words):
        try:
            code = main(["enhance", *map(str, words)])
        except SystemExit as exit:
            code = exit.code
        output = capsys.readouterr()
        return code, output.out, output.err

    return call


def error_message(result, code=1):
    """Check that a run printed one error line and nothing else, and return the line."""
    exit_code, stdout, stderr = result
    assert exit_code == code
    assert stdout == ""
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    return stderr


def test_help_explains_the_job(run):
    code, stdout, _ = run("--help")
    assert code == 0
    for word in ("--in-flight", "_manifest", "--ray-address", "dns:///triton:8001"):
        assert word in stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--input, --output"),
        (["--shard", "0/3"], "--shard"),
        (["--shard", "4/3"], "--shard"),
        (["--in-flight", "0"], "--in-flight"),
        (["--price-per-hour", "-1"], "--price-per-hour"),
        (["--price-per-hour", "nan"], "--price-per-hour"),
        (["--patience", "0"], "--patience"),
    ],
)
def test_wrong_usage_prints_one_line(run, words, message):
    assert message in error_message(run(*words), 2)


def test_more_actors_than_requests_in_flight_are_rejected(run, photos, output):
    message = error_message(run("--input", photos, "--output", output.root, "--actors", 9, "--in-flight", 8))
    assert "--actors 9" in message


def test_missing_input(run, tmp_path, output):
    message = error_message(run("--input", tmp_path / "nowhere", "--output", output.root))
    assert str(tmp_path / "nowhere") in message
    assert not output.sizes()


def test_unreadable_token(run, photos, output):
    message = error_message(run("--input", photos, "--output", output.root, "--token-file", "/nowhere/token"))
    assert "/nowhere/token" in message


def test_unreachable_server(run, photos, output, monkeypatch):
    monkeypatch.setattr("bulk.job.READY_TIMEOUT", 0.3)
    assert UNREACHABLE in error_message(run("--input", photos, "--output", output.root, "--server", UNREACHABLE))
    assert not output.sizes()


def test_option_that_the_server_rejects(run, photos, output):
    with FakeTriton(InvalidOption("quality is 900: it has to be 1 to 100")) as triton:
        result = run("--input", photos, "--output", output.root, "--server", triton.url, "--quality", 900)
    assert "quality is 900" in error_message(result)
    assert not output.sizes()


def test_options_must_not_change_between_runs(run, photos, output):
    manifest.write_job(output, {"format": "webp"})
    message = error_message(run("--input", photos, "--output", output.root, "--server", UNREACHABLE))
    assert "format webp" in message


def test_output_with_other_files_is_rejected(run, photos, output):
    output.write("mine.jpg", b"mine")
    assert "not empty" in error_message(run("--input", photos, "--output", output.root, "--server", UNREACHABLE))
    assert output.sizes() == {"mine.jpg": 4}


def test_finished_job_needs_no_server(run, photos, output):
    """It also merges the parts that a killed run left."""
    manifest.write_job(output, {})
    keys = ("a.jpg", "b.PNG", "house/c.jpg", "house/rooms/d.tif", "house/rooms/e.webp")
    for key in keys:
        output.write(key, b"1")
        manifest.write_part(output, [make_row(key)])
    code, stdout, stderr = run("--input", photos, "--output", output.root, "--server", UNREACHABLE)
    assert code == 0
    assert "5 of 5" in stderr
    assert "1 skipped" in stderr
    summary = json.loads(stdout.splitlines()[-1])
    assert (summary["photographs"], summary["done_before"], summary["enhanced"]) == (5, 5, 0)
    assert sorted(output.below(manifest.FOLDER).names()) == ["job.json", "manifest.parquet"]
    skipped = [row for row in manifest.read_rows(output).to_pylist() if row["status"] == manifest.SKIPPED]
    assert [row["source"] for row in skipped] == [f"{photos}/notes.txt"]


def test_command_line_loads_neither_ray_nor_torch():
    """Errors are reported before Ray is imported, which takes seconds."""
    loaded = subprocess.run(
        [sys.executable, "-c", "import bulk.__main__, sys; print(' '.join(sys.modules))"],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert not {"ray", "torch", "server", "export", "imaging", "pandas"} & set(loaded)


def test_scaling_page_matches_the_code():
    """Every option on the page exists, every option of a job is on the page, and its figures are right."""
    page = Path("docs/scaling.md").read_text(encoding="utf-8")
    known = {flag for action in enhance_parser()._actions for flag in action.option_strings}
    others = {"--input_dir", "--output_dir", "--host-policy"}  # the client's, and Triton's
    assert set(re.findall(r"--[a-z][a-z_-]+", page)) - others <= known
    jobs = {"--input", "--output", "--server", "--in-flight", "--shard", "--patience", "--price-per-hour"}
    assert jobs | {"--ray-address", "--actors"} <= set(re.findall(r"--[a-z][a-z-]+", page))
    assert f"`--patience` ({PATIENCE:.0f} s)" in page
    assert f"`--in-flight {IN_FLIGHT}`" in page
    assert f"{IN_FLIGHT_PER_ACTOR} in flight" in page
    assert f"{worker.MAX_TRIES} times" in page
    assert not [name for name in manifest.SCHEMA.names if f"`{name}`" not in page]


def enhance_parser():
    (verbs,) = (action for action in _build_parser()._actions if action.dest == "verb")
    return verbs.choices["enhance"]


def test_default_in_flight_fits_the_bulk_queue_of_a_cpu_server():
    """Level 2 is bulk."""
    policies = read_config(Path("model_repository/preprocess/configs/cpu.pbtxt")).dynamic_batching.priority_queue_policy
    assert policies[2].max_queue_size >= IN_FLIGHT
