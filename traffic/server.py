"""A real Triton on free ports to send traffic to, with its metrics, processes and memory."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

from export import triton
from export.errors import ExportError
from export.publish import provenance

SERVER_PYTHON = Path(".envs/server/bin/python")
IDENTITY = Path(__file__).with_name("identity")
#: Counters by model and name, without the prefix ``nv_inference_`` (Triton) or ``restormer_`` (the adapters).
Counters = defaultdict[tuple[str, str], float]


@dataclass(frozen=True)
class Server:
    """A running server. ``command`` controls it, with a verb appended."""

    pid: int
    grpc_port: int
    metrics_port: int
    command: list[str]
    log: Path

    @property
    def url(self) -> str:
        """Address of gRPC."""
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def engine(self) -> Path:
        """The engine file that the server loaded."""
        return Path(json.loads(self.log.with_name("server.json").read_text(encoding="utf-8"))["engine"])

    def read_metric(self, name: str, **labels: str) -> float:
        """Return the sum of a metric over all series with these labels."""
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        lines = (line for line in self._read_metrics() if re.match(rf"{name}[{{ ]", line))
        return sum(float(line.rpartition(" ")[2]) for line in lines if all(label in line for label in wanted))

    def read_counters(self) -> Counters:
        """Return all counters of all models at one moment, summed over versions and reasons."""
        counters: Counters = defaultdict(float)
        for line in self._read_metrics():
            if match := re.match(r'(?:nv_inference|restormer)_(\w+)\{.*?model="([^"]+)"[^}]*\} (\S+)$', line):
                counters[match[2], match[1]] += float(match[3])
        return counters

    def _read_metrics(self) -> list[str]:
        url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        with build_opener(ProxyHandler({})).open(url, timeout=10) as answer:
            return str(answer.read().decode()).splitlines()

    def list_processes(self) -> dict[int, str]:
        """Return the command lines of Triton and its Python stubs, by process ID."""
        processes = {self.pid: "tritonserver"}
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # a process may end meanwhile
                parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == self.pid:
                    processes[int(path.name)] = (path / "cmdline").read_bytes().decode().replace("\0", " ")
        return processes

    def list_stubs(self, model: str) -> list[int]:
        """Return the process IDs of a model's Python stubs."""
        return [pid for pid, command in self.list_processes().items() if f" {model}_0_" in command]

    def measure_memory(self) -> float:
        """Return the proportional memory of all processes in MiB, including shared memory."""
        total = 0
        for pid in self.list_processes():
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{pid}/smaps_rollup").read_text()
                total += int(next(line for line in text.splitlines() if line.startswith("Pss:")).split()[1])
        return total / 1024


@contextlib.contextmanager
def run_server(repository: Path, *options: str, wrapper: Sequence[str] = ()) -> Iterator[Server]:
    """Start a server on free ports and stop it at the end. Exit with the server's error if it does not start."""
    with contextlib.ExitStack() as stack:
        try:
            running = triton.run_server(SERVER_PYTHON, repository, "--exit-timeout", "5", *options, wrapper=wrapper)
            command, state, grpc_port, metrics_port = stack.enter_context(running)
        except ExportError as error:
            sys.exit(f"error: {error}")
        pid = json.loads((state / "server.json").read_text())["pid"]
        yield Server(pid, grpc_port, metrics_port, command, state / "triton.log")


@contextlib.contextmanager
def repository_with_identity(repository: Path, name: str) -> Iterator[Path]:
    """Copy the published models and add the model `identity` as ``name``; it replaces a model of that name."""
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder, "models")
        shutil.copytree(repository, models, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        shutil.rmtree(models / name, ignore_errors=True)
        shutil.copytree(IDENTITY, models / name, ignore=shutil.ignore_patterns("__pycache__"))
        config = models / name / "config.pbtxt"
        config.write_text(config.read_text(encoding="utf-8").replace('name: "identity"', f'name: "{name}"', 1))
        yield models


def describe_engine(engine: Path) -> dict[str, str]:
    """Return what a record keeps of an engine: precision, target, checkpoint and the command that builds it."""
    document = provenance(engine)
    kept = {key: str(document[key]) for key in ("precision", "target", "command")}
    return {**kept, "checkpoint_sha256": document["package"]["checkpoint_sha256"]}


def kill_process(pid: int) -> None:
    """Kill a process as the kernel does when memory runs out."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
