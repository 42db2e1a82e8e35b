"""The client against the real server, over gRPC."""

import asyncio
import io
import os
import re
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from restormer_client import AsyncEnhancer, EnhanceError, Enhancer, InvalidOption, InvalidPhotograph, ServerUnavailable

from export.enhance import enhance, runner_from_package
from export.metrics import psnr
from export.package.model_package import package_from_folder
from imaging import decode
from imaging.tiles import starts
from tests.conftest import ROOT, free_port, read_counter
from tests.imaging.test_codec import BAD, FILES, bits
from tests.photographs import encode_image, make_exif, open_image, pixels


@pytest.fixture(scope="module")
def enhancer(triton):
    with Enhancer(triton.url) as enhancer:
        yield enhancer


def test_served_pixels_equal_pytorch_in_process(enhancer):
    """Compare the server with the package in PyTorch and `imaging` in this process, on lossless PNG."""
    image = np.asarray(open_image((ROOT / "demo/photos/coffee-table.jpg").read_bytes()))
    data = encode_image(image, "PNG")
    served = decode(enhancer.enhance(data, timeout=120)).pixels
    run = runner_from_package(package_from_folder(ROOT / "demo/package"))
    expected = decode(enhance(data, run)).pixels
    assert np.abs(served.astype(int) - expected).max() <= 1
    assert psnr(served / 255, expected / 255) > 60


@pytest.mark.parametrize("name", ["balcony.jpg", "valley-view.jpg"])
def test_enhancing_improves_psnr_against_the_target(enhancer, name):
    before, target = ((ROOT / "demo" / kind / name).read_bytes() for kind in ("photos", "targets"))
    after = enhancer.enhance(before, timeout=120)
    unit = [np.asarray(open_image(data), np.float32) / 255 for data in (before, after, target)]
    assert unit[1].shape == unit[0].shape
    assert psnr(unit[1], unit[2]) > psnr(unit[0], unit[2]) + 1


@pytest.mark.parametrize("tiled", [False, True], ids=["whole", "tiled"])
@pytest.mark.parametrize("size", [(333, 500), (64, 48), (16, 16)])
def test_output_has_the_input_size(enhancer, size, tiled):
    after = open_image(enhancer.enhance(encode_image(pixels(*size)), tiled=tiled))
    assert after.size == (size[1], size[0])


@pytest.mark.parametrize(("data", "kind", "mode", "depth"), FILES.values(), ids=FILES)
def test_every_format_is_kept(enhancer, data, kind, mode, depth):
    result = enhancer.enhance(data)
    image = open_image(result)
    assert (image.format, image.mode, bits(result)) == (kind, mode, depth)


def test_options_take_effect(enhancer):
    data = encode_image(pixels(600, 800), exif=make_exif(1, gps=True))
    small = open_image(enhancer.enhance(data, format="webp", quality=60, size=512, gps="strip"))
    assert (small.format, small.size) == ("WEBP", (512, 384))
    assert not small.getexif().get_ifd(0x8825)
    unchanged, full = (decode(enhancer.enhance(data, strength=s, format="png")).pixels for s in (0, 1))
    assert np.array_equal(unchanged, decode(data).pixels)
    assert not np.array_equal(full, unchanged)


@pytest.mark.parametrize("tiled", [False, True], ids=["whole", "tiled"])
def test_invalid_option_raises(enhancer, tiled):
    with pytest.raises(InvalidOption, match="strength"):
        enhancer.enhance(encode_image(pixels()), strength=2, tiled=tiled)


def test_tiled_output_is_close_and_each_tile_runs_once(triton, enhancer):
    """Tiles are close to `enhance`, which anchors their tone. A CPU server runs them without batching."""
    data = (ROOT / "demo/photos/brook.jpg").read_bytes()
    whole = open_image(enhancer.enhance(data, timeout=120))
    before = [read_counter(triton, name) for name in ("nv_inference_count", "nv_inference_exec_count")]
    tiled = open_image(enhancer.enhance(data, tiled=True, timeout=240))
    after = [read_counter(triton, name) for name in ("nv_inference_count", "nv_inference_exec_count")]
    assert tiled.size == whole.size
    assert psnr(np.asarray(tiled) / 255, np.asarray(whole) / 255) > 20
    images, runs = (now - then for now, then in zip(after, before, strict=True))
    assert images == runs == len(starts(1600)) * len(starts(1065)) + 1  # one more for the anchor


