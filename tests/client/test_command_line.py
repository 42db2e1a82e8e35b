"""The command line against a fake: folders, what is skipped, what fails, what is refused."""

import csv
import json
import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import get_args

import pytest
from restormer_client import DeadlineExceeded, InvalidPhotograph, Overloaded, calls, files
from restormer_client.cli import main

import imaging
from imaging.options import OUTPUTS, WRITTEN
from tests.conftest import free_port


@pytest.fixture
def folder(tmp_path):
    """Three photographs, one of them in a subfolder, and what is none."""
    photos = tmp_path / "photos"
    (photos / "garden").mkdir(parents=True)
    for name in ("a.jpg", "b.PNG", "garden/c.heic"):
        (photos / name).write_bytes(name.encode())
    (photos / "notes.txt").write_text("a letter")
    (photos / ".hidden.jpg").write_bytes(b"x")
    return photos


@pytest.fixture
def run(fake, capsys):
    def call(*words):
        try:
            code = main([*map(str, words), "--url", fake.url])
        except SystemExit as ended:
            code = ended.code
        return code, capsys.readouterr().err

    return call


def written(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_folder_with_its_subfolders(folder, run, tmp_path):
    code, said = run("enhance", "--input_dir", folder, "--output_dir", tmp_path / "out")
    assert code == 0
    assert written(tmp_path / "out") == {"a.jpg": b"a.jpg", "b.PNG": b"b.PNG", "garden/c.jpg": b"garden/c.heic"}
    assert re.search(r"^3/3, [\d.]+/s$", said, re.MULTILINE)


def test_again_does_only_what_is_new_or_changed(folder, run, fake, tmp_path):
    out = tmp_path / "out"
    run("enhance", "--input_dir", folder, "--output_dir", out)
    fake.requests.clear()
    (folder / "a.jpg").write_bytes(b"changed")
    later = time.time() + 5
    os.utime(folder / "a.jpg", (later, later))
    (folder / "d.webp").write_bytes(b"new")
    code, said = run("enhance", "--input_dir", folder, "--output_dir", out)
    assert code == 0
    assert "2 of 4 are done already" in said
    assert sorted(request.photo for request in fake.requests) == [b"changed", b"new"]


def test_failures_are_told_and_reported_and_tried_again(folder, run, fake, tmp_path):
    def answer(request):
        if request.photo == b"a.jpg":
            raise InvalidPhotograph("not a photograph")
        return request.photo

    fake.answers.extend([answer] * 3)
    report, out = tmp_path / "failures.csv", tmp_path / "out"
    command = ("enhance", "--input_dir", folder, "--output_dir", out, "--report", report)
    code, said = run(*command)
    assert code == 1
    assert f"failed: {folder / 'a.jpg'}: not a photograph" in said
    assert said.endswith("error: 1 of 3 failed; the same command tries them again\n")
    (row,) = csv.DictReader(report.open())
    assert row == {
        "photo": str(folder / "a.jpg"), "error": "InvalidPhotograph", "message": "not a photograph", "attempts": "1",
    }  # fmt: skip
    assert set(written(out)) == {"b.PNG", "garden/c.jpg"}
    assert run(*command)[0] == 0
    assert report.read_text().count("\n") == 1  # the heading
    code, _ = run(*command[:-1], tmp_path / "failures.json")
    assert (code, json.loads((tmp_path / "failures.json").read_text())) == (0, [])


def test_a_full_queue_is_waited_for(folder, run, fake, tmp_path):
    fake.answers.extend([Overloaded, Overloaded, b"a", Overloaded, Overloaded])
    code, said = run("enhance", "--input_dir", folder, "--output_dir", tmp_path / "out")
    assert code == 0
    assert "failed" not in said
    assert len(written(tmp_path / "out")) == 3


def test_a_queue_that_stays_full_is_not_flooded_and_ends_in_failures(run, fake, tmp_path, monkeypatch):
    """A hundred photographs: some are tried a few times, none at the speed of the line."""
    monkeypatch.setattr("restormer_client.folder.PATIENCE", 4.0)
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(100):
        (photos / f"{number}.jpg").write_bytes(b"x")
    fake.answers.extend([Overloaded] * 5000)
    code, said = run("enhance", "--input_dir", photos, "--output_dir", tmp_path / "out", "--jobs", "2")
    assert code == 1
    assert said.count("is overloaded") == 100
    assert len(fake.requests) < 30


def test_the_photographs_own_folders_are_not_written_over(run, fake, tmp_path):
    """A folder above the photographs holds others of the same name."""
    (tmp_path / "p/sub").mkdir(parents=True)
    (tmp_path / "p/a.jpg").write_bytes(b"another")
    (tmp_path / "p/sub/a.jpg").write_bytes(b"x")
    code, said = run("enhance", "--input_dir", tmp_path / "p/sub", "--output_dir", tmp_path / "p")
    assert (code, said.count("\n")) == (1, 1)
    code, said = run("enhance", tmp_path / "p/a.jpg", tmp_path / "p/sub/../a.jpg")
    assert (code, said.count("\n")) == (1, 1)
    assert "is the photograph itself" in said
    assert (tmp_path / "p/a.jpg").read_bytes() == b"another"
    assert not fake.requests


def test_names_that_are_no_text(run, fake, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / os.fsdecode(b"\xff.jpg")).write_bytes(b"x")
    (photos / "two\nlines.jpg").write_bytes(b"x")
    fake.answers.extend([InvalidPhotograph] * 2)
    report = tmp_path / "r.csv"
    code, said = run("enhance", "--input_dir", photos, "--output_dir", tmp_path / "out", "--report", report)
    assert code == 1
    assert len([line for line in said.splitlines() if line.startswith("failed: ")]) == 2
    assert b"\xff.jpg" in report.read_bytes()


def test_a_folder_that_cannot_be_read_is_no_success(run, fake, folder, tmp_path, monkeypatch):
    def scandir(path):
        if str(path).endswith("garden"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    real = os.scandir
    monkeypatch.setattr(os, "scandir", scandir)
    code, said = run("enhance", "--input_dir", folder, "--output_dir", tmp_path / "out")
    assert (code, said.count("\n")) == (1, 1)
    assert "garden: Permission denied" in said


def test_what_is_no_file_is_left_alone(run, folder, fake, tmp_path):
    os.mkfifo(folder / "pipe.jpg")
    assert run("enhance", "--input_dir", folder, "--output_dir", tmp_path / "out")[0] == 0
    assert len(fake.requests) == 3


def test_another_format_has_another_name(folder, run, tmp_path):
    run("enhance", "--input_dir", folder, "--output_dir", tmp_path / "out", "--format", "webp")
    assert set(written(tmp_path / "out")) == {"a.webp", "b.webp", "garden/c.webp"}


def test_two_photographs_that_would_become_one(folder, run, fake, tmp_path):
    (folder / "a.tif").write_bytes(b"x")
    code, said = run("enhance", "--input_dir", folder, "--output_dir", tmp_path / "out", "--format", "webp")
    assert code == 1
    assert "would both become" in said
    assert not fake.requests
    assert not (tmp_path / "out").exists()


def test_results_inside_the_photographs_are_not_enhanced_again(folder, run, fake):
    out = folder / "enhanced"
    for _ in range(2):
        assert run("enhance", "--input_dir", folder, "--output_dir", out)[0] == 0
    assert len(fake.requests) == 3


def test_a_disk_that_cannot_be_written(folder, run, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "garden").write_text("a file where a folder has to be")
    code, said = run("enhance", "--input_dir", folder, "--output_dir", out)
    assert code == 1
    assert "garden" in said
    assert "Traceback" not in said
    assert {"a.jpg", "b.PNG"} < set(written(out))


def test_the_owners_flags_for_one_photograph(folder, run, tmp_path):
    assert run("enhance", "--input", folder / "a.jpg", "--output", tmp_path / "o.jpg")[0] == 0
    assert (tmp_path / "o.jpg").read_bytes() == b"a.jpg"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("enhance",), 2, "give a photograph and the file to write, or --input_dir and --output_dir"),
        (("enhance", "a.jpg"), 2, "give a photograph and the file to write"),
        (("enhance", "--input_dir", "photos"), 2, "give a photograph and the file to write"),
        (("enhance", "a.jpg", "b.jpg", "--input_dir", "x", "--output_dir", "y"), 2, "give a photograph"),
        (("enhance", "a.jpg", "b.jpg", "--format", "gif"), 2, "invalid choice: 'gif'"),
        (("enhance", "a.jpg", "b.jpg", "--timeout", "0"), 2, "no number of seconds above 0"),
        (("enhance", "a.jpg", "b.jpg", "--timeout", "nan"), 2, "no number of seconds above 0"),
        (("enhance", "a.jpg", "b.jpg", "--jobs", "0"), 2, "no number from 1 up"),
        (("enhance", "absent.jpg", "b.jpg"), 1, "absent.jpg: No such file"),
        (("enhance", "--input_dir", "absent", "--output_dir", "out"), 1, "absent is not a folder of photographs"),
        (("enhance", "--input_dir", ".", "--output_dir", "out"), 1, "no photographs in ."),
        (("enhance", "--input_dir", ".", "--output_dir", "."), 1, "give another folder to write to"),
        (("enhance", "--input_dir", ".", "--output_dir", "o", "--report", "no/r.csv"), 1, "does not exist"),
        (("enhance", "--input_dir", ".", "--output_dir", "o", "--report", "."), 1, "is a folder"),
        (("status", "--wait", "1e300"), 2, "a day at the most"),
        (("enhance", "a.jpg", "b.jpg", "--tls-cert", "c.pem"), 1, "mutual TLS needs both"),
        (("enhance", "a.jpg", "b.jpg", "--tls-ca", "absent.pem"), 1, "absent.pem: No such file"),
        (("enhance", "a.jpg", "b.jpg", "--token-file", "absent"), 1, "absent: No such file"),
        (("nonsense",), 2, "invalid choice: 'nonsense'"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(run, tmp_path, monkeypatch, words, code, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jpg").write_bytes(b"x") if "a.jpg" in words else None
    before = sorted(tmp_path.iterdir())
    found, said = run(*words)
    assert found == code
    assert message in said
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("url", ["http://127.0.0.1:8001", "dead"])
def test_a_wrong_address_is_one_line(folder, capsys, tmp_path, url):
    url = f"127.0.0.1:{free_port()}" if url == "dead" else url
    code = main(["enhance", str(folder / "a.jpg"), str(tmp_path / "o.jpg"), "--url", url, "--timeout", "2"])
    said = capsys.readouterr().err
    assert (code, said.count("\n")) == (1, 1)
    assert said.startswith("error: ")


def test_the_address_may_stand_in_the_environment(fake, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("RESTORMER_URL", fake.url)
    assert main(["enhance", str(folder / "a.jpg"), str(tmp_path / "o.jpg")]) == 0


def test_the_token_of_a_file_is_sent(fake, folder, tmp_path, run):
    (tmp_path / "token").write_text("secret\n")
    assert run("enhance", folder / "a.jpg", tmp_path / "o.jpg", "--token-file", tmp_path / "token")[0] == 0
    assert fake.requests[0].headers["authorization"] == "Bearer secret"


def test_status(fake, run, capsys):
    assert main(["status", "--url", fake.url, "--wait", "5"]) == 0
    assert "enhances (Triton 0.0.0 (fake)" in capsys.readouterr().out
    assert [request.priority for request in fake.requests] == [1]
    fake.missing = {"enhance", "restormer"}
    code, said = run("status", "--wait", "3")
    assert code == 1
    assert "'restormer' is not ready" in said


def test_ctrl_c_leaves_whole_files_only(fake, folder, tmp_path, client_command):
    """What was done stays, nothing is half-written, and the same command goes on."""
    stuck = threading.Event()
    fake.answers.extend([b"done", lambda request: stuck.wait(60) or b"", lambda request: stuck.wait(60) or b""])
    out = tmp_path / "out"
    command = [*client_command, "enhance", "--input_dir", folder, "--output_dir", out, "--url", fake.url]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not list(out.glob("[!.]*")):  # a hidden one is still being written
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    stuck.set()
    assert process.returncode == 130
    assert "Traceback" not in said
    assert said.rstrip().endswith("interrupted")
    assert list(written(out).values()) == [b"done"]


def test_a_failed_photograph_leaves_the_old_one(fake, folder, tmp_path, run):
    (tmp_path / "o.jpg").write_bytes(b"old")
    fake.answers.append(DeadlineExceeded)
    assert run("enhance", folder / "a.jpg", tmp_path / "o.jpg", "--timeout", "1")[0] == 1
    assert written(tmp_path)["o.jpg"] == b"old"


def test_the_names_of_photographs_are_the_servers():
    assert set(files.SUFFIXES) == set(imaging.SUFFIXES)


def test_the_formats_are_the_servers():
    assert get_args(calls.Format) == tuple(OUTPUTS)
    assert {files.renamed(Path("a.jpg"), name).suffix: name for name in OUTPUTS}.items() <= WRITTEN.items()


def test_help_teaches(capsys):
    for words in (["--help"], ["enhance", "--help"]):
        with pytest.raises(SystemExit):
            main(words)
        text = capsys.readouterr().out
        assert "--input_dir photos --output_dir out --jobs 8" in text
