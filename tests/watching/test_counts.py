"""What Triton counts (docs/watching.md), on a real server whose network fails on white photographs."""

import asyncio
import io
import shutil
import time
from collections.abc import Iterator

import pytest
from PIL import Image
from restormer_client import AsyncEnhancer, Enhancer, ServerError

from tests.conftest import ROOT
from traffic.server import Server, run_server

PHOTOGRAPH = (ROOT / "demo/photos/coffee-table.jpg").read_bytes()
#: A model that fails on white photographs; for others it creates a file and runs the published model.
FAILING = """
import runpy
from pathlib import Path

import triton_python_backend_utils as pb_utils

Published = runpy.run_path(str(Path(__file__).with_name("network.py")))["TritonPythonModel"]


class TritonPythonModel(Published):
    def execute(self, requests):
        for request in requests:
            if pb_utils.get_input_tensor_by_name(request, "input").as_numpy().min() == 1:
                raise RuntimeError("the engine fails")
        Path({started!r}).touch()
        return super().execute(requests)
"""


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """Return the file that the network creates when it starts on a photograph."""
    return tmp_path_factory.mktemp("started") / "photograph"


@pytest.fixture(scope="module")
def server(triton, started, tmp_path_factory) -> Iterator[Server]:
    models = tmp_path_factory.mktemp("breaking") / "models"
    shutil.copytree(triton.repository, models, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    model = models / "restormer/1/model.py"
    model.rename(model.with_name("network.py"))
    model.write_text(FAILING.format(started=str(started)), encoding="utf-8")
    with run_server(models) as running:
        yield running


def failures(server):
    """Return the number of failures by model and reason."""
    return {
        (model, reason): server.read_metric("nv_inference_request_failure", model=model, reason=reason)
        for model in ("enhance", "enhance_tiled", "preprocess", "restormer", "postprocess")
        for reason in ("REJECTED", "CANCELED", "BACKEND", "OTHER")
    }


def counted_since(server, before, wanted):
    """Return what was counted since then; wait for it, because Triton counts an answer after sending it."""
    until = time.monotonic() + 60
    while (found := {k: n - before[k] for k, n in failures(server).items() if n != before[k]}) != wanted:
        if time.monotonic() > until:
            break
        time.sleep(0.1)
    return found


def test_a_failing_engine_is_counted_as_a_backend_failure(server):
    before = failures(server)
    white = io.BytesIO()
    Image.new("RGB", (64, 48), "white").save(white, "PNG")
    with Enhancer(server.url) as enhancer:
        with pytest.raises(ServerError, match="RuntimeError: the engine fails$"):
            enhancer.enhance(white.getvalue())
        wanted = {("restormer", "BACKEND"): 1, ("enhance", "OTHER"): 2}
        assert counted_since(server, before, wanted) == wanted
        assert enhancer.enhance(PHOTOGRAPH, timeout=60)  # the process goes on


def test_a_cancelled_request_is_counted_as_cancelled(server, started):
    before = failures(server)
    started.unlink(missing_ok=True)

    async def cancelled():
        async with AsyncEnhancer(server.url) as enhancer:
            task = asyncio.create_task(enhancer.enhance(PHOTOGRAPH, timeout=60))
            while not started.exists():
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(cancelled())
    wanted = {("postprocess", "CANCELED"): 1, ("enhance", "OTHER"): 2}
    assert counted_since(server, before, wanted) == wanted