def test_cancelled_task_stops_its_tiles(triton):
    """Cancel after the first tiles: the others do not run, and the server still works."""
    photograph = ROOT / "demo/photos/reading-corner.jpg"  # 6 x 9 tiles

    async def cancel_after_first_tiles():
        async with AsyncEnhancer(triton.url) as enhancer:
            task = asyncio.create_task(enhancer.enhance(photograph, tiled=True, timeout=120))
            while read_counter(triton, "nv_inference_count") < start + 3:
                await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    start = read_counter(triton, "nv_inference_count")
    asyncio.run(cancel_after_first_tiles())
    last = -1
    while (now := read_counter(triton, "nv_inference_count")) != last:  # until no more tiles run
        last = now
        time.sleep(3)
    assert last - start < 40
    with Enhancer(triton.url) as enhancer:
        assert enhancer.enhance(encode_image(pixels(64, 64)), tiled=True)


def test_rotated_photograph_comes_back_upright(enhancer):
    after = open_image(enhancer.enhance(encode_image(pixels(120, 200), exif=make_exif(6))))
    assert after.size == (120, 200)
    assert after.getexif()[0x0112] == 1


@pytest.mark.parametrize("tiled", [False, True], ids=["whole", "tiled"])
@pytest.mark.parametrize(("data", "reason"), BAD.values(), ids=BAD)
def test_bad_photograph_raises_with_its_reason(enhancer, data, reason, tiled):
    with pytest.raises(InvalidPhotograph, match=reason):
        enhancer.enhance(data, tiled=tiled)


@pytest.mark.parametrize("tiled", [False, True], ids=["whole", "tiled"])
def test_server_survives_every_bad_photograph(enhancer, tiled):
    """Send all bad photographs, then more good ones than there are instances: no stub process has died."""
    for data, _ in BAD.values():
        with pytest.raises(InvalidPhotograph):
            enhancer.enhance(data, tiled=tiled)
    for seed in range(5):
        assert enhancer.enhance(encode_image(pixels(64, 64, seed=seed)), tiled=tiled)


def test_bad_photographs_do_not_affect_concurrent_good_ones(triton):
    """Send all at once over separate connections (tests/model_repository forces them into one batch)."""
    # Bulk priority, whose queue on a CPU server holds more than these.
    photographs = [encode_image(pixels(60, 80, seed=i)) if i % 3 else b"bad %d" % i for i in range(9)]
    barrier = threading.Barrier(len(photographs))

    def send(data):
        with Enhancer(triton.url) as enhancer:
            barrier.wait()
            try:
                return open_image(enhancer.enhance(data, priority="bulk", timeout=120)).size
            except InvalidPhotograph:
                return "rejected"

    with ThreadPoolExecutor(len(photographs)) as pool:
        results = list(pool.map(send, photographs))
    assert results == [(80, 60) if i % 3 else "rejected" for i in range(9)]


def test_unreachable_server_prints_one_line(tmp_path, client_command):
    photograph = tmp_path / "in.jpg"
    photograph.write_bytes(encode_image(pixels()))
    command = [*client_command, "enhance", photograph, tmp_path / "out.jpg", "--url", f"127.0.0.1:{free_port()}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.fullmatch(r"error: 127\.0\.0\.1:\d+ .*\n", done.stderr)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jpg"]


