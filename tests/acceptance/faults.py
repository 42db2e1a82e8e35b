"""What happens when a part dies: a Python process, the server, shared memory; and when a photograph is very large.

Nothing here is simulated: processes are killed, shared memory is filled, 100 megapixels are sent. Each scenario says in
figures what clients saw, and whether the server enhances afterwards, without help and after a restart.
"""

from __future__ import annotations

import asyncio
import io
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from operations.recording import print_status
from traffic.loops import Answer, connect, count_outcomes, latency_percentile, run_closed_loop, send_photograph
from traffic.server import Server, kill_process, run_server

LARGE_SIDE = 10_000  #: 100 megapixels, the configs' limit
SETTLE = 3.0


def run(repository: Path, photographs: Sequence[bytes]) -> dict[str, Any]:
    """Every scenario, each on a server of its own."""
    small = min(photographs, key=len)
    found: dict[str, Any] = {}
    with run_server(repository) as server:
        found["large"] = asyncio.run(_large(server, small))
    for model in ("preprocess", "restormer"):
        with run_server(repository) as server:
            found[f"{model}'s process killed"] = asyncio.run(_killed(server, small, model))
    found["the server killed"] = _server_killed(repository, small)
    found["shared memory filled"] = _shared_memory_filled(repository, small)
    found["batches"] = _batches(repository, photographs)
    return found


def claims_of(found: dict[str, Any]) -> dict[str, bool]:
    """What has to be so whatever the machine: a part that dies is noticed, and what does not fit hurts nobody else.

    Without the right to mount, nothing is claimed about shared memory.
    """
    claims = {
        "100 megapixels are enhanced, and whoever comes beside and after": found["large"]["outcome"] == "ok"
        and not found["large"]["beside"]["failed"] + found["large"]["after"]["failed"],
        "a killed server is started again, and leaves nothing behind": found["the server killed"]["started_again"]
        and not found["the server killed"]["processes_left_then"],
    }
    for model in ("preprocess", "restormer"):
        row = found[f"{model}'s process killed"]
        claims[f"the deep check sees that the process of {model} has died"] = not row["deep_check"]
        claims[f"whoever meets the dead process of {model} is told so"] = row["after"]["failed"] > 0
    shared = found["shared memory filled"]
    if "not run" not in shared:
        claims["in the shared memory asked for, only the too large one fails"] = (
            shared["fits"], shared["too_large"][0], shared["between"], shared["after"]
        ) == ("ok", "failed", "ok", "ok")  # fmt: skip
        claims["in full shared memory, only the large one fails"] = [kind for kind, _ in shared["full"]] == [
            "ok", "failed", "ok",
        ]  # fmt: skip
    return claims


async def _large(server: Server, small: bytes) -> dict[str, Any]:
    """A photograph of 100 megapixels among small ones."""
    large = _photograph(LARGE_SIDE)
    before = await run_closed_loop(server.url, [small], workers=1, seconds=20)
    memory = server.measure_memory()
    peak = asyncio.create_task(_peak(server, 60))
    async with connect(server.url) as client:
        one = asyncio.create_task(send_photograph(client, large, time.monotonic()))
        beside: list[Answer] = []
        while not one.done():
            beside.append(await send_photograph(client, small, time.monotonic()))
    answer = await one
    peak.cancel()
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
        "memory_mib": [memory, max(_PEAK), server.measure_memory()],
    }


async def _killed(server: Server, small: bytes, model: str) -> dict[str, Any]:
    """A Python process dies while photographs are on their way."""
    (stub, *_) = server.list_stubs(model)
    loop = asyncio.create_task(run_closed_loop(server.url, [small], workers=2, seconds=15))
    await asyncio.sleep(SETTLE)
    began = time.monotonic()
    kill_process(stub)
    answers = await loop
    after = [answer for answer in answers if answer.sent + answer.seconds > SETTLE + 1]
    print_status(f"{model}'s process killed: {count_outcomes(after)} afterwards")
    return {
        "before": count_outcomes([a for a in answers if a not in after]),
        "after": count_outcomes(after),
        "words": _words(after),
        "slowest_failure": latency_percentile(after, 100, "failed"),
        "ready_says": _ready(server),
        "deep_check": _deep_check(server),
        "processes_now": len(server.list_stubs(model)),
        "seconds": time.monotonic() - began,
    }


