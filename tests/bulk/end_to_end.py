"""Bulk jobs killed on the way, with a real Ray and a real Triton (``make test-bulk``): nothing lost, nothing doubled.

Each job is a command as a user gives it. What was sent is counted by Triton. The jobs of many photographs go to a
Triton whose ``enhance`` only waits (`waiting`), the others to the real one.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from uuid import uuid4

import pytest
from restormer_client import Enhancer

from benchmarks.traffic import Server, kill, served
from bulk import manifest, storage
from bulk.__main__ import IN_FLIGHT
from tests.conftest import ROOT, copied, free_port

PYTHON = ROOT / ".envs/bulk/bin/python"
MANY = 160
TINY = 1  #: photographs a run sends to try the server


class Command:
    """``python -m bulk enhance`` in a process of its own, and what belongs to it."""

    def __init__(self, photos, output, url, *words, in_flight=IN_FLIGHT):
        self.mark = uuid4().hex
        words = ["--input", photos, "--output", output.root, "--server", url, "--in-flight", in_flight, *words]
        self.process = subprocess.Popen(
            [PYTHON, "-m", "bulk", "enhance", *map(str, words)],
            cwd=ROOT, env={**os.environ, "BULK_TEST": self.mark}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, start_new_session=True,
        )  # fmt: skip

    def end(self, code=0, seconds=240):
        """Its summary."""
        out, said = self.process.communicate(timeout=seconds)
        assert self.process.returncode == code, said
        assert "Traceback" not in said
        return json.loads(out.splitlines()[-1])

    def processes(self):
        """Everything that was started by it, by process id, with its title."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it may end while we look
                if f"BULK_TEST={self.mark}".encode() in (path / "environ").read_bytes():
                    found[int(path.name)] = (path / "cmdline").read_bytes().decode(errors="replace").split("\0")[0]
        return found

    def actors(self):
        return [pid for pid, title in self.processes().items() if title.startswith("ray::") and "MapWorker" in title]


@pytest.fixture(scope="session")
def waiting(repository, tmp_path_factory):
    """A Triton whose ``enhance`` waits."""
    folder = copied(repository, tmp_path_factory.mktemp("waiting") / "model_repository")
    shutil.rmtree(folder / "enhance")
    shutil.copytree(Path(__file__).parent / "waiting", folder / "enhance")
    return folder


@pytest.fixture(scope="session")
def server(waiting):
    with served(waiting) as running:
        yield running


@pytest.fixture
def many(tmp_path):
    folder = tmp_path / "photos"
    for number in range(MANY):
        path = folder / f"room-{number % 7}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"photograph %d" % number)
    return folder


def sent(server: Server) -> int:
    return int(server.metric("nv_inference_request_success", model="enhance"))


def photographs(output):
    return {name for name in output.sizes() if storage.is_photograph(name)}


