"""The demo: its package, its training, the simulated camera, `make demo` and its page."""

import json
import os
import re
import subprocess
import sys
from argparse import Namespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from demo import camera, train
from demo.curve import apply_curve, fit_curve
from demo.page import PagePhotograph, page_html
from demo.pairs import ASPECTS, HELD_OUT, TEST_KINDS, render_training_pairs
from demo.table import gains
from export.package.model_package import package_from_folder
from export.package.naming import OWNER
from tests.conftest import ROOT, SERVER_PYTHON, free_port
from tests.export.conftest import TINY
from tests.photographs import encode_image, make_exif, open_image, pixels

PACKAGE = ROOT / "demo/package"


def test_the_package_has_the_owners_format():
    package = package_from_folder(PACKAGE)
    assert package.convention is OWNER
    assert package.remarks == ()  # its JSON files and manifest agree with its tensors
    assert package.parameters <= 800_000
    checkpoint = torch.load(PACKAGE / "model_checkpoint.pt", weights_only=True)
    assert set(checkpoint) == {
        "epoch", "model_state_dict", "optimizer_state_dict", "scheduler_state_dict", "val_loss", "val_l1", "args",
        "history",
    }  # fmt: skip
    moments = checkpoint["optimizer_state_dict"]["state"].values()
    assert sum(m["exp_avg"].numel() for m in moments) == sum(m["exp_avg_sq"].numel() for m in moments)
    assert sum(m["exp_avg"].numel() for m in moments) == package.parameters
    assert {type(value) for value in checkpoint["args"].values()} <= {str, int, float, bool, type(None)}
    assert checkpoint["val_l1"] == package.training_info["val_l1"]
    assert package.training_info["val_psnr"] == 0  # a placeholder, as in the owner's packages
    assert sum(path.stat().st_size for path in PACKAGE.iterdir()) < 10_000_000


@pytest.mark.parametrize("kind", TEST_KINDS)
def test_the_network_beats_the_input_and_the_curve_on_held_out_scenes(kind):
    scenes = json.loads((ROOT / "demo/results/shipped.json").read_text(encoding="utf-8"))[kind]
    assert set(scenes) == set(HELD_OUT)
    assert min(gains(scenes, "input").values()) >= 6
    assert min(gains(scenes, "curve").values()) >= 3


def test_views_are_stretched_to_squares_with_antialiasing():
    """Stripes of one pixel become grey, and the aspect ratio is not kept."""
    stripes = np.zeros((32, 64, 3), np.float32)
    stripes[:, ::2] = 1
    stripes[16:] = 1
    square = camera.stretch(stripes, 32)
    assert square.shape == (32, 32, 3)
    assert np.allclose(square[:15, 2:-2], 0.5, atol=0.1)
    assert np.all(square[17:] == 1)


def test_training_views_are_squares_of_views_with_different_aspects():
    panorama = np.random.default_rng(0).random((64, 128, 3), np.float32)
    with pytest.MonkeyPatch.context() as patched:
        sizes = []
        view = camera.render_view
        patched.setattr(
            camera, "render_view", lambda *args, size, **more: sizes.append(size) or view(*args, size=size, **more)
        )
        views = list(render_training_pairs(panorama, 40, 24, np.random.default_rng(0)))
    assert {image.shape for pair in views for image in pair} == {(24, 24, 3)}
    assert {min(size) for size in sizes} == {24}  # stretching never enlarges
    assert len(set(sizes)) == len(ASPECTS)


def test_a_training_with_the_same_seed_gives_the_same_weights(monkeypatch):
    monkeypatch.setattr(train, "STEPS_AN_EPOCH", 2)
    monkeypatch.setattr(train, "VIEWS", ((16, 2, 2, 0.5), (24, 2, 1, 0.5)))
    monkeypatch.setattr(train, "ARCHITECTURE", TINY)
    scenes = {"one": np.random.default_rng(0).random((32, 64, 3), np.float32)}
    validation = list(render_training_pairs(scenes["one"], 1, 16, np.random.default_rng(0)))
    options = Namespace(epochs=2, seed=0, learning_rate=1e-3)
    first, second = (train.train(scenes, validation, options) for _ in range(2))
    assert [each["epoch"] for each in first["history"]] == [1, 2]
    for name, tensor in first["model_state_dict"].items():
        torch.testing.assert_close(second["model_state_dict"][name], tensor)


unit_images = arrays(np.float32, (4, 5, 3), elements=st.floats(0, 1, width=32))


@given(unit_images)
def test_srgb_encoding_is_inverted(image):
    assert np.allclose(camera.linear_from_srgb(camera.srgb_from_linear(image)), image, atol=1e-5)


@given(arrays(np.float32, (8, 8, 3), elements=st.floats(2**-10, 2**10, width=32)))
def test_auto_exposure_keeps_the_room_dark_but_not_black(radiance):
    luminance = radiance @ camera.LUMINANCE * camera.auto_exposure_gain(radiance)
    log_average = np.exp(np.log(luminance).mean())
    assert 0.049 <= log_average <= 0.141


def test_a_view_shows_its_direction():
    """The view towards the one bright spot of a panorama has it in the centre, the opposite view does not show it."""
    panorama = np.full((64, 128, 3), 0.1, np.float32)
    panorama[31:33, 95:97] = 50  # a quarter turn to the right, on the horizon
    towards = camera.render_view(panorama, yaw=90, pitch=0, field_of_view=90, size=(33, 33))[..., 0]
    away = camera.render_view(panorama, yaw=-90, pitch=0, field_of_view=90, size=(33, 33))[..., 0]
    assert np.unravel_index(towards.argmax(), towards.shape) == (16, 16)
    assert away.max() == pytest.approx(0.1, rel=1e-3)