def _server_killed(repository: Path, small: bytes) -> dict[str, Any]:
    """The server dies with photographs in flight, and is started again on the same state folder."""
    with run_server(repository) as server:
        stubs = [pid for pid in server.list_processes() if pid != server.pid]

        async def traffic() -> list[Answer]:
            loop = asyncio.create_task(run_closed_loop(server.url, [small], workers=2, seconds=8))
            await asyncio.sleep(SETTLE)
            kill_process(server.pid)
            return await loop

        answers = asyncio.run(traffic())
        failed = [answer for answer in answers if answer.outcome == "failed"]
        deadline = time.monotonic() + 60
        while any(Path(f"/proc/{pid}").exists() for pid in stubs) and time.monotonic() < deadline:
            time.sleep(0.2)
        left = sum(Path(f"/proc/{pid}").exists() for pid in stubs)
        gone = time.monotonic() - deadline + 60
        began = time.monotonic()
        again = subprocess.run([*server.command, "start"], capture_output=True, text=True, check=False)
        print_status(f"the server killed: {_words(failed)}; started again: {again.returncode == 0}")
        return {
            "in_flight": latency_percentile(failed[:2], 100, "failed"),
            "words": _words(failed),
            "processes_left": left,
            "processes_gone_after": gone,
            "started_again": again.returncode == 0,
            "processes_left_then": sum(Path(f"/proc/{pid}").exists() for pid in stubs),
            "seconds_to_start": time.monotonic() - began,
        }


def _shared_memory_filled(repository: Path, small: bytes) -> dict[str, Any]:
    """/dev/shm of just what the preflight asks for, a photograph that needs more, and then nothing left at all."""
    if not shutil.which("unshare") or subprocess.run([*_private("64m"), "true"], check=False).returncode:
        return {"not run": "needs unshare and the right to mount"}
    asked = subprocess.run([*_private("1m"), *_preflight(repository)], capture_output=True, text=True, check=False)
    need = int(re.findall(r"and (\d+) are needed", asked.stdout)[0])
    with run_server(repository, wrapper=_private(f"{need}m")) as server:
        return {"mib": need, **asyncio.run(_filled(server, small))}


async def _filled(server: Server, small: bytes) -> dict[str, Any]:
    large = _photograph(7_000, "PNG")
    shm = Path(f"/proc/{server.pid}/root/dev/shm")
    async with connect(server.url) as client:
        fits = await send_photograph(client, small, time.monotonic())
        too_large = await send_photograph(client, large, time.monotonic())
        between = await send_photograph(client, small, time.monotonic())
        free = os.statvfs(shm).f_bavail * os.statvfs(shm).f_frsize
        with (shm / "fill").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, free - (1 << 20)))
        full = [await send_photograph(client, photograph, time.monotonic()) for photograph in (small, large, small)]
        (shm / "fill").unlink()
        after = await send_photograph(client, small, time.monotonic())
    words = f"too large {too_large.outcome}, full {[a.outcome for a in full]}, after {after.outcome}"
    print_status(f"shared memory: {fits.outcome}, {words}")
    return {
        "file_mb": len(large) / 1e6,
        "fits": fits.outcome,
        "too_large": [too_large.outcome, too_large.message],
        "between": between.outcome,
        "full": [[answer.outcome, answer.message] for answer in full],
        "after": after.outcome,
        "processes_now": len(server.list_processes()) - 1,
    }


