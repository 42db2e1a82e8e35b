"""Which settings meet a service-level objective on this machine: `make tune SLO_P99_MS=2000 RATE=0.5`.

Each setting is really served and loaded with real photographs. With a rate, photographs arrive at it (Poisson, given
their number), and the setting with the shortest 99th percentile is best; without one, more and more are sent at a time,
as long as that gains, and the setting that does the most a second within the objective is best. A photograph that was
turned away misses it.

The search goes along one setting at a time and keeps the best, from what the server would choose by itself, until a
whole round brings nothing: processes of the steps around the network, instances of the network, photographs a batch and
how long an idle network waits for one, and which of the published versions (its precision) is served. The best of many
is lucky too, so the best two and the server's own choice are loaded again, in turns; that choice stays unless another
is better by a twentieth then. What is written is a file of the server's own settings, for ``make serve``, Compose and
Kubernetes alike.

Of fewer than a hundred photographs the 99th percentile is little less than the slowest.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from export.files import write_bytes
from export.publish import provenance, versions
from operations.recording import (
    add_record_option,
    describe_circumstances,
    find_jpegs,
    finish_run,
    format_make_command,
    parse_output_path,
    print_status,
)
from server import assemble
from server.__main__ import parse_arguments as server_settings
from server.host import cores
from server.settings import Settings
from traffic.loops import Answer, count_outcomes, latency_percentile, run_closed_loop, run_open_loop, throughput
from traffic.server import run_server

MODEL = "restormer"
MOST_AT_A_TIME = 64
FINALISTS, ROUNDS = 2, 2  #: how many are loaded again beside the server's own choice, in turns, and how often
ARRIVALS, LEAST = 30, 15.0  #: photographs of a load, and its seconds, at the least
GAIN = 1.05  #: what another setting has to bring; less may be chance


@dataclass(frozen=True)
class Choice:
    """Settings of the server, by their names in server/settings.py; ``versions`` is one."""

    versions: int
    preprocess_instances: int
    postprocess_instances: int
    core_instances: int
    core_batch: int
    core_delay_us: int

    def flags(self) -> list[str]:
        """For the server's command line."""
        return [part for name, value in asdict(self).items() for part in (f"--{name.replace('_', '-')}", str(value))]

    def variables(self) -> list[str]:
        """For its environment."""
        return [f"RESTORMER_{name.upper()}={value}" for name, value in asdict(self).items()]


@dataclass(frozen=True)
class Found:
    """What a setting did: photographs a second, percentiles in ms, and how many came back and did not."""

    rate: float
    p50_ms: float
    p99_ms: float
    photographs: int
    lost: int
    at_a_time: int = 0
    message: str = ""

    def meets(self, slo: float) -> bool:
        """All came back, and 99 of 100 within so many ms."""
        return self.photographs > 0 and not self.lost and self.p99_ms <= slo

    def worth(self, slo: float, rate: float) -> tuple[bool, float]:
        """More is better: within the objective the photographs a second, or at a given rate the time that is left."""
        meets = self.meets(slo)
        return meets, self.rate if meets and not rate else -self.p99_ms


FAILED = Found(0.0, 0.0, math.inf, 0, 0)


def start_of(settings: Settings, version: int) -> Choice:
    """What the server chooses by itself on this machine, read off the configs it would serve."""
    core = assemble.served_config(settings, settings.repository / MODEL)
    batcher = core.dynamic_batching
    around = {f"{name}_instances": count for name, count in assemble.instance_counts(settings).items()}
    return Choice(
        version,
        **around,
        core_instances=core.instance_group[0].count,
        core_batch=max(batcher.preferred_batch_size, default=core.max_batch_size),
        core_delay_us=batcher.max_queue_delay_microseconds,
    )


