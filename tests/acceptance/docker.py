"""The containers, really: a clean clone is built, started, asked, watched, hurt and stopped (``make test-docker``).

Needs a Docker engine with compose v2, the base image python:3.11-slim-bookworm (or CPU_BASE=another) and an engine
published for the CPU. Where prom/prometheus cannot be pulled, Debian's Prometheus stands in for it. ``RECORD=file``
writes how large the image is and why, and how long it took until a new server answered after a Python process had died.
"""

import io
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml
from PIL import Image, PngImagePlugin

from tests.conftest import ROOT, free_port
from tests.photographs import encode_image, make_exif, pixels

PROJECT = "restormer-test"
CONTAINER = f"{PROJECT}-triton-cpu-1"
BASE = os.environ.get("CPU_BASE", "python:3.11-slim-bookworm")
COMPOSE = yaml.safe_load((ROOT / "docker/compose.yaml").read_text(encoding="utf-8"))
PROMETHEUS = re.fullmatch(r"\$\{PROMETHEUS_IMAGE:-(.*)\}", COMPOSE["services"]["prometheus"]["image"])[1]
WAY_OUT = ("-f", "docker/compose.yaml", "-f", "docker/egress.yaml")
#: A repository with a CPU engine of the demo package; `make test-docker` builds one of its own.
ENGINES = Path(os.environ.get("ENGINES_FOR_TEST", ROOT / "model_repository"))
PHOTOGRAPH = ROOT / "demo/photos/balcony.jpg"
RECORD = {}

#: Run inside the server's container: what a process there may do.
INSIDE = """
import json, os, socket, pathlib
def tried(action):
    try: action()
    except OSError as error: return error.strerror or type(error).__name__
    return "possible"
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
print(json.dumps({
    "uid": os.getuid(), "capabilities": int(status["CapBnd"], 16), "no_new_privileges": status["NoNewPrivs"].strip(),
    "root": tried(lambda: pathlib.Path("/x").touch()), "models": tried(lambda: pathlib.Path("/models/x").touch()),
    "python": tried(lambda: pathlib.Path("/opt/venv/x").touch()),
    "out": tried(lambda: socket.create_connection(("%s", %s), timeout=3)),
    "shm": os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize,
}))
"""
CONNECT = """
import socket
try: socket.create_connection(("%s", %s), timeout=3); print("possible")
except OSError as error: print(error)
"""
KILL = """
import os
for pid in filter(str.isdigit, os.listdir("/proc")):
    command = open(f"/proc/{pid}/cmdline").read()
    if "python_backend_stub" in command.split("\\0")[0] and "/preprocess/" in command: os.kill(int(pid), 9); print(pid)
"""


def docker(*arguments, check=True, seconds=600.0, **options):
    return subprocess.run(
        ["docker", *map(str, arguments)], check=check, capture_output=True, text=True, timeout=seconds, **options
    )


def image(tag, dockerfile, folder, base=BASE):
    """Build an image on another base than its own; return its tag."""
    docker("build", "-q", "-t", tag, "--build-arg", f"BASE={base}", "-f", folder / dockerfile, folder, seconds=1700)
    return tag


def inspected(field):
    return json.loads(docker("inspect", CONTAINER, "--format", f"{{{{json {field}}}}}").stdout)


def eventually(wanted, seconds, what):
    """Waits for ``wanted()`` to be true, and says what was waited for when it is not."""
    deadline = time.monotonic() + seconds
    while not (found := wanted()):
        assert time.monotonic() < deadline, (
            f"{what}: not within {seconds:.0f} s\n{docker('logs', '--tail', 40, CONTAINER, check=False)}"
        )
        time.sleep(1)
    return found


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """What is committed, and the engine of this working tree: engines are built, not committed."""
    folder = tmp_path_factory.mktemp("clone") / "restormer-triton"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    published = [p for p in (ENGINES / "restormer").iterdir() if p.name.isdigit() and (p / "model.onnx").is_file()]
    assert published, "no engine for the CPU is published: make engine PRECISION=fp32 TARGET=cpu"
    engine = max(published, key=lambda path: int(path.name))
    shutil.copytree(
        engine, folder / "model_repository/restormer" / engine.name, ignore=shutil.ignore_patterns("__pycache__")
    )
    # The folders above belong to whoever runs the tests; the container's user only reads.
    for path in (folder, *folder.parents[:2]):
        path.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def ports():
    return {"GRPC_PORT": free_port(), "PROMETHEUS_PORT": free_port()}


