"""Kill bulk jobs, Ray nodes and Triton during a job; check that every photograph is enhanced once (``make test-bulk``).

Each job is run as a command. Triton's metrics count the requests. Jobs of many photographs use a Triton whose
``enhance`` only waits (`waiting`), the others the real models.
"""

import contextlib
import hashlib
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
from restormer_client.files import is_photograph

from bulk import manifest, storage
from bulk.__main__ import IN_FLIGHT
from server.assemble import read_config
from tests.acceptance.leftovers import expect_no_leftovers
from tests.acceptance.load import QUEUE_CONFIG
from tests.conftest import ROOT, copy_repository, free_port
from traffic.server import Server, kill_process, run_server

PYTHON = ROOT / ".envs/bulk/bin/python"
MANY = 160
TINY = 1  #: photographs that a run sends to check the server


class Command:
    """A ``python -m bulk enhance`` process and its child processes."""

    def __init__(self, photos, output, url, *flags, in_flight=IN_FLIGHT):
        self.mark = uuid4().hex
        flags = ["--input", photos, "--output", output.root, "--server", url, "--in-flight", in_flight, *flags]
        self.process = subprocess.Popen(
            [PYTHON, "-m", "bulk", "enhance", *map(str, flags)],
            cwd=ROOT, env={**os.environ, "BULK_TEST": self.mark}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, start_new_session=True,
        )  # fmt: skip

    def wait(self, code=0, seconds=240):
        """Wait until the job ends, check its exit code and return its summary."""
        stdout, stderr = self.process.communicate(timeout=seconds)
        assert self.process.returncode == code, stderr
        assert "Traceback" not in stderr
        return json.loads(stdout.splitlines()[-1])

    def processes(self):
        """Return the titles of all processes that the command started, by process ID."""
        titles = {}
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # a process may end meanwhile
                if f"BULK_TEST={self.mark}".encode() in (path / "environ").read_bytes():
                    titles[int(path.name)] = (path / "cmdline").read_bytes().decode(errors="replace").split("\0")[0]
        return titles

    def actors(self):
        return [pid for pid, title in self.processes().items() if title.startswith("ray::") and "MapWorker" in title]


@pytest.fixture(scope="session", autouse=True)
def leave_nothing_behind():
    with expect_no_leftovers(patience=240):  # Ray's agents end slowly on a busy machine
        yield


@pytest.fixture
def output(tmp_path):
    return storage.open_folder(str(tmp_path / "out"))


@pytest.fixture(scope="session")
def waiting(repository, tmp_path_factory):
    """Return a model repository whose ``enhance`` only waits."""
    folder = copy_repository(repository, tmp_path_factory.mktemp("waiting") / "model_repository")
    shutil.rmtree(folder / "enhance")
    shutil.copytree(ROOT / "tests/bulk/waiting", folder / "enhance")
    return folder


@pytest.fixture(scope="session")
def server(waiting):
    with run_server(waiting) as running:
        yield running


@pytest.fixture
def many(tmp_path):
    folder = tmp_path / "photos"
    for number in range(MANY):
        path = folder / f"room-{number % 7}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"photograph %d" % number)
    return folder


def count_requests(server: Server) -> int:
    return int(server.read_metric("nv_inference_request_success", model="enhance"))


def photographs(output):
    return {name for name in output.sizes() if is_photograph(name)}


