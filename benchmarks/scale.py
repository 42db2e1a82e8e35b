"""How cost grows with megapixels, batch, clients and server instances (``make benchmark-scale``).

Everything through real servers of its own with the published engine, on this machine; load and servers share its cores.

- *megapixels*: photographs of 1 to 50, one at a time through ``enhance``, round after round. What a part takes is by
  Triton's own counters; *rest* is what the client waited beyond all parts and queues.
- *batch*: 1 to 8 images in one request to ``restormer``; and, where the engine is one for a CPU, the same network in
  this process compiled for that batch as a whole, which the server's adapter does not do.
- *clients*: 1 to 64 at a time, each sending the next photograph of demo/photos when it has the last one back. Who is
  turned away counts (the client's `Overloaded`), waits a fifth of a second, and goes on with the next.
- *instances*: one process each for preparing and finishing, two of each, and two whole servers; and preparing and
  finishing alone with photographs of 12 megapixels, where no network takes the cores.

Lines are least squares with R². The sentences below the tables are computed from the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import tritonclient.grpc.aio as grpc
from tritonclient.utils import InferenceServerException

from benchmarks import fits
from benchmarks.circumstances import circumstances, make_command, ticks
from benchmarks.command_line import add_record, finish, interruptible, jpegs, numbers, say
from benchmarks.imaging import REFERENCE, mosaic
from benchmarks.load import queue_of
from benchmarks.traffic import (
    PAUSE,
    Answer,
    Counters,
    Server,
    closed_loop,
    connected,
    described,
    enhance,
    outcomes,
    percentile,
    served,
    worked_us,
)
from export import cpu
from export.build import MODEL
from export.publish import documents, versions
from imaging import prepared
from imaging.codec import shrink_factor

MEGAPIXELS, BATCHES, CLIENTS = (1, 2, 3, 6, 12, 24, 36, 50), (1, 2, 4, 8), (1, 2, 4, 8, 16, 32, 64)
PARTS = ("preprocess", MODEL, "postprocess")
ASPECT = 4 / 3
SATURATED = 0.95  #: of the most photographs a second: from here on more clients bring nothing
BUSY = 0.85  #: of the cores' time: what is left goes between two steps that wait for each other
COMPANY = 0.95  #: of the time of an image alone: what one in a batch takes at most, if company is to pay
WORKERS = 4  #: clients beside the instances, shared out over the servers
#: What is compared: servers, and of each how many processes prepare and how many finish.
SETUPS = ((1, 1), (1, 2), (2, 1))
PHOTOS = Path("demo/photos")


def spread(values: Sequence[float], name: str = "seconds") -> dict[str, float]:
    """Median, least and most, as the JSON has them."""
    return {name: statistics.median(values), "least": min(values), "most": max(values)}


@contextlib.contextmanager
def cores_busy() -> Iterator[dict[str, float]]:
    """How many of this machine's cores were busy meanwhile, and how many of them with this process, the load's."""
    found: dict[str, float] = {}
    began, before, own = time.perf_counter(), ticks(), time.process_time()
    yield found
    seconds, after = time.perf_counter() - began, ticks()
    total, idle = after.total - before.total, after.idle - before.idle
    found["cores_busy"] = (os.cpu_count() or 1) * (1 - idle / total) if total else 0.0
    found["cores_of_the_load"] = (time.process_time() - own) / seconds


# --- megapixels


def sides(megapixels: float) -> tuple[int, int]:
    """Width and height of a photograph of 4:3 of about so many, in whole blocks of a JPEG."""
    width = round((megapixels * 1e6 * ASPECT) ** 0.5 / 16) * 16
    return width, round(width / ASPECT / 16) * 16


def photograph(megapixels: float) -> bytes:
    """A mosaic of the demo's, as JPEG of quality 92, 4:2:0."""
    return bytes(simplejpeg.encode_jpeg(mosaic(*sides(megapixels)), 92, colorsubsampling="420"))


def eighths(data: bytes) -> int:
    """Return to how many eighths of its size this JPEG is shrunk while preprocess decodes it."""
    height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    return 8 // shrink_factor(height, width)


def seconds_of_parts(before: Counters, after: Counters) -> dict[str, float]:
    """Seconds that each part worked between two readings, and that was waited in queues, together."""
    grown = {key: after[key] - before[key] for key in after}
    copied = {
        part: sum(grown.get((part, f"compute_{what}_duration_us"), 0.0) for what in ("input", "output"))
        for part in PARTS
    }
    worked = {f"{part}_s": (copied[part] + worked_us(grown, part)) / 1e6 for part in PARTS}
    return {**worked, "queue_s": sum(grown.get((part, "queue_duration_us"), 0.0) for part in PARTS) / 1e6}