def test_the_fitted_curve_is_the_known_cubic():
    rng = np.random.default_rng(0)
    image = rng.random((32, 32, 3), np.float32)
    curve = np.array([[0.2, -0.3, 0.8, 0.1], [0, 0, 0.5, 0.2], [0.1, 0.1, 0.1, 0.1]])
    target = apply_curve(curve, image)
    assert np.allclose(fit_curve([(image, target)]), curve, atol=1e-4)


def test_the_page_is_one_file_with_a_slider_for_each_photograph():
    shown = [
        PagePhotograph(
            name=name,
            before=encode_image(pixels()),
            after=encode_image(pixels(seed=1)),
            pixels="320x240",
            credit="",
            seconds=1.0,
            psnr={},
        )
        for name in ("one", "<two>")
    ]
    document = page_html(shown, subtitle="here & now")
    assert document.count('type="range"') == 2
    assert not re.search(r'(src|href)="(?!data:)', document)
    assert "http" not in document
    assert "<two>" not in document
    assert "&lt;two&gt;" in document


def make(*arguments, triton, **settings):
    """Run ``make`` on the session's repository."""
    settings = {"REPOSITORY": triton.repository, **settings}
    return subprocess.run(
        ["make", *arguments, *(f"{name}={value}" for name, value in settings.items())],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip


def check_demo(done, output, precision="fp32"):
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert set(figures) == {
        "photos", "seconds", "psnr_in", "psnr_curve", "psnr_out", "precision", "server", "test", "claimed",
    }  # fmt: skip
    torch_figures, *served = figures["test"].values()
    assert f"{torch_figures['l1']:.4f}" == figures["claimed"]["l1"].split(" ± ")[0]  # the package's own MANIFEST.txt
    assert f"{torch_figures['psnr']:.2f}" == figures["claimed"]["psnr"].split(" ± ")[0]
    assert len(served) == 2  # the network, and the ensemble enhance
    assert served[0]["psnr"] == pytest.approx(torch_figures["psnr"], abs=0.05)
    names = sorted(path.stem for path in (ROOT / "demo/photos").glob("*.jpg"))
    assert figures["photos"] == len(names) >= 4
    assert figures["psnr_out"] > figures["psnr_curve"] > figures["psnr_in"]
    assert figures["precision"] == precision
    assert (output / "index.html").read_text(encoding="utf-8").count('type="range"') == len(names)
    for name in names:
        both = open_image((output / f"{name}-before-after.jpg").read_bytes())
        one = open_image((output / f"{name}.jpg").read_bytes())
        assert both.height == one.height
        assert both.width > 2 * one.width


def test_make_demo_starts_and_stops_its_own_server(triton, tmp_path, gpu_host, monkeypatch):
    """With environments and engine in place, on a host with a GPU."""
    monkeypatch.setenv("RESTORMER_HARDWARE", "h100")
    settings = {
        "STATE": tmp_path / "state", "OUTPUT": tmp_path / "out", "GRPC_PORT": free_port(), "METRICS_PORT": free_port(),
    }  # fmt: skip
    done = make("demo", triton=triton, **settings)
    check_demo(done, tmp_path / "out")
    assert "up to date" in done.stderr
    assert "Triton stopped" in done.stderr
    assert not (tmp_path / "state/server.json").exists()


def test_make_demo_uses_a_running_server_and_leaves_it_running(triton, tmp_path):
    """The server's own record counts, not the port of the flags."""
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "sideways.JPG").write_bytes(encode_image(pixels(60, 90), exif=make_exif(6)))
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"src": "photos/sideways.JPG", "tar": "photos/sideways.JPG"}))
    command = [sys.executable, "-m", "demo.run", "--server-python", str(SERVER_PYTHON), "--photos", str(photos)]
    command += [
        "--pairs",
        str(pairs),
        "--output",
        str(tmp_path / "out"),
        "--",
        "--state",
        str(triton.state),
        "--grpc-port",
        str(free_port()),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "using the server that is running" in done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["psnr_out"] is None  # there is no target
    both = open_image((tmp_path / "out/sideways-before-after.jpg").read_bytes())
    assert both.height == 90  # upright, before and after
    assert subprocess.run(triton.command("status"), cwd=ROOT, capture_output=True, check=False).returncode == 0


def test_a_running_server_with_an_older_engine_is_rejected(triton):
    path = triton.state / "server.json"
    record, times = path.read_text(encoding="utf-8"), path.stat()  # its time is the server's start
    path.write_text(json.dumps({**json.loads(record), "engine_sha256": "0" * 64}), encoding="utf-8")
    try:
        command = [sys.executable, "-m", "demo.run", "--server-python", str(SERVER_PYTHON)]
        done = subprocess.run(
            [*command, "--", "--state", str(triton.state)], cwd=ROOT, capture_output=True, text=True, check=False
        )
    finally:
        path.write_text(record, encoding="utf-8")
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert done.returncode == 1
    assert "older engine" in done.stderr


def test_at_least_two_photographs_have_six_megapixels():
    sizes = [open_image(path.read_bytes()).size for path in (ROOT / "demo/photos").glob("*.jpg")]
    assert sum(width * height >= 6_000_000 for width, height in sizes) >= 2


def test_every_photograph_has_a_credit():
    credits = json.loads((ROOT / "demo/CREDITS.json").read_text(encoding="utf-8"))
    assert set(credits) == {path.name for path in (ROOT / "demo/photos").glob("*")}
