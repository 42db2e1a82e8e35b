"""Traffic for a running server: closed loops, open loops, and what came back; and a server of one's own to send it to.

Open loop means that photographs arrive when they arrive, whether or not the server is done with the last (Poisson): a
closed loop slows down with the server, and so hides what an overload does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import tritonclient.grpc.aio as grpc
from tritonclient.utils import InferenceServerException

from traffic.ports import free_ports

SERVER_PYTHON = Path(".envs/server/bin/python")
INTERACTIVE, BULK = 1, 2
PAUSE = 0.2  #: seconds a worker of a closed loop takes after an answer that was none
#: How an overload is worded: turned away at once, or after a wait.
REJECTED, EXPIRED = "xceeds maximum queue size", "Request timeout expired"


#: Of a model, what Triton calls ``nv_inference_NAME`` and its adapter ``restormer_NAME``: by (model, NAME).
Counters = Counter[tuple[str, str]]


@dataclass(frozen=True)
class Answer:
    """What became of one photograph: when it was sent, how long the answer took (s), and what it was."""

    sent: float
    seconds: float
    outcome: str  # ok, rejected (the queue was full), expired (waited in vain), failed
    message: str = ""


@dataclass(frozen=True)
class Server:
    """A running server of ours."""

    pid: int
    grpc_port: int
    metrics_port: int
    command: list[str]
    log: Path

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def engine(self) -> Path:
        """The engine file that it serves."""
        return Path(json.loads(self.log.with_name("server.json").read_text(encoding="utf-8"))["engine"])

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric over what has these labels."""
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        found = (line for line in self._metrics() if re.match(rf"{name}[{{ ]", line))
        return sum(float(line.rpartition(" ")[2]) for line in found if all(part in line for part in wanted))

    def counters(self) -> Counters:
        """All counters of models at one moment, versions and reasons summed."""
        found: Counters = Counter()
        for line in self._metrics():
            if match := re.match(r'(?:nv_inference|restormer)_(\w+)\{.*?model="([^"]+)"[^}]*\} (\S+)$', line):
                found[match[2], match[1]] += float(match[3])
        return found

    def _metrics(self) -> list[str]:
        with urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=10) as answer:
            return answer.read().decode().splitlines()

    def processes(self) -> dict[int, str]:
        """Triton and its Python stubs, by process id, with their command lines."""
        found = {self.pid: "tritonserver"}
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it may end while we look
                parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == self.pid:
                    found[int(path.name)] = (path / "cmdline").read_bytes().decode().replace("\0", " ")
        return found

    def stubs(self, model: str) -> list[int]:
        """The process ids of a model's Python stubs."""
        return [pid for pid, line in self.processes().items() if f" {model}_0_" in line]

    def memory_mib(self) -> float:
        """Proportional memory of all its processes, shared memory included."""
        total = 0
        for pid in self.processes():
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{pid}/smaps_rollup").read_text()
                total += int(next(line for line in text.splitlines() if line.startswith("Pss:")).split()[1])
        return total / 1024


def stated(engine: Path) -> dict[str, Any]:
    """The JSON beside an engine that is served."""
    found: dict[str, Any] = json.loads(engine.with_name(f"{engine.name}.json").read_text(encoding="utf-8"))
    return found


def described(engine: Path) -> dict[str, str]:
    """What is served, for a record: the engine's precision, target and checkpoint, and the command that builds it."""
    found = stated(engine)
    kept = {key: str(found[key]) for key in ("precision", "target", "command")}
    return {**kept, "checkpoint_sha256": found["package"]["checkpoint_sha256"]}


@contextlib.contextmanager
def served(repository: Path, *options: str, verb: str = "start", wrapper: Sequence[str] = ()) -> Iterator[Server]:
    """A server of one's own on free ports, stopped afterwards. Ends the command with the server's line if it cannot."""
    with tempfile.TemporaryDirectory() as state:
        grpc_port, metrics_port = free_ports(2)
        command = [str(SERVER_PYTHON), "-m", "server", "--repository", str(repository), "--state", state]
        command += ["--grpc-port", str(grpc_port), "--metrics-port", str(metrics_port), "--exit-timeout", "5", *options]
        started = subprocess.run([*wrapper, *command, verb], capture_output=True, text=True, check=False)
        if started.returncode:
            sys.exit(started.stderr.strip().splitlines()[-1])
        try:
            pid = json.loads(Path(state, "server.json").read_text())["pid"]
            yield Server(pid, grpc_port, metrics_port, command, Path(state, "triton.log"))
        finally:
            subprocess.run([*command, "stop"], capture_output=True, check=False)