async def megapixels_of(server: Server, sizes: Sequence[float], rounds: int) -> dict[str, Any]:
    """Rows and lines."""
    photographs = {size: photograph(size) for size in sizes}
    taken: dict[float, list[dict[str, float]]] = defaultdict(list)
    async with connected(server.url) as client:
        await enhanced(client, server, photographs[max(sizes)])  # what the first of this size pays for memory
        for turn in range(1, rounds + 1):
            for size, data in photographs.items():
                say(f"megapixels: round {turn}/{rounds}, {size:g}")
                taken[size].append(await enhanced(client, server, data))
    rows = []
    for size, turns in taken.items():
        parts = {name: statistics.median(each[name] for each in turns) for name in turns[0] if name != "seconds"}
        rows.append(
            {
                "megapixels": float(np.prod(sides(size)) / 1e6),
                "bytes": len(photographs[size]),
                "eighths": eighths(photographs[size]),
                **spread([each["seconds"] for each in turns]),
                **parts,
            }
        )
    names = {"seconds": "fit", **{f"{part}_s": f"fit_{part}" for part in PARTS}}
    return {"rows": rows, **{fit: fitted(rows, "megapixels", name, "per_megapixel_s") for name, fit in names.items()}}


async def enhanced(client: grpc.InferenceServerClient, server: Server, data: bytes) -> dict[str, float]:
    """Seconds of one photograph, nobody else there: what the client waited, and what the server counted."""
    before = server.counters()
    answer = await enhance(client, data, time.monotonic())
    if answer.outcome != "ok":
        raise SystemExit(f"error: a photograph of {len(data):,} bytes was not enhanced: {answer.message}")
    wanted = before["postprocess", "request_success"] + 1
    while (after := server.counters())["postprocess", "request_success"] < wanted:
        await asyncio.sleep(0.01)  # a part is counted a moment after its answer went out
    parts = seconds_of_parts(before, after)
    return {"seconds": answer.seconds, **parts, "rest_s": answer.seconds - sum(parts.values())}


def fitted(rows: Sequence[dict[str, Any]], x: str, y: str, slope: str) -> dict[str, Any]:
    """The line through the rows' figures."""
    xs, ys = [float(row[x]) for row in rows], [float(row[y]) for row in rows]
    found = fits.line(xs, ys)
    return {"constant_s": found.constant, slope: found.slope, "r2": found.r2}


def why_megapixels(found: dict[str, Any]) -> str:
    """What grows, what does not, and where the decoder's steps are."""
    rows, fit = found["rows"], found["fit"]
    first, last = rows[0], rows[-1]
    slopes = {part: found[f"fit_{part}"]["per_megapixel_s"] * 1e3 for part in PARTS}
    words = (
        f"Each megapixel adds {fit['per_megapixel_s'] * 1e3:.1f} ms (R² {fit['r2']:.3f}): "
        f"{slopes['postprocess']:.1f} in postprocess (R² {found['fit_postprocess']['r2']:.3f}), "
        f"{slopes['preprocess']:.1f} in preprocess (R² {found['fit_preprocess']['r2']:.3f}). The network sees 512x512 "
        f"of any photograph: {first[f'{MODEL}_s']:.2f} s at {first['megapixels']:.0f} MP, {last[f'{MODEL}_s']:.2f} s "
        f"at {last['megapixels']:.0f} MP."
    )
    steps = [row for at, row in enumerate(rows) if not at or rows[at - 1]["eighths"] != row["eighths"]]
    if len(steps) < 2:
        return words
    told = ", ".join(
        f"{row['eighths']}/8 from {row['megapixels']:.0f} MP on "
        f"({row['preprocess_s'] * 1e3 / row['megapixels']:.1f} ms a megapixel)"
        for row in steps
    )
    return f"{words} Preprocess bends: the decoder shrinks a JPEG while it reads it, to {told}."


# --- batch


