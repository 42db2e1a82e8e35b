"""Fixtures for all tests: one real engine and one real Triton for each session, in temporary folders."""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from urllib.request import urlopen

import pytest
from xdist.scheduler import LoadScopeScheduling

import hosts
from export.build import build
from export.request import Request
from export.triton import free_ports

__all__ = [
    "ROOT",
    "SERVER_PYTHON",
    "Triton",
    "bare_repository",
    "copy_repository",
    "free_port",
    "read_counter",
    "server_command",
]

#: The tests are those of a host without a GPU, also on one that has some.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
#: A shell starts background jobs with Ctrl-C ignored, which the commands under test would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)
ROOT = Path(__file__).parents[1]
SERVER_PYTHON = ROOT / ".envs/server/bin/python"


@dataclass(frozen=True)
class Triton:
    """The session's server: its addresses, and the command line that controls it."""

    grpc_port: int
    metrics_port: int
    state: Path
    repository: Path
    http_port: int

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def http_url(self) -> str:
        return f"127.0.0.1:{self.http_port}"

    def command(self, verb: str) -> list[str]:
        ports = {"grpc_port": self.grpc_port, "metrics_port": self.metrics_port, "http_port": self.http_port}
        return server_command(verb, repository=self.repository, state=self.state, **ports)


def server_command(verb, *, python=SERVER_PYTHON, **options) -> list[str]:
    """Return ``python -m server VERB`` with options as flags, on the CPU by default."""
    options = {"hardware": "cpu", **options}
    flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    return [str(python), "-m", "server", *flags, verb]


def free_port() -> int:
    """Return a port that no process listens on."""
    return free_ports(1)[0]


def read_counter(triton: Triton, name: str, model: str = "restormer") -> float:
    """Read a counter of one model from Triton's metrics."""
    with urlopen(f"http://127.0.0.1:{triton.metrics_port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f'{name}{{model="{model}"'))


def bare_repository(folder: Path) -> Path:
    """Copy the model repository without engines."""
    shutil.copytree(ROOT / "model_repository", folder, ignore=lambda path, names: _published(path, names))
    return folder


def copy_repository(repository: Path, folder: Path) -> Path:
    """Copy a model repository with its engines, for a test that changes it."""
    return Path(shutil.copytree(repository, folder, ignore=shutil.ignore_patterns("__pycache__")))


def _published(path: str, names: list[str]) -> list[str]:
    is_restormer = Path(path).name == "restormer"
    return [n for n in names if n == "__pycache__" or (is_restormer and (n[0].isdigit() or n.startswith(".")))]


class Scheduler(LoadScopeScheduling):
    """Give a worker of `make test` whole files, and all that need the session's repository or server to one worker."""

    def _split_scope(self, nodeid):
        path = nodeid.partition("::")[0]
        return "server" if _needs_server(path) else path


@cache
def _needs_server(path):
    text = (ROOT / path).read_text(encoding="utf-8")
    return bool(re.search(r"^def \w+\([^)]*\b(?:repository|triton|fortress)\b", text, re.MULTILINE))


def pytest_xdist_make_scheduler(config, log):
    return Scheduler(config, log)


@pytest.fixture(scope="session")
def repository(tmp_path_factory) -> Path:
    """Publish the demo package's float32 engine in a model repository."""
    folder = bare_repository(tmp_path_factory.mktemp("served") / "model_repository")
    build(
        Request(
            package=ROOT / "demo/package",
            target="cpu",
            repository=folder,
            engines=folder.parent / "engines",
            photos=ROOT / "demo/photos",
            server_python=SERVER_PYTHON,  # as `make engine` does: `make demo` then finds nothing to build
        )
    )
    return folder


@pytest.fixture(scope="session")
def triton(repository, tmp_path_factory):
    """Run a Triton that serves `repository`."""
    server = Triton(free_port(), free_port(), tmp_path_factory.mktemp("state"), repository, free_port())
    subprocess.run(server.command("start"), cwd=ROOT, check=True)
    yield server
    subprocess.run(server.command("stop"), cwd=ROOT, check=True)


#: A stub of nvidia-smi: prints the queried fields of all cards and, like the original, ignores CUDA_VISIBLE_DEVICES.
#: Variables set what all cards have in common.
NVIDIA_SMI = """#!{python}
import os, sys
memory, driver = os.environ.get("STUB_MEMORY", "81559 MiB"), os.environ.get("STUB_DRIVER", "580.95.05")
common = {{"memory.total": memory, "driver_version": driver}}
cards = [{{"name": n, "compute_cap": c, "uuid": u, **common}} for n, c, u in {cards}]
if "-L" in sys.argv:
    sys.exit(print("GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-8932f937)", os.environ.get("STUB_MIG", ""), sep="\\n"))
(fields,) = [a.removeprefix("--query-gpu=").split(",") for a in sys.argv if a.startswith("--query-gpu=")]
for card in cards:
    print(", ".join(card[field] for field in fields))
"""
CARDS = [
    ("NVIDIA H100 80GB HBM3", "9.0", "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"),
    ("NVIDIA H100 80GB HBM3", "9.0", "GPU-89a1b2c3-0000-4106-c12f-20bd9faed9f6"),
    ("NVIDIA L40S", "8.9", "GPU-0123abcd-d72c-4106-c12f-20bd9faed9f6"),
]


@pytest.fixture
def gpu_host(tmp_path_factory, monkeypatch):
    """Simulate a host with `CARDS`, by a stub of nvidia-smi first on PATH."""
    stub = tmp_path_factory.mktemp("driver") / "nvidia-smi"
    stub.write_text(NVIDIA_SMI.format(python=sys.executable, cards=CARDS), encoding="utf-8")
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stub.parent}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    cached = (hosts.gpus, hosts._nvidia_smi)
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


@pytest.fixture
def cuda_device(monkeypatch):
    """Return a function that simulates CUDA's current device, by stubs of what PyTorch reports."""
    import torch

    def select(name: str, capability: str) -> None:
        major, minor = map(int, capability.split("."))
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "init", lambda: None)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        properties = SimpleNamespace(name=name, major=major, minor=minor)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)

    return select


@pytest.fixture
def lower_layer(monkeypatch):
    """Return a context in which the folders below a path behave as in a lower layer of an overlay: no rename."""

    @contextmanager
    def hold(folder):
        inodes, rename = {path.stat().st_ino for path in folder.rglob("*") if path.is_dir()}, os.rename

        def rename_upper(source, target, **options):
            if os.stat(source).st_ino in inodes:
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), source)
            rename(source, target, **options)

        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", rename_upper)
            yield

    return hold


@pytest.fixture(autouse=True)
def _run_in_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="session")
def client_command() -> list[str]:
    """Return the command ``restormer-client``."""
    return [os.fspath(Path(sys.executable).with_name("restormer-client"))]
