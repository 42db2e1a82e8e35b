"""The command line against a fake server: folders, resuming, failures and invalid input."""

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
from restormer_client import DeadlineExceeded, InvalidPhotograph, Overloaded, calls, cli, files
from restormer_client.cli import main

import imaging
from imaging.options import OUTPUTS, WRITTEN
from tests.conftest import free_port


@pytest.fixture
def folder(tmp_path):
    """Return a folder of three photographs, one of them in a subfolder, a letter, and a hidden file."""
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
        except SystemExit as exit:
            code = exit.code
        return code, capsys.readouterr().err

    return call


def read_files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_folder_with_subfolders(folder, run, tmp_path):
    code, stderr = run("enhance", "--input_dir", folder, "--output_dir", tmp_path / "out")
    assert code == 0
    assert read_files(tmp_path / "out") == {"a.jpg": b"a.jpg", "b.PNG": b"b.PNG", "garden/c.jpg": b"garden/c.heic"}
    assert re.search(r"^3/3, [\d.]+/s$", stderr, re.MULTILINE)


def test_second_run_enhances_only_new_and_changed_files(folder, run, fake, tmp_path):
    out = tmp_path / "out"
    run("enhance", "--input_dir", folder, "--output_dir", out)
    fake.requests.clear()
    (folder / "a.jpg").write_bytes(b"changed")
    later = time.time() + 5
    os.utime(folder / "a.jpg", (later, later))
    (folder / "d.webp").write_bytes(b"new")
    code, stderr = run("enhance", "--input_dir", folder, "--output_dir", out)
    assert code == 0
    assert "2 of 4" in stderr
    assert sorted(request.photo for request in fake.requests) == [b"changed", b"new"]


def test_failures_are_printed_reported_and_retried(folder, run, fake, tmp_path):
    def answer(request):
        if request.photo == b"a.jpg":
            raise InvalidPhotograph("not a photograph")
        return request.photo

    fake.answers.extend([answer] * 3)
    report, out = tmp_path / "failures.csv", tmp_path / "out"
    command = ("enhance", "--input_dir", folder, "--output_dir", out, "--report", report)
    code, stderr = run(*command)
    assert code == 1
    assert f"failed: {folder / 'a.jpg'}: not a photograph" in stderr
    assert "error: 1 of 3 failed" in stderr
    failed, skipped = csv.DictReader(report.open())
    assert failed == {
        "photo": str(folder / "a.jpg"), "error": "InvalidPhotograph", "message": "not a photograph", "attempts": "1",
    }  # fmt: skip
    assert (skipped["photo"], skipped["error"], skipped["attempts"]) == (str(folder / "notes.txt"), "Skipped", "0")
    assert set(read_files(out)) == {"b.PNG", "garden/c.jpg"}
    assert run(*command)[0] == 0
    assert [row["error"] for row in csv.DictReader(report.open())] == ["Skipped"]
    (folder / "notes.txt").unlink()
    code, _ = run(*command[:-1], tmp_path / "failures.json")
    assert (code, json.loads((tmp_path / "failures.json").read_text())) == (0, [])


def test_files_that_are_skipped_are_counted(folder, run, fake, tmp_path):
    """A link to a folder is not followed; a link to nothing is a photograph that cannot be read."""
    for name in ("d.JFIF", "e.jpe", "f.hif"):
        (folder / name).write_bytes(b"x")
    (folder / "more").symlink_to(tmp_path)
    (folder / ".thumbnails").mkdir()
    (folder / ".thumbnails/a.jpg").write_bytes(b"x")
    (folder / "lost.jpg").symlink_to("nowhere")
    out = tmp_path / "out"
    code, stderr = run("enhance", "--input_dir", folder, "--output_dir", out)
    assert code == 1
    assert "6 enhanced, 2 skipped" in stderr
    assert "lost.jpg: No such file" in stderr
    assert {"d.JFIF", "e.jpe", "f.jpg"} < set(read_files(out))
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/a.nef").write_bytes(b"x")
    code, stderr = run("enhance", "--input_dir", tmp_path / "raw", "--output_dir", out)
    assert (code, stderr.count("\n")) == (1, 1)
    assert "1 skipped" in stderr