async def batch_of(server: Server, repository: Path, batches: Sequence[int], rounds: int) -> dict[str, Any]:
    """Rows and lines."""
    core = prepared(photograph(REFERENCE))
    whole = {size: runner for size in batches if (runner := in_process(repository, size))}
    taken: dict[tuple[str, int], list[float]] = defaultdict(list)
    async with connected(server.url) as client:
        for turn in range(rounds + 1):
            for size in batches:
                say(f"batch: round {turn}/{rounds}, {size}")
                images = np.repeat(core[None], size, axis=0)
                began = time.perf_counter()
                await answered(client, MODEL, tensors(input=images), 600)
                taken["server", size].append(time.perf_counter() - began)
                if size in whole:
                    began = time.perf_counter()
                    whole[size](images)
                    taken["process", size].append(time.perf_counter() - began)
    rows = []
    for size in batches:
        row = {"batch": size, **spread(taken["server", size][1:])}  # the first run of each is cold
        if size in whole:
            row["in_process_s"] = statistics.median(taken["process", size][1:])
        rows.append(row)
    found = {"rows": rows, "fit": fitted(rows, "batch", "seconds", "per_image_s")}
    if whole:
        found["fit_in_process"] = fitted(rows, "batch", "in_process_s", "per_image_s")
    return found


async def answered(client: grpc.InferenceServerClient, model: str, inputs: list[grpc.InferInput], seconds: int) -> None:
    """Asks one model; ends the program with the server's words where it does not answer."""
    try:
        await client.infer(model, inputs, client_timeout=seconds)
    except InferenceServerException as error:
        raise SystemExit(f"error: {model} did not answer: {error.message()}") from None


def in_process(repository: Path, batch: int) -> Any:
    """The published engine of a CPU compiled for a batch, a function of its images; None where there is no such one."""
    folder = repository / MODEL / str(versions(repository / MODEL)[-1])
    for stated in documents(folder):
        if stated["target"] == "cpu":
            return cpu.runner(cpu.compiled(folder / stated["engine"], stated["runtime"]["settings"], batch=batch))
    return None


def tensors(**arrays: np.ndarray) -> list[grpc.InferInput]:
    """Inputs by name, as a request holds them."""
    made = []
    for name, array in arrays.items():
        made.append(grpc.InferInput(name, array.shape, "BYTES" if array.dtype == object else "FP32"))
        made[-1].set_data_from_numpy(array)
    return made


def why_batch(found: dict[str, Any]) -> str:
    """Whether company gains anything."""
    one, most = found["rows"][0], found["rows"][-1]
    each = most["seconds"] / most["batch"]
    words = (
        f"In the server an image takes {one['seconds'] / one['batch']:.2f} s alone and {each:.2f} s in a batch of "
        f"{most['batch']} (R² of the line {found['fit']['r2']:.4f})"
    )
    if "in_process_s" not in most:
        return f"{words}."
    # Of the same batch: between two of them the machine may have changed its speed.
    times = [row["in_process_s"] / row["seconds"] for row in found["rows"] if row["batch"] > 1]
    verdict = (
        "company would gain little or nothing, because one image already gives every core enough to do"
        if statistics.median(times) > COMPANY
        else "company would pay here"
    )
    return (
        f"{words}: its adapter runs a batch one image after the other. Compiled for the whole batch the network takes "
        f"{min(times):.2f} to {max(times):.2f} times as long as that: {verdict}."
    )


# --- clients


def rate_of(answers: Sequence[Answer]) -> float:
    """Photographs enhanced a second, from the first that was sent to the last that came back; 0 if none did."""
    came = [answer.sent + answer.seconds for answer in answers if answer.outcome == "ok"]
    return len(came) / max(came) if came else 0.0


async def clients_of(
    server: Server, photographs: Sequence[bytes], counts: Sequence[int], seconds: float, rounds: int
) -> dict[str, Any]:
    """Rows, and the line of the median latency. All numbers of clients take turns, round after round."""
    runs: dict[int, list[Clients]] = {count: [] for count in counts}
    for turn in range(rounds):
        for count, done in runs.items():
            before = server.counters()
            with cores_busy() as cores:
                answers = await closed_loop(server.url, photographs, workers=count, seconds=seconds)
            done.append(Clients(answers, cores, seconds_of_parts(before, server.counters())))
            kinds, rate = outcomes(answers), rate_of(answers)
            say(
                f"round {turn + 1}/{rounds}: {count} clients, {rate:.2f} a second, {kinds['ok']} done, "
                f"{kinds['rejected']} turned away"
            )
    rows = [clients_row(count, done) for count, done in runs.items()]
    unhindered = [row for row in rows if row["ok"] and not row["overloaded_share"]]
    found: dict[str, Any] = {"rows": rows, "cores": os.cpu_count()}
    return {**found, "fit": fitted(unhindered, "clients", "p50_s", "per_client_s") if len(unhindered) > 1 else None}