def wait_for(condition, seconds=90):
    """Wait until the condition is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.05)


def check_all_done(photos, output):
    """Check that every photograph has its output and one row of the manifest, and that no temporary files are left."""
    rows = manifest.read_rows(output).to_pylist()
    expected = {str(path.relative_to(photos)): path.read_bytes() for path in photos.rglob("*.jpg")}
    assert [row["key"] for row in rows] == sorted(expected)
    assert {row["status"] for row in rows} == {"enhanced"}
    assert {key: output.read(key) for key in photographs(output)} == expected
    assert all(row["checksum"] == hashlib.sha256(expected[row["key"]]).hexdigest() for row in rows)
    assert not [name for name in output.sizes() if storage.is_leftover(name)]
    assert sorted(output.below(manifest.FOLDER).names()) == ["job.json", "manifest.parquet"]


def test_job_without_failures(server, many, output):
    before = count_requests(server)
    summary = Command(many, output, server.url, "--price-per-hour", 36).wait()
    assert (summary["enhanced"], summary["found"], summary["failed"], summary["rejections"]) == (MANY, 0, 0, 0)
    assert count_requests(server) - before == MANY + TINY
    assert summary["cost_per_thousand"] == pytest.approx(36 / 3600 * summary["seconds"] / MANY * 1000, rel=1e-3)
    check_all_done(many, output)
    assert {row["engine"] for row in manifest.read_rows(output).to_pylist()} == {"restormer 1, Triton 2.51.0"}


def test_killed_driver(server, many, output):
    before = count_requests(server)
    job = Command(many, output, server.url)
    wait_for(lambda: len(photographs(output)) >= MANY // 3)
    kill_process(job.process.pid)
    job.process.wait()
    wait_for(lambda: not job.processes(), seconds=240)  # its Ray ends by itself, slowly on a busy machine
    kept = len(photographs(output))
    assert kept < MANY
    summary = Command(many, output, server.url).wait()
    assert summary["enhanced"] == MANY - kept
    assert count_requests(server) - before <= MANY + 2 * TINY + IN_FLIGHT
    check_all_done(many, output)


def test_interrupt(server, many, output):
    job = Command(many, output, server.url)
    wait_for(lambda: len(photographs(output)) >= MANY // 3)
    job.process.send_signal(signal.SIGINT)
    _, stderr = job.process.communicate(timeout=60)
    assert job.process.returncode == 130
    assert stderr.splitlines()[-1].startswith("interrupted")
    assert "Traceback" not in stderr
    wait_for(lambda: not job.processes(), seconds=240)
    Command(many, output, server.url).wait()
    check_all_done(many, output)


def test_killed_actor(server, many, output):
    before = count_requests(server)
    job = Command(many, output, server.url)
    wait_for(lambda: len(photographs(output)) >= MANY // 3)
    (actor,) = job.actors()
    kill_process(actor)
    summary = job.wait()
    assert summary["enhanced"] + summary["found"] == MANY
    assert count_requests(server) - before <= MANY + TINY + IN_FLIGHT
    check_all_done(many, output)


def test_killed_node(server, many, output):
    before = count_requests(server)
    cluster = subprocess.Popen(
        [PYTHON, ROOT / "tests/bulk/cluster.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        address = cluster.stdout.readline().strip()
        job = Command(many, output, server.url, "--ray-address", address, "--actors", 2)
        wait_for(lambda: len(photographs(output)) >= MANY // 3)
        print("kill", file=cluster.stdin, flush=True)
        assert cluster.stdout.readline().strip() == "killed"
        assert len(photographs(output)) < MANY
        summary = job.wait()
    finally:
        cluster.communicate(timeout=60)
    assert summary["enhanced"] + summary["found"] == MANY
    assert count_requests(server) - before <= MANY + TINY + IN_FLIGHT
    check_all_done(many, output)


def test_killed_and_restarted_triton(waiting, many, output):
    with run_server(waiting) as server:
        job = Command(many, output, server.url)
        wait_for(lambda: len(photographs(output)) >= MANY // 3)
        first = count_requests(server)
        kill_process(server.pid)
        subprocess.run([*server.command, "start"], cwd=ROOT, check=True, capture_output=True)
        summary = job.wait()
        # Requests answered between the count and the kill are not counted.
        assert count_requests(server) + first <= MANY + 2 * TINY + IN_FLIGHT
    assert summary["enhanced"] == MANY
    check_all_done(many, output)


def test_two_servers_share_the_work(waiting, server, many, output):
    with run_server(waiting) as other:
        before = count_requests(server), count_requests(other)
        Command(many, output, f"ipv4:127.0.0.1:{server.grpc_port},127.0.0.1:{other.grpc_port}", in_flight=16).wait()
        shares = [
            (count_requests(each) - then) / (MANY + TINY) for each, then in zip((server, other), before, strict=True)
        ]
    assert sum(shares) == pytest.approx(1)
    assert min(shares) > 0.4
    check_all_done(many, output)


def test_concurrent_shards(server, many, output):
    before = count_requests(server)
    jobs = [Command(many, output, server.url, "--shard", f"{number}/2", in_flight=4) for number in (1, 2)]
    assert sum(job.wait()["enhanced"] for job in jobs) == MANY
    assert count_requests(server) - before == MANY + 2 * TINY
    assert Command(many, output, server.url).wait()["done_before"] == MANY
    check_all_done(many, output)


@pytest.fixture
def real_photos(tmp_path):
    """Return a folder of eight photographs and one damaged file."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, path in enumerate(sorted((ROOT / "demo/photos").glob("*.jpg"))[:4] * 2):
        shutil.copy(path, folder / f"{number}-{path.name}")
    (folder / "broken.jpg").write_bytes((folder / "0-balcony.jpg").read_bytes()[:5000])
    return folder


