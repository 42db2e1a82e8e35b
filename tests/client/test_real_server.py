"""What only a real Triton shows: a queue that is full, a server that dies and comes back, one that is too slow.

On a server of its own, with queues of four; the session's server is left alone.
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

from server.process import running
from server.settings import Settings
from tests.conftest import ROOT, Triton, copied, free_port
from tests.photographs import encoded, opened, pixels

PHOTO = encoded(pixels(48, 64))


@dataclass(frozen=True)
class Restartable(Triton):
    """A Triton that a test may kill."""

    def start(self):
        subprocess.run(self.command("start"), cwd=ROOT, check=True)

    def stop(self):
        subprocess.run(self.command("stop"), cwd=ROOT, check=True)

    def kill(self):
        os.kill(running(Settings(state=self.state)).pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def own(repository, tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    served = copied(repository, folder / "model_repository")
    for path in served.rglob("*.pbtxt"):
        text = path.read_text(encoding="utf-8")
        path.write_text(re.sub(r"max_queue_size: \d+", "max_queue_size: 4", text), encoding="utf-8")
    triton = Restartable(free_port(), free_port(), folder / "state", served, free_port())
    triton.start()
    yield triton
    triton.stop()


@pytest.fixture
def enhancer(own):
    with Enhancer(own.url) as enhancer:
        yield enhancer


def test_a_full_queue_is_overload_and_is_never_tried_again(enhancer):
    results = list(enhancer.map([ROOT / "demo/photos/coffee-table.jpg"] * 40, max_in_flight=40, timeout=120))
    kinds = Counter(type(result.error) for result in results)
    assert set(kinds) == {type(None), Overloaded}
    errors = [result.error for result in results if result.error]
    assert {(error.status, error.attempts) for error in errors} == {("UNAVAILABLE", 1)}
    assert all("Exceeds maximum queue size" in str(error) for error in errors)


def test_the_deadline_holds_when_the_server_is_too_slow(enhancer):
    with pytest.raises(DeadlineExceeded):
        enhancer.enhance(ROOT / "demo/photos/reading-corner.jpg", tiled=True, timeout=0.5)
    assert enhancer.enhance(PHOTO, timeout=120)


def test_a_bad_photograph_among_good_ones(enhancer):
    photos = [PHOTO, b"a letter", PHOTO]
    results = list(enhancer.map(photos, max_in_flight=2, timeout=120))
    assert [type(result.error) for result in results] == [type(None), InvalidPhotograph, type(None)]


def test_core_takes_batches_and_refuses_more_than_the_model(enhancer):
    tensor = np.random.default_rng(0).random((2, 3, 512, 512), np.float32)
    both = enhancer.core(tensor, timeout=120)
    assert both.shape == tensor.shape
    assert np.allclose(both[1:], enhancer.core(tensor[1:], timeout=120), atol=1e-5)
    with pytest.raises(InvalidTensor, match="batch-size must be <= 8"):
        enhancer.core(np.zeros((9, 3, 512, 512), np.float32), timeout=120)


def test_fifty_threads_on_one_client(enhancer):
    """More than fit into the queues: each gets its photograph, or is told of the overload."""
    together, outcomes = threading.Barrier(50), Counter()

    def send(seed):
        together.wait()
        try:
            outcomes[opened(enhancer.enhance(encoded(pixels(40, 50 + seed)), timeout=120)).size == (50 + seed, 40)] += 1
        except Overloaded:
            outcomes["overloaded"] += 1

    threads = [threading.Thread(target=send, args=(seed,)) for seed in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes[True] >= 4
    assert outcomes[True] + outcomes["overloaded"] == 50


def bash_block(word):
    """The README's example of this tool."""
    text = (ROOT / "client/README.md").read_text(encoding="utf-8")
    return next(block for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) if f"sh {word}.sh" in block)


