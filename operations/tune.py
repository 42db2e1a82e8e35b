"""Find the server settings that meet a service-level objective on this machine: `make tune SLO_P99_MS=2000 RATE=0.5`.

Each setting is served and loaded with real photographs. With a rate, photographs arrive at that rate (Poisson), and the
setting with the lowest 99th percentile wins. Without one, concurrency doubles while throughput grows, and the highest
throughput within the objective wins. A setting that loses a photograph misses the objective.

The search starts from the server's defaults and changes one setting at a time, until a whole round finds nothing
better: processes of the other steps, instances of the network, its batch size and queue delay, and the published
version. The best of many is partly luck, so the best two and the defaults are then loaded again in turns; the defaults
stay unless another setting is better by 5 %. The result is a file of settings for ``make serve``, Compose and
Kubernetes.

With fewer than a hundred photographs, the 99th percentile is close to the slowest one.
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
    exit_on_interrupt,
    find_jpegs,
    finish_run,
    format_make_command,
    parse_output_path,
    print_status,
)
from server import assemble
from server.__main__ import parse_arguments
from server.errors import ServerError
from server.host import cores
from server.settings import Settings
from traffic.loops import Answer, count_outcomes, latency_percentile, run_closed_loop, run_open_loop, throughput
from traffic.server import run_server

MODEL = "restormer"
MAX_IN_FLIGHT = 64
FINALISTS, ROUNDS = 2, 2  #: settings that are loaded again beside the defaults, and how often
ARRIVALS, MIN_SECONDS = 30, 15.0  #: minimum photographs and seconds of a load
GAIN = 1.05  #: minimum gain over the defaults; less may be chance


@dataclass(frozen=True)
class Choice:
    """Settings of the server, by their names in server/settings.py; ``versions`` is a single version."""

    versions: int
    preprocess_instances: int
    postprocess_instances: int
    core_instances: int
    core_batch: int
    core_delay_us: int

    def flags(self) -> list[str]:
        """Return the flags for the server's command line."""
        return [part for name, value in asdict(self).items() for part in (f"--{name.replace('_', '-')}", str(value))]

    def variables(self) -> list[str]:
        """Return the variables for the server's environment."""
        return [f"RESTORMER_{name.upper()}={value}" for name, value in asdict(self).items()]


@dataclass(frozen=True)
class Result:
    """Figures of a load: photographs per second, percentiles in ms, enhanced and lost photographs."""

    rate: float
    p50_ms: float
    p99_ms: float
    photographs: int
    lost: int
    at_a_time: int = 0
    message: str = ""

    def meets(self, slo: float) -> bool:
        """Return whether no photograph was lost and the 99th percentile is within ``slo`` ms."""
        return self.photographs > 0 and not self.lost and self.p99_ms <= slo

    def sort_key(self, slo: float, rate: float) -> tuple[bool, float]:
        """Return a sort key: settings that meet the objective first, then by throughput, or latency at a rate."""
        meets = self.meets(slo)
        return meets, self.rate if meets and not rate else -self.p99_ms


FAILED = Result(0.0, 0.0, math.inf, 0, 0)


def choice_from_settings(settings: Settings, version: int) -> Choice:
    """Return the values that the server uses on this machine, from the configs that it would serve."""
    core = assemble.served_config(settings, settings.repository / MODEL)
    batcher = core.dynamic_batching
    instances = {f"{name}_instances": count for name, count in assemble.instance_counts(settings).items()}
    return Choice(
        version,
        **instances,
        core_instances=core.instance_group[0].count,
        core_batch=max(batcher.preferred_batch_size, default=core.max_batch_size),
        core_delay_us=batcher.max_queue_delay_microseconds,
    )


