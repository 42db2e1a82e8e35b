"""The demo: an honest package, a camera that obeys its rules, a page in one file."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from demo import camera, pairs
from demo.page import Shown, page
from demo.table import RESULTS
from export.package import package_from_folder
from tests.conftest import ROOT, SERVER_PYTHON
from tests.photographs import encoded, opened, pixels

PACKAGE = ROOT / "demo/package"


def test_the_package_is_what_a_training_run_leaves():
    package = package_from_folder(PACKAGE)
    assert package.remarks == ()  # its JSON files and its manifest agree with its tensors
    assert {"epoch", "val_l1", "val_psnr", "val_ssim"} <= set(package.training_info)
    checkpoint = torch.load(PACKAGE / "model_checkpoint.pt", weights_only=True)
    assert checkpoint["optimizer_state_dict"]["state"]
    assert checkpoint["scheduler_state_dict"]
    assert checkpoint["metrics"]["val_psnr"] == package.training_info["val_psnr"]
    assert sum(path.stat().st_size for path in PACKAGE.iterdir()) < 10_000_000


def folds():
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob("fold_*.json"))]


def test_every_interior_was_held_out_once():
    assert sorted(fold["held_out"][0] for fold in folds()) == sorted(pairs.INTERIORS)


def test_the_network_beats_the_input_and_the_global_curve_on_scenes_it_never_saw():
    gains = {name: np.mean([f["network"]["psnr"] - f[name]["psnr"] for f in folds()]) for name in ("input", "curve")}
    print(gains)
    assert gains["input"] >= 3
    assert gains["curve"] >= 1


unit_images = arrays(np.float32, (4, 5, 3), elements=st.floats(0, 1, width=32))


@given(unit_images)
def test_rendering_and_back(image):
    assert np.allclose(camera.linear_from_rendered(camera.rendered(image)), image, atol=1e-5)


@given(arrays(np.float32, (8, 8, 3), elements=st.floats(2**-10, 2**10, width=32)))
def test_auto_exposure_keeps_the_room_dark_but_not_black(radiance):
    luminance = radiance @ camera.LUMINANCE * camera.auto_exposure(radiance)
    log_average = np.exp(np.log(luminance).mean())
    assert 0.049 <= log_average <= 0.141


def test_a_view_looks_where_it_is_told():
    """A panorama with one bright direction: the view towards it has it in the middle, the view away has it nowhere."""
    panorama = np.full((64, 128, 3), 0.1, np.float32)
    panorama[31:33, 95:97] = 50  # a quarter turn to the right, on the horizon
    towards = camera.view(panorama, yaw=90, pitch=0, field_of_view=90, size=(33, 33))[..., 0]
    away = camera.view(panorama, yaw=-90, pitch=0, field_of_view=90, size=(33, 33))[..., 0]
    assert np.unravel_index(towards.argmax(), towards.shape) == (16, 16)
    assert away.max() == pytest.approx(0.1, rel=1e-3)


def test_the_curve_is_the_best_cubic():
    rng = np.random.default_rng(0)
    image = rng.random((32, 32, 3), np.float32)
    curve = np.array([[0.2, -0.3, 0.8, 0.1], [0, 0, 0.5, 0.2], [0.1, 0.1, 0.1, 0.1]])
    target = pairs.curve_applied(curve, image)
    assert np.allclose(pairs.fitted_curve([(image, target)]), curve, atol=1e-4)


def test_the_page_is_one_file_with_a_slider_a_photograph():
    shown = [
        Shown(
            name=name, before=encoded(pixels()), after=encoded(pixels(seed=1)), pixels="320x240", credit="", seconds=1.0
        )
        for name in ("one", "<two>")
    ]
    document = page(shown, subtitle="here & now")
    assert document.count('type="range"') == 2
    assert not re.search(r'(src|href)="(?!data:)', document)
    assert "http" not in document
    assert "<two>" not in document
    assert "&lt;two&gt;" in document


def test_the_demo_runs_on_a_running_server_and_leaves_it_running(triton, tmp_path):
    command = [
        sys.executable,
        "-m",
        "demo.run",
        "--server-python",
        str(SERVER_PYTHON),
        "--output",
        str(tmp_path / "out"),
    ]
    command += ["--grpc-port", str(triton.grpc_port), "--metrics-port", str(triton.metrics_port)]
    command += ["--repository", str(triton.repository), "--state", str(triton.state)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout.splitlines()[-1])
    assert set(figures) == {
        "photos", "seconds", "psnr_in", "psnr_curve", "psnr_out", "precision", "server",
    }  # fmt: skip
    names = sorted(path.stem for path in (ROOT / "demo/photos").glob("*.jpg"))
    assert figures["photos"] == len(names) >= 4
    assert figures["psnr_out"] > figures["psnr_in"] + 1
    assert (tmp_path / "out/index.html").read_text(encoding="utf-8").count('type="range"') == len(names)
    for name in names:
        both = opened((tmp_path / f"out/{name}-before-after.jpg").read_bytes())
        one = opened((tmp_path / f"out/{name}.jpg").read_bytes())
        assert both.height == one.height
        assert both.width > 2 * one.width
    assert subprocess.run(triton.command("status"), cwd=ROOT, capture_output=True, check=False).returncode == 0


def test_two_photographs_or_more_have_six_megapixels():
    sizes = [opened(path.read_bytes()).size for path in (ROOT / "demo/photos").glob("*.jpg")]
    assert sum(width * height >= 6_000_000 for width, height in sizes) >= 2


def test_every_photograph_has_its_credit():
    credits = json.loads((ROOT / "demo/CREDITS.json").read_text(encoding="utf-8"))
    assert set(credits) == {path.name for path in (ROOT / "demo/photos").glob("*")}
