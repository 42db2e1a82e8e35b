"""Servers are replaced while photographs are on their way: `make test-rolling`, two real Tritons, and nothing is lost.

Three things are in the way of losing none. Triton on SIGTERM ends the step that a photograph is in and refuses the
next; a gRPC connection outlives the address it was made by; and a client learns of another server only when it asks
again. So:

    resent        our client, the servers stopped in use, one after the other: what a stop refuses is sent to the other.
                  Once with the whole pipeline, and once with `identity` under its name, for thousands of photographs
    drained       a client that never sends twice, as in other languages. The server is taken out of the name's
                  addresses, goes on for the seconds of the Deployment's preStop, and is stopped: by then nobody may be
                  there
    at once       the same client, and no seconds: what the sleep is for (some are lost, or this test could not fail)
    dead          a server that is process 1, as in a container, and whose Python process is killed: the Deployment's
                  liveness check has to end it, or nobody replaces it

The name is answered by a name server of this module's own, as a headless Service's is by the cluster's: the ready
servers' addresses, kept for 5 s at the most. Age of connections, sleep and exit timeout are those of
`deploy/kubernetes/base`. Prints a line each, and one JSON object as the last line; exit 1 if a photograph was lost.
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

from operations.recording import add_record_option, finish_run, read_record
from traffic.ports import free_ports
from traffic.server import SERVER_PYTHON, Server, kill_process, repository_with_identity, run_server

ROOT = Path(__file__).parents[2]
BASE = ROOT / "deploy/kubernetes/base"
NAME = "restormer.test"
WORK = 0.05  #: seconds that `identity` takes for a photograph here
AROUND = 10.0  #: seconds of traffic before each replacement and after the last: the Deployment's minReadySeconds
STOP_AT_MOST = 60.0  #: seconds that a server may take to end when the check has stopped it
QUIET = 5.0  #: the last seconds of the sleep, in which nobody may be there
Send = Callable[[bytes], Awaitable[bytes]]


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.acceptance.rolling", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--only", choices=("replaced", "dead"), help="usually both")
    add_record_option(parser, "; with --only the others stay in it")
    options = parser.parse_args()
    found = read_record(options.record) if options.only else {}
    if options.only != "dead":
        found |= asyncio.run(run(options.repository))
    if options.only != "replaced":
        found["dead"] = dead(options.repository)
    claims = claims_of(found)
    for claim, holds in claims.items():
        print(f"{'met   ' if holds else 'MISSED'} {claim}")
    document = {**found, "claims": claims}
    finish_run(document, options.record)
    return int(not all(claims.values()))


def claims_of(found: dict[str, Any]) -> dict[str, bool]:
    """What has to be so whatever the machine, of what was run."""
    claims = {}
    if "drained" in found:
        whole, many, drained = (found[name] for name in ("resent, enhance", "resent, identity", "drained"))
        claims = {
            "servers stopped in use, the whole pipeline: no photograph is lost": not whole["failed"],
            "servers stopped in use, thousands of photographs: none is lost": not many["failed"],
            "each photograph is answered once, with its own": all(
                row["sent"] == row["answered"] + row["failed"] and not row["another's"]
                for row in (whole, many, drained)
            ),
            "drained as the Deployment says, a client that never sends twice loses none": not drained["failed"],
            "drained as the Deployment says, nobody is there when the server stops": not drained["in the last seconds"],
            "stopped at once, the same client loses some": found["at once"]["failed"] > 0,
        }
    if "seconds" in found.get("dead", {}):
        claims["the liveness check ends a server whose Python process died"] = found["dead"]["ended"]
    return claims


async def run(repository: Path) -> dict[str, Any]:
    """Every scenario."""
    chosen = as_deployed()
    found: dict[str, Any] = {"cores": os.cpu_count(), "chosen": chosen}
    with pair(repository, chosen) as servers, NameServer(servers) as names:
        async with ours(names.target) as send:
            found["resent, enhance"] = await replaced([*servers.items()] * 2, names, send, workers=3)
    with quick(repository) as models, pair(models, chosen) as servers, NameServer(servers) as names:
        async with ours(names.target) as send:
            found["resent, identity"] = await replaced([*servers.items()] * 2, names, send, workers=6)
        first = [*servers.items()][:1]
        async with once(names.target) as send:
            found["drained"] = await replaced(first, names, send, workers=6, sleep=chosen["preStop"])
        async with once(names.target) as send:
            found["at once"] = await replaced(first, names, send, workers=6)
    return found


def as_deployed() -> dict[str, int]:
    """Seconds of the Deployment that decide how a server leaves."""
    deployment, settings = (
        (BASE / name).read_text(encoding="utf-8") for name in ("deployment.yaml", "kustomization.yaml")
    )
    patterns = {
        "preStop": (deployment, r"sleep: \{seconds: (\d+)\}"),
        "connection age": (settings, r"RESTORMER_GRPC_CONNECTION_AGE=(\d+)"),
        "exit timeout": (settings, r"RESTORMER_EXIT_TIMEOUT=(\d+)"),
    }
    return {name: int(re.findall(pattern, text)[0]) for name, (text, pattern) in patterns.items()}


def dead(repository: Path) -> dict[str, Any]:
    """Kills a Python process of a server that is process 1 and asks the liveness check; or says why that is not run."""
    if not shutil.which("unshare") or subprocess.run(["unshare", "--pid", "--fork", "true"], check=False).returncode:
        return {"not run": "needs unshare and the right to use it"}
    ports = [str(port) for port in free_ports(2)]
    with tempfile.TemporaryDirectory() as state:
        command = [str(SERVER_PYTHON), "-m", "server", "--repository", str(repository), "--state", state]
        command += ["--grpc-port", ports[0], "--metrics-port", ports[1]]
        isolated = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *command, "run"]
        with Path(state, "log").open("wb") as log, subprocess.Popen(isolated, stdout=log, stderr=log) as container:
            try:
                first = _child(container.pid)
                check = ["nsenter", "--target", str(first), "--pid", "--mount", "--wd", *command, "health"]
                deadline = time.monotonic() + 180
                while subprocess.run(check, capture_output=True, check=False).returncode:
                    if container.poll() is not None or time.monotonic() > deadline:
                        sys.exit(f"error: the server does not become healthy: {Path(state, 'log').read_text()[-500:]}")
                (stub, *_) = Server(first, int(ports[0]), int(ports[1]), command, Path(state, "log")).stubs(
                    "preprocess"
                )
                began = time.monotonic()
                kill_process(stub)
                subprocess.run(check, capture_output=True, check=False)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    container.wait(timeout=STOP_AT_MOST)
                found = {"ended": container.poll() is not None, "seconds": time.monotonic() - began}
            finally:
                container.kill()
    print(f"a dead Python process under process 1: {found}", file=sys.stderr)
    return found


def _child(pid: int) -> int:
    """The process that ``unshare`` has made."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    while not path.read_text(encoding="ascii").split():
        time.sleep(0.05)
    return int(path.read_text(encoding="ascii").split()[0])