def wait_for(what, seconds=90):
    """Until it is true; what it gave."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)
    return found


def check_all_done(photos, output):
    """Every photograph is there as the server made it, and is one row of the manifest."""
    rows = manifest.read(output).to_pylist()
    wanted = {str(path.relative_to(photos)): path.read_bytes() for path in photos.rglob("*.jpg")}
    assert [row["key"] for row in rows] == sorted(wanted)
    assert {row["status"] for row in rows} == {"enhanced"}
    assert {key: output.read(key) for key in photographs(output)} == wanted
    assert all(row["checksum"] == manifest.checksum(wanted[row["key"]]) for row in rows)
    assert not [name for name in output.sizes() if storage.is_leftover(name)]
    assert sorted(output.below(manifest.FOLDER).names()) == ["job.json", "manifest.parquet"]


def test_undisturbed(server, many, output):
    before = sent(server)
    summary = Command(many, output, server.url, "--price-per-hour", 36).end()
    assert (summary["enhanced"], summary["found"], summary["failed"], summary["turned_away"]) == (MANY, 0, 0, 0)
    assert sent(server) - before == MANY + TINY
    assert summary["cost_per_thousand"] == pytest.approx(36 / 3600 * summary["seconds"] / MANY * 1000, rel=1e-3)
    check_all_done(many, output)
    assert {row["engine"] for row in manifest.read(output).to_pylist()} == {"restormer 1, Triton 2.51.0"}


def test_the_driver_is_killed(server, many, output):
    before = sent(server)
    job = Command(many, output, server.url)
    wait_for(lambda: len(photographs(output)) >= MANY // 3)
    kill(job.process.pid)
    job.process.wait()
    wait_for(lambda: not job.processes(), seconds=240)  # its Ray goes with it, on a busy machine in its own time
    kept = len(photographs(output))
    assert kept < MANY
    summary = Command(many, output, server.url).end()
    assert summary["enhanced"] == MANY - kept
    assert sent(server) - before <= MANY + 2 * TINY + IN_FLIGHT
    check_all_done(many, output)


def test_interrupted(server, many, output):
    job = Command(many, output, server.url)
    wait_for(lambda: len(photographs(output)) >= MANY // 3)
    job.process.send_signal(signal.SIGINT)
    _, said = job.process.communicate(timeout=60)
    assert job.process.returncode == 130
    assert said.splitlines()[-1] == "interrupted; the same command goes on where this one stopped"
    assert "Traceback" not in said
    wait_for(lambda: not job.processes(), seconds=240)
    Command(many, output, server.url).end()
    check_all_done(many, output)


def test_an_actor_is_killed(server, many, output):
    before = sent(server)
    job = Command(many, output, server.url)
    wait_for(lambda: len(photographs(output)) >= MANY // 3)
    (actor,) = job.actors()
    kill(actor)
    summary = job.end()
    assert summary["enhanced"] + summary["found"] == MANY
    assert sent(server) - before <= MANY + TINY + IN_FLIGHT
    check_all_done(many, output)


def test_a_node_is_killed(server, many, output):
    before = sent(server)
    cluster = subprocess.Popen(
        [PYTHON, Path(__file__).with_name("cluster.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        address = cluster.stdout.readline().strip()
        job = Command(many, output, server.url, "--ray-address", address, "--actors", 2)
        wait_for(lambda: len(photographs(output)) >= MANY // 3)
        print("kill", file=cluster.stdin, flush=True)
        assert cluster.stdout.readline().strip() == "killed"
        assert len(photographs(output)) < MANY
        summary = job.end()
    finally:
        cluster.communicate(timeout=60)
    assert summary["enhanced"] + summary["found"] == MANY
    assert sent(server) - before <= MANY + TINY + IN_FLIGHT
    check_all_done(many, output)


def test_triton_is_killed_and_comes_back(waiting, many, output):
    with served(waiting) as server:
        job = Command(many, output, server.url)
        wait_for(lambda: len(photographs(output)) >= MANY // 3)
        first = sent(server)
        kill(server.pid)
        subprocess.run([*server.command, "start"], cwd=ROOT, check=True, capture_output=True)
        summary = job.end()
        # What was answered between the count and the kill is counted by nobody.
        assert sent(server) + first <= MANY + 2 * TINY + IN_FLIGHT
    assert summary["enhanced"] == MANY
    check_all_done(many, output)


def test_two_servers_share_the_work(waiting, server, many, output):
    with served(waiting) as other:
        before = sent(server), sent(other)
        Command(many, output, f"ipv4:127.0.0.1:{server.grpc_port},127.0.0.1:{other.grpc_port}", in_flight=16).end()
        shares = [(sent(each) - then) / (MANY + TINY) for each, then in zip((server, other), before, strict=True)]
    assert sum(shares) == pytest.approx(1)
    assert min(shares) > 0.4
    check_all_done(many, output)


def test_the_parts_of_a_job_at_the_same_time(server, many, output):
    before = sent(server)
    jobs = [Command(many, output, server.url, "--shard", f"{number}/2", in_flight=4) for number in (1, 2)]
    assert sum(job.end()["enhanced"] for job in jobs) == MANY
    assert sent(server) - before == MANY + 2 * TINY
    assert Command(many, output, server.url).end()["done_before"] == MANY
    check_all_done(many, output)


@pytest.fixture
def real_photos(tmp_path):
    """Eight that are enhanced, and one that is none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, path in enumerate(sorted((ROOT / "demo/photos").glob("*.jpg"))[:4] * 2):
        shutil.copy(path, folder / f"{number}-{path.name}")
    (folder / "broken.jpg").write_bytes((folder / "0-balcony.jpg").read_bytes()[:5000])
    return folder