def dimensions(start: Choice, candidates: Sequence[int], count: int, *, on_gpu: bool) -> dict[str, list[int]]:
    """The values each setting may take on so many cores; the most telling first."""
    around = {name: n for name, n in asdict(start).items() if name.removesuffix("_instances") in assemble.WORK_MS}
    twice = {name: sorted({max(1, n // 2), n, 2 * n}) for name, n in around.items()}
    if on_gpu:
        core = {"core_instances": [1, 2, 3], "core_batch": [2, 4, 8], "core_delay_us": [0, 500, 1000, 2000, 5000]}
    else:  # a CPU runs the photographs of a batch one by one: two tell whether company pays at all
        halves = [2**n for n in range(count.bit_length()) if 2**n <= count]
        core = {"core_instances": halves, "core_batch": [1, 2], "core_delay_us": [0, 2000]}
    return {"versions": list(candidates), **core, **twice}


def search(
    start: Choice,
    allowed: Mapping[str, Iterable[int]],
    measure: Callable[[Choice], Found],
    worth: Callable[[Found], tuple[bool, float]],
) -> dict[Choice, Found]:
    """All that was tried, in that order, from ``start`` along one setting at a time until nothing is better."""
    tried = {start: measure(start)}
    best, before = start, None
    while best != before:
        before = best
        for name, values in allowed.items():
            if name == "core_delay_us" and best.core_batch == 1:
                continue  # nobody waits for a batch of one
            for value in values:
                choice = replace(best, **{name: value})
                if choice not in tried:
                    tried[choice] = measure(choice)
            best = max(tried, key=lambda choice: worth(tried[choice]))
    return tried


def measured(
    repository: Path,
    choice: Choice,
    photographs: Sequence[bytes],
    *,
    slo: float,
    rate: float,
    seconds: float,
    many: int,
) -> Found:
    """The setting, served and loaded: with so many at a time, or with 0 as many as gain something, if there is no rate.

    One that cannot be served is told, and counts as one that meets nothing.
    """
    try:
        with run_server(repository, *choice.flags()) as server:
            if rate:
                answers = asyncio.run(run_open_loop(server.url, photographs, rate=rate, seconds=seconds))
                return found_of(answers, seconds, 0)

            def load(workers: int) -> Found:
                answers = asyncio.run(run_closed_loop(server.url, photographs, workers=workers, seconds=seconds))
                return found_of(answers, seconds, workers)

            return load(many) if many else climbed(load, slo)
    except SystemExit as error:  # the server's own line
        return replace(FAILED, message=str(error.code))


def enough(rate: float) -> float:
    """Seconds of a load that tell two settings apart: `ARRIVALS` photographs at this rate, and `LEAST` at the least."""
    return max(LEAST, ARRIVALS / rate if rate else 0.0)


def climbed(load: Callable[[int], Found], slo: float) -> Found:
    """The best of twice as many photographs at a time, and again, until the objective is missed or it gains nothing."""
    best, many = load(1), 2
    while best.at_a_time * 2 == many <= MOST_AT_A_TIME and best.meets(slo):
        best = max(best, load(many), key=lambda each: each.worth(slo, 0))
        many *= 2
    return best


def found_of(answers: Sequence[Answer], seconds: float, many: int) -> Found:
    """What became of the photographs of one load."""
    done = count_outcomes(answers)["ok"]
    last = max((each.sent + each.seconds for each in answers), default=seconds)
    return Found(
        rate=throughput(answers, max(seconds, last) + 1e-9),
        p50_ms=1e3 * latency_percentile(answers, 50),
        p99_ms=1e3 * latency_percentile(answers, 99) if done else math.inf,
        photographs=done,
        lost=len(answers) - done,
        at_a_time=many,
    )


def published(repository: Path, *, on_gpu: bool) -> dict[int, dict[str, Any]]:
    """The published versions of the network that the highest is of, which this hardware serves, and their JSON."""
    documents = {}
    for version in versions(repository / MODEL):
        folder = repository / MODEL / str(version)
        engines = sorted(folder.glob("*.plan") if on_gpu else folder.glob("model.onnx"))
        if engines and (document := provenance(engines[0])):
            documents[version] = document
    if not documents:
        target = "PRECISION=fp16 TARGET=tensorrt" if on_gpu else "PRECISION=fp32 TARGET=cpu"
        raise SystemExit(f"error: no engine in {repository / MODEL}: make engine {target}")
    network = documents[max(documents)]["package"]["checkpoint_sha256"]
    return {
        version: document
        for version, document in documents.items()
        if document["package"]["checkpoint_sha256"] == network
    }


def candidates_of(documents: Mapping[int, Mapping[str, Any]]) -> dict[int, str]:
    """The precision of each."""
    return {version: str(document["precision"]) for version, document in documents.items()}


def row(choice: Choice, found: Found, precision: str, slo: float) -> dict[str, Any]:
    """As the JSON line has it; what did not come back has no percentile."""
    numbers = {key: None if value == math.inf else value for key, value in asdict(found).items()}
    return {**asdict(choice), "precision": precision, **numbers, "meets": found.meets(slo)}


def line(made: dict[str, Any]) -> str:
    """A row for people."""
    what = (
        f"version {made['versions']} ({made['precision']}), processes {made['preprocess_instances']}+"
        f"{made['postprocess_instances']}, network {made['core_instances']}, batch {made['core_batch']}, "
        f"delay {made['core_delay_us']} us"
    )
    if made["p99_ms"] is None:
        return f"{what}: {made['message'] or 'nothing came back'}"
    many = f" at {made['at_a_time']} at a time" if made["at_a_time"] else ""
    lost = f", {made['lost']} lost" if made["lost"] else ""
    return (
        f"{what}: {made['rate']:.3f} a second{many}, p50 {made['p50_ms']:.0f} ms, p99 {made['p99_ms']:.0f} ms of "
        f"{made['photographs']}{lost}: {'meets' if made['meets'] else 'misses'}"
    )


def written(path: Path, choice: Choice, comments: Sequence[str]) -> None:
    """The settings as a file of variables, whole or not at all."""
    text = "\n".join([*(f"# {comment}" for comment in comments), *choice.variables()]) + "\n"
    write_bytes(path, text.encode())


def finalists(tried: Mapping[Choice, Found], start: Choice, slo: float, rate: float) -> list[Choice]:
    """What is loaded again: what the server would choose by itself, and the best of those that meet the objective."""
    meeting = sorted((each for each in tried if tried[each].meets(slo)), key=lambda each: tried[each].worth(slo, rate))
    return list(dict.fromkeys([start, *reversed(meeting)]))[: FINALISTS + 1] if meeting else []


def merged(rounds: Sequence[Found]) -> Found:
    """One finding of several loads of a setting: the mean rate, the longest times."""
    return Found(
        rate=sum(each.rate for each in rounds) / len(rounds),
        p50_ms=max(each.p50_ms for each in rounds),
        p99_ms=max(each.p99_ms for each in rounds),
        photographs=sum(each.photographs for each in rounds),
        lost=sum(each.lost for each in rounds),
        at_a_time=rounds[0].at_a_time,
        message=rounds[0].message,
    )


def winner(found: Mapping[Choice, Found], start: Choice, slo: float, rate: float) -> Choice | None:
    """The best that meets the objective; ``start`` unless another is better by more than `GAIN`. None if none meets."""
    meeting = [choice for choice in found if found[choice].meets(slo)]
    if not meeting:
        return None
    best = max(meeting, key=lambda choice: found[choice].worth(slo, rate))
    if start not in meeting:
        return best
    ours, theirs = found[best], found[start]
    gained = theirs.p99_ms / ours.p99_ms if rate else ours.rate / theirs.rate
    return best if gained > GAIN else start


def tuned(options: argparse.Namespace, photographs: Sequence[bytes], command: str) -> dict[str, Any]:
    """The search, as the JSON line has it; what was chosen is written to ``options.output``, with the command."""
    _, settings = server_settings(["--repository", str(options.repository), "start"])
    slo, rate, on_gpu = options.slo_p99_ms, options.rate, assemble.resolve_hardware(settings) != "cpu"
    documents = published(options.repository, on_gpu=on_gpu)
    precisions = candidates_of(documents)
    where = describe_circumstances(command)

    def loaded(choice: Choice, many: int) -> Found:
        found = measured(
            options.repository, choice, photographs, slo=slo, rate=rate, seconds=options.seconds, many=many
        )
        if choice == start and found.message:  # not the setting's fault
            raise SystemExit(found.message)
        print_status(line(as_row(choice, found)))
        return found

    def as_row(choice: Choice, found: Found) -> dict[str, Any]:
        return row(choice, found, precisions[choice.versions], slo)

    start = start_of(settings, max(precisions))
    allowed = dimensions(start, sorted(precisions), cores(), on_gpu=on_gpu)
    tried = search(start, allowed, lambda choice: loaded(choice, 0), lambda found: found.worth(slo, rate))
    best = max(tried, key=lambda choice: tried[choice].worth(slo, rate))
    again: dict[Choice, list[Found]] = {choice: [] for choice in finalists(tried, start, slo, rate)}
    for turn in range(ROUNDS if again else 0):
        print_status(f"the best once more, round {turn + 1}/{ROUNDS}:")
        for choice, rounds in again.items():
            rounds.append(loaded(choice, tried[choice].at_a_time))
    last = {choice: merged(rounds) for choice, rounds in again.items()}
    chosen = winner(last, start, slo, rate)
    document = {
        "circumstances": where,
        "checkpoint_sha256": documents[max(documents)]["package"]["checkpoint_sha256"],
        "slo_p99_ms": slo,
        "rate": rate or None,
        "tried": [as_row(choice, found) for choice, found in tried.items()],
        "best": as_row(best, tried[best]),
        "again": [as_row(choice, found) for choice, found in last.items()],
        "chosen": chosen and as_row(chosen, last[chosen]),
    }
    if chosen:
        comments = [where["command"], f"{where['cpu']}, {cores()} cores, {where['time']}", line(document["chosen"])]
        written(options.output, chosen, comments)
    return document


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slo-p99-ms", type=float, required=True, help="99 of 100 photographs within this, ms")
    parser.add_argument("--rate", type=float, default=0.0, help="photographs a second that arrive; 0: as many as may")
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--photos", type=Path, default=Path("demo/photos"), help="folder of JPEGs")
    parser.add_argument("--seconds", type=float, default=0.0, help="of each load; 0: until some 30 photographs arrived")
    parser.add_argument(
        "--output", type=parse_output_path, default=Path("tuned.env"), help="file of the settings found"
    )
    add_record_option(parser)
    options = parser.parse_args()
    if not (options.slo_p99_ms > 0 and options.rate >= 0 and options.seconds >= 0):
        parser.error("--slo-p99-ms: above 0; --rate and --seconds: 0 or more")
    photographs = [path.read_bytes() for path in find_jpegs(options.photos)]
    command = format_make_command("tune", parser, options, "output", "record")
    options.seconds = options.seconds or enough(options.rate)
    try:
        found = tuned(options, photographs, command)
    except KeyboardInterrupt:
        raise SystemExit("interrupted: nothing was written") from None
    print("\n".join(line(each) for each in found["tried"]))
    if found["chosen"]:
        print(f"chosen: {line(found['chosen'])}")
        path = options.output if options.output.is_absolute() else f"./{options.output}"
        print(f"written to {options.output}; to serve it: (set -a; . {path}; make serve)")
    else:
        best = line(found["best"])
        print(f"error: nothing meets {found['slo_p99_ms']:g} ms here; the best: {best}", file=sys.stderr)
    finish_run(found, options.record)
    return int(not found["chosen"])


if __name__ == "__main__":
    sys.exit(main())