@pytest.fixture(scope="module")
def compose(clone, ports):
    """``docker compose`` as a user calls it in the clone; everything is taken down at the end."""
    environment = {**os.environ, "COMPOSE_PROJECT_NAME": PROJECT, **{name: str(port) for name, port in ports.items()}}
    if (
        docker("image", "inspect", PROMETHEUS, check=False).returncode
        and docker("pull", PROMETHEUS, check=False).returncode
    ):
        stand_in = "restormer-test-prometheus:2"
        environment["PROMETHEUS_IMAGE"] = image(stand_in, "prometheus.Dockerfile", ROOT / "tests/docker")

    def call(*arguments, **options):
        return docker("compose", *arguments, cwd=clone, env=environment, **options)

    call(*WAY_OUT, "--profile", "*", "down", "--volumes", "--timeout", "5")
    call("build", "triton-cpu")
    yield call
    call(*WAY_OUT, "--profile", "*", "down", "--volumes", "--timeout", "5")
    if path := os.environ.get("RECORD"):
        Path(path).write_text(json.dumps(RECORD, indent=1) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def server(compose):
    """A healthy ``triton-cpu`` and its Prometheus, started by the owner's own words."""
    compose("--profile", "cpu", "up", "-d", "triton-cpu")
    compose("--profile", "watch", "up", "-d", "prometheus")
    eventually(lambda: inspected(".State.Health.Status") == "healthy", 300, "healthy")
    return compose


def enhance(client_command, ports, output, photograph=PHOTOGRAPH, *more):
    asked = [
        *client_command,
        "enhance",
        str(photograph),
        str(output),
        "--url",
        f"127.0.0.1:{ports['GRPC_PORT']}",
        "--timeout",
        "60",
        *more,
    ]
    return subprocess.run(asked, check=False, capture_output=True, text=True)


def test_a_photograph_goes_through(server, client_command, ports, tmp_path):
    done = enhance(client_command, ports, tmp_path / "out.jpg")
    assert done.returncode == 0, done.stderr
    with Image.open(PHOTOGRAPH) as before, Image.open(tmp_path / "out.jpg") as after:
        assert (after.size, after.format) == (before.size, before.format)


@pytest.fixture(scope="module")
def outside():
    """A listener beyond this host that a container of the default bridge reaches: OUTSIDE=host:port, or the name server
    that this host asks (TCP)."""
    named = re.findall(r"^nameserver (?!127\.)([\d.]+)", Path("/etc/resolv.conf").read_text(), re.MULTILINE)
    listener = tuple(os.environ.get("OUTSIDE", f"{(*named, '9.9.9.9')[0]}:53").rsplit(":", 1))
    if docker("run", "--rm", BASE, "python", "-c", CONNECT % listener).stdout.strip() != "possible":
        pytest.skip(
            f"no container here reaches {':'.join(listener)}: give a listener beyond this host, OUTSIDE=host:port"
        )
    return listener


def test_the_way_out_is_opened_by_its_own_file_alone(compose, outside):
    """The server, without it and with it: a trace collector is reached with it only."""
    asked = (
        "--profile",
        "cpu",
        "run",
        "--rm",
        "--no-deps",
        "--entrypoint",
        "python",
        "triton-cpu",
        "-c",
        CONNECT % outside,
    )
    assert compose(*asked).stdout.strip() != "possible"
    assert compose(*WAY_OUT, *asked).stdout.strip() == "possible"


def test_a_process_inside_may_do_nothing_but_serve(server, outside):
    found = json.loads(docker("exec", CONTAINER, "python", "-c", INSIDE % outside).stdout)
    assert found["uid"] == 10001
    assert found["capabilities"] == 0
    assert found["no_new_privileges"] == "1"
    assert found["root"] == found["models"] == "Read-only file system"
    assert found["python"] in ("Read-only file system", "Permission denied")
    assert found["out"] != "possible"
    assert found["shm"] == int(re.fullmatch(r"\$\{SHM_SIZE:-(\d+)g\}", COMPOSE["x-server"]["shm_size"])[1]) << 30
    for command in (["python", "-m", "pip"], ["sh", "-c", "command -v gcc"]):
        assert docker("exec", CONTAINER, *command, check=False).returncode


def test_metrics_are_scraped_and_not_published(server, ports, client_command, tmp_path):
    def asked(query):
        with urlopen(
            f"http://127.0.0.1:{ports['PROMETHEUS_PORT']}/api/v1/query?{urlencode({'query': query})}", timeout=5
        ) as answer:
            return [float(one["value"][1]) for one in json.load(answer)["data"]["result"]]

    def there(query):
        try:
            return asked(query)
        except (URLError, OSError):
            return []

    eventually(lambda: there('up{job="triton"}') == [1.0], 60, "Prometheus reaches the server")
    done = enhance(client_command, ports, tmp_path / "out.jpg")
    assert done.returncode == 0, done.stderr
    eventually(lambda: max(there("restormer:enhanced:rate1m"), default=0) > 0, 60, "the photograph is counted")
    state = ("inspect", f"{PROJECT}-prometheus-1", "--format", "{{.State.Health.Status}}")
    eventually(lambda: docker(*state).stdout.strip() == "healthy", 90, "Prometheus is healthy")
    bindings = inspected(".HostConfig.PortBindings")
    assert set(bindings) == {"8001/tcp"}
    assert bindings["8001/tcp"][0]["HostIp"] == "127.0.0.1"


def test_the_log_holds_no_photograph(server, client_command, ports, tmp_path):
    """After photographs with a place and a name in them, whole, damaged, and none at all, one by one and in tiles."""
    whole = encode_image(pixels(240, 320), exif=make_exif(1, place=True), comment=b"Wilhelmina Undset")
    text = PngImagePlugin.PngInfo()
    text.add_text("Author", "Wilhelmina Undset")
    png = io.BytesIO()
    Image.fromarray(pixels(240, 320)).save(png, "PNG", pnginfo=text)
    sent = {
        "whole.jpg": whole, "cut.jpg": whole[: len(whole) // 2], "broken.jpg": whole[:200] + b"Wilhelmina" * 20,
        "whole.png": png.getvalue(), "cut.png": png.getvalue()[:2000], "letter.jpg": b"Wilhelmina Undset" * 9,
    }  # fmt: skip
    codes = {}
    for name, data in sent.items():
        (tmp_path / name).write_bytes(data)
        for more in ((), ("--tiled",)):
            codes[name, more] = enhance(
                client_command, ports, tmp_path / f"out-{name}", tmp_path / name, *more
            ).returncode
    assert {name for (name, _), code in codes.items() if code == 0} >= {"whole.jpg", "whole.png"}
    assert {name for (name, _), code in codes.items() if code} >= {"cut.png", "broken.jpg", "letter.jpg"}
    log = docker("logs", CONTAINER)
    text = log.stdout + log.stderr
    assert "READY" in text
    assert not [word for word in ("JFIF", "Exif", "/9j/", "GPS") if word in text]
    assert not [word for word in ("Wilhelmina", "Undset", "Camera maker", "whole.", "letter.") if word in text]
    assert len(max(text.splitlines(), key=len)) < 2000


def test_a_dead_python_process_ends_in_a_new_server(server, client_command, ports, tmp_path):
    began = time.monotonic()
    assert docker("exec", CONTAINER, "python", "-c", KILL).stdout.split()
    assert enhance(client_command, ports, tmp_path / "out.jpg").returncode == 1
    eventually(lambda: inspected(".RestartCount") == 1, 150, "the health check ends the server")
    eventually(
        lambda: enhance(client_command, ports, tmp_path / "out.jpg").returncode == 0, 120, "the new server enhances"
    )
    RECORD["dead_process_seconds"] = round(time.monotonic() - began)


def test_it_stops_in_time_and_in_order(server):
    began = time.monotonic()
    server("--profile", "cpu", "stop", "triton-cpu")
    assert time.monotonic() - began < 45
    assert inspected(".State.ExitCode") == 0


def test_how_large_the_image_is(compose):
    image = compose("--profile", "cpu", "config", "--images", "triton-cpu").stdout.split()
    name = next(line for line in image if "triton-cpu" in line)
    size = {what: int(docker("image", "inspect", what, "--format", "{{.Size}}").stdout) for what in (name, BASE)}
    listed = docker(
        "run",
        "--rm",
        "--entrypoint",
        "sh",
        name,
        "-c",
        "du -sm /opt/triton /opt/numba /opt/venv/lib/python3*/site-packages/*",
    ).stdout
    parts = {line.split("\t")[1].rsplit("/", 1)[-1]: int(line.split("\t")[0]) for line in listed.splitlines()}
    RECORD["image"] = {
        "total_mb": round(size[name] / 1e6),
        "base_mb": round(size[BASE] / 1e6),
        "parts_mb": {k: v for k, v in parts.items() if v >= 5},
    }
    assert "torch" not in parts
    assert "pip" not in parts
    assert (size[name] - size[BASE]) / 1e6 < 800


def test_the_gpu_images_lines_run_on_another_base(clone):
    """The lines that install are run, and what they made is asked, on Debian's Python in place of NVIDIA's image."""
    made = image("restormer-test-gpu:1", "docker/triton.Dockerfile", clone)
    asked = docker("run", "--rm", made, "--triton", "/opt/tritonserver", "preflight", check=False)
    assert asked.returncode == 1
    assert "/opt/tritonserver" in asked.stdout + asked.stderr
    assert "Traceback" not in asked.stdout + asked.stderr
    docker("run", "--rm", "--entrypoint", "python", made, "-c", "import imaging, restormer_client")


def test_the_builders_lines_run_on_another_base(clone):
    """On Debian's Python and make in place of NVIDIA's image; what was installed then works as compose runs it."""
    base = image("restormer-test-tensorrt:1", "tensorrt.Dockerfile", ROOT / "tests/docker")
    made = image("restormer-test-builder:1", "docker/builder.Dockerfile", clone, base)
    locked = ("--rm", "--read-only", "--network", "none", "--tmpfs", "/tmp", "--user", "1000:1000")
    assert "model package demo/package" in docker("run", *locked, made, "make", "inspect").stdout
    installed = docker("run", *locked, made, "python3", "-m", "pip", "--python", "/opt/envs/build/bin/python", "list")
    names = {line.split()[0] for line in installed.stdout.splitlines()}
    assert {"onnxruntime-gpu", "polygraphy", "restormer-triton", "restormer-client"} <= names
    assert not names & {"onnxruntime", "tensorrt"}


def test_the_gpu_images_lock_has_wheels_for_its_python(tmp_path):
    """3.12, of Ubuntu 24.04, where this machine may have another."""
    subprocess.run(
        ["python3", "-m", "pip", "install", "--quiet", "--dry-run", "--no-deps", "--target", tmp_path,
         "--python-version", "3.12", "--platform", "manylinux_2_28_x86_64", "--platform", "manylinux2014_x86_64",
         "--only-binary", ":all:", "-r", ROOT / "requirements/server-gpu.txt"],
        check=True,
    )  # fmt: skip