def list_values(start: Choice, candidates: Sequence[int], count: int, *, on_gpu: bool) -> dict[str, list[int]]:
    """Return the values to try for each setting on ``count`` cores, those with the largest effect first."""
    instances = {name: n for name, n in asdict(start).items() if name.removesuffix("_instances") in assemble.WORK_MS}
    processes = {name: sorted({max(1, n // 2), n, 2 * n}) for name, n in instances.items()}
    if on_gpu:
        batches = sorted({max(1, start.core_batch // 4), max(1, start.core_batch // 2), start.core_batch})
        core = {"core_instances": [1, 2, 3], "core_batch": batches, "core_delay_us": [0, 500, 1000, 2000, 5000]}
    else:  # a CPU runs the photographs of a batch one by one: a batch of two shows whether batches help
        halves = [2**n for n in range(count.bit_length()) if 2**n <= count]
        core = {"core_instances": halves, "core_batch": [1, 2], "core_delay_us": [0, 2000]}
    return {"versions": list(candidates), **core, **processes}


def search(
    start: Choice,
    allowed: Mapping[str, Iterable[int]],
    measure: Callable[[Choice], Result],
    sort_key: Callable[[Result], tuple[bool, float]],
) -> dict[Choice, Result]:
    """Change one setting at a time from ``start`` until nothing is better; return all results in order."""
    tried = {start: measure(start)}
    best, before = start, None
    while best != before:
        before = best
        for name, values in allowed.items():
            if name == "core_delay_us" and best.core_batch == 1:
                continue  # a batch of one does not wait
            for value in values:
                choice = replace(best, **{name: value})
                if choice not in tried:
                    tried[choice] = measure(choice)
            best = max(tried, key=lambda choice: sort_key(tried[choice]))
    return tried


def measure_choice(options: argparse.Namespace, choice: Choice, photographs: Sequence[bytes], in_flight: int) -> Result:
    """Serve and load a setting, at the rate or with ``in_flight`` requests; 0 searches for the best number.

    A failed start counts as a miss and keeps the server's message.
    """
    rate, seconds = options.rate, options.seconds
    try:
        with run_server(options.repository, *choice.flags()) as server:
            if rate:
                answers = asyncio.run(run_open_loop(server.url, photographs, rate=rate, seconds=seconds))
                return result_from_answers(answers, seconds, 0)

            def load(workers: int) -> Result:
                answers = asyncio.run(run_closed_loop(server.url, photographs, workers=workers, seconds=seconds))
                return result_from_answers(answers, seconds, workers)

            return load(in_flight) if in_flight else find_concurrency(load, options.slo_p99_ms)
    except SystemExit as error:  # the server's message
        return replace(FAILED, message=str(error.code))


def choose_seconds(rate: float) -> float:
    """Return the seconds of a load: enough for `ARRIVALS` photographs at this rate, and at least `MIN_SECONDS`."""
    return max(MIN_SECONDS, ARRIVALS / rate if rate else 0.0)


def find_concurrency(load: Callable[[int], Result], slo: float) -> Result:
    """Double the requests in flight until the objective is missed or nothing is gained; return the best load."""
    best, in_flight = load(1), 2
    while best.at_a_time * 2 == in_flight <= MAX_IN_FLIGHT and best.meets(slo):
        best = max(best, load(in_flight), key=lambda each: each.sort_key(slo, 0))
        in_flight *= 2
    return best


def result_from_answers(answers: Sequence[Answer], seconds: float, in_flight: int) -> Result:
    """Summarize the answers of one load."""
    enhanced = count_outcomes(answers)["ok"]
    last = max((each.sent + each.seconds for each in answers), default=seconds)
    return Result(
        rate=throughput(answers, max(seconds, last) + 1e-9),
        p50_ms=1e3 * latency_percentile(answers, 50),
        p99_ms=1e3 * latency_percentile(answers, 99) if enhanced else math.inf,
        photographs=enhanced,
        lost=len(answers) - enhanced,
        at_a_time=in_flight,
    )


def read_engines(repository: Path, *, on_gpu: bool) -> dict[int, dict[str, Any]]:
    """Return the JSON of the versions that this hardware serves, of the same network as the highest version."""
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


def row_from_result(choice: Choice, result: Result, precision: str, slo: float) -> dict[str, Any]:
    """Return a setting and its figures for JSON; without enhanced photographs the percentile is None."""
    numbers = {key: None if value == math.inf else value for key, value in asdict(result).items()}
    return {**asdict(choice), "precision": precision, **numbers, "meets": result.meets(slo)}


def format_row(row: dict[str, Any]) -> str:
    """Format a row as one line of text."""
    setting = (
        f"version {row['versions']} ({row['precision']}), processes {row['preprocess_instances']}+"
        f"{row['postprocess_instances']}, network {row['core_instances']}, batch {row['core_batch']}, "
        f"delay {row['core_delay_us']} us"
    )
    if row["p99_ms"] is None:
        return f"{setting}: {row['message'] or 'no photograph was enhanced'}"
    in_flight = f" with {row['at_a_time']} in flight" if row["at_a_time"] else ""
    lost = f", {row['lost']} lost" if row["lost"] else ""
    return (
        f"{setting}: {row['rate']:.3f} a second{in_flight}, p50 {row['p50_ms']:.0f} ms, p99 {row['p99_ms']:.0f} ms of "
        f"{row['photographs']}{lost}: {'meets' if row['meets'] else 'misses'}"
    )


def write_settings(path: Path, choice: Choice, comments: Sequence[str]) -> None:
    """Write the settings as a file of variables, whole or not at all."""
    text = "\n".join([*(f"# {comment}" for comment in comments), *choice.variables()]) + "\n"
    write_bytes(path, text.encode())


def select_finalists(tried: Mapping[Choice, Result], start: Choice, slo: float, rate: float) -> list[Choice]:
    """Return the settings to load again: ``start``, and the best of those that meet the objective."""
    meeting = [choice for choice in tried if tried[choice].meets(slo)]
    meeting.sort(key=lambda choice: tried[choice].sort_key(slo, rate))
    return list(dict.fromkeys([start, *reversed(meeting)]))[: FINALISTS + 1] if meeting else []


def merge_results(rounds: Sequence[Result]) -> Result:
    """Merge several loads of a setting: the mean rate, the longest times."""
    return replace(
        rounds[0],
        rate=sum(each.rate for each in rounds) / len(rounds),
        p50_ms=max(each.p50_ms for each in rounds),
        p99_ms=max(each.p99_ms for each in rounds),
        photographs=sum(each.photographs for each in rounds),
        lost=sum(each.lost for each in rounds),
    )


def choose_winner(results: Mapping[Choice, Result], start: Choice, slo: float, rate: float) -> Choice | None:
    """Return the best setting that meets the objective, or None; ``start`` unless another gains more than `GAIN`."""
    meeting = [choice for choice in results if results[choice].meets(slo)]
    if not meeting:
        return None
    best = max(meeting, key=lambda choice: results[choice].sort_key(slo, rate))
    if start not in meeting:
        return best
    winner, default = results[best], results[start]
    gain = default.p99_ms / winner.p99_ms if rate else winner.rate / default.rate
    return best if gain > GAIN else start


def run_search(options: argparse.Namespace, photographs: Sequence[bytes], command: str) -> dict[str, Any]:
    """Search, write the chosen settings to ``options.output`` with the command, and return the record."""
    _, settings = parse_arguments(["--repository", str(options.repository), "start"])
    slo, rate, on_gpu = options.slo_p99_ms, options.rate, assemble.resolve_hardware(settings) != "cpu"
    engines = read_engines(options.repository, on_gpu=on_gpu)
    circumstances = describe_circumstances(command)

    def measure(choice: Choice, in_flight: int) -> Result:
        result = measure_choice(options, choice, photographs, in_flight)
        if choice == start and result.message:  # the server does not start at all
            raise SystemExit(result.message)
        print_status(format_row(as_row(choice, result)))
        return result

    def as_row(choice: Choice, result: Result) -> dict[str, Any]:
        return row_from_result(choice, result, engines[choice.versions]["precision"], slo)

    start = choice_from_settings(settings, max(engines))
    allowed = list_values(start, sorted(engines), cores(), on_gpu=on_gpu)
    tried = search(start, allowed, lambda choice: measure(choice, 0), lambda result: result.sort_key(slo, rate))
    best = max(tried, key=lambda choice: tried[choice].sort_key(slo, rate))
    rounds: dict[Choice, list[Result]] = {choice: [] for choice in select_finalists(tried, start, slo, rate)}
    for turn in range(ROUNDS if rounds else 0):
        print_status(f"loading the best again, round {turn + 1}/{ROUNDS}:")
        for choice, results in rounds.items():
            results.append(measure(choice, tried[choice].at_a_time))
    final = {choice: merge_results(results) for choice, results in rounds.items()}
    chosen = choose_winner(final, start, slo, rate)
    document = {
        "circumstances": circumstances,
        "checkpoint_sha256": engines[max(engines)]["package"]["checkpoint_sha256"],
        "slo_p99_ms": slo,
        "rate": rate or None,
        "tried": [as_row(choice, result) for choice, result in tried.items()],
        "best": as_row(best, tried[best]),
        "again": [as_row(choice, result) for choice, result in final.items()],
        "chosen": chosen and as_row(chosen, final[chosen]),
    }
    if chosen:
        machine = f"{circumstances['cpu']}, {cores()} cores, {circumstances['time']}"
        write_settings(options.output, chosen, [circumstances["command"], machine, format_row(document["chosen"])])
    return document


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slo-p99-ms", type=float, required=True, help="maximum 99th percentile, in ms")
    parser.add_argument(
        "--rate", type=float, default=0.0, help="photographs that arrive per second; 0: find the maximum"
    )
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--photos", type=Path, default=Path("demo/photos"), help="folder of JPEGs")
    parser.add_argument("--seconds", type=float, default=0.0, help="of each load; 0: enough for about 30 photographs")
    parser.add_argument(
        "--output", type=parse_output_path, default=Path("tuned.env"), help="file for the chosen settings"
    )
    add_record_option(parser)
    options = parser.parse_args()
    if not (options.slo_p99_ms > 0 and options.rate >= 0 and options.seconds >= 0):
        parser.error("--slo-p99-ms: above 0; --rate and --seconds: 0 or more")
    photographs = [path.read_bytes() for path in find_jpegs(options.photos)]
    command = format_make_command("tune", parser, options, "output", "record")
    options.seconds = options.seconds or choose_seconds(options.rate)
    try:
        record = run_search(options, photographs, command)
    except ServerError as error:  # a config that the server cannot read
        raise SystemExit(f"error: {error}") from None
    print("\n".join(map(format_row, record["tried"])))
    if record["chosen"]:
        print(f"chosen: {format_row(record['chosen'])}")
        path = options.output if options.output.is_absolute() else f"./{options.output}"
        print(f"written to {options.output}; to serve it: (set -a; . {path}; make serve)")
    else:
        best = format_row(record["best"])
        print(f"error: no setting meets {options.slo_p99_ms:g} ms on this machine; the best: {best}", file=sys.stderr)
    finish_run(record, options.record)
    return int(not record["chosen"])


if __name__ == "__main__":
    exit_on_interrupt(main)
