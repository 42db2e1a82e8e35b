"""Enhancing files without a server: one invalid photograph does not stop the rest."""

import re
import shutil

import numpy as np
import pytest

from export.__main__ import main
from tests.photographs import HEIC, encode_image, open_image, pixels

PACKAGE = ["--package", "demo/package"]


def test_a_folder_with_a_bad_photograph_in_it(tiny, tmp_path, capsys):
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    (photos / "a.jpg").write_bytes(encode_image(pixels(60, 80)))
    (photos / "b.png").write_bytes(b"a letter")
    (photos / "notes.txt").write_text("not a photograph, and not asked for")
    flags = ["--input_dir", str(photos), "--output_dir", str(out), "--precision", "bf16"]
    assert main(["enhance", "--package", str(tiny["package"]), *flags]) == 1
    assert [path.name for path in out.iterdir()] == ["a.jpg"]
    assert open_image((out / "a.jpg").read_bytes()).size == (80, 60)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "b.png" in errors[0]


def test_a_folder_in_place_of_a_photograph(tmp_path, capsys):
    assert main(["enhance", *PACKAGE, "--input", str(tmp_path), "--output", str(tmp_path / "out.png")]) == 1
    assert "--input_dir" in capsys.readouterr().err


def test_one_photograph(tmp_path):
    (tmp_path / "in.png").write_bytes(encode_image(pixels(48, 64), "PNG"))
    given = ["--input", str(tmp_path / "in.png"), "--output", str(tmp_path / "out.png")]
    assert main(["enhance", *PACKAGE, *given]) == 0
    assert open_image((tmp_path / "out.png").read_bytes()).size == (64, 48)


def test_remarks_on_the_package_are_printed(tiny, tmp_path, capsys):
    package = shutil.copytree(tiny["package"], tmp_path / "package")
    (package / "architecture.json").write_text('{"dim": 48}')
    (tmp_path / "in.png").write_bytes(encode_image(pixels(48, 64), "PNG"))
    files = ["--input", str(tmp_path / "in.png"), "--output", str(tmp_path / "out.png")]
    assert main(["enhance", "--package", str(package), *files]) == 0
    assert "remark: architecture.json says dim = 48" in capsys.readouterr().err


def test_a_checkpoint_works_like_the_owners_script(tiny, tmp_path, capsys):
    """The script's flags, names and formats; 512 pixels, not stretched; the same as with the package."""
    checkpoint = tmp_path / "weights.pt"
    checkpoint.write_bytes((tiny["package"] / "model_checkpoint.pt").read_bytes())
    photos, out, one = tmp_path / "photos", tmp_path / "out", tmp_path / "one.png"
    photos.mkdir()
    (photos / "a.TIFF").write_bytes(encode_image(pixels(48, 64), "TIFF"))
    (photos / "b.bmp").write_bytes(encode_image(pixels(48, 64), "BMP"))
    (photos / "c.heic").write_bytes(HEIC.read_bytes())
    (photos / "d.nef").write_bytes(b"raw")
    asked = ["--device", "cpu", "--size", "512"]
    files = ["--input_dir", str(photos), "--output_dir", str(out), "--suffix", "_hdr"]
    assert main(["enhance", "--checkpoint", str(checkpoint), *asked, *files]) == 0
    assert "1 skipped" in capsys.readouterr().err
    made = {path.name: open_image(path.read_bytes()) for path in out.iterdir()}
    assert {name: (image.format, image.size) for name, image in made.items()} == {
        "a_hdr.TIFF": ("TIFF", (512, 384)),
        "b_hdr.bmp": ("BMP", (512, 384)),
        "c_hdr.jpg": ("JPEG", (384, 512)),
    }
    files = ["--input", str(photos / "b.bmp"), "--output", str(one)]
    assert main(["enhance", "--package", str(tiny["package"]), *asked, *files]) == 0
    assert open_image(one.read_bytes()).format == "PNG"  # from its name
    assert np.array_equal(open_image(one.read_bytes()), made["b_hdr.bmp"])


def test_photographs_and_other_results_are_not_overwritten(tmp_path, capsys):
    for name in ("a.jpg", "a.heic"):
        (tmp_path / name).write_bytes(name.encode())
    wishes = [["--input", "a.jpg", "--output", "a.jpg"]]
    wishes += [["--input_dir", ".", "--output_dir", folder] for folder in (".", "out")]
    for files in wishes:
        given = [part if part.startswith("--") else str(tmp_path / part) for part in files]
        assert main(["enhance", *PACKAGE, *given]) == 1
        assert "would overwrite" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.jpg": b"a.jpg", "a.heic": b"a.heic"}


@pytest.mark.parametrize("models", [[], [*PACKAGE, "--checkpoint", "demo/package/model_checkpoint.pt"]])
def test_either_a_package_or_a_checkpoint_is_required(models, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["enhance", *models, "--input", "in.jpg", "--output", "out.jpg"])
    assert ended.value.code == 2
    assert re.fullmatch("error: .*--checkpoint.*\n", capsys.readouterr().err)


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
        (["--input", "demo/photos/brook.jpg", "--output", "TMP/o.heic"], "end its name in one of .jpg"),
        (["--input", "demo/photos/brook.jpg", "--output", "TMP/o.jpg", "--suffix", "_hdr"], "--suffix goes with"),
        (["--input_dir", "demo/photos", "--output_dir", "TMP", "--suffix", "/hdr"], "--suffix /hdr"),
    ],
)
def test_invalid_requests_print_one_error_line(tmp_path, capsys, flags, message):
    code = main(["enhance", *PACKAGE, *(flag.replace("TMP", str(tmp_path)) for flag in flags)])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert (code, len(errors)) == (1, 1)
    assert message in errors[0]
    assert list(tmp_path.iterdir()) == []
