"""Replace two real Tritons behind client-side round robin while photographs are in flight (``make test-rolling``).

On SIGTERM Triton finishes the current step of a request and rejects the next one; a gRPC connection outlives the
address that it was made from; and a client learns of other servers only when it resolves the name again. Scenarios:

    resent    the project's client, servers stopped in use one after the other: rejected requests go to the other
              server. Once with the whole pipeline, once with `identity` in its place, for thousands of photographs
    drained   a client that never retries, as in other languages. The server leaves the name's addresses, keeps running
              for the seconds of the Deployment's preStop, and is stopped; no client may use it by then
    at once   the same client without these seconds: photographs have to be lost, or the test could not fail
    dead      a server that is process 1, as in a container, and whose Python process is killed: the liveness check of
              the Deployment has to stop it

A name server of this module plays the headless Service: it returns the addresses of the ready servers with a TTL of
5 s. Connection age, preStop and exit timeout are those of `deploy/kubernetes/base`. Prints a table of the goals and one
JSON object as the last line; exits with 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc.aio as grpc
from PIL import Image
from restormer_client import AsyncEnhancer, EnhanceError
from tritonclient.utils import InferenceServerException

from export.triton import free_ports
from operations.recording import add_record_option, exit_on_interrupt, finish_run, print_status, read_record
from tests.acceptance.goals import Goal, report_goals
from tests.acceptance.leftovers import expect_no_leftovers
from traffic.server import SERVER_PYTHON, Server, kill_process, repository_with_identity, run_server

ROOT = Path(__file__).parents[2]
BASE = ROOT / "deploy/kubernetes/base"
NAME = "restormer.test"
WORK = 0.05  #: seconds that `identity` takes for a photograph
AROUND = 10.0  #: seconds of traffic before each replacement and after the last: the Deployment's minReadySeconds
STOP_AT_MOST = 60.0  #: seconds that a server may take to exit after the liveness check has stopped it
QUIET = 5.0  #: the last seconds of preStop, in which no client may use the server
Send = Callable[[bytes], Awaitable[bytes]]


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.acceptance.rolling", description=str(__doc__).splitlines()[0]
    )
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--only", choices=("replaced", "dead"), help="default: both")
    add_record_option(parser, "; with --only it keeps the other part")
    options = parser.parse_args()
    figures = read_record(options.record) if options.only else {}
    with expect_no_leftovers():
        if options.only != "dead":
            figures |= asyncio.run(replace_servers(options.repository))
        if options.only != "replaced":
            figures["dead"] = kill_stub_of_process_1(options.repository)
    goals = rolling_goals(figures)
    are_met = report_goals(goals)
    finish_run({**figures, "claims": {goal.name: goal.is_met for goal in goals}}, options.record)
    return int(not are_met)


def rolling_goals(figures: dict[str, Any]) -> list[Goal]:
    """Return the goals of the scenarios that were run."""
    goals = []
    if "drained" in figures:
        whole, many, drained, at_once = (
            figures[name] for name in ("resent, enhance", "resent, identity", "drained", "at once")
        )
        rows = (whole, many, drained)
        answered = all(row["sent"] == row["answered"] + row["failed"] for row in rows)
        goals = [
            Goal("stopped in use, whole pipeline: lost", whole["failed"], 0),
            Goal("stopped in use, `identity`: lost", many["failed"], 0),
            Goal("each photograph is answered once", answered),
            Goal("answers that belong to another photograph", sum(row["another's"] for row in rows), 0),
            Goal("drained, a client without retries: lost", drained["failed"], 0),
            Goal("drained: requests in the last seconds", drained["in the last seconds"], 0),
            Goal("not drained, the same client: lost", at_once["failed"], 1, at_least=True),
        ]
    if "seconds" in figures.get("dead", {}):
        goals.append(Goal("the liveness check stops a server with a dead Python process", figures["dead"]["ended"]))
    return goals


async def replace_servers(repository: Path) -> dict[str, Any]:
    """Run all scenarios but the last."""
    times = deployed_times()
    figures: dict[str, Any] = {"cores": os.cpu_count(), "chosen": times}
    with run_pair(repository, times) as servers, NameServer(servers) as names:
        async with AsyncEnhancer(names.target) as client:
            figures["resent, enhance"] = await replace_in_turn([*servers.items()] * 2, names, client.enhance, workers=3)
    with quick_repository(repository) as models, run_pair(models, times) as servers, NameServer(servers) as names:
        pair = [*servers.items()]
        async with AsyncEnhancer(names.target) as client:
            figures["resent, identity"] = await replace_in_turn(pair * 2, names, client.enhance, workers=6)
        async with client_without_retries(names.target) as send:
            figures["drained"] = await replace_in_turn(pair[:1], names, send, workers=6, sleep=times["preStop"])
        async with client_without_retries(names.target) as send:
            figures["at once"] = await replace_in_turn(pair[:1], names, send, workers=6)
    return figures


def deployed_times() -> dict[str, int]:
    """Return the seconds of the Deployment that decide how a server is drained."""
    deployment, settings = (
        (BASE / name).read_text(encoding="utf-8") for name in ("deployment.yaml", "kustomization.yaml")
    )
    patterns = {
        "preStop": (deployment, r"sleep: \{seconds: (\d+)\}"),
        "connection age": (settings, r"RESTORMER_GRPC_CONNECTION_AGE=(\d+)"),
        "exit timeout": (settings, r"RESTORMER_EXIT_TIMEOUT=(\d+)"),
    }
    return {name: int(re.findall(pattern, text)[0]) for name, (text, pattern) in patterns.items()}


def kill_stub_of_process_1(repository: Path) -> dict[str, Any]:
    """Kill a Python process of a server that is process 1, call the liveness check, and wait for the server's end."""
    if not shutil.which("unshare") or subprocess.run(["unshare", "--pid", "--fork", "true"], check=False).returncode:
        return {"not run": "needs unshare and the right to use it"}
    grpc_port, metrics_port = free_ports(2)
    with tempfile.TemporaryDirectory() as state:
        command = [str(SERVER_PYTHON), "-m", "server", "--repository", str(repository), "--state", state]
        command += ["--grpc-port", str(grpc_port), "--metrics-port", str(metrics_port)]
        isolated = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *command, "run"]
        path = Path(state, "log")
        with path.open("wb") as log, subprocess.Popen(isolated, stdout=log, stderr=log) as container:
            try:
                first = _find_child(container.pid)
                check = ["nsenter", "--target", str(first), "--pid", "--mount", "--wd", *command, "health"]
                deadline = time.monotonic() + 180
                while subprocess.run(check, capture_output=True, check=False).returncode:
                    if container.poll() is not None or time.monotonic() > deadline:
                        sys.exit(f"error: the server does not become healthy: {path.read_text()[-500:]}")
                (stub, *_) = Server(first, grpc_port, metrics_port, command, path).list_stubs("preprocess")
                started = time.monotonic()
                kill_process(stub)
                subprocess.run(check, capture_output=True, check=False)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    container.wait(timeout=STOP_AT_MOST)
                figures = {"ended": container.poll() is not None, "seconds": time.monotonic() - started}
            finally:
                container.kill()
        subprocess.run([*command, "stop"], capture_output=True, check=False)  # removes its shared memory
    print_status(f"killed a Python process under process 1: {figures}")
    return figures