@contextlib.contextmanager
def pair(repository: Path, chosen: dict[str, int]) -> Iterator[dict[str, Server]]:
    """Two servers, by address: pods have one port and an address each."""
    (port,) = free_ports(1)
    with contextlib.ExitStack() as stack:
        yield {
            address: stack.enter_context(
                run_server(
                    repository, "--address", address, "--metrics-address", "127.0.0.1", "--grpc-port", str(port),
                    "--exit-timeout", str(chosen["exit timeout"]),
                    "--grpc-connection-age", str(chosen["connection age"]),
                )
            )
            for address in ("127.0.0.2", "127.0.0.3")
        }  # fmt: skip


@contextlib.contextmanager
def quick(repository: Path) -> Iterator[Path]:
    """The published models with `identity` in the place of ``enhance``, which takes `WORK` seconds and no processor."""
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


async def replaced(
    servers: Sequence[tuple[str, Server]], names: NameServer, send: Send, *, workers: int, sleep: float = 0.0
) -> dict[str, Any]:
    """Traffic in a closed loop while one server after the other leaves, stops, starts and comes back."""
    stop, tally = asyncio.Event(), Counter[str]()
    tasks = [asyncio.create_task(_work(send, number, workers, stop, tally)) for number in range(workers)]
    seconds: list[float] = []
    try:
        for address, server in servers:
            await asyncio.sleep(AROUND)
            names.ready.discard(address)
            await asyncio.sleep(max(sleep - QUIET, 0.0))
            before = _done(server)
            await asyncio.sleep(min(sleep, QUIET))
            tally["in the last seconds"] += int(_done(server) - before)
            seconds.append(await _again(server))
            names.ready.add(address)
        await asyncio.sleep(AROUND)
    finally:
        stop.set()
        words = await asyncio.gather(*tasks)
    row = {name: tally[name] for name in ("sent", "answered", "failed", "another's")}
    if sleep:
        row["in the last seconds"] = tally["in the last seconds"]
    said = sorted({word for each in words for word in each})
    print(f"{len(seconds)} replaced, sleep {sleep:g} s: {row} {' | '.join(said[:3])}", file=sys.stderr)
    return {**row, "replaced": len(seconds), "seconds without it": seconds, "sleep": sleep, "words": said[:3]}


