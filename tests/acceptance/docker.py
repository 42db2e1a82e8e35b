"""Build, start, call, break and stop the containers of a clean clone with a real Docker (``make test-docker``).

Needs a Docker engine with compose v2, the base image python:3.11-slim-bookworm (or CPU_BASE=another) and an engine
published for the CPU. Where prom/prometheus cannot be pulled, Debian's Prometheus replaces it. ``RECORD=file`` writes
the size of the image and of its parts, and the seconds from the death of a Python process to the first photograph of
the new server.
"""

import io
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml
from PIL import Image, PngImagePlugin

from tests.conftest import CARDS, NVIDIA_SMI, ROOT, bare_repository, free_port
from tests.photographs import encode_image, make_exif, pixels
from tests.server.conftest import publish_plan

PROJECT = "restormer-test"
CONTAINER = f"{PROJECT}-triton-cpu-1"
BASE = os.environ.get("CPU_BASE", "python:3.11-slim-bookworm")
COMPOSE = yaml.safe_load((ROOT / "docker/compose.yaml").read_text(encoding="utf-8"))
PROMETHEUS = re.fullmatch(r"\$\{PROMETHEUS_IMAGE:-(.*)\}", COMPOSE["services"]["prometheus"]["image"])[1]
WITH_EGRESS = ("-f", "docker/compose.yaml", "-f", "docker/egress.yaml")
#: Model repository with a CPU engine of the demo package; `make test-docker` builds its own.
ENGINES = Path(os.environ.get("ENGINES_FOR_TEST", ROOT / "model_repository"))
PHOTOGRAPH = ROOT / "demo/photos/balcony.jpg"
RECORD = {}

#: Runs in the server's container; prints the rights of a process there.
RIGHTS = """
import json, os, socket, pathlib
def attempt(action):
    try: action()
    except OSError as error: return error.strerror or type(error).__name__
    return "possible"
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
print(json.dumps({
    "uid": os.getuid(), "capabilities": int(status["CapBnd"], 16), "no_new_privileges": status["NoNewPrivs"].strip(),
    "root": attempt(lambda: pathlib.Path("/x").touch()), "models": attempt(lambda: pathlib.Path("/models/x").touch()),
    "python": attempt(lambda: pathlib.Path("/opt/venv/x").touch()),
    "outbound": attempt(lambda: socket.create_connection(("%s", %s), timeout=3)),
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


def run_docker(*arguments, check=True, seconds=600.0, **options):
    return subprocess.run(
        ["docker", *map(str, arguments)], check=check, capture_output=True, text=True, timeout=seconds, **options
    )


def build_image(tag, dockerfile, folder, base=BASE):
    """Build an image on a base other than its own; return its tag."""
    run_docker("build", "-q", "-t", tag, "--build-arg", f"BASE={base}", "-f", folder / dockerfile, folder, seconds=1700)
    return tag


def inspect_server(field):
    """Return a field of ``docker inspect`` of the server's container."""
    return json.loads(run_docker("inspect", CONTAINER, "--format", f"{{{{json {field}}}}}").stdout)


