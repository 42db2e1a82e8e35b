"""One, ten, a hundred GPU nodes: a simulation of a bulk job, from what a photograph was measured to cost.

``python -m benchmarks.simulation [--gpu-rate 60 …]``. Nobody measured this: it is what would come of the measured costs
(``benchmarks/results``) if nothing else stood in the way, and of assumptions that are options here.

A closed loop: so many photographs are on their way, and each passes the stations in their order. A station has a number
of servers and a time a photograph; times vary (exponential), whoever comes first is served first. A store that takes so
many requests a second is a server of that pace, and adds its latency, which holds up nobody else.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.command_line import add_record, finish
from benchmarks.imaging import GPU_RATE, REFERENCE

RESULTS = Path(__file__).parent / "results"
#: GPU nodes, and prefixes of the object store that the photographs lie under.
CASES = ((1, 1), (10, 1), (100, 1), (100, 10))
GPUS = "GPUs"
#: Of which the first fifth warms up: so many at the least, and so many a node.
PHOTOGRAPHS, A_NODE = 50_000, 2000


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What was not measured. ``gpu_rate``: photographs a second of a GPU. ``cores``: of a GPU node, for decoding and
    encoding. ``client_cores``: of Ray actors, a GPU node. ``gbit``: of a node's network, each way.
    ``reads``, ``writes``: requests a second of the object store for each of ``prefixes`` (Amazon documents 5,500 and
    3,500 for S3). ``latency_ms``: of the store. ``in_flight``: a GPU node."""

    gpu_rate: float = GPU_RATE
    cores: int = 15
    client_cores: int = 1
    gbit: float = 25.0
    reads: float = 5500.0
    writes: float = 3500.0
    prefixes: int = 1
    latency_ms: float = 30.0
    in_flight: int = 32


@dataclass
class Station:
    """``servers`` that take ``seconds`` a photograph each; ``delay``: seconds more that nobody waits for."""

    name: str
    servers: int
    seconds: float
    delay: float = 0.0
    free: list[float] = field(default_factory=list)
    busy: float = 0.0


def stations(costs: dict[str, float], assumed: Assumptions, nodes: int) -> list[Station]:
    """The way of a photograph: from the store to the client, to the server and back, to the store.

    ``costs``: CPU seconds of the client and of the server's two steps, bytes in and out, of one photograph.
    """
    latency = assumed.latency_ms / 1000
    bytes_a_second = assumed.gbit * 1e9 / 8
    both = costs["bytes_in"] + costs["bytes_out"]
    return [
        # A look whether the output is there, and the photograph.
        Station("object store, reads", 1, 2 / (assumed.reads * assumed.prefixes), 2 * latency),
        Station("cores of the Ray actors", assumed.client_cores * nodes, costs["client"]),
        # A machine of actors for each GPU node: each way it carries the photograph and the output.
        Station("network of the Ray actors", nodes, both / bytes_a_second),
        Station("network of the GPU nodes", nodes, max(costs["bytes_in"], costs["bytes_out"]) / bytes_a_second),
        Station("cores that decode and encode", assumed.cores * nodes, costs["server"]),
        Station(GPUS, nodes, 1 / assumed.gpu_rate),
        Station("object store, writes", 1, 1 / (assumed.writes * assumed.prefixes), latency),
    ]


def simulated(line: list[Station], in_flight: int, photographs: int, seed: int = 0) -> dict[str, Any]:
    """Photographs a second after the first fifth, and how busy each station was, as a share of its servers' time."""
    draw = random.Random(seed)
    for station in line:
        station.free, station.busy = [0.0] * station.servers, 0.0
    # (when, who, at which station); who breaks the tie.
    events = [(0.0, number, 0) for number in range(in_flight)]
    warming, ended, now, began = photographs // 5, 0, 0.0, 0.0
    while ended < photographs:
        now, number, place = heapq.heappop(events)
        if place == len(line):
            ended += 1
            if ended == warming:
                began = now
                for station in line:
                    station.busy = 0.0
            heapq.heappush(events, (now, ended + in_flight, 0))  # the next one
            continue
        station = line[place]
        begin = max(now, heapq.heappop(station.free))
        lasts = draw.expovariate(1 / station.seconds)
        station.busy += lasts
        heapq.heappush(station.free, begin + lasts)
        heapq.heappush(events, (begin + lasts + station.delay, number, place + 1))
    busy = {station.name: min(1.0, station.busy / (now - began) / station.servers) for station in line}
    return {"photographs_a_second": (photographs - warming) / (now - began), "busy": busy}


def costs_of_a_photograph() -> dict[str, float]:
    """Of one of 12 megapixels, from what was recorded: imaging.json, client.json and bulk.json.

    The client's CPU was measured with the demo's photographs; for the larger ones its part that grows with the bytes is
    added, as client.json has it.
    """
    imaging, client, bulk = (
        json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")) for name in ("imaging", "client", "bulk")
    )
    main = imaging["sizes"][str(REFERENCE)]
    small, large = (row["restormer_client"]["cpu_us"] for row in client["one_at_a_time"].values())
    few, many = map(int, client["one_at_a_time"])
    a_byte = (large - small) / 1e6 / (many - few)
    carried = bulk["carried"]
    bytes_in = float(main["bytes"])
    return {
        "bytes_in": bytes_in,
        "bytes_out": bytes_in * bulk["growth"],
        "client": carried["bulk_cpu_ms"] / 1000 + a_byte * (bytes_in - carried["bytes"]),
        "server": (main["preprocess"] + main["postprocess"]) / 1000,
    }


def report(assumed: Assumptions) -> dict[str, Any]:
    """Every case."""
    costs, found = costs_of_a_photograph(), []
    for nodes, prefixes in CASES:
        line = stations(costs, replace(assumed, prefixes=prefixes), nodes)
        row = simulated(line, assumed.in_flight * nodes, max(PHOTOGRAPHS, A_NODE * nodes))
        # The GPUs are meant to be the busiest; what comes after them, or before them, is what to look at next.
        others = {name: share for name, share in row["busy"].items() if name != GPUS}
        found.append(
            {
                "nodes": nodes, "prefixes": prefixes, **row, "next": max(others, key=others.__getitem__),
                "hours_for_a_hundred_million": 1e8 / row["photographs_a_second"] / 3600,
            }
        )  # fmt: skip
    return {"assumed": {n: v for n, v in asdict(assumed).items() if n != "prefixes"}, "costs": costs, "cases": found}


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in asdict(Assumptions()).items():
        if name == "prefixes":
            continue  # is part of the cases
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help="default %(default)s")
    add_record(parser)
    options = vars(parser.parse_args())
    record = options.pop("record")
    wrong = [name for name, value in options.items() if not 0 < value < float("inf")]
    if wrong:
        parser.error(f"--{wrong[0].replace('_', '-')} has to be above 0")
    found = report(Assumptions(**options))
    for row in found["cases"]:
        print(
            f"{row['nodes']:>4} GPU nodes, {row['prefixes']} prefixes: {row['photographs_a_second']:8.1f} photographs "
            f"a second; GPUs {row['busy'][GPUS]:.0%} busy, next {row['next']}, {row['busy'][row['next']]:.0%}"
        )
    finish(found, record)


if __name__ == "__main__":
    main()