def test_rejected_photographs_are_sent_again(folder, run, fake, tmp_path):
    fake.answers.extend([Overloaded, Overloaded, b"a", Overloaded, Overloaded])
    code, stderr = run("enhance", "--input_dir", folder, "--output_dir", tmp_path / "out")
    assert code == 0
    assert "failed" not in stderr
    assert len(read_files(tmp_path / "out")) == 3


def test_overloaded_server_is_not_flooded(run, fake, tmp_path, monkeypatch):
    """A hundred photographs in four seconds cause few requests."""
    monkeypatch.setattr("restormer_client.folder.PATIENCE", 4.0)
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(100):
        (photos / f"{number}.jpg").write_bytes(b"x")
    fake.answers.extend([Overloaded] * 5000)
    code, stderr = run("enhance", "--input_dir", photos, "--output_dir", tmp_path / "out", "--jobs", "2")
    assert code == 1
    assert stderr.count("is overloaded") == 100
    assert len(fake.requests) < 30


def test_folder_survives_an_outage_longer_than_the_timeout(folder, run, fake, tmp_path):
    out = tmp_path / "out"

    def restart():
        while not list(out.glob("[!.]*")):
            time.sleep(0.05)
        fake.stop()
        time.sleep(4)
        fake.start()

    thread = threading.Thread(target=restart)
    thread.start()
    code, stderr = run("enhance", "--input_dir", folder, "--output_dir", out, "--jobs", "1", "--timeout", "2")
    thread.join()
    assert "failed" not in stderr
    assert code == 0
    assert len(read_files(out)) == 3


def test_dead_server_ends_the_command_after_the_patience(run, fake, tmp_path, monkeypatch):
    """A hundred photographs do not take a hundred timeouts."""
    monkeypatch.setattr("restormer_client.folder.PATIENCE", 1.0)
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(100):
        (photos / f"{number}.jpg").write_bytes(b"x")
    monkeypatch.setattr("restormer_client.enhancer.Enhancer.wait_until_ready", lambda *_: fake.stop())
    started = time.monotonic()
    code, stderr = run(
        "enhance", "--input_dir", photos, "--output_dir", tmp_path / "out", "--jobs", "2", "--timeout", "0.5"
    )
    assert code == 1
    assert stderr.count("no server answers") == 100
    assert time.monotonic() - started < 12


def test_originals_are_not_overwritten(run, fake, tmp_path):
    """The folder above the input holds another file of the same name."""
    (tmp_path / "p/sub").mkdir(parents=True)
    (tmp_path / "p/a.jpg").write_bytes(b"another")
    (tmp_path / "p/sub/a.jpg").write_bytes(b"x")
    code, stderr = run("enhance", "--input_dir", tmp_path / "p/sub", "--output_dir", tmp_path / "p")
    assert (code, stderr.count("\n")) == (1, 1)
    code, stderr = run("enhance", tmp_path / "p/a.jpg", tmp_path / "p/sub/../a.jpg")
    assert (code, stderr.count("\n")) == (1, 1)
    assert "input itself" in stderr
    assert (tmp_path / "p/a.jpg").read_bytes() == b"another"
    assert not fake.requests


def test_file_names_that_are_not_valid_text(run, fake, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / os.fsdecode(b"\xff.jpg")).write_bytes(b"x")
    (photos / "two\nlines.jpg").write_bytes(b"x")
    fake.answers.extend([InvalidPhotograph] * 2)
    report = tmp_path / "r.csv"
    code, stderr = run("enhance", "--input_dir", photos, "--output_dir", tmp_path / "out", "--report", report)
    assert code == 1
    assert len([line for line in stderr.splitlines() if line.startswith("failed: ")]) == 2
    assert b"\xff.jpg" in report.read_bytes()