def wait_until(condition, seconds, description):
    """Wait until ``condition()`` is true; fail with the description and the server's log after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, (
            f"{description}: not within {seconds:.0f} s\n{run_docker('logs', '--tail', 40, CONTAINER, check=False)}"
        )
        time.sleep(1)


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """Clone the commit and add the engine of this working tree, because engines are not committed."""
    folder = tmp_path_factory.mktemp("clone") / "restormer-triton"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    published = [p for p in (ENGINES / "restormer").iterdir() if p.name.isdigit() and (p / "model.onnx").is_file()]
    assert published, "no engine for the CPU is published: make engine PRECISION=fp32 TARGET=cpu"
    engine = max(published, key=lambda path: int(path.name))
    shutil.copytree(
        engine, folder / "model_repository/restormer" / engine.name, ignore=shutil.ignore_patterns("__pycache__")
    )
    # Only the user who runs the tests can read the folders above; the container's user has to read them too.
    for path in (folder, *folder.parents[:2]):
        path.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def ports():
    return {"GRPC_PORT": free_port(), "PROMETHEUS_PORT": free_port()}


@pytest.fixture(scope="module")
def compose(clone, ports):
    """Return a function that calls ``docker compose`` in the clone; remove all containers at the end."""
    environment = {**os.environ, "COMPOSE_PROJECT_NAME": PROJECT, **{name: str(port) for name, port in ports.items()}}
    commands = (("image", "inspect", PROMETHEUS), ("pull", PROMETHEUS))
    if all(run_docker(*command, check=False).returncode for command in commands):
        substitute = "restormer-test-prometheus:2"
        environment["PROMETHEUS_IMAGE"] = build_image(substitute, "prometheus.Dockerfile", ROOT / "tests/docker")

    def call(*arguments, **options):
        return run_docker("compose", *arguments, cwd=clone, env=environment, **options)

    call(*WITH_EGRESS, "--profile", "*", "down", "--volumes", "--timeout", "5")
    call("build", "triton-cpu")
    yield call
    call(*WITH_EGRESS, "--profile", "*", "down", "--volumes", "--timeout", "5")
    if path := os.environ.get("RECORD"):
        Path(path).write_text(json.dumps(RECORD, indent=1) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def server(compose):
    """Start a healthy ``triton-cpu`` and its Prometheus with the commands of the manual."""
    compose("--profile", "cpu", "up", "-d", "triton-cpu")
    compose("--profile", "watch", "up", "-d", "prometheus")
    wait_until(lambda: inspect_server(".State.Health.Status") == "healthy", 300, "the server is healthy")
    return compose


def enhance(client_command, ports, output, photograph=PHOTOGRAPH, *more):
    url = f"127.0.0.1:{ports['GRPC_PORT']}"
    command = [*client_command, "enhance", str(photograph), str(output), "--url", url, "--timeout", "60", *more]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def test_a_photograph_is_enhanced(server, client_command, ports, tmp_path):
    done = enhance(client_command, ports, tmp_path / "out.jpg")
    assert done.returncode == 0, done.stderr
    with Image.open(PHOTOGRAPH) as before, Image.open(tmp_path / "out.jpg") as after:
        assert (after.size, after.format) == (before.size, before.format)


@pytest.fixture(scope="module")
def outside():
    """Return a listener beyond this host that containers of the default bridge reach: ``OUTSIDE=host:port``, or the
    name server of this host (TCP)."""
    servers = re.findall(r"^nameserver (?!127\.)([\d.]+)", Path("/etc/resolv.conf").read_text(), re.MULTILINE)
    listener = tuple(os.environ.get("OUTSIDE", f"{(*servers, '9.9.9.9')[0]}:53").rsplit(":", 1))
    if run_docker("run", "--rm", BASE, "python", "-c", CONNECT % listener).stdout.strip() != "possible":
        pytest.skip(f"no container reaches {':'.join(listener)}: set OUTSIDE=host:port to a listener beyond this host")
    return listener


def test_only_the_egress_file_lets_the_server_reach_other_hosts(compose, outside):
    """A trace collector is reached with the file and not without it."""
    command = ["--profile", "cpu", "run", "--rm", "--no-deps", "--entrypoint", "python", "triton-cpu"]
    command += ["-c", CONNECT % outside]
    assert compose(*command).stdout.strip() != "possible"
    assert compose(*WITH_EGRESS, *command).stdout.strip() == "possible"


def test_a_process_in_the_container_cannot_write_or_connect(server, outside):
    rights = json.loads(run_docker("exec", CONTAINER, "python", "-c", RIGHTS % outside).stdout)
    assert rights["uid"] == 10001
    assert rights["capabilities"] == 0
    assert rights["no_new_privileges"] == "1"
    assert rights["root"] == rights["models"] == "Read-only file system"
    assert rights["python"] in ("Read-only file system", "Permission denied")
    assert rights["outbound"] != "possible"
    assert rights["shm"] == int(re.fullmatch(r"\$\{SHM_SIZE:-(\d+)g\}", COMPOSE["x-server"]["shm_size"])[1]) << 30
    for command in (["python", "-m", "pip"], ["sh", "-c", "command -v gcc"]):
        assert run_docker("exec", CONTAINER, *command, check=False).returncode


def test_metrics_are_scraped_and_not_published(server, ports, client_command, tmp_path):
    def query(expression):
        url = f"http://127.0.0.1:{ports['PROMETHEUS_PORT']}/api/v1/query?{urlencode({'query': expression})}"
        try:
            with urlopen(url, timeout=5) as answer:
                return [float(sample["value"][1]) for sample in json.load(answer)["data"]["result"]]
        except OSError:  # not started yet
            return []

    wait_until(lambda: query('up{job="triton"}') == [1.0], 60, "Prometheus reaches the server")
    done = enhance(client_command, ports, tmp_path / "out.jpg")
    assert done.returncode == 0, done.stderr
    wait_until(lambda: max(query("restormer:enhanced:rate1m"), default=0) > 0, 60, "Prometheus counts the photograph")
    state = ("inspect", f"{PROJECT}-prometheus-1", "--format", "{{.State.Health.Status}}")
    wait_until(lambda: run_docker(*state).stdout.strip() == "healthy", 90, "Prometheus is healthy")
    bindings = inspect_server(".HostConfig.PortBindings")
    assert set(bindings) == {"8001/tcp"}
    assert bindings["8001/tcp"][0]["HostIp"] == "127.0.0.1"


def test_the_log_contains_nothing_of_a_photograph(server, client_command, ports, tmp_path):
    """Send whole and damaged photographs with a position and a name, and text, to `enhance` and `enhance_tiled`."""
    whole = encode_image(pixels(240, 320), exif=make_exif(1, place=True), comment=b"Wilhelmina Undset")
    text = PngImagePlugin.PngInfo()
    text.add_text("Author", "Wilhelmina Undset")
    png = io.BytesIO()
    Image.fromarray(pixels(240, 320)).save(png, "PNG", pnginfo=text)
    files = {
        "whole.jpg": whole, "cut.jpg": whole[: len(whole) // 2], "broken.jpg": whole[:200] + b"Wilhelmina" * 20,
        "whole.png": png.getvalue(), "cut.png": png.getvalue()[:2000], "letter.jpg": b"Wilhelmina Undset" * 9,
    }  # fmt: skip
    codes = {}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        for more in ((), ("--tiled",)):
            output, path = tmp_path / f"out-{name}", tmp_path / name
            codes[name, more] = enhance(client_command, ports, output, path, *more).returncode
    assert {name for (name, _), code in codes.items() if code == 0} >= {"whole.jpg", "whole.png"}
    assert {name for (name, _), code in codes.items() if code} >= {"cut.png", "broken.jpg", "letter.jpg"}
    log = run_docker("logs", CONTAINER)
    text = log.stdout + log.stderr
    assert "READY" in text
    assert not [word for word in ("JFIF", "Exif", "/9j/", "GPS") if word in text]
    assert not [word for word in ("Wilhelmina", "Undset", "Camera maker", "whole.", "letter.") if word in text]
    assert len(max(text.splitlines(), key=len)) < 2000


def test_the_server_restarts_after_a_python_process_died(server, client_command, ports, tmp_path):
    began = time.monotonic()
    assert run_docker("exec", CONTAINER, "python", "-c", KILL).stdout.split()
    output = tmp_path / "out.jpg"
    assert enhance(client_command, ports, output).returncode == 1
    wait_until(lambda: inspect_server(".RestartCount") == 1, 150, "the health check stops the server")
    wait_until(lambda: enhance(client_command, ports, output).returncode == 0, 120, "the new server enhances")
    RECORD["dead_process_seconds"] = round(time.monotonic() - began)


def test_the_server_stops_in_time_with_exit_code_0(server):
    began = time.monotonic()
    server("--profile", "cpu", "stop", "triton-cpu")
    assert time.monotonic() - began < 45
    assert inspect_server(".State.ExitCode") == 0


def test_the_image_is_small(compose):
    names = compose("--profile", "cpu", "config", "--images", "triton-cpu").stdout.split()
    name = next(each for each in names if "triton-cpu" in each)
    size = {each: int(run_docker("image", "inspect", each, "--format", "{{.Size}}").stdout) for each in (name, BASE)}
    du = "du -sm /opt/triton /opt/numba /opt/venv/lib/python3*/site-packages/*"
    listed = run_docker("run", "--rm", "--entrypoint", "sh", name, "-c", du).stdout
    parts = {line.split("\t")[1].rsplit("/", 1)[-1]: int(line.split("\t")[0]) for line in listed.splitlines()}
    RECORD["image"] = {
        "total_mb": round(size[name] / 1e6),
        "base_mb": round(size[BASE] / 1e6),
        "parts_mb": {k: v for k, v in parts.items() if v >= 5},
    }
    assert "torch" not in parts
    assert "pip" not in parts
    assert (size[name] - size[BASE]) / 1e6 < 800


def test_the_gpu_image_builds_on_another_base(clone):
    """Run the Dockerfile on Debian's Python instead of NVIDIA's image, and call the installed packages."""
    tag = build_image("restormer-test-gpu:1", "docker/triton.Dockerfile", clone)
    preflight = run_docker("run", "--rm", tag, "--triton", "/opt/tritonserver", "preflight", check=False)
    assert preflight.returncode == 1
    for message in ("/opt/tritonserver", "no GPU is visible"):
        assert message in preflight.stdout + preflight.stderr
    assert "Traceback" not in preflight.stdout + preflight.stderr
    run_docker("run", "--rm", "--entrypoint", "python", tag, "-c", "import imaging, restormer_client")


#: Prints what Triton was started with, except for its help.
TRITON = """#!/bin/sh
[ "$1" = --help ] || { echo "$LD_LIBRARY_PATH"; printf '%s\\n' "$@"; }
"""


def test_the_gpu_image_starts_triton_on_a_host_with_an_old_driver(clone, tmp_path):
    """Read-only, as Compose runs it, with stubs of nvidia-smi, CUDA's compatibility libraries and Triton."""
    tag = build_image("restormer-test-gpu:1", "docker/triton.Dockerfile", clone)
    programs = {
        "nvidia-smi": ("/usr/local/bin/nvidia-smi", NVIDIA_SMI.format(python="/opt/venv/bin/python", cards=CARDS[:1])),
        "tritonserver": ("/opt/tritonserver/bin/tritonserver", TRITON),
        "libcuda.so.1": ("/usr/local/cuda/compat/lib.real/libcuda.so.1", ""),
    }
    publish_plan(bare_repository(tmp_path / "models"), 1, "9.0", profile={"max": [32, 3, 512, 512]})
    options = ["--read-only", "--shm-size", "1g", "--tmpfs", "/run/triton:uid=10001,exec", "--tmpfs", "/tmp"]
    options += ["-v", f"{tmp_path}/models:/models:ro", "-e", "STUB_DRIVER=570.86.10", "-e", "CUDA_VERSION=13.1.0"]
    for name, (path, text) in programs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
        options += ["-v", f"{tmp_path / name}:{path}:ro"]
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    started = run_docker("run", "--rm", *options, tag).stdout.splitlines()
    assert started[0] == "/usr/local/cuda/compat/lib.real"
    assert {"--cuda-memory-pool-byte-size=0:0", f"--pinned-memory-pool-byte-size={1824 << 20}"} <= set(started)