async def _work(send: Send, first: int, step: int, stop: asyncio.Event, tally: Counter[str]) -> set[str]:
    """One photograph after the other; returns what failures said."""
    said, number = set(), first
    while not stop.is_set():
        sent = photograph(number)
        number += step
        tally["sent"] += 1
        try:
            came = await send(sent)
        except (EnhanceError, InferenceServerException) as error:
            tally["failed"] += 1
            said.add(" ".join(str(error).split())[:200])
            await asyncio.sleep(0.2)
            continue
        tally["answered"] += 1
        tally["another's"] += size(came) != size(sent)
    return said


def photograph(number: int) -> bytes:
    """A small one whose size is its own, among a thousand in a row."""
    buffer = io.BytesIO()
    Image.new("RGB", (64 + number % 40, 64 + number // 40 % 25), (number % 256, 120, 60)).save(buffer, "JPEG")
    return buffer.getvalue()


def size(data: bytes) -> tuple[int, int]:
    """Width and height."""
    with Image.open(io.BytesIO(data)) as image:
        return image.size


async def _again(server: Server) -> float:
    """Stops a server as Kubernetes does (SIGTERM, and its time) and starts it again; seconds from one to the other."""
    began = time.monotonic()
    for verb in ("stop", "start"):
        process = await asyncio.create_subprocess_exec(
            *server.command, verb, stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL
        )
        _, said = await process.communicate()
        if process.returncode:
            sys.exit(f"error: {verb}: {said.decode().strip()}")
    return time.monotonic() - began


def _done(server: Server) -> float:
    return server.read_metric("nv_inference_request_success", model="enhance")


@contextlib.asynccontextmanager
async def ours(target: str) -> AsyncIterator[Send]:
    """The project's client."""
    async with AsyncEnhancer(target) as enhancer:
        yield enhancer.enhance


@contextlib.asynccontextmanager
async def once(target: str) -> AsyncIterator[Send]:
    """A plain client with gRPC's round robin and gRPC's pauses, as in any language, which never sends twice."""
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
    """Answers for `NAME` with the addresses in ``ready``, over UDP on loopback, to be kept for 5 s (RFC 1035)."""

    def __init__(self, servers: dict[str, Server]) -> None:
        self.ready = set(servers)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.setblocking(False)
        command = next(iter(servers.values())).command
        port = [after for flag, after in pairwise(command) if flag == "--grpc-port"][-1]
        self.target = f"dns://127.0.0.1:{self._socket.getsockname()[1]}/{NAME}:{port}"

    def __enter__(self) -> NameServer:
        asyncio.get_running_loop().add_reader(self._socket, self._answer)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()

    def _answer(self) -> None:
        query, sender = self._socket.recvfrom(4096)
        self._socket.sendto(answer(query, self.ready), sender)


def answer(query: bytes, addresses: set[str]) -> bytes:
    """The answer to a question: an A record for each address where it asks for A and for `NAME`, else none."""
    end = query.index(b"\0", 12) + 1
    kind, _ = struct.unpack("!HH", query[end : end + 4])
    name = b"".join(bytes([len(part)]) + part for part in NAME.encode().split(b".")) + b"\0"
    there = sorted(addresses) if kind == 1 and query[12:end].lower() == name else []
    # A response with authority, to one question; each record points at the question's name and lives for 5 s.
    head = query[:2] + struct.pack("!HHHHH", 0x8580, 1, len(there), 0, 0)
    records = b"".join(struct.pack("!HHHIH", 0xC00C, 1, 1, 5, 4) + socket.inet_aton(each) for each in there)
    return head + query[12 : end + 4] + records


if __name__ == "__main__":
    sys.exit(main())