def test_killed_job_on_the_real_pipeline(triton, real_photos, output):
    """Outputs equal the client's, and no request is rejected with as many in flight as a CPU server's queue holds."""
    job = Command(real_photos, output, triton.url)
    wait_for(lambda: len(photographs(output)) >= 2, seconds=200)
    kill_process(job.process.pid)
    job.process.wait()
    wait_for(lambda: not job.processes(), seconds=240)
    summary = Command(real_photos, output, triton.url).wait(code=1)
    assert (summary["failed"], summary["rejections"]) == (1, 0)
    rows = {row["key"]: row for row in manifest.read_rows(output).to_pylist()}
    assert rows["broken.jpg"]["error"].startswith("InvalidPhotograph: ")
    assert photographs(output) == set(rows) - {"broken.jpg"}
    with Enhancer(triton.url) as enhancer:
        enhanced = enhancer.enhance(real_photos / "2-coffee-table.jpg", timeout=120)
    assert rows["2-coffee-table.jpg"]["checksum"] == hashlib.sha256(enhanced).hexdigest()


def test_rejected_requests_are_sent_again(triton, real_photos, output):
    """More requests in flight than the queue holds."""
    policies = read_config(triton.repository / QUEUE_CONFIG).dynamic_batching.priority_queue_policy
    count = policies[2].max_queue_size + 8
    (real_photos / "broken.jpg").unlink()
    for number in range(count - 8):
        shutil.copy(real_photos / "2-coffee-table.jpg", real_photos / f"copy-{number}.jpg")
    summary = Command(real_photos, output, triton.url, in_flight=count).wait(seconds=600)
    assert summary["rejections"] > 0
    assert (summary["enhanced"], summary["failed"]) == (count, 0)


@pytest.fixture
def bucket(monkeypatch):
    """Start an S3 server (moto) and return a function that copies files to and from it in the bulk environment."""
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


def test_object_stores(server, many, bucket, tmp_path):
    bucket("put", f"{many}/", "homes/in/")
    output = storage.Folder(None, "s3://homes/out")
    before = count_requests(server)
    job = Command("s3://homes/in", output, server.url)
    wait_for(lambda: count_requests(server) - before >= MANY // 3)
    kill_process(job.process.pid)
    job.process.wait()
    wait_for(lambda: not job.processes(), seconds=240)
    summary = Command("s3://homes/in", output, server.url).wait()
    assert 0 < summary["enhanced"] < MANY
    assert count_requests(server) - before <= MANY + 2 * TINY + IN_FLIGHT
    bucket("get", "homes/out/", f"{tmp_path}/out")
    check_all_done(many, storage.open_folder(f"{tmp_path}/out"))


def test_job_stops_when_the_server_stays_unreachable(waiting, many, output):
    with run_server(waiting) as server:
        job = Command(many, output, server.url, "--patience", 3, "--timeout", 2)
        wait_for(lambda: len(photographs(output)) >= MANY // 4)
        kill_process(server.pid)
        stdout, stderr = job.process.communicate(timeout=120)
    assert job.process.returncode == 1
    assert "Traceback" not in stderr
    assert stderr.splitlines()[-1].startswith("error: no photograph was enhanced for 3 s")
    assert not stdout