@dataclass(frozen=True)
class Clients:
    """A round of so many clients: their answers, the cores that were busy, and the seconds each part worked."""

    answers: list[Answer]
    cores: dict[str, float]
    parts: dict[str, float]


def clients_row(count: int, runs: Sequence[Clients]) -> dict[str, Any]:
    """A row: rates by round, all else of all rounds together."""
    answers = [answer for run in runs for answer in run.answers]
    kinds = outcomes(answers)
    return {
        "clients": count,
        **spread([rate_of(run.answers) for run in runs], "rate"),
        "p50_s": percentile(answers, 50),
        "p90_s": percentile(answers, 90),
        **kinds,
        "failed_because": dict(Counter(answer.message for answer in answers if answer.outcome == "failed")),
        "overloaded_share": 1 - kinds["ok"] / len(answers),
        "overloaded_p50_s": percentile(answers, 50, "rejected"),
        **{name: statistics.mean(run.cores[name] for run in runs) for name in runs[0].cores},
        **{f"{part}_s": sum(run.parts[f"{part}_s"] for run in runs) / max(kinds["ok"], 1) for part in PARTS},
    }


def why_clients(found: dict[str, Any]) -> str:
    """Where the rate stops growing, and what becomes of those who are too many."""
    rows, fit = found["rows"], found["fit"]
    most = max(row["rate"] for row in rows)
    knee = next(row for row in rows if row["rate"] >= SATURATED * most)
    busy = knee["cores_busy"] / found["cores"]
    words = (
        f"The rate is within {1 - SATURATED:.0%} of its most ({most:.2f} a second) from {knee['clients']} "
        f"client{'s' if knee['clients'] > 1 else ''} on, with {knee['cores_busy']:.1f} of {found['cores']} cores busy"
        f"{': the cores are what ends it' if busy > BUSY else ''}."
    )
    if fit:
        words += (
            f" Each further client then waits longer, {fit['per_client_s']:.2f} s at the median (R² {fit['r2']:.3f}), "
            f"where one photograph more takes the server {1 / most:.2f} s."
        )
    top, last = max(rows, key=lambda row: row["rate"]), rows[-1]
    if last["rate"] < SATURATED * most and last["most"] < top["least"]:
        words += (
            f" Beyond {top['clients']} it falls, to {last['rate'] / most:.0%} with {last['clients']}: whoever is "
            f"turned away asks again after {PAUSE:g} s, and those who ask take {last['cores_of_the_load']:.2f} of the "
            f"cores instead of {top['cores_of_the_load']:.2f}, and a run of the network {last['restormer_s']:.2f} s "
            f"instead of {top['restormer_s']:.2f}."
        )
    for row in rows:
        words += "".join(f" With {row['clients']}, {n} failed: {why}." for why, n in row["failed_because"].items())
    turned = [row for row in rows if row["overloaded_share"]]
    if not turned:
        return f"{words} Nobody was turned away."
    words += (
        f" From {turned[0]['clients']} clients on some are turned away, because {found['queue']} may wait for the "
        f"network; that bends the latency. With {last['clients']}, {last['overloaded_share']:.0%} are (after "
        f"{last['overloaded_p50_s'] * 1e3:.0f} ms at the median), and who is taken has waited {last['p50_s']:.1f} s."
    )
    return words


# --- instances


async def instances_of(
    servers: dict[tuple[int, int], list[Server]], photographs: Sequence[bytes], seconds: float, rounds: int
) -> dict[str, Any]:
    """Rows, and the two parts alone."""
    taken: dict[tuple[int, int], list[dict[str, float]]] = defaultdict(list)
    alone: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
    data = photograph(REFERENCE)
    for turn in range(1, rounds + 1):
        for setup, members in servers.items():
            say(f"instances: round {turn}/{rounds}, {setup[0]} servers of {setup[1]}")
            workers = WORKERS // len(members)
            with cores_busy() as cores:
                loops = (closed_loop(each.url, photographs, workers=workers, seconds=seconds) for each in members)
                answers = [answer for found in await asyncio.gather(*loops) for answer in found]
            taken[setup].append({"rate": rate_of(answers), "p50_s": percentile(answers, 50), **cores})
            if len(members) == 1:
                for part in ("preprocess", "postprocess"):
                    alone[part, setup[1]].append(await part_alone(members[0], part, data, seconds / 3))
    rows = [
        {
            "servers": number,
            "instances": count,
            **{name: statistics.median(each[name] for each in turns) for name in turns[0]},
            **spread([each["rate"] for each in turns], "rate"),
        }
        for (number, count), turns in taken.items()
    ]
    parts = [
        {
            "part": part,
            "instances": count,
            **spread([rate for rate, _ in turns], "rate"),
            "worked_share": statistics.median(worked for _, worked in turns) / count,
        }
        for (part, count), turns in alone.items()
    ]
    return {"rows": rows, "parts": parts, "cores": os.cpu_count()}