def test_unreadable_folder_is_an_error(run, fake, folder, tmp_path, monkeypatch):
    def scandir(path):
        if str(path).endswith("garden"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    real = os.scandir
    monkeypatch.setattr(os, "scandir", scandir)
    code, stderr = run("enhance", "--input_dir", folder, "--output_dir", tmp_path / "out")
    assert (code, stderr.count("\n")) == (1, 1)
    assert "garden: Permission denied" in stderr


def test_special_files_are_ignored(run, folder, fake, tmp_path):
    os.mkfifo(folder / "pipe.jpg")
    assert run("enhance", "--input_dir", folder, "--output_dir", tmp_path / "out")[0] == 0
    assert len(fake.requests) == 3


def test_format_changes_the_suffix(folder, run, tmp_path):
    run("enhance", "--input_dir", folder, "--output_dir", tmp_path / "out", "--format", "webp")
    assert set(read_files(tmp_path / "out")) == {"a.webp", "b.webp", "garden/c.webp"}


def test_outputs_with_the_same_name_are_rejected(folder, run, fake, tmp_path):
    (folder / "a.tif").write_bytes(b"x")
    code, stderr = run("enhance", "--input_dir", folder, "--output_dir", tmp_path / "out", "--format", "webp")
    assert code == 1
    assert "rename one" in stderr
    assert not fake.requests
    assert not (tmp_path / "out").exists()


def test_output_folder_inside_the_input_is_skipped(folder, run, fake):
    out = folder / "enhanced"
    for _ in range(2):
        assert run("enhance", "--input_dir", folder, "--output_dir", out)[0] == 0
    assert len(fake.requests) == 3


def test_unwritable_output_is_a_failure(folder, run, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "garden").write_text("a file where a folder has to be")
    code, stderr = run("enhance", "--input_dir", folder, "--output_dir", out)
    assert code == 1
    assert "garden" in stderr
    assert "Traceback" not in stderr
    assert {"a.jpg", "b.PNG"} < set(read_files(out))


@pytest.mark.parametrize(("name", "format"), [("o.PNG", "png"), ("o.jfif", "jpeg"), ("o.tif", "tiff")])
def test_the_suffix_of_an_output_decides_its_format(folder, run, fake, tmp_path, name, format):
    assert run("enhance", folder / "a.jpg", tmp_path / name)[0] == 0
    assert fake.requests[-1].parameters["format"] == format


def test_input_and_output_as_flags(folder, run, tmp_path):
    assert run("enhance", "--input", folder / "a.jpg", "--output", tmp_path / "o.jpg")[0] == 0
    assert (tmp_path / "o.jpg").read_bytes() == b"a.jpg"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("enhance",), 2, "--input_dir and --output_dir"),
        (("enhance", "a.jpg"), 2, "--input_dir and --output_dir"),
        (("enhance", "--input_dir", "photos"), 2, "--input_dir and --output_dir"),
        (("enhance", "a.jpg", "b.jpg", "--input_dir", "x", "--output_dir", "y"), 2, "--input_dir and --output_dir"),
        (("enhance", "a.jpg", "b.jpg", "--format", "gif"), 2, "invalid choice: 'gif'"),
        (("enhance", "a.jpg", "b.jpg", "--timeout", "0"), 2, "--timeout"),
        (("enhance", "a.jpg", "b.jpg", "--timeout", "nan"), 2, "--timeout"),
        (("enhance", "a.jpg", "b.jpg", "--jobs", "0"), 2, "--jobs"),
        (("enhance", "absent.jpg", "b.jpg"), 1, "absent.jpg: No such file"),
        (("enhance", "--input_dir", "absent", "--output_dir", "out"), 1, "absent is not a folder"),
        (("enhance", "--input_dir", ".", "--output_dir", "out"), 1, "no photographs in ."),
        (("enhance", "--input_dir", ".", "--output_dir", "."), 1, "another output folder"),
        (("enhance", "--input_dir", ".", "--output_dir", "o", "--report", "no/r.csv"), 1, "does not exist"),
        (("enhance", "--input_dir", ".", "--output_dir", "o", "--report", "."), 1, "is a folder"),
        (("status", "--wait", "1e300"), 2, "86400"),
        (("enhance", "a.jpg", "b.jpg", "--tls-cert", "c.pem"), 1, "mutual TLS needs both"),
        (("enhance", "a.jpg", "b.jpg", "--tls-ca", "absent.pem"), 1, "absent.pem: No such file"),
        (("enhance", "a.jpg", "b.jpg", "--token-file", "absent"), 1, "absent: No such file"),
        (("enhance", "a.jpg", "b.xyz"), 1, ".avif"),
        (("enhance", "a.jpg", "b"), 1, ".avif"),
        (("enhance", "a.jpg", "b.jpg", "--format", "tiff"), 1, ".tif, .tiff"),
        (("enhance", ".", "b.jpg"), 1, "--input_dir"),
        (("nonsense",), 2, "invalid choice: 'nonsense'"),
    ],
)
def test_bad_input_prints_one_line_and_writes_nothing(run, tmp_path, monkeypatch, words, code, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jpg").write_bytes(b"x") if "a.jpg" in words else None
    before = sorted(tmp_path.iterdir())
    exit_code, stderr = run(*words)
    assert exit_code == code
    assert message in stderr
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("url", ["http://127.0.0.1:8001", "dead"])
def test_wrong_address_prints_one_line(folder, capsys, tmp_path, url):
    url = f"127.0.0.1:{free_port()}" if url == "dead" else url
    code = main(["enhance", str(folder / "a.jpg"), str(tmp_path / "o.jpg"), "--url", url, "--timeout", "2"])
    stderr = capsys.readouterr().err
    assert (code, stderr.count("\n")) == (1, 1)
    assert stderr.startswith("error: ")


def test_address_from_the_environment(fake, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("RESTORMER_URL", fake.url)
    assert main(["enhance", str(folder / "a.jpg"), str(tmp_path / "o.jpg")]) == 0
    monkeypatch.setenv("RESTORMER_URL", "")  # as compose passes a variable that is not set
    assert cli._build_parser().parse_args(["status"]).url == "127.0.0.1:8001"


def test_token_file_is_sent(fake, folder, tmp_path, run):
    (tmp_path / "token").write_text("secret\n")
    assert run("enhance", folder / "a.jpg", tmp_path / "o.jpg", "--token-file", tmp_path / "token")[0] == 0
    assert fake.requests[0].headers["authorization"] == "Bearer secret"


def test_status(fake, run, capsys):
    assert main(["status", "--url", fake.url, "--wait", "5"]) == 0
    assert "enhances (Triton 0.0.0 (fake)" in capsys.readouterr().out
    assert [request.priority for request in fake.requests] == [1]
    fake.missing = {"enhance", "restormer"}
    code, stderr = run("status", "--wait", "3")
    assert code == 1
    assert "'restormer'" in stderr


def test_interrupt_leaves_only_complete_files(fake, folder, tmp_path, client_command):
    """Completed outputs stay and no partial file is left."""
    release = threading.Event()
    fake.answers.extend([b"done", lambda request: release.wait(60) or b"", lambda request: release.wait(60) or b""])
    out = tmp_path / "out"
    command = [*client_command, "enhance", "--input_dir", folder, "--output_dir", out, "--url", fake.url]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not list(out.glob("[!.]*")):  # hidden files are still being written
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    stderr = process.communicate(timeout=60)[1]
    release.set()
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert stderr.rstrip().endswith("interrupted")
    assert list(read_files(out).values()) == [b"done"]


def test_failure_keeps_the_old_output(fake, folder, tmp_path, run):
    (tmp_path / "o.jpg").write_bytes(b"old")
    fake.answers.append(DeadlineExceeded)
    assert run("enhance", folder / "a.jpg", tmp_path / "o.jpg", "--timeout", "1")[0] == 1
    assert read_files(tmp_path)["o.jpg"] == b"old"


def test_suffixes_are_the_servers():
    assert set(files.SUFFIXES) == set(imaging.SUFFIXES)


def test_formats_are_the_servers():
    assert get_args(calls.Format) == tuple(OUTPUTS)
    assert {suffix: files.format_from_name(Path(f"a{suffix}"), None) for suffix in WRITTEN} == WRITTEN
    assert {files.output_path(Path("a.jpg"), name).suffix: name for name in OUTPUTS}.items() <= WRITTEN.items()


def test_help_shows_examples(capsys):
    for words in (["--help"], ["enhance", "--help"]):
        with pytest.raises(SystemExit):
            main(words)
        text = capsys.readouterr().out
        assert "--input_dir photos --output_dir out --jobs 8" in text