def test_loopback_ignores_http_proxy(triton, client_command):
    environment = {**os.environ, "http_proxy": f"http://127.0.0.1:{free_port()}", "no_proxy": ""}
    command = [*client_command, "status", "--url", triton.url, "--timeout", "60"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_unknown_model_is_not_reported_as_unavailable(triton, monkeypatch):
    monkeypatch.setattr("restormer_client.calls.MODEL", "no_such_model")
    with Enhancer(triton.url) as enhancer, pytest.raises(EnhanceError, match="no_such_model") as caught:
        enhancer.enhance(encode_image(pixels(32, 32)))
    assert not isinstance(caught.value, ServerUnavailable)


def test_every_input_form_gives_the_same_output(enhancer, tmp_path):
    data = encode_image(pixels(48, 64))
    path = tmp_path / "in.jpg"
    path.write_bytes(data)
    forms = (bytearray(data), memoryview(data), path, str(path), io.BytesIO(data))
    assert {enhancer.enhance(form) for form in forms} == {enhancer.enhance(data)}
    array = np.asarray(open_image(data))
    from_array = enhancer.enhance(array)
    assert enhancer.enhance(Image.fromarray(array)) == from_array
    assert open_image(from_array).format == "PNG"


def test_command_line(tmp_path, triton, client_command):
    out = tmp_path / "after.jpg"
    photograph = ROOT / "demo/photos/coffee-table.jpg"
    command = [*client_command, "enhance", photograph, out, "--url", triton.url]
    subprocess.run(command, check=True)
    assert open_image(out.read_bytes()).size == (600, 400)
    assert out.stat().st_mode & 0o044  # readable by others, like any new file
    status = subprocess.run(
        [*client_command, "status", "--url", triton.url], capture_output=True, text=True, check=True
    ).stdout
    assert "Triton 2." in status


@pytest.mark.parametrize(
    ("photograph", "output", "message"),
    [
        ("absent.jpg", "out.jpg", "No such file"),
        ("in.txt", "out.jpg", "not a photograph"),
        ("in.jpg", "no/out.jpg", "does not exist"),
        ("in.jpg", ".", "is a folder"),
    ],
)
def test_command_line_errors_print_one_line_and_write_nothing(
    tmp_path, triton, client_command, photograph, output, message
):
    (tmp_path / "in.txt").write_text("a letter")
    (tmp_path / "in.jpg").write_bytes(encode_image(pixels(32, 32)))
    command = [*client_command, "enhance", tmp_path / photograph, tmp_path / output, "--url", triton.url]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jpg", "in.txt"]


def readme_blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "client/README.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def example_folder(tmp_path, monkeypatch):
    """Create the files that the README's examples use and change to their folder."""
    for name in ("before.jpg", "photos/one.jpg", "photos/two.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encode_image(pixels(48, 64)))
    (tmp_path / "enhanced").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_python_examples_of_the_readme_run(example_folder, triton):
    names = {}
    for block in readme_blocks("python"):
        exec(compile(block.replace("127.0.0.1:8001", triton.url), "README", "exec"), names)
    assert open_image((example_folder / "after.jpg").read_bytes()).size == (64, 48)
    assert (open_image(names["small"]).format, open_image(names["small"]).size) == ("WEBP", (512, 384))
    assert sorted(path.name for path in (example_folder / "enhanced").iterdir()) == ["one.jpg", "two.jpg"]
    assert names["restored"].shape == (2, 3, 512, 512)


def test_the_call_in_the_readme_runs(example_folder, triton, client_command):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    photograph = "demo/photos/balcony.jpg"
    (example_folder / photograph).parent.mkdir(parents=True)
    (example_folder / photograph).write_bytes(encode_image(pixels(48, 64)))
    block = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    exec(compile(block.replace("127.0.0.1:8001", triton.url), "README", "exec"), {})
    first = (example_folder / "out.jpg").read_bytes()
    assert open_image(first).size == (64, 48)
    (example_folder / "out.jpg").unlink()
    words = re.search(r"^\.envs/build/bin/restormer-client (.*)$", text, re.MULTILINE)[1].split()
    subprocess.run([*client_command, *words, "--url", triton.url], check=True, capture_output=True)
    assert (example_folder / "out.jpg").read_bytes() == first


def test_commands_of_the_readme_run(example_folder, triton, client_command):
    lines = [line.split("#")[0].split() for block in readme_blocks("sh") for line in block.splitlines()]
    assert len(lines) >= 3
    for words in lines:
        subprocess.run([*client_command, *words[1:], "--url", triton.url], check=True, capture_output=True)
    files = {str(path.relative_to(example_folder)) for path in example_folder.rglob("*") if path.is_file()}
    assert {"after.jpg", "small.webp", "out/one.jpg", "out/two.jpg", "failures.csv"} < files


def test_response_of_another_model_is_an_error(triton, monkeypatch):
    monkeypatch.setattr("restormer_client.calls.MODEL", "preprocess")
    with Enhancer(triton.url) as enhancer, pytest.raises(EnhanceError, match="preprocess"):
        enhancer.enhance(encode_image(pixels(32, 32)))
