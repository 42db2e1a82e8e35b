"""Evaluation on pairs: every figure is recomputed with Pillow, NumPy and scikit-image alone."""

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from restormer_client import Enhancer
from skimage.metrics import structural_similarity

from export.__main__ import main
from export.context import BuildContext
from export.fingerprint import fingerprint
from export.precision import PRECISIONS
from export.targets import TARGETS
from tests.conftest import ROOT, bare_repository
from tests.export.conftest import save_package
from tests.export.test_build import request_for
from tests.photographs import encode_image, make_exif, pixels

KEYS = [("input", "target"), ("src", "tar"), ("source", "target"), ("input", "gt")]
COLUMNS = ("l1", "psnr", "ssim_windowed", "ssim_global")


@pytest.fixture(scope="module")
def ten(tmp_path_factory) -> Path:
    """Ten crops of the demo's pairs, with all spellings of the keys; one is rotated by EXIF, one differs in shape."""
    folder = tmp_path_factory.mktemp("pairs")
    lines = []
    for number, path in enumerate(sorted((ROOT / "demo/photos").glob("*.jpg")) * 2):
        names = []
        for kind in ("photos", "targets"):
            with Image.open(ROOT / "demo" / kind / path.name) as image:
                image.thumbnail((400, 400))
                cut = image.crop((10 * number, 0, 200 + 10 * number, 180 + 10 * number))
            name = f"{number}_{kind}.{'png' if number % 2 else 'jpg'}"
            cut = cut.resize((150, 120)) if (number, kind) == (3, "targets") else cut
            cut.save(folder / name, exif=make_exif(6) if number == 4 else b"")
            names.append(name)
        lines.append(json.dumps(dict(zip(KEYS[number % 4], names, strict=True))))
    (folder / "test.jsonl").write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    return folder / "test.jsonl"