def test_the_real_pipeline_killed_on_the_way(triton, real_photos, output):
    """The bytes are those that the client by itself is given, in flight what a CPU's queue takes: none turned away."""
    job = Command(real_photos, output, triton.url)
    wait_for(lambda: len(photographs(output)) >= 2, seconds=200)
    kill(job.process.pid)
    job.process.wait()
    wait_for(lambda: not job.processes(), seconds=240)
    summary = Command(real_photos, output, triton.url).end(code=1)
    assert (summary["failed"], summary["turned_away"]) == (1, 0)
    rows = {row["key"]: row for row in manifest.read(output).to_pylist()}
    assert rows["broken.jpg"]["error"].startswith("InvalidPhotograph: ")
    assert photographs(output) == set(rows) - {"broken.jpg"}
    with Enhancer(triton.url) as enhancer:
        alone = enhancer.enhance(real_photos / "2-coffee-table.jpg", timeout=120)
    assert rows["2-coffee-table.jpg"]["checksum"] == manifest.checksum(alone)


def test_more_in_flight_than_the_queue_takes(triton, real_photos, output):
    """They wait and come again; nothing is lost."""
    (real_photos / "broken.jpg").unlink()
    for number in range(16):
        shutil.copy(real_photos / "2-coffee-table.jpg", real_photos / f"again-{number}.jpg")
    summary = Command(real_photos, output, triton.url, in_flight=24).end()
    assert summary["turned_away"] > 0
    assert (summary["enhanced"], summary["failed"]) == (24, 0)


@pytest.fixture
def bucket(monkeypatch):
    """An object store that speaks S3 (moto), and a command in the bulk environment that copies to it and from it."""
    port = free_port()
    monkeypatch.setenv("FSSPEC_S3_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    store = subprocess.Popen(
        [PYTHON.with_name("moto_server"), "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip

    def copy(verb, source, target):
        call = f"import fsspec; fsspec.filesystem('s3').{verb}({str(source)!r}, {str(target)!r}, recursive=True)"
        subprocess.run([PYTHON, "-c", call], check=True)

    try:
        wait_for(lambda: is_open(port))
        subprocess.run([PYTHON, "-c", "import fsspec; fsspec.filesystem('s3').mkdir('homes')"], check=True)
        yield copy
    finally:
        store.terminate()
        store.wait()


def is_open(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_from_an_object_store_to_an_object_store(server, many, bucket, tmp_path):
    bucket("put", f"{many}/", "homes/in/")
    output = storage.Place(None, "s3://homes/out")
    before = sent(server)
    job = Command("s3://homes/in", output, server.url)
    wait_for(lambda: sent(server) - before >= MANY // 3)
    kill(job.process.pid)
    job.process.wait()
    wait_for(lambda: not job.processes(), seconds=240)
    summary = Command("s3://homes/in", output, server.url).end()
    assert 0 < summary["enhanced"] < MANY
    assert sent(server) - before <= MANY + 2 * TINY + IN_FLIGHT
    bucket("get", "homes/out/", f"{tmp_path}/out")
    check_all_done(many, storage.place(f"{tmp_path}/out"))


def test_a_server_that_stays_away_ends_the_job_in_one_line(waiting, many, output):
    with served(waiting) as server:
        job = Command(many, output, server.url, "--patience", 3, "--timeout", 2)
        wait_for(lambda: len(photographs(output)) >= MANY // 4)
        kill(server.pid)
        out, said = job.process.communicate(timeout=120)
    assert job.process.returncode == 1
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("error: nothing was enhanced for 3 s: no server answers at")
    assert not out