def test_the_builder_image_builds_on_another_base(clone):
    """Use Debian's Python and make instead of NVIDIA's image, and run the result as compose does."""
    base = build_image("restormer-test-tensorrt:1", "tensorrt.Dockerfile", ROOT / "tests/docker")
    tag = build_image("restormer-test-builder:1", "docker/builder.Dockerfile", clone, base)
    locked = ("--rm", "--read-only", "--network", "none", "--tmpfs", "/tmp", "--user", "1000:1000")
    assert "model package demo/package" in run_docker("run", *locked, tag, "make", "inspect").stdout
    installed = run_docker(
        "run", *locked, tag, "python3", "-m", "pip", "--python", "/opt/envs/build/bin/python", "list"
    )
    names = {line.split()[0] for line in installed.stdout.splitlines()}
    assert {"onnxruntime-gpu", "polygraphy", "restormer-triton", "restormer-client"} <= names
    assert not names & {"onnxruntime", "tensorrt"}


def test_the_gpu_image_has_wheels_for_python_3_12(tmp_path):
    """Its Python is that of Ubuntu 24.04; this machine may have another."""
    subprocess.run(
        ["python3", "-m", "pip", "install", "--quiet", "--dry-run", "--no-deps", "--target", tmp_path,
         "--python-version", "3.12", "--platform", "manylinux_2_28_x86_64", "--platform", "manylinux2014_x86_64",
         "--only-binary", ":all:", "-r", ROOT / "requirements/server-gpu.txt"],
        check=True,
    )  # fmt: skip
