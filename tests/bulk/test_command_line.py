"""``python -m bulk`` before there is any Ray: usage, what is wrong at the start, and when nothing is left to do."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from restormer_client import InvalidOption
from restormer_client.testing import FakeTriton

from bulk import manifest, storage, worker
from bulk.__main__ import AN_ACTOR, IN_FLIGHT, PATIENCE, _parser, main
from tests.bulk.test_manifest import row

NOBODY = "127.0.0.1:9"


@pytest.fixture
def run(capsys):
    def call(*words):
        try:
            code = main(["enhance", *map(str, words)])
        except SystemExit as ended:
            code = ended.code
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def refused(said, code=1):
    """One line, and nothing else."""
    assert said[0] == code
    assert said[1] == ""
    assert said[2].startswith("error: ")
    assert said[2].count("\n") == 1
    return said[2]


def test_the_help_teaches(run):
    code, said, _ = run("--help")
    assert code == 0
    for word in ("--in-flight", "Run the same command again", "_manifest", "--ray-address", "dns:///triton:8001"):
        assert word in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "required: --input, --output"),
        (["--shard", "0/3"], "no part of a whole"),
        (["--shard", "4/3"], "no part of a whole"),
        (["--in-flight", "0"], "no number from 1 up"),
        (["--price-per-hour", "-1"], "no price"),
        (["--price-per-hour", "nan"], "no price"),
        (["--patience", "0"], "no number of seconds"),
    ],
)
def test_wrong_usage_is_one_line(run, words, message):
    assert message in refused(run(*words), 2)


def test_more_actors_than_photographs_in_flight(run, photos, output):
    said = refused(run("--input", photos, "--output", output.root, "--actors", 9, "--in-flight", 8))
    assert "9 actors share 8 in flight" in said


def test_an_input_that_is_not_there(run, tmp_path, output):
    assert "no folder of photographs" in refused(run("--input", tmp_path / "nowhere", "--output", output.root))
    assert not output.sizes()


def test_a_token_that_cannot_be_read(run, photos, output):
    said = refused(run("--input", photos, "--output", output.root, "--token-file", "/nowhere/token"))
    assert said == "error: /nowhere/token: No such file or directory\n"


def test_a_server_that_is_not_there(run, photos, output, monkeypatch):
    monkeypatch.setattr("bulk.job.PATIENCE", 0.3)
    assert NOBODY in refused(run("--input", photos, "--output", output.root, "--server", NOBODY))
    assert not output.sizes()


def test_an_option_that_the_server_refuses(run, photos, output):
    with FakeTriton(InvalidOption("quality is 900: it has to be 1 to 100")) as triton:
        said = refused(run("--input", photos, "--output", output.root, "--server", triton.url, "--quality", 900))
    assert "quality is 900: it has to be 1 to 100" in said
    assert not output.sizes()


def test_other_options_than_before(run, photos, output):
    manifest.claim(output, {"format": "webp"})
    said = refused(run("--input", photos, "--output", output.root, "--server", NOBODY))
    assert "was made with format webp, not with no options" in said


def test_an_output_of_somebody_else(run, photos, output):
    output.write("mine.jpg", b"mine")
    assert "is not empty" in refused(run("--input", photos, "--output", output.root, "--server", NOBODY))
    assert output.sizes() == {"mine.jpg": 4}


def test_when_all_is_done_no_server_is_asked(run, photos, output):
    """And the parts that a killed run left become one file."""
    manifest.claim(output, {})
    keys = ("a.jpg", "b.PNG", "house/c.jpg", "house/rooms/d.tif", "house/rooms/e.webp")
    for key in keys:
        output.write(key, b"1")
        manifest.write_part(output, [row(key)])
    code, out, said = run("--input", photos, "--output", output.root, "--server", NOBODY)
    assert code == 0
    assert "5 of 5 are done already" in said
    summary = json.loads(out.splitlines()[-1])
    assert (summary["photographs"], summary["done_before"], summary["enhanced"]) == (5, 5, 0)
    assert sorted(output.below(manifest.FOLDER).names()) == ["job.json", "manifest.parquet"]


def test_it_starts_without_ray_and_without_torch():
    """Errors are said before Ray is loaded, which takes seconds."""
    loaded = subprocess.run(
        [sys.executable, "-c", "import bulk.__main__, sys; print(' '.join(sys.modules))"],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert not {"ray", "torch", "server", "export", "imaging", "pandas"} & set(loaded)


def test_the_scaling_page_knows_the_options_and_the_figures():
    """Every option it names is one, every option of the job is named, and what the code does stands there as it is."""
    page = Path("docs/scaling.md").read_text(encoding="utf-8")
    known = {flag for action in verb()._actions for flag in action.option_strings}
    others = {"--input_dir", "--output_dir"}  # the client's
    assert set(re.findall(r"--[a-z][a-z_-]+", page)) - others <= known
    jobs = {"--input", "--output", "--server", "--in-flight", "--shard", "--patience", "--price-per-hour"}
    assert jobs | {"--ray-address", "--actors"} <= set(re.findall(r"--[a-z][a-z-]+", page))
    assert f"within `--patience` ({PATIENCE:.0f} s)" in page
    assert f"`--in-flight {IN_FLIGHT}`, the default" in page
    assert f"one for every {AN_ACTOR} in flight" in page
    assert worker.TRIES == 3
    assert "met no answer or a failing server, three times" in page
    assert not [name for name in manifest.SCHEMA.names if f"`{name}`" not in page]


def verb():
    (verbs,) = (action for action in _parser()._actions if action.dest == "verb")
    return verbs.choices["enhance"]


def test_as_many_in_flight_as_a_cpu_servers_queue_takes():
    """Of bulk, level 2; one more is being worked on."""
    config = storage.place(".").read("model_repository/restormer/configs/cpu.pbtxt").decode()
    level_2 = config[config.index("priority_queue_policy") :]
    assert f"max_queue_size: {IN_FLIGHT}" in level_2