def _find_child(pid: int) -> int:
    """Return the process that ``unshare`` started."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    while not path.read_text(encoding="ascii").split():
        time.sleep(0.05)
    return int(path.read_text(encoding="ascii").split()[0])


@contextlib.contextmanager
def run_pair(repository: Path, times: dict[str, int]) -> Iterator[dict[str, Server]]:
    """Run two servers on one port and different addresses, as pods do; return them by address."""
    (port,) = free_ports(1)
    options = ["--metrics-address", "127.0.0.1", "--grpc-port", str(port)]
    options += ["--exit-timeout", str(times["exit timeout"]), "--grpc-connection-age", str(times["connection age"])]
    with contextlib.ExitStack() as stack:
        yield {
            address: stack.enter_context(run_server(repository, "--address", address, *options))
            for address in ("127.0.0.2", "127.0.0.3")
        }


@contextlib.contextmanager
def quick_repository(repository: Path) -> Iterator[Path]:
    """Copy the published models with `identity` in place of ``enhance``, which sleeps for `WORK` seconds."""
    with repository_with_identity(repository, "enhance") as models:
        for path, changes in (
            ("config.pbtxt", {"count: 1": "count: 4"}),
            ("1/model.py", {"import triton_python": "import time\n\nimport triton_python",
                            "        photographs =": f"        time.sleep({WORK})\n        photographs ="}),
        ):  # fmt: skip
            text = (models / "enhance" / path).read_text(encoding="utf-8")
            for old, new in changes.items():
                assert text.count(old) == 1, f"traffic/identity/{path} has changed: {old!r}"
                text = text.replace(old, new)
            (models / "enhance" / path).write_text(text, encoding="utf-8")
        yield models


async def replace_in_turn(
    servers: Sequence[tuple[str, Server]], names: NameServer, send: Send, *, workers: int, sleep: float = 0.0
) -> dict[str, Any]:
    """Send photographs in a closed loop while each server leaves the name, stops, starts and returns."""
    stop, counts = asyncio.Event(), Counter[str]()
    tasks = [asyncio.create_task(_work(send, number, workers, stop, counts)) for number in range(workers)]
    seconds: list[float] = []
    try:
        for address, server in servers:
            await asyncio.sleep(AROUND)
            names.ready.discard(address)
            await asyncio.sleep(max(sleep - QUIET, 0.0))
            before = _count_enhanced(server)
            await asyncio.sleep(min(sleep, QUIET))
            counts["in the last seconds"] += int(_count_enhanced(server) - before)
            seconds.append(await _restart(server))
            names.ready.add(address)
        await asyncio.sleep(AROUND)
    finally:
        stop.set()
        messages = sorted(set[str]().union(*await asyncio.gather(*tasks)))[:3]
    row = {name: counts[name] for name in ("sent", "answered", "failed", "another's")}
    if sleep:
        row["in the last seconds"] = counts["in the last seconds"]
    print_status(f"{len(seconds)} replaced, sleep {sleep:g} s: {row} {' | '.join(messages)}")
    return {**row, "replaced": len(seconds), "seconds without it": seconds, "sleep": sleep, "words": messages}


async def _work(send: Send, first: int, step: int, stop: asyncio.Event, counts: Counter[str]) -> set[str]:
    """Send one photograph after the other; return the messages of failures."""
    messages, number = set(), first
    while not stop.is_set():
        photograph = make_photograph(number)
        number += step
        counts["sent"] += 1
        try:
            answer = await send(photograph)
        except (EnhanceError, InferenceServerException) as error:
            counts["failed"] += 1
            messages.add(" ".join(str(error).split())[:200])
            await asyncio.sleep(0.2)
            continue
        counts["answered"] += 1
        counts["another's"] += read_size(answer) != read_size(photograph)
    return messages


def make_photograph(number: int) -> bytes:
    """Return a small photograph whose size is unique among a thousand in a row."""
    buffer = io.BytesIO()
    Image.new("RGB", (64 + number % 40, 64 + number // 40 % 25), (number % 256, 120, 60)).save(buffer, "JPEG")
    return buffer.getvalue()


def read_size(data: bytes) -> tuple[int, int]:
    """Return width and height."""
    with Image.open(io.BytesIO(data)) as image:
        return image.size


async def _restart(server: Server) -> float:
    """Stop a server as Kubernetes does, with SIGTERM and a grace period, and start it; return the seconds it took."""
    started = time.monotonic()
    for verb in ("stop", "start"):
        process = await asyncio.create_subprocess_exec(
            *server.command, verb, stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL
        )
        _, stderr = await process.communicate()
        if process.returncode:
            sys.exit(f"error: {verb}: {stderr.decode().strip()}")
    return time.monotonic() - started


def _count_enhanced(server: Server) -> float:
    return server.read_metric("nv_inference_request_success", model="enhance")


@contextlib.asynccontextmanager
async def client_without_retries(target: str) -> AsyncIterator[Send]:
    """Return the send function of a plain client with gRPC's round robin, as in any language, that never retries."""
    robin = json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})
    options = [("grpc.service_config", robin), ("grpc.enable_retries", 0), ("grpc.enable_http_proxy", 0)]
    async with grpc.InferenceServerClient(target, channel_args=options) as client:

        async def send(data: bytes) -> bytes:
            image = grpc.InferInput("IMAGE", [1, 1], "BYTES")
            image.set_data_from_numpy(np.array([[data]], dtype=np.object_))
            answer = await client.infer("enhance", [image], client_timeout=60)
            enhanced: bytes = answer.as_numpy("ENHANCED").item()
            return enhanced

        yield send


