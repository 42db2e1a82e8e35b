"""What docs/watching.md says that Triton counts, on a real one whose network breaks on white photographs."""

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
#: A model that breaks on white photographs, and otherwise notes that it has begun and runs the published one.
BREAKING = """
import runpy
from pathlib import Path

import triton_python_backend_utils as pb_utils

Published = runpy.run_path(str(Path(__file__).with_name("network.py")))["TritonPythonModel"]


class TritonPythonModel(Published):
    def execute(self, requests):
        for request in requests:
            if pb_utils.get_input_tensor_by_name(request, "input").as_numpy().min() == 1:
                raise RuntimeError("the engine fails")
        Path({begun!r}).touch()
        return super().execute(requests)
"""


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A file that the network makes when it begins with a photograph."""
    return tmp_path_factory.mktemp("begun") / "photograph"


@pytest.fixture(scope="module")
def server(triton, begun, tmp_path_factory) -> Iterator[Server]:
    models = tmp_path_factory.mktemp("breaking") / "models"
    shutil.copytree(triton.repository, models, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    model = models / "restormer/1/model.py"
    model.rename(model.with_name("network.py"))
    model.write_text(BREAKING.format(begun=str(begun)), encoding="utf-8")
    with run_server(models) as running:
        yield running


def failures(server):
    """Failures so far, by model and reason."""
    return {
        (model, reason): server.read_metric("nv_inference_request_failure", model=model, reason=reason)
        for model in ("enhance", "enhance_tiled", "preprocess", "restormer", "postprocess")
        for reason in ("REJECTED", "CANCELED", "BACKEND", "OTHER")
    }


def counted_since(server, before, wanted):
    """What was counted since then; waits for it, because an answer is counted after it was sent."""
    until = time.monotonic() + 60
    while (found := {k: n - before[k] for k, n in failures(server).items() if n != before[k]}) != wanted:
        if time.monotonic() > until:
            break
        time.sleep(0.1)
    return found


def test_an_engine_that_fails_is_counted_as_the_engines_fault(server):
    before = failures(server)
    white = io.BytesIO()
    Image.new("RGB", (64, 48), "white").save(white, "PNG")
    with Enhancer(server.url) as enhancer:
        with pytest.raises(ServerError, match="RuntimeError: the engine fails$"):
            enhancer.enhance(white.getvalue())
        wanted = {("restormer", "BACKEND"): 1, ("enhance", "OTHER"): 2}
        assert counted_since(server, before, wanted) == wanted
        assert enhancer.enhance(PHOTOGRAPH, timeout=60)  # and the process goes on


def test_a_sender_who_goes_away_is_counted_as_that(server, begun):
    before = failures(server)
    begun.unlink(missing_ok=True)

    async def cancelled():
        async with AsyncEnhancer(server.url) as enhancer:
            task = asyncio.create_task(enhancer.enhance(PHOTOGRAPH, timeout=60))
            while not begun.exists():
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(cancelled())
    wanted = {("postprocess", "CANCELED"): 1, ("enhance", "OTHER"): 2}
    assert counted_since(server, before, wanted) == wanted