@pytest.mark.parametrize("photo", [PHOTO, b"a letter"], ids=["a photograph", "none"])
def test_the_readmes_curl(own, tmp_path, photo):
    (tmp_path / "in.jpg").write_bytes(photo)
    command = ["sh", "-c", bash_block("curl"), "curl.sh", own.http_url]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    if photo is PHOTO:
        assert done.returncode == 0, done.stderr
        assert opened((tmp_path / "out.jpg").read_bytes()).size == (64, 48)
    else:
        assert done.returncode == 1
        assert "HTTP 400" in done.stderr
        assert not (tmp_path / "out.jpg").exists()


def _size(enhancer):
    return opened(enhancer.enhance(PHOTO, timeout=120)).size


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes(enhancer, method):
    assert _size(enhancer) == (64, 48)
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(_size, [enhancer, enhancer]) == [(64, 48)] * 2
    assert _size(enhancer) == (64, 48)


def raw(url, photo=PHOTO, model="enhance", **parameters):
    """Status and words of a failure, as gRPC gave them."""
    with Enhancer(url) as enhancer:
        flow = enhancer._calls._enhance(photo, model, parameters, 1, Deadline(100))
        with pytest.raises(EnhanceError) as caught:
            enhancer._run(flow)
    failed = caught.value.__cause__
    assert isinstance(failed, grpc.RpcError)
    return failed.code(), failed.details().split(":")[0]


def test_the_fake_words_its_errors_as_the_server_does(own):
    with FakeTriton(InvalidPhotograph, InvalidOption, ModelNotReady) as fake:
        imitated = [raw(fake.url) for _ in range(3)]
    real = [raw(own.url, b"a letter"), raw(own.url, x="1"), raw(own.url, model="enhance_not")]
    for (status, words), (their_status, their_words) in zip(real, imitated, strict=True):
        assert status == their_status
        assert words.startswith(their_words)


def test_a_server_killed_in_the_middle_is_waited_for_and_each_file_is_written_once(own, tmp_path, monkeypatch):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(16):
        (photos / f"{number:02}.jpg").write_bytes(encoded(pixels(300, 400, seed=number)))
    written = Counter()

    def write(path, data):
        written[path.name] += 1
        files.write(path, data)
        if sum(written.values()) == 4:
            own.kill()
            threading.Thread(target=restart).start()

    restarted = threading.Event()

    def restart():
        time.sleep(1)
        own.stop()
        own.start()
        restarted.set()

    monkeypatch.setattr(folder, "write", write)
    todo = files.jobs(photos, tmp_path / "out", None)
    with Enhancer(own.url) as enhancer:
        failures = []
        folder.enhance_all(enhancer, todo, failures, parallel=3, options={"timeout": 120})
    assert restarted.wait(120)
    assert failures == []
    assert sorted(written.items()) == [(path.name, 1) for path in sorted(photos.iterdir())]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(written)
    assert all(opened(path.read_bytes()).size == (400, 300) for path in (tmp_path / "out").iterdir())


def test_a_server_that_shuts_down_in_order_loses_nothing_either(own):
    """While it drains Triton answers for a moment that it has no versions; that, too, passes."""
    with Enhancer(own.url) as enhancer:
        results = enhancer.map([PHOTO] * 40, max_in_flight=3, timeout=120)
        with contextlib.closing(results):
            first = next(results)
            server = running(Settings(state=own.state))
            os.kill(server.pid, signal.SIGTERM)
            again = threading.Thread(target=lambda: (time.sleep(2), own.stop(), own.start()))
            again.start()
            rest = list(results)
        again.join()
    assert [result.error for result in (first, *rest)] == [None] * 40


def test_a_dead_stub_is_the_servers_failure(own):
    """Last: this server is of no more use afterwards (Triton 2.51 does not start a stub again)."""
    server = running(Settings(state=own.state))
    listed = subprocess.run(
        ["pgrep", "-g", str(server.pid), "-f", "postprocess"], capture_output=True, text=True, check=True
    )
    for pid in listed.stdout.split():
        os.kill(int(pid), signal.SIGKILL)
    with Enhancer(own.url) as enhancer, pytest.raises(ServerError) as caught:
        enhancer.enhance(PHOTO, timeout=30)
    assert caught.value.status == "INTERNAL"
    assert caught.value.attempts == 1
    own.kill()  # asked to end, it would wait out its exit timeout for the dead
