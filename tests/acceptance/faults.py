"""Break parts of a real server: kill processes, fill shared memory, send 100 megapixels.

Each scenario records what clients saw and whether the server works afterwards, with and without a restart.
"""

from __future__ import annotations

import asyncio
import io
import os
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as grpc
from PIL import Image

from operations.recording import print_status
from tests.acceptance.goals import Goal
from traffic.loops import Answer, connect, count_outcomes, latency_percentile, run_closed_loop, send_photograph
from traffic.server import SERVER_PYTHON, Server, kill_process, run_server

LARGE_SIDE = 10_000  #: 100 megapixels, the limit of the configs
SETTLE = 3.0  #: seconds of traffic before a process is killed


def run(repository: Path, photographs: Sequence[bytes]) -> dict[str, Any]:
    """Run every scenario, each on its own server."""
    small = min(photographs, key=len)
    figures: dict[str, Any] = {}
    with run_server(repository) as server:
        figures["large"] = asyncio.run(send_large(server, small))
    for model in ("preprocess", "restormer"):
        with run_server(repository) as server:
            figures[f"{model}'s process killed"] = asyncio.run(kill_stub(server, small, model))
    figures["the server killed"] = kill_server(repository, small)
    figures["shared memory filled"] = fill_shared_memory(repository, small)
    return figures


def fault_goals(figures: dict[str, Any]) -> list[Goal]:
    """Return the goals, which hold on any machine; those about shared memory only if the scenario was run."""
    large, killed = figures["large"], figures["the server killed"]
    failed = large["beside"]["failed"] + large["after"]["failed"]
    goals = [
        Goal("100 megapixels are enhanced and fail no other photograph", large["outcome"] == "ok" and not failed),
        Goal(
            "a killed server starts again and leaves no process",
            killed["started_again"] and not killed["processes_left_then"],
        ),
    ]
    for model in ("preprocess", "restormer"):
        row = figures[f"{model}'s process killed"]
        goals.append(Goal(f"the deep check detects a dead process of {model}", not row["deep_check"]))
        goals.append(Goal(f"photographs fail after the process of {model} died", row["after"]["failed"] > 0))
    shared = figures["shared memory filled"]
    if "not run" not in shared:
        minimum = [shared["fits"], shared["too_large"][0], shared["between"], shared["after"]]
        full = [outcome for outcome, _ in shared["full"]]
        goals.append(Goal("minimum shared memory: only the large one fails", minimum == ["ok", "failed", "ok", "ok"]))
        goals.append(Goal("full shared memory: only the large one fails", full == ["ok", "failed", "ok"]))
    return goals


async def send_large(server: Server, small: bytes) -> dict[str, Any]:
    """Send a photograph of 100 megapixels among small ones."""
    large = make_photograph(LARGE_SIDE)
    before = await run_closed_loop(server.url, [small], workers=1, seconds=20)
    memory = [server.measure_memory()]

    async def sample_memory() -> None:
        while True:
            memory.append(await asyncio.to_thread(server.measure_memory))
            await asyncio.sleep(0.5)

    sampling = asyncio.create_task(sample_memory())
    async with connect(server.url) as client:
        task = asyncio.create_task(send_photograph(client, large, time.monotonic()))
        beside: list[Answer] = []
        while not task.done():
            beside.append(await send_photograph(client, small, time.monotonic()))
    answer = await task
    sampling.cancel()
    after = await run_closed_loop(server.url, [small], workers=1, seconds=10)
    print_status(f"100 megapixels: {answer.outcome} after {answer.seconds:.1f} s, beside it {count_outcomes(beside)}")
    return {
        "megabytes": len(large) / 1e6,
        "outcome": answer.outcome,
        "seconds": answer.seconds,
        "beside": count_outcomes(beside),
        "beside_slowest": latency_percentile(beside, 100),
        "before_p50": latency_percentile(before, 50),
        "after": count_outcomes(after),
        "memory_mib": [memory[0], max(memory), server.measure_memory()],
    }


async def kill_stub(server: Server, small: bytes, model: str) -> dict[str, Any]:
    """Kill a model's Python process while photographs are in flight."""
    (stub, *_) = server.list_stubs(model)
    loop = asyncio.create_task(run_closed_loop(server.url, [small], workers=2, seconds=15))
    await asyncio.sleep(SETTLE)
    started = time.monotonic()
    kill_process(stub)
    answers = await loop
    after = [answer for answer in answers if answer.sent + answer.seconds > SETTLE + 1]
    print_status(f"killed the process of {model}: {count_outcomes(after)} afterwards")
    return {
        "before": count_outcomes([answer for answer in answers if answer not in after]),
        "after": count_outcomes(after),
        "words": count_messages(after),
        "slowest_failure": latency_percentile(after, 100, "failed"),
        "ready_says": is_ready(server),
        "deep_check": passes_deep_check(server),
        "processes_now": len(server.list_stubs(model)),
        "seconds": time.monotonic() - started,
    }