@contextlib.contextmanager
def with_identity(repository: Path, name: str) -> Iterator[Path]:
    """A copy of the published models with `identity` as ``name``, beside them or in the place of one."""
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder, "models")
        shutil.copytree(repository, models, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        shutil.rmtree(models / name, ignore_errors=True)
        shutil.copytree(
            Path(__file__).parents[1] / "benchmarks/pipeline/identity",
            models / name,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
        config = models / name / "config.pbtxt"
        config.write_text(config.read_text(encoding="utf-8").replace('name: "identity"', f'name: "{name}"', 1))
        yield models


def kill(pid: int) -> None:
    """As the kernel does when memory runs out."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[grpc.InferenceServerClient]:
    """A client without a bound of its own on messages, and without a proxy."""
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    async with grpc.InferenceServerClient(url, channel_args=[*options, ("grpc.enable_http_proxy", 0)]) as client:
        yield client


async def enhance(
    client: grpc.InferenceServerClient, photograph: bytes, began: float, *, priority: int = 0, timeout: float = 120.0
) -> Answer:
    """Sends one photograph and waits for what becomes of it."""
    image = grpc.InferInput("IMAGE", [1, 1], "BYTES")
    image.set_data_from_numpy(np.array([[photograph]], dtype=np.object_))
    sent = time.monotonic()
    try:
        await client.infer("enhance", [image], priority=priority, client_timeout=timeout)
        outcome, message = "ok", ""
    except InferenceServerException as error:
        message = f"{error.status()}: {error.message()}"
        outcome = "rejected" if REJECTED in message else "expired" if EXPIRED in message else "failed"
    return Answer(sent - began, time.monotonic() - sent, outcome, message)


async def closed_loop(
    url: str, photographs: Sequence[bytes], *, workers: int, seconds: float, priority: int = 0
) -> list[Answer]:
    """So many workers for so long, each sending the next photograph when it has the last one back."""
    answers: list[Answer] = []
    began = time.monotonic()

    async def work(client: grpc.InferenceServerClient, offset: int) -> None:
        turn = offset
        while time.monotonic() - began < seconds:
            answers.append(await enhance(client, photographs[turn % len(photographs)], began, priority=priority))
            turn += 1
            if answers[-1].outcome != "ok":
                await asyncio.sleep(PAUSE)

    async with connected(url) as client:
        await asyncio.gather(*(work(client, offset) for offset in range(workers)))
    return answers


async def open_loop(
    url: str, photographs: Sequence[bytes], *, rate: float, seconds: float, seed: int = 0, priority: int = 0
) -> list[Answer]:
    """Photographs at Poisson arrivals, ``rate`` a second, whatever has come back."""
    began, tasks = time.monotonic(), []
    async with connected(url) as client:
        for number, moment in enumerate(arrivals(rate, seconds, seed)):
            await asyncio.sleep(max(0.0, began + moment - time.monotonic()))
            photograph = photographs[number % len(photographs)]
            tasks.append(asyncio.create_task(enhance(client, photograph, began, priority=priority)))
        return list(await asyncio.gather(*tasks))


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """The moments of a Poisson process that brings as many as it does on the mean, and one at the least.

    Given their number, its moments are independent and uniform. Of few, the number itself would be chance.
    """
    draw = random.Random(seed)
    return sorted(draw.uniform(0, seconds) for _ in range(max(1, round(rate * seconds))))


def throughput(answers: Sequence[Answer], seconds: float, *, skip: float = 0.0) -> float:
    """Photographs that came back a second, between ``skip`` and ``seconds``."""
    came = [a.sent + a.seconds for a in answers if a.outcome == "ok"]
    return sum(skip <= moment < seconds for moment in came) / (seconds - skip)


def percentile(answers: Sequence[Answer], share: float, outcome: str = "ok") -> float:
    """Seconds within which this share (0 to 100) of the answers of one kind came; 0 if there were none."""
    times = [a.seconds for a in answers if a.outcome == outcome]
    return float(np.percentile(times, share)) if times else 0.0


def outcomes(answers: Sequence[Answer]) -> dict[str, int]:
    """How many of each kind."""
    return {kind: sum(a.outcome == kind for a in answers) for kind in ("ok", "rejected", "expired", "failed")}
