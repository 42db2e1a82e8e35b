"""The code of coming-from-your-own-backend.md, run against the real server over HTTP and gRPC."""

import os
import re
import shlex
import subprocess
import time

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from tritonclient.utils import InferenceServerException

from export.__main__ import main
from export.enhance import runner_from_package
from export.package.model_package import package_from_folder
from tests.conftest import ROOT, read_counter
from tests.photographs import open_image

PAGE = (ROOT / "client/docs/coming-from-your-own-backend.md").read_text(encoding="utf-8")
CHECKPOINT = ROOT / "demo/package/model_checkpoint.pt"


def blocks(kind):
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture
def example_folder(tmp_path, monkeypatch):
    """Create the files that the page's examples use and change to their folder."""
    (tmp_path / "photos").mkdir()
    for name in ("before.jpg", "photos/one.jpg"):
        (tmp_path / name).write_bytes((ROOT / "demo/photos/coffee-table.jpg").read_bytes())
    (tmp_path / "model_checkpoint.pt").symlink_to(CHECKPOINT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(example_folder, triton):
    def execute(block, names):
        block = block.replace("127.0.0.1:8001", triton.url).replace("127.0.0.1:8000", triton.http_url)
        block = block.replace(".run/admin.key", str(triton.state / "admin.key"))
        exec(compile(block, "page", "exec"), names)

    return execute


def test_unchanged_call_fails_as_documented(run):
    (call,), (message,) = blocks("python error"), blocks("text")
    with pytest.raises(InferenceServerException) as caught:
        run(call, {})
    assert str(caught.value) == message.strip()
    names = {}
    run(call.replace("timeout=30.0", "timeout=30_000_000"), names)  # the rest of the call works
    assert names["result"].as_numpy("output").shape == (1, 3, 512, 512)


def test_all_steps_give_the_same_result(run, example_folder):
    names, restored = {}, []
    for block in blocks("python"):
        run(block, names)
        restored.append(names["restored"])
    network = runner_from_package(package_from_folder(ROOT / "demo/package"))
    expected = np.clip(network(names["core_tensor"]("before.jpg")), 0, 1)
    http, grpc = restored[0], restored[-1]
    assert http is not grpc
    for tensor in (http, grpc, names["restored_by_client"].clip(0, 1)):
        assert np.abs(tensor - expected).max() < 1e-3
    assert names["config"]["name"] == "restormer"
    assert names["after_http"] == names["after_grpc"] == names["after"]
    assert open_image(names["after"]).size == open_image((example_folder / "before.jpg").read_bytes()).size


@pytest.mark.parametrize("protocol", [httpclient, grpcclient])
def test_configuration_is_restricted(triton, protocol):
    with protocol.InferenceServerClient(triton.http_url if protocol is httpclient else triton.url) as client:
        with pytest.raises(InferenceServerException, match="restricted, expecting header") as caught:
            client.get_model_config("restormer")
        assert protocol is grpcclient or f"`{caught.value}`" in PAGE
        assert client.get_model_metadata("restormer")


def inputs(protocol):
    image = protocol.InferInput("input", [1, 3, 512, 512], "FP32")
    image.set_data_from_numpy(np.zeros((1, 3, 512, 512), np.float32))
    return [image]


def test_timeout_is_in_microseconds(triton):
    """Three requests keep the network busy, so that the next one waits in the queue."""
    http, completed = httpclient.InferenceServerClient(triton.http_url), []
    with grpcclient.InferenceServerClient(triton.url) as others, http:
        for _ in range(3):
            others.async_infer("restormer", inputs(grpcclient), lambda result, error: completed.append(error))
        while not read_counter(triton, "nv_inference_pending_request_count"):
            time.sleep(0.05)
        with pytest.raises(InferenceServerException) as caught:
            http.infer("restormer", inputs(httpclient), timeout=30)
        while len(completed) < 3:
            time.sleep(0.1)
    assert f"`{caught.value}`" in PAGE


def test_grpc_client_rejects_fractional_timeouts(triton):
    with grpcclient.InferenceServerClient(triton.url) as client, pytest.raises(TypeError) as caught:
        client.infer("restormer", inputs(grpcclient), timeout=30.0)
    assert f"`{caught.value}`" in PAGE


def test_commands_of_the_page_run(example_folder):
    commands = [shlex.split(line) for block in blocks("sh") for line in block.splitlines()]
    assert len(commands) == 2
    for words in commands:
        assert words[:3] == [".envs/build/bin/python", "-m", "export"]
        assert main(words[3:]) == 0
    assert open_image((example_folder / "after.png").read_bytes()).size == (600, 400)
    assert open_image((example_folder / "out/one_hdr.jpg").read_bytes()).size == (512, 341)


@pytest.mark.parametrize(
    ("setting", "variables", "port"),
    [("", {}, 0), ("HTTP_PORT=8000", {}, 8000), ("", {"RESTORMER_HTTP_PORT": "8000"}, 8000)],
)
def test_make_sets_the_http_port(setting, variables, port):
    command = f"make serve {setting}".strip()
    assert not setting or f"`{command}`" in PAGE
    environment = {k: v for k, v in os.environ.items() if "HTTP_PORT" not in k} | variables
    done = subprocess.run(
        [*command.split(), "--dry-run"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert f"--http-port {port} " in done.stdout