def kill_server(repository: Path, small: bytes) -> dict[str, Any]:
    """Kill Triton with photographs in flight, and start it again in the same state folder."""
    with run_server(repository) as server:
        stubs = [pid for pid in server.list_processes() if pid != server.pid]

        async def send_and_kill() -> list[Answer]:
            loop = asyncio.create_task(run_closed_loop(server.url, [small], workers=2, seconds=8))
            await asyncio.sleep(SETTLE)
            kill_process(server.pid)
            return await loop

        answers = asyncio.run(send_and_kill())
        failed = [answer for answer in answers if answer.outcome == "failed"]
        killed = time.monotonic()
        while count_alive(stubs) and time.monotonic() < killed + 60:
            time.sleep(0.2)
        left, gone = count_alive(stubs), time.monotonic() - killed
        started = time.monotonic()
        restart = subprocess.run([*server.command, "start"], capture_output=True, text=True, check=False)
        print_status(f"killed Triton: {count_messages(failed)}; exit code of the next start: {restart.returncode}")
        return {
            "in_flight": latency_percentile(failed[:2], 100, "failed"),
            "words": count_messages(failed),
            "processes_left": left,
            "processes_gone_after": gone,
            "started_again": restart.returncode == 0,
            "processes_left_then": count_alive(stubs),
            "seconds_to_start": time.monotonic() - started,
        }


def count_alive(pids: Sequence[int]) -> int:
    """Count the processes that still exist."""
    return sum(Path(f"/proc/{pid}").exists() for pid in pids)


def fill_shared_memory(repository: Path, small: bytes) -> dict[str, Any]:
    """Run a server in the minimum /dev/shm of the preflight; send a photograph that needs more; then fill the rest."""
    if not shutil.which("unshare") or subprocess.run([*private_shm("64m"), "true"], check=False).returncode:
        return {"not run": "needs unshare and the right to mount"}
    preflight = [str(SERVER_PYTHON), "-m", "server", "--repository", str(repository), "preflight"]
    table = subprocess.run([*private_shm("1m"), *preflight], capture_output=True, text=True, check=False).stdout
    need = int(re.findall(r"(\d+) are needed", table)[0])
    with run_server(repository, wrapper=private_shm(f"{need}m")) as server:
        return {"mib": need, **asyncio.run(send_into_shared_memory(server, small))}


async def send_into_shared_memory(server: Server, small: bytes) -> dict[str, Any]:
    """Send small and large photographs before, while and after the rest of /dev/shm is filled."""
    large = make_photograph(7_000, "PNG")
    folder = Path(f"/proc/{server.pid}/root/dev/shm")
    async with connect(server.url) as client:
        fits = await send_photograph(client, small, time.monotonic())
        too_large = await send_photograph(client, large, time.monotonic())
        between = await send_photograph(client, small, time.monotonic())
        free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
        with (folder / "fill").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, free - (1 << 20)))
        full = [await send_photograph(client, photograph, time.monotonic()) for photograph in (small, large, small)]
        (folder / "fill").unlink()
        after = await send_photograph(client, small, time.monotonic())
    print_status(f"shared memory: large {too_large.outcome}, full {[answer.outcome for answer in full]}")
    return {
        "file_mb": len(large) / 1e6,
        "fits": fits.outcome,
        "too_large": [too_large.outcome, too_large.message],
        "between": between.outcome,
        "full": [[answer.outcome, answer.message] for answer in full],
        "after": after.outcome,
        "processes_now": len(server.list_processes()) - 1,
    }


def private_shm(size: str) -> list[str]:
    """Return a command prefix that mounts a /dev/shm of this size in a namespace of its own."""
    mount = f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"'
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", mount, "sh"]


def make_photograph(side: int, format: str = "JPEG") -> bytes:
    """Return a square photograph: a smooth gradient with sensor noise."""
    rng = np.random.default_rng(0)
    light = np.linspace(40, 200, side, dtype=np.float32)
    pixels = np.empty((side, side, 3), np.uint8)
    for row in range(0, side, 500):
        noise = rng.normal(0, 6, (min(500, side - row), side, 1)).astype(np.float32)
        pixels[row : row + 500] = np.clip(light[None, :, None] + noise, 0, 255)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format, **({"compress_level": 1} if format == "PNG" else {"quality": 90}))
    return buffer.getvalue()


def is_ready(server: Server) -> bool:
    """Return Triton's own readiness of server and model."""
    with grpc.InferenceServerClient(server.url, channel_args=[("grpc.enable_http_proxy", 0)]) as client:
        return bool(client.is_server_ready(client_timeout=5) and client.is_model_ready("enhance", client_timeout=5))


def passes_deep_check(server: Server) -> bool:
    """Return whether the health check of containers can enhance a photograph."""
    command = [".envs/build/bin/restormer-client", "status", "--url", server.url, "--timeout", "15"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def count_messages(answers: Sequence[Answer]) -> dict[str, int]:
    """Count the most common messages of failures, shortened."""
    messages = (re.sub(r"\s+", " ", answer.message)[:160] for answer in answers if answer.outcome == "failed")
    return dict(Counter(messages).most_common(4))