def _batches(repository: Path, photographs: Sequence[bytes]) -> dict[str, Any]:
    """preprocess taking eight with one call, and one: bursts of eight to two processes, the network left out."""
    found = {}
    for size in (8, 1, 8, 1):
        with tempfile.TemporaryDirectory() as name:
            copy = Path(name, "models")
            shutil.copytree(repository, copy, symlinks=True)
            config = copy / "preprocess/configs/cpu.pbtxt"
            text = re.sub(r"^max_batch_size: \d+", f"max_batch_size: {size}", config.read_text(), flags=re.MULTILINE)
            text = text.replace("max_queue_size: 4", "max_queue_size: 8")
            config.write_text(re.sub(r'^.*key: "ahead".*$', "", text, flags=re.MULTILINE))  # no network to wait for
            with run_server(copy, "--preprocess-instances", "2") as server:
                seconds = asyncio.run(_bursts(server, photographs))
        found.setdefault(str(size), []).append(seconds)
    print_status(f"batches of preprocess: {found}")
    return found


async def _bursts(server: Server, photographs: Sequence[bytes], count: int = 30) -> dict[str, float]:
    import tritonclient.grpc.aio as grpc

    async with connect(server.url) as client:

        async def one(photograph: bytes) -> float:
            image = grpc.InferInput("IMAGE", [1, 1], "BYTES")
            image.set_data_from_numpy(np.array([[photograph]], dtype=np.object_))
            began = time.monotonic()
            await client.infer("preprocess", [image])
            return time.monotonic() - began

        await asyncio.gather(*(one(photograph) for photograph in photographs))
        singles, whole = [], []
        for number in range(count):
            began = time.monotonic()
            burst = [photographs[(number + offset) % len(photographs)] for offset in range(8)]
            singles += await asyncio.gather(*(one(photograph) for photograph in burst))
            whole.append(time.monotonic() - began)
    return {"burst_p50": float(np.median(whole)), "photograph_p50": float(np.median(singles))}


_PEAK: list[float] = [0.0]


async def _peak(server: Server, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        _PEAK.append(await asyncio.to_thread(server.measure_memory))
        await asyncio.sleep(0.5)


def _photograph(side: int, kind: str = "JPEG") -> bytes:
    """A square photograph of so many pixels a side: smooth light with the noise of a sensor."""
    rng = np.random.default_rng(0)
    light = np.linspace(40, 200, side, dtype=np.float32)
    pixels = np.empty((side, side, 3), np.uint8)
    for row in range(0, side, 500):
        noise = rng.normal(0, 6, (min(500, side - row), side, 1)).astype(np.float32)
        pixels[row : row + 500] = np.clip(light[None, :, None] + noise, 0, 255)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **({"compress_level": 1} if kind == "PNG" else {"quality": 90}))
    return buffer.getvalue()


def _private(size: str) -> list[str]:
    """A mount namespace with a /dev/shm of this size."""
    mount = f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"'
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", mount, "sh"]


def _preflight(repository: Path) -> list[str]:
    return [".envs/server/bin/python", "-m", "server", "--repository", str(repository), "preflight"]


def _ready(server: Server) -> bool:
    """What Triton says of itself."""
    import tritonclient.grpc as grpc

    with grpc.InferenceServerClient(server.url, channel_args=[("grpc.enable_http_proxy", 0)]) as client:
        return bool(client.is_server_ready(client_timeout=5) and client.is_model_ready("enhance", client_timeout=5))


def _deep_check(server: Server) -> bool:
    """What the check of containers says: a photograph went through, or not."""
    command = [".envs/build/bin/restormer-client", "status", "--url", server.url, "--timeout", "15"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _words(answers: Sequence[Answer]) -> dict[str, int]:
    """What the failures said, shortened, and how often."""
    said = (re.sub(r"\s+", " ", answer.message)[:160] for answer in answers if answer.outcome == "failed")
    return dict(Counter(said).most_common(4))