def run(capsys, *flags) -> tuple[dict, list[dict]]:
    """Return the summary that is printed last, and the rows of the CSV."""
    assert main(["evaluate", *map(str, flags)]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = list(csv.DictReader(Path(summary["output"], "images.csv").read_text(encoding="utf-8").splitlines()))
    document = json.loads(Path(summary["output"], "evaluation.json").read_text(encoding="utf-8"))
    images = document.pop("images")
    assert document == summary
    assert [[str(value) for value in image.values()] for image in images] == [list(row.values()) for row in rows]
    return summary, rows


def square(path):
    return np.asarray(Image.open(path).convert("RGB").resize((512, 512), Image.Resampling.BILINEAR))


def recomputed(output, target):
    """Compute the four figures from the owner's equations; ``output`` in [0, 1], ``target`` 8 bits."""
    p, t = np.asarray(output, np.float64), np.asarray(target, np.float64) / 255
    mse = np.mean((p - t) ** 2)
    m_p, m_t, s_p, s_t = np.mean(p), np.mean(t), np.std(p, ddof=1), np.std(t, ddof=1)
    c, c_1, c_2 = np.mean((p - m_p) * (t - m_t)), 0.01**2, 0.03**2
    eight_bits = (p * 255).round().astype(np.uint8)
    return {
        "l1": np.mean(np.abs(p - t)),
        "psnr": 20 * np.log10(1 / np.sqrt(mse)),
        "ssim_windowed": structural_similarity(target, eight_bits, channel_axis=2, data_range=255),
        "ssim_global": (2 * m_p * m_t + c_1) * (2 * c + c_2) / ((m_p**2 + m_t**2 + c_1) * (s_p**2 + s_t**2 + c_2)),
    }


def require_equal(summary, stage, rows, expected):
    """Compare every figure of every image, mean and deviation."""
    for column in COLUMNS:
        values = [figures[column] for figures in expected]
        assert [float(row[column]) for row in rows if row["stage"] == stage] == pytest.approx(values, abs=1e-6)
        assert summary["stages"][stage][column]["mean"] == pytest.approx(np.mean(values), abs=1e-6)
        assert summary["stages"][stage][column]["deviation"] == pytest.approx(np.std(values), abs=1e-6)


def test_ten_pairs_recomputed(tiny, ten, tmp_path, capsys, monkeypatch):
    """A curve replaces the network, with outputs above 1: the code around the network is tested."""
    monkeypatch.setattr("export.evaluate.torch_runner", lambda network: lambda image: np.float32(1.3) * image)
    package = shutil.copytree(tiny["package"], tmp_path / "package")
    entries = [list(json.loads(line).values()) for line in ten.read_text(encoding="utf-8").splitlines() if line]
    expected = []
    for name, target in entries:
        output = np.minimum(np.float32(1.3) * (square(ten.parent / name) / np.float32(255)), 1)
        expected.append(recomputed(output, square(ten.parent / target)))
    l1, psnr = (np.array([figures[column] for figures in expected]) for column in ("l1", "psnr"))
    (package / "MANIFEST.txt").write_text(
        f"L1={l1.mean():.4f} ± {l1.std():.4f}, PSNR={psnr.mean() + 0.02:.2f} ± {psnr.std():.2f} dB", encoding="utf-8"
    )
    repository = bare_repository(tmp_path / "models")
    flags = ("--package", package, "--pairs", ten, "--repository", repository, "--output", tmp_path / "out")
    summary, rows = run(capsys, *flags)
    require_equal(summary, "PyTorch float32", rows, expected)
    assert summary["remarks"][0] == "only PyTorch is measured, no version: no engine is published"
    assert summary["agrees"] == {"test": {"PyTorch float32": {"l1": True, "psnr": False}}}
    assert any("1 pairs" in remark and "3_photos.png" in remark for remark in summary["remarks"])
    worst = int(np.argmin(psnr))
    assert summary["worst"].startswith(entries[worst][0])
    with Image.open(tmp_path / "out/worst.png") as picture:
        shown = np.asarray(picture)
    assert shown.shape == (512, 4 * 512, 3)
    assert np.array_equal(shown[:, :512], square(ten.parent / entries[worst][0]))
    assert np.array_equal(shown[:, 1024:1536], square(ten.parent / entries[worst][1]))


def test_a_published_version_and_enhance_behind_triton(tiny, triton, repository, ten, tmp_path, capsys):
    """The session's server, with the demo's engine: the same figures from calls of the client."""
    (tmp_path / "small.png").write_bytes(
        encode_image(pixels(8, 8), "PNG")
    )  # the network accepts it, `enhance` rejects it
    names = ["3_photos.png", "4_photos.jpg", str(tmp_path / "small.png")]
    lines = [json.dumps({"input": name, "gt": name.replace("photos", "targets")}) for name in names]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    flags = ["--package", tiny["package"], "--pairs", tmp_path / "pairs.jsonl", "--data", ten.parent, "--versions", 1]
    flags += ["--repository", repository, "--url", triton.url, "--output", tmp_path / "out"]
    summary, rows = run(capsys, *flags)
    assert list(summary["stages"]) == ["PyTorch float32", "version 1 (fp32)", "enhance (version 1)"]
    expected = []
    with Enhancer(triton.url) as enhancer:
        for name in names[:2]:
            data = enhancer.enhance((ten.parent / name).read_bytes())
            ours = ImageOps.exif_transpose(Image.open(io.BytesIO(data)).convert("RGB"))
            target = ImageOps.exif_transpose(Image.open(ten.parent / name.replace("photos", "targets")).convert("RGB"))
            target = target.resize(ours.size, Image.Resampling.BILINEAR)
            expected.append(recomputed(np.asarray(ours) / 255, np.asarray(target)))
    require_equal(summary, "enhance (version 1)", rows, expected)
    marked = [(row["size"], row["target_resized"]) for row in rows if row["stage"].startswith("enhance")]
    with Image.open(ten.parent / names[1]) as turned:
        assert marked == [(marked[0][0], "True"), (f"{turned.height}x{turned.width}", "False")]
    served = [float(row["psnr"]) for row in rows if row["stage"].startswith("version")]
    assert served[:2] != [float(row["psnr"]) for row in rows if row["stage"].startswith("PyTorch")][:2]
    assert [remark.split(":")[0] for remark in summary["remarks"][-1:]] == [f"enhance rejects {names[2]}"]
    assert any("another checkpoint" in remark for remark in summary["remarks"])


def test_pairs_as_ground_truth_of_a_build(tiny, ten, tmp_path, capsys):
    """A build measures the same against the pairs as the evaluation; other pairs change the fingerprint."""
    two = ten.read_text(encoding="utf-8").splitlines()[2:4]  # one of them differs in shape
    pairs = tmp_path / "two.jsonl"
    pairs.write_text("\n".join(two), encoding="utf-8")
    repository = bare_repository(tmp_path / "models")
    request = request_for(repository, **{**tiny, "photos": Path("nowhere")}, pairs=pairs, data=ten.parent)
    distance = BuildContext(request, PRECISIONS["fp32"]).reference.ground_truth_distance()
    flags = ("--pairs", pairs, "--data", ten.parent, "--repository", repository, "--output", tmp_path / "out")
    summary, _ = run(capsys, "--package", tiny["package"], *flags)
    figures = summary["stages"]["PyTorch float32"]
    assert (distance.l1, distance.psnr) == pytest.approx((figures["l1"]["mean"], figures["psnr"]["mean"]), abs=1e-5)
    before = fingerprint(request, TARGETS["cpu"])
    pairs.write_text("\n".join(reversed(two)), encoding="utf-8")
    after = fingerprint(request, TARGETS["cpu"])
    assert {name for name in before if before[name] != after[name]} == {"photographs", "targets"}


@pytest.mark.parametrize(
    ("text", "keywords"),
    [
        ('{"input": "a.png", "target": "a.png"}\n\n{"input": ', ["line 3", "not JSON"]),
        ('["a.png", "a.png"]', ["line 1", "object"]),
        ("[" * 100_000, ["line 1", "not JSON"]),
        ('{"input": "a.png", "output": "a.png"}', ["line 1", "target/tar/gt", "input, output"]),
        ('{"input": 3, "target": "a.png"}', ["line 1", "input/src/source"]),
        ("\n \n", ["no pairs"]),
        (b"\xff\xfe\x00\xd8", ["cannot be read"]),
        ('{"input": "a.png", "target": "letter.png"}', ["letter.png", "cannot be read as an image"]),
        (None, ["pairs.jsonl", "No such file"]),
    ],
)
def test_invalid_pairs_print_one_error_line(tiny, tmp_path, capsys, text, keywords):
    (tmp_path / "a.png").write_bytes(encode_image(pixels(), "PNG"))
    (tmp_path / "letter.png").write_bytes(b"a letter")
    if text is not None:
        (tmp_path / "pairs.jsonl").write_bytes(text if isinstance(text, bytes) else text.encode())
    require_one_line(tmp_path, capsys, ["--package", tiny["package"]], keywords)


def require_one_line(tmp_path, capsys, flags, keywords):
    given = ["--pairs", tmp_path / "pairs.jsonl", "--output", tmp_path / "out", *flags]
    assert main(["evaluate", *map(str, given)]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert [keyword for keyword in keywords if keyword not in errors[0]] == []
    assert not (tmp_path / "out").exists()


def test_missing_files_are_listed_up_to_ten(tiny, tmp_path, capsys):
    lines = [json.dumps({"input": f"a/../missing-{n}.png", "target": f"missing-{n}.png"}) for n in range(12)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    keywords = ["24 files", *(f"{tmp_path}/missing-{n}.png" for n in range(5)), "14 more"]
    require_one_line(tmp_path, capsys, ["--package", tiny["package"]], keywords)


@pytest.mark.parametrize(
    ("flags", "keywords"),
    [
        (["--package", "server"], ["model_checkpoint.pt"]),
        (["--versions", "7"], ["version 7", "published: 1"]),
        (["--url", "127.0.0.1:1"], ["127.0.0.1:1"]),
        (["--server-python", "nowhere/bin/python"], ["nowhere/bin/python", "make setup"]),
        (["--output", "README.md/evaluate"], ["--output README.md/evaluate is not a folder"]),
    ],
)
def test_other_invalid_requests_print_one_error_line(tiny, repository, tmp_path, capsys, flags, keywords):
    (tmp_path / "a.png").write_bytes(encode_image(pixels(), "PNG"))
    (tmp_path / "pairs.jsonl").write_text('{"input": "a.png", "target": "a.png"}', encoding="utf-8")
    require_one_line(tmp_path, capsys, ["--package", tiny["package"], "--repository", repository, *flags], keywords)


def test_a_version_that_the_running_server_does_not_serve(tiny, triton, repository, tmp_path, capsys):
    both = shutil.copytree(repository, tmp_path / "models", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(both / "restormer/1", both / "restormer/2")
    (tmp_path / "a.png").write_bytes(encode_image(pixels(), "PNG"))
    (tmp_path / "pairs.jsonl").write_text('{"input": "a.png", "target": "a.png"}', encoding="utf-8")
    flags = ["--package", tiny["package"], "--repository", both, "--url", triton.url]
    require_one_line(tmp_path, capsys, flags, ["version 2"])


def test_an_output_that_is_not_finite_writes_nothing(tiny_network, tmp_path, capsys):
    network = type(tiny_network)(tiny_network.architecture)
    with torch.no_grad():
        next(network.parameters()).fill_(3e38)
    (tmp_path / "a.png").write_bytes(encode_image(pixels(), "PNG"))
    (tmp_path / "pairs.jsonl").write_text('{"input": "a.png", "target": "a.png"}', encoding="utf-8")
    flags = ["--package", save_package(tmp_path / "package", network), "--repository", bare_repository(tmp_path / "r")]
    require_one_line(tmp_path, capsys, flags, ["NaN or infinity"])
