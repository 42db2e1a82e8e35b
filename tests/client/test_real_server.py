"""The client against a real Triton under stress: full queues, slow calls, a killed and restarted server.

Uses its own server with queues of four, not the session's server.
"""

import contextlib
import multiprocessing
import os
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from dataclasses import dataclass

import grpc
import numpy as np
import pytest
from restormer_client import (
    DeadlineExceeded,
    EnhanceError,
    Enhancer,
    InvalidOption,
    InvalidPhotograph,
    InvalidTensor,
    ModelNotReady,
    Overloaded,
    ServerError,
    files,
    folder,
)
from restormer_client.calls import Deadline
from restormer_client.testing import FakeTriton

from server.process import running_server
from server.settings import Settings
from tests.conftest import ROOT, Triton, copy_repository, free_port
from tests.photographs import encode_image, open_image, pixels

PHOTO = encode_image(pixels(48, 64))


@dataclass(frozen=True)
class Restartable(Triton):
    """A Triton that a test may kill and restart."""

    def start(self):
        subprocess.run(self.command("start"), cwd=ROOT, check=True)

    def stop(self):
        subprocess.run(self.command("stop"), cwd=ROOT, check=True)

    def kill(self):
        os.kill(running_server(Settings(state=self.state)).pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def own(repository, tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    models = copy_repository(repository, folder / "model_repository")
    for path in models.rglob("*.pbtxt"):
        text = path.read_text(encoding="utf-8")
        path.write_text(re.sub(r"max_queue_size: \d+", "max_queue_size: 4", text), encoding="utf-8")
    triton = Restartable(free_port(), free_port(), folder / "state", models, free_port())
    triton.start()
    yield triton
    triton.stop()


@pytest.fixture
def enhancer(own):
    with Enhancer(own.url) as enhancer:
        yield enhancer


def test_full_queue_raises_overloaded_without_retry(enhancer):
    results = list(enhancer.map([ROOT / "demo/photos/coffee-table.jpg"] * 40, max_in_flight=40, timeout=120))
    kinds = Counter(type(result.error) for result in results)
    assert set(kinds) == {type(None), Overloaded}
    errors = [result.error for result in results if result.error]
    assert {(error.status, error.attempts) for error in errors} == {("UNAVAILABLE", 1)}
    assert all("Exceeds maximum queue size" in str(error) for error in errors)


def test_deadline_ends_a_slow_call(enhancer):
    with pytest.raises(DeadlineExceeded):
        enhancer.enhance(ROOT / "demo/photos/reading-corner.jpg", tiled=True, timeout=0.5)
    assert enhancer.enhance(PHOTO, timeout=120)


def test_bad_photograph_among_good_ones(enhancer):
    photos = [PHOTO, b"a letter", PHOTO]
    results = list(enhancer.map(photos, max_in_flight=2, timeout=120))
    assert [type(result.error) for result in results] == [type(None), InvalidPhotograph, type(None)]


def test_core_limits_the_batch_size(enhancer):
    tensor = np.random.default_rng(0).random((2, 3, 512, 512), np.float32)
    both = enhancer.core(tensor, timeout=120)
    assert both.shape == tensor.shape
    assert np.allclose(both[1:], enhancer.core(tensor[1:], timeout=120), atol=1e-5)
    with pytest.raises(InvalidTensor, match="batch-size"):
        enhancer.core(np.zeros((9, 3, 512, 512), np.float32), timeout=120)


def test_fifty_threads_on_one_client(enhancer):
    """More requests than the queues hold: each gets its photograph or an `Overloaded`."""
    barrier, outcomes = threading.Barrier(50), Counter()

    def send(seed):
        barrier.wait()
        try:
            outcomes[
                open_image(enhancer.enhance(encode_image(pixels(40, 50 + seed)), timeout=120)).size == (50 + seed, 40)
            ] += 1
        except Overloaded:
            outcomes["overloaded"] += 1

    threads = [threading.Thread(target=send, args=(seed,)) for seed in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes[True] >= 4
    assert outcomes[True] + outcomes["overloaded"] == 50


def bash_block(tool):
    """Return the README's example for a command-line tool."""
    text = (ROOT / "client/README.md").read_text(encoding="utf-8")
    return next(block for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) if f"sh {tool}.sh" in block)


@pytest.mark.parametrize("photo", [PHOTO, b"a letter"], ids=["valid", "invalid"])
def test_curl_example_of_the_readme(own, tmp_path, photo):
    (tmp_path / "in.jpg").write_bytes(photo)
    command = ["sh", "-c", bash_block("curl"), "curl.sh", own.http_url]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    if photo is PHOTO:
        assert done.returncode == 0, done.stderr
        assert open_image((tmp_path / "out.jpg").read_bytes()).size == (64, 48)
    else:
        assert done.returncode == 1
        assert "HTTP 400" in done.stderr
        assert not (tmp_path / "out.jpg").exists()


def _size(enhancer):
    return open_image(enhancer.enhance(PHOTO, timeout=120)).size


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_client_in_other_processes(enhancer, method):
    assert _size(enhancer) == (64, 48)
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(_size, [enhancer, enhancer]) == [(64, 48)] * 2
    assert _size(enhancer) == (64, 48)


def grpc_failure(url, photo=PHOTO, model="enhance", **parameters):
    """Return status and message prefix of a failed call as gRPC reports them."""
    with Enhancer(url) as enhancer:
        flow = enhancer._calls._enhance(photo, model, parameters, 1, Deadline(100))
        with pytest.raises(EnhanceError) as caught:
            enhancer._run(flow)
    cause = caught.value.__cause__
    assert isinstance(cause, grpc.RpcError)
    return cause.code(), cause.details().split(":")[0]


def test_fake_words_errors_as_the_server_does(own):
    with FakeTriton(InvalidPhotograph, InvalidOption, ModelNotReady) as fake:
        imitated = [grpc_failure(fake.url) for _ in range(3)]
    real = [
        grpc_failure(own.url, b"a letter"), grpc_failure(own.url, x="1"), grpc_failure(own.url, model="enhance_not"),
    ]  # fmt: skip
    for (status, message), (fake_status, fake_message) in zip(real, imitated, strict=True):
        assert status == fake_status
        assert message.startswith(fake_message)


def test_folder_survives_a_killed_server(own, tmp_path, monkeypatch):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(16):
        (photos / f"{number:02}.jpg").write_bytes(encode_image(pixels(300, 400, seed=number)))
    writes = Counter()

    def write(path, data):
        writes[path.name] += 1
        files.write_atomically(path, data)
        if sum(writes.values()) == 4:
            own.kill()
            threading.Thread(target=restart).start()

    restarted = threading.Event()

    def restart():
        time.sleep(1)
        own.stop()
        own.start()
        restarted.set()

    monkeypatch.setattr(folder, "write_atomically", write)
    todo, _ = files.find_jobs(photos, tmp_path / "out", None)
    with Enhancer(own.url) as enhancer:
        failures = []
        folder.enhance_all(enhancer, todo, failures, parallel=3, options={"timeout": 120})
    assert restarted.wait(120)
    assert failures == []
    assert sorted(writes.items()) == [(path.name, 1) for path in sorted(photos.iterdir())]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(writes)
    assert all(open_image(path.read_bytes()).size == (400, 300) for path in (tmp_path / "out").iterdir())


def test_map_survives_an_orderly_restart(own):
    """While Triton drains it briefly reports that the model has no versions, which the client retries."""
    with Enhancer(own.url) as enhancer:
        results = enhancer.map([PHOTO] * 40, max_in_flight=3, timeout=120)
        with contextlib.closing(results):
            first = next(results)
            server = running_server(Settings(state=own.state))
            os.kill(server.pid, signal.SIGTERM)
            restart = threading.Thread(target=lambda: (time.sleep(2), own.stop(), own.start()))
            restart.start()
            rest = list(results)
        restart.join()
    assert [result.error for result in (first, *rest)] == [None] * 40


def test_dead_stub_raises_server_error(own):
    """Must be the last test: Triton 2.51 does not restart a stub, so this server is unusable afterwards."""
    server = running_server(Settings(state=own.state))
    stubs = subprocess.run(
        ["pgrep", "-g", str(server.pid), "-f", "postprocess"], capture_output=True, text=True, check=True
    )
    for pid in stubs.stdout.split():
        os.kill(int(pid), signal.SIGKILL)
    with Enhancer(own.url) as enhancer, pytest.raises(ServerError) as caught:
        enhancer.enhance(PHOTO, timeout=30)
    assert caught.value.status == "INTERNAL"
    assert caught.value.attempts == 1
    own.kill()  # an orderly stop would wait for the dead stub until the exit timeout
