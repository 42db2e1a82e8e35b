"""The reference path without a server: files in, files out, one bad photograph does not stop the rest."""

import pytest

from export.__main__ import main
from tests.photographs import encoded, opened, pixels

PACKAGE = ["--package", "demo/package"]


def test_a_folder_with_a_bad_photograph_in_it(tiny, tmp_path, capsys):
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    (photos / "a.jpg").write_bytes(encoded(pixels(60, 80)))
    (photos / "b.png").write_bytes(b"a letter")
    (photos / "notes.txt").write_text("not a photograph, and not asked for")
    flags = ["--input_dir", str(photos), "--output_dir", str(out), "--precision", "bf16"]
    assert main(["enhance", "--package", str(tiny["package"]), *flags]) == 1
    assert [path.name for path in out.iterdir()] == ["a.jpg"]
    assert opened((out / "a.jpg").read_bytes()).size == (80, 60)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "b.png" in errors[0]


def test_one_photograph(tmp_path):
    (tmp_path / "in.png").write_bytes(encoded(pixels(48, 64), "PNG"))
    given = ["--input", str(tmp_path / "in.png"), "--output", str(tmp_path / "out.png")]
    assert main(["enhance", *PACKAGE, *given]) == 0
    assert opened((tmp_path / "out.png").read_bytes()).size == (64, 48)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give --input and --output, or"),
        (["--input", "a.jpg"], "give --input and --output, or"),
        (["--input", "a", "--output", "b", "--input_dir", "c", "--output_dir", "d"], "give --input and --output, or"),
        (["--input_dir", "server", "--output_dir", "TMP"], "no photographs in server"),
        (["--input", "demo/photos/brook.jpg", "--output", "TMP/o.jpg", "--precision", "int4"], "--precision int4"),
        (
            ["--input", "demo/photos/brook.jpg", "--output", "TMP/o.jpg", "--device", "cuda:99"],
            "--device cuda:99 cannot be",
        ),
    ],
)
def test_wrong_requests_end_in_one_line(tmp_path, capsys, flags, message):
    code = main(["enhance", *PACKAGE, *(flag.replace("TMP", str(tmp_path)) for flag in flags)])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert (code, len(errors)) == (1, 1)
    assert message in errors[0]
    assert list(tmp_path.iterdir()) == []