class NameServer:
    """Resolve `NAME` to the addresses in ``ready``, over UDP on loopback, with a TTL of 5 s (RFC 1035)."""

    def __init__(self, servers: dict[str, Server]) -> None:
        self.ready = set(servers)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.setblocking(False)
        command = next(iter(servers.values())).command
        port = [value for flag, value in pairwise(command) if flag == "--grpc-port"][-1]
        self.target = f"dns://127.0.0.1:{self._socket.getsockname()[1]}/{NAME}:{port}"

    def __enter__(self) -> NameServer:
        asyncio.get_running_loop().add_reader(self._socket, self._answer)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()

    def _answer(self) -> None:
        query, sender = self._socket.recvfrom(4096)
        self._socket.sendto(make_response(query, self.ready), sender)


def make_response(query: bytes, addresses: set[str]) -> bytes:
    """Return the response to a DNS query: an A record for each address if it asks for A and `NAME`, else none."""
    end = query.index(b"\0", 12) + 1
    kind, _ = struct.unpack("!HH", query[end : end + 4])
    name = b"".join(bytes([len(part)]) + part for part in NAME.encode().split(b".")) + b"\0"
    answers = sorted(addresses) if kind == 1 and query[12:end].lower() == name else []
    # An authoritative response with one question; each record points at its name and lives for 5 s.
    head = query[:2] + struct.pack("!HHHHH", 0x8580, 1, len(answers), 0, 0)
    records = b"".join(struct.pack("!HHHIH", 0xC00C, 1, 1, 5, 4) + socket.inet_aton(each) for each in answers)
    return head + query[12 : end + 4] + records


if __name__ == "__main__":
    exit_on_interrupt(main)