async def part_alone(server: Server, part: str, data: bytes, seconds: float) -> tuple[float, float]:
    """Photographs a second through one of the steps around the network, by itself; and how many of its processes were
    at work, on the mean."""
    inputs: dict[str, np.ndarray] = {"IMAGE": np.array([[data]], dtype=np.object_)}
    if part == "postprocess":
        core = prepared(data)[None]
        inputs |= {"PIXELS": core, "RESTORED": core ** np.float32(0.7)}  # a brighter picture, whatever the network
    request = tensors(**inputs)
    before, began = server.counters(), time.monotonic()
    came: list[float] = []

    async def work(client: grpc.InferenceServerClient) -> None:
        while time.monotonic() - began < seconds:
            await answered(client, part, request, 60)
            came.append(time.monotonic() - began)

    async with connected(server.url) as client:
        await asyncio.gather(*(work(client) for _ in range(WORKERS)))
    return len(came) / came[-1], seconds_of_parts(before, server.counters())[f"{part}_s"] / came[-1]


def why_instances(found: dict[str, Any]) -> str:
    """What more processes, or a second server, bring on the same cores."""
    rows = {(row["servers"], row["instances"]): row for row in found["rows"]}
    base, double, two = (rows[setup] for setup in SETUPS)
    alone = {(row["part"], row["instances"]): row["rate"] for row in found["parts"]}
    gains = {part: alone[part, 2] / alone[part, 1] for part in ("preprocess", "postprocess")}
    busy = base["cores_busy"] / found["cores"]
    words = (
        f"Two processes for each step give {double['rate'] / base['rate']:.2f} times the photographs of one, and two "
        f"whole servers {two['rate'] / base['rate']:.2f} times: with one, {base['cores_busy']:.1f} of {found['cores']} "
        f"cores are busy already{', and more processes only share them' if busy > BUSY else ''}. Without the network "
        f"two processes prepare {gains['preprocess']:.2f} and finish {gains['postprocess']:.2f} times as many as one."
    )
    idle = [row for row in found["parts"] if row["worked_share"] < BUSY and row["instances"] == 1]
    for row in idle:
        words += (
            f" One process for {row['part']} worked only {row['worked_share']:.0%} of the time, though a photograph "
            f"was always there: the rest it waited for Triton to hand over the next"
        )
        # With nobody to end what it prepared, it goes by the times that are for photographs that went astray.
        words += ", and for a network that is missing here to end one." if row["part"] == "preprocess" else "."
    return words


# --- the whole


def lines(document: dict[str, Any]) -> list[str]:
    """The tables, and under each what it shows."""
    made = []
    for name, columns in COLUMNS.items():
        if name not in document:
            continue
        found = document[name]
        made += ["", name, "  ".join(f"{title:>{width}}" for _, title, width, _ in columns)]
        for row in found["rows"]:
            cells = [cell(row.get(key), width, form) for key, _, width, form in columns]
            made.append("  ".join(cells))
        for row in found.get("parts", []):
            made.append(f"{row['part']} alone, {row['instances']} processes: {row['rate']:.1f} a second")
        made.append(found["why"])
    return made[1:]


def cell(value: float | None, width: int, form: str) -> str:
    """A figure of the table; a dash where there is none."""
    return f"{'–':>{width}}" if value is None else format(value, f"{width}{form}")


#: Of each table: key, title, width, format.
COLUMNS = {
    "megapixels": [("megapixels", "MP", 6, ".1f"), ("seconds", "s", 7, ".3f"), ("least", "least", 7, ".3f"),
                   ("most", "most", 7, ".3f"), ("preprocess_s", "pre", 7, ".3f"), (f"{MODEL}_s", "network", 7, ".3f"),
                   ("postprocess_s", "post", 7, ".3f"), ("queue_s", "queues", 7, ".3f"), ("rest_s", "rest", 7, ".3f")],
    "batch": [("batch", "batch", 6, "d"), ("seconds", "s", 7, ".2f"), ("least", "least", 7, ".2f"),
              ("most", "most", 7, ".2f"), ("in_process_s", "whole, in process", 17, ".2f")],
    "clients": [("clients", "clients", 7, "d"), ("rate", "a second", 8, ".2f"), ("least", "least", 7, ".2f"),
                ("most", "most", 7, ".2f"), ("p50_s", "p50 s", 7, ".2f"),
                ("p90_s", "p90 s", 7, ".2f"), ("ok", "enhanced", 8, "d"), ("rejected", "turned away", 11, "d"),
                ("expired", "expired", 7, "d"), ("failed", "failed", 6, "d"), ("cores_busy", "cores busy", 10, ".1f"),
                ("cores_of_the_load", "of the load", 11, ".2f")],
    "instances": [("servers", "servers", 7, "d"), ("instances", "instances", 9, "d"), ("rate", "a second", 8, ".2f"),
                  ("least", "least", 7, ".2f"), ("most", "most", 7, ".2f"), ("p50_s", "p50 s", 7, ".2f"),
                  ("cores_busy", "cores busy", 10, ".1f")],
}  # fmt: skip
WHY = {"megapixels": why_megapixels, "batch": why_batch, "clients": why_clients, "instances": why_instances}


def measured(arguments: argparse.Namespace, photographs: Sequence[bytes], command: str) -> dict[str, Any]:
    """What was asked for, by name, and the command that measures it again."""
    document: dict[str, Any] = {"circumstances": circumstances(command)}
    repository, rounds, seconds = arguments.repository, arguments.rounds, arguments.seconds
    wanted = arguments.only or list(WHY)
    if set(wanted) - {"instances"}:
        say("starting a server")
        with served(repository) as server:
            document["engine"] = described(server.engine)
            if "megapixels" in wanted:
                document["megapixels"] = asyncio.run(megapixels_of(server, arguments.megapixels, rounds))
            if "batch" in wanted:
                document["batch"] = asyncio.run(batch_of(server, repository, arguments.batches, rounds))
            if "clients" in wanted:
                document["clients"] = asyncio.run(clients_of(server, photographs, arguments.clients, seconds, rounds))
                document["clients"]["queue"] = queue_of(server.log.with_name("served"), "preprocess/config.pbtxt")
    if "instances" in wanted:
        with contextlib.ExitStack() as stack:
            servers = {}
            for number, count in SETUPS:
                say(f"starting {number} server{'s' if number > 1 else ''}, {count} of each process")
                options = ("--preprocess-instances", str(count), "--postprocess-instances", str(count))
                servers[number, count] = [stack.enter_context(served(repository, *options)) for _ in range(number)]
            document.setdefault("engine", described(servers[SETUPS[0]][0].engine))
            document["instances"] = asyncio.run(instances_of(servers, photographs, seconds, rounds))
    for name in WHY.keys() & document.keys():
        document[name]["why"] = WHY[name](document[name])
    return document


def parts_of(text: str) -> list[str]:
    """Reads ``batch,clients``."""
    if unknown := [part for part in text.split(",") if part not in WHY]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r}: choose of {', '.join(WHY)}")
    return text.split(",")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--photos", type=Path, default=PHOTOS, help="folder of JPEGs that the clients send")
    parser.add_argument("--only", type=parts_of, help="some of the four, as batch,clients; usually all")
    parser.add_argument("--megapixels", type=numbers(float, 0.5, 99, 2), default=list(MEGAPIXELS), help="as 1,12,50")
    parser.add_argument("--batches", type=numbers(int, 1, 8, 2), default=list(BATCHES), help="as 1,2,8")
    parser.add_argument("--clients", type=numbers(int, 1, 1024, 2), default=list(CLIENTS), help="as 1,8,64")
    parser.add_argument("--rounds", type=int, default=2, help="of each of the four")
    parser.add_argument("--seconds", type=float, default=10, help="of each number of clients, and of each setup")
    add_record(parser)
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.seconds <= 0:
        parser.error("--rounds and --seconds: more than 0")
    photographs = [path.read_bytes() for path in jpegs(arguments.photos)]
    document = measured(arguments, photographs, make_command("benchmark-scale", parser, arguments, "record"))
    print("\n".join(lines(document)))
    finish(document, arguments.record)


if __name__ == "__main__":
    interruptible(main)
