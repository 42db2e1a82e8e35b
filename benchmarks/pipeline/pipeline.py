"""Measure what share of the rate that its parts allow the pipeline reaches (``make benchmark``, with perf_analyzer).

A photograph passes three parts. Where all of them share cores, their times add up, so that a pipeline does at most
1 / (1/r₁ + 1/r₂ + 1/r₃) photographs a second, with rᵢ the rate of part i alone, saturated, in process and without
Triton (``parts.py``). Where a GPU runs the network, the slowest part is the bound. The share of that is what Triton
leaves: the rest goes into copies between processes, queues and waiting.

A real server and the parts run on the same cores, in turns, and the load generator on other ones; its own CPU is
reported. Rates are the server's own counters in the middle of a run, over whole cycles of the photographs, because
those differ in size. Percentiles are perf_analyzer's, of all requests of a point; of a few, the 99th is the slowest.

- *closed*: a fixed number of requests in flight; *open*: a fixed rate at even intervals, whatever returns.
- *queue, input, infer, output*: where a request was, by Triton's counters, added up over its steps.
- The same with a network so small that it hides nothing, with random weights.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.pipeline import analyzer, parts
from benchmarks.pipeline.parts import CORE, NAMES, Part
from benchmarks.pipeline.points import ENHANCE, STEPS, TILED, Bench, Load, Point, summarize, window_rates
from benchmarks.report import tables
from export.errors import ExportError
from export.publish import provenance
from operations.recording import (
    add_record_option,
    describe_circumstances,
    exit_on_interrupt,
    find_jpegs,
    finish_run,
    format_make_command,
    parse_numbers,
    print_status,
)
from traffic.server import SERVER_PYTHON, describe_engine, run_server

GOALS = {"cpu": 0.90, "gpu": 0.95}  #: of what the parts allow
WINDOWS = 2  #: of a point of the sweep: their rates are its spread
BUSY = 0.8  #: of its cores: a load generator above this may limit the rate
Works = dict[str, tuple[list[parts.Work], list[parts.Work]]]  #: of each part: on all its processes, and on one


def allowed_rate(alone: Mapping[str, float], *, on_gpu: bool) -> float:
    """Return the photographs a second that the parts allow on shared cores; a GPU's network runs beside the others."""
    if on_gpu:
        others = {name: rate for name, rate in alone.items() if name != CORE}
        return min(alone[CORE], allowed_rate(others, on_gpu=False))
    return 1 / sum(1 / each for each in alone.values())


def compare_with_parts(
    bench: Bench, alone: Mapping[str, Part], concurrency: int, rounds: int, seconds: float, core: int = 0
) -> dict[str, Any]:
    """Measure `enhance` and its parts in turns, with one photograph in flight and with ``concurrency``.

    The parts run before and after it, and their mean counts, so that a drift of the machine favours neither. ``core``:
    how many requests in flight keep a GPU's network busiest, or 0 where the cores run the network.
    """
    turns: list[dict[str, Any]] = []
    for number in range(rounds):
        title = f"round {number + 1}/{rounds}:"
        before, network = run_alone(alone, seconds / 2, title), [network_rate(bench, core)] if core else []
        expected = turns[-1]["reached"] if turns else allowed_rate(_mean_rates([before], network), on_gpu=bool(core))
        points = {}
        for many in sorted({1, concurrency}):
            print_status(f"{title} {ENHANCE}, {many} in flight")
            points[many] = bench.closed(ENHANCE, many, windows=1, expected=expected)
        both = [before, run_alone(alone, seconds / 2, title)]
        network += [network_rate(bench, core)] if core else []
        rates = _mean_rates(both, network)
        turns.append(
            {
                "parts": rates,
                "cpu_ms": {name: parts.cpu_ms([*both[0][name][0], *both[1][name][0]]) for name in alone},
                "latency_ms": {
                    name: statistics.mean(1e3 / parts.rate(works[name][1]) for works in both) for name in alone
                },
                "allowed": allowed_rate(rates, on_gpu=bool(core)),
                "reached": window_rates(ENHANCE, points[concurrency].moments)[0],
                "points": points,
            }
        )
    return summarize_turns(turns, concurrency, GOALS["gpu" if core else "cpu"])


def run_alone(alone: Mapping[str, Part], seconds: float, title: str) -> Works:
    """Run each part alone, on all its processes and on one."""
    found = {}
    for name, part in alone.items():
        print_status(f"{title} {name} alone")
        works = part.work(seconds)
        found[name] = works, part.work(seconds, processes=1) if len(works) > 1 else works
    return found


def network_rate(bench: Bench, concurrency: int) -> float:
    """Return the images a second of a GPU's network: Triton's `restormer`, with its batcher and instances."""
    point = bench.closed(CORE, concurrency, windows=1, expected=0.0)
    # If the generator limits it, the network alone can do more, and the share of it is too high.
    if warning := generator_warning(CORE, concurrency, point.generator, len(os.sched_getaffinity(0))):
        print_status(warning)
    return window_rates(CORE, point.moments)[0]


def busiest_concurrency(bench: Bench, concurrencies: Sequence[int]) -> int:
    """Return how many requests in flight get most out of the network alone, of those that fit into its queue."""
    found: dict[int, float] = {}
    for concurrency in concurrencies:
        print_status(f"{CORE}, {concurrency} in flight")
        with contextlib.suppress(analyzer.QueueFull):
            found[concurrency] = network_rate(bench, concurrency)
    if not found:
        raise queue_error(CORE, min(concurrencies))
    return max(found, key=lambda each: found[each])


def queue_error(model: str, concurrency: int) -> SystemExit:
    """Return the exit of a run whose requests do not fit into the queue."""
    return SystemExit(f"error: the queue of {model} is shorter than {concurrency}: give a lower --concurrency")


def _mean_rates(times: Sequence[Works], network: Sequence[float]) -> dict[str, float]:
    """Return the photographs a second of each part, and of a GPU's ``network``, as means of these times."""
    found = {name: statistics.mean(parts.rate(works[name][0]) for works in times) for name in times[0]}
    return found | ({CORE: statistics.mean(network)} if network else {})


def summarize_turns(turns: Sequence[dict[str, Any]], concurrency: int, goal: float) -> dict[str, Any]:
    """Return medians over the rounds; the rates are those of the round with the median share."""
    ratios = [turn["reached"] / turn["allowed"] for turn in turns]
    ratio = statistics.median_low(ratios)
    typical = turns[ratios.index(ratio)]
    rows = {many: summarize(ENHANCE, [turn["points"][many] for turn in turns]) for many in turns[0]["points"]}
    return {
        "parts": typical["parts"],
        "rounds": [{key: turn[key] for key in ("parts", "allowed", "reached")} for turn in turns],
        "allowed": typical["allowed"],
        "reached": typical["reached"],
        "ratio": ratio,
        "least": min(ratios),
        "most": max(ratios),
        "goal": goal,
        "met": ratio >= goal,
        "cpu_ms": {
            "alone": {name: statistics.median(turn["cpu_ms"][name] for turn in turns) for name in turns[0]["cpu_ms"]},
            "served": _served_cpu_ms([turn["points"][concurrency] for turn in turns]),
        },
        "generator_cpu": rows[concurrency]["generator_cpu"],
        "light": light_load(turns),
        "closed": [{"concurrency": many, **found} for many, found in rows.items()],
    }


def light_load(turns: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return what the ensemble adds to the latency of its parts, one photograph at a time.

    ``added_ms``: time in the server beyond that of the parts in process, by round. ``between_ms``: time in the server
    while no part ran, by Triton's counters: queues and copies.
    """
    one = [summarize(ENHANCE, [turn["points"][1]]) for turn in turns]
    # A GPU's network does not run in process: its time by Triton's counters takes that place.
    taken = [
        sum(({CORE: found["by_step"][CORE]["infer_ms"]} | turn["latency_ms"]).values())
        for turn, found in zip(turns, one, strict=True)
    ]
    added = [found["server_ms"] - parts_ms for found, parts_ms in zip(one, taken, strict=True)]
    return {
        "parts_ms": statistics.median(taken),
        "ensemble_ms": statistics.median(found["server_ms"] for found in one),
        "added_ms": statistics.median(added),
        "least": min(added),
        "most": max(added),
        "between_ms": statistics.median(found["server_ms"] - found["infer_ms"] for found in one),
    }


def _served_cpu_ms(points: Sequence[Point]) -> dict[str, float]:
    """Return the CPU milliseconds a photograph of the server's processes."""
    pairs = [(point.moments[0], point.moments[-1]) for point in points]
    done = sum(
        last.counters[ENHANCE, "request_success"] - one.counters[ENHANCE, "request_success"] for one, last in pairs
    )
    return {
        name: 1e3 * sum(last.cpu[name] - one.cpu.get(name, 0.0) for one, last in pairs) / done
        for name in sorted(pairs[0][0].cpu)
        if name != TILED
    }


def sweep(
    bench: Bench, concurrencies: Sequence[int], shares: Sequence[float], known: Sequence[dict[str, Any]]
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, list[dict[str, Any]]]]:
    """Measure closed loops of every model, and open ones at shares of their highest rate. ``known``: rows of `enhance`
    that exist already."""
    closed: dict[str, list[dict[str, Any]]] = {}
    opened: dict[str, list[dict[str, Any]]] = {}
    for model in STEPS:
        closed[model], expected = list(known) if model == ENHANCE else [], 0.0
        # Tiles run the network many times a photograph: no more requests than processes.
        few = [each for each in concurrencies if each <= 2] or [1]
        for concurrency in few if model == TILED else concurrencies:
            if concurrency in [each["concurrency"] for each in closed[model]]:
                continue
            print_status(f"{model}, {concurrency} in flight")
            try:
                point = bench.closed(model, concurrency, windows=1 if model == TILED else WINDOWS, expected=expected)
            except analyzer.QueueFull:
                print_status(f"{model}: its queue is shorter than {concurrency}")
                break
            closed[model].append({"concurrency": concurrency, **summarize(model, [point])})
            expected = closed[model][-1]["rate"]
        if not closed[model]:
            raise queue_error(model, min(concurrencies))
        closed[model].sort(key=lambda each: int(each["concurrency"]))
        most = max(each["rate"] for each in closed[model])
        opened[model] = [open_row(bench, model, share * most) for share in shares]
    return closed, opened


def open_row(bench: Bench, model: str, rate: float) -> dict[str, Any]:
    """Measure an open loop; it has no figures if a request was rejected, because perf_analyzer stops there."""
    print_status(f"{model}, {rate:.2f} a second")
    before = bench.server.read_counters()[model, "request_failure"]
    try:
        return {"asked": rate, **summarize(model, [bench.open(model, rate, windows=1)]), "rejected": 0}
    except analyzer.QueueFull:
        rejected = bench.server.read_counters()[model, "request_failure"] - before
        return {"asked": rate, "rate": None, "rejected": int(rejected)}


def datasheet_limit(engine: Path, package: Path) -> dict[str, Any]:
    """Return what the GPU's datasheet allows the engine (calculated by the roofline), or why that is unknown."""
    from benchmarks.network import roofline
    from export.files import checkpoint_path, sha256
    from export.package.model_package import network_from_package, package_from_folder
    from hosts import gpus

    document = provenance(engine)
    name = gpus()[0][0]
    gpu = roofline.gpu_from_name(name)
    if gpu is None:
        return {"why_not": f"no datasheet of {name} in benchmarks/network/roofline.py"}
    if sha256(checkpoint_path(package)) != document["package"]["checkpoint_sha256"]:
        return {"why_not": f"{engine} was not built from {package}: give its package as --package"}
    precision, batch = document["precision"], document["profile"]["max"][0]
    made = roofline.typed_graphs(network_from_package(package_from_folder(package)))
    layers = roofline.graph_layers(made[precision], fused=True, tf32=precision != "fp32")
    return {"gpu": gpu.name, "precision": precision, "limit": 1e3 / roofline.minimum_ms(layers, gpu, batch)}


def measure_published(
    bench: Bench, alone: Mapping[str, Part], options: argparse.Namespace, engine: Path
) -> dict[str, Any]:
    """Measure everything about the published engine."""
    on_gpu, most, about = engine.suffix == ".plan", max(options.concurrency), describe_engine(engine)
    limit = datasheet_limit(engine, options.package) if on_gpu else None  # first, because it may reject --package
    core = busiest_concurrency(bench, options.concurrency) if on_gpu else 0
    goal = compare_with_parts(bench, alone, most, options.rounds, options.seconds, core)
    closed, opened = sweep(bench, options.concurrency, options.rates, goal.pop("closed"))
    if limit and "limit" in limit:
        rate = max(row["rate"] for row in closed[CORE])
        limit |= {"measured": rate, "share": rate / limit["limit"]}
    return {
        **goal,
        "engine": about,
        "hardware": "gpu" if on_gpu else "cpu",
        "closed": closed,
        "open": opened,
        "roofline": limit,
    }


@contextlib.contextmanager
def start_bench(
    repository: Path, options: argparse.Namespace, cores: Sequence[int], folder: Path
) -> Iterator[tuple[Bench, dict[str, Part], Path]]:
    """Start a server of a repository and its parts in process, on these cores; yield them and the served engine."""
    photographs = [path.read_bytes() for path in find_jpegs(options.photos)]
    all_of_them = str(analyzer.write_input_data(photographs, folder / "all.json"))
    smallest = str(analyzer.write_input_data([min(photographs, key=len)], folder / "one.json"))
    loads = [
        Load(CORE, (), 3),  # random pixels, all of one size: any cycle above one
        Load(ENHANCE, ("--input-data", all_of_them), len(photographs)),
        Load(TILED, ("--input-data", smallest), 1),
    ]
    pinned = ["taskset", "-c", ",".join(map(str, cores))]
    with run_server(repository, wrapper=pinned) as server, contextlib.ExitStack() as stack:
        engine = server.engine
        alone = {}
        for name in NAMES:
            if name == CORE and engine.suffix == ".plan":
                continue
            count = 1 if name == CORE else len(cores)
            part = parts.run_part(SERVER_PYTHON, name, repository, options.photos, cores, count)
            alone[name] = stack.enter_context(part)
        command = analyzer.base_command(options.perf_analyzer, server)
        yield Bench(server, command, {load.model: load for load in loads}, options.seconds), alone, engine


def small_repository(folder: Path, repository: Path) -> tuple[Path, str]:
    """Copy the models with a Restormer that hides nothing in their middle; return them and its description."""
    from benchmarks.network.random_package import write_package
    from export.build import build
    from export.network.architecture import OWNER_EPS, restormer
    from export.request import Request

    architecture = restormer(
        dim=4, blocks=(1, 1, 1, 1), heads=(1, 1, 1, 1), refinement=0, reduces_level1=True, eps=OWNER_EPS
    )
    write_package(folder / "package", architecture)
    photos, models = folder / "photos", folder / "models"
    photos.mkdir()
    shutil.copy("demo/photos/coffee-table.jpg", photos)
    shutil.copytree(repository, models, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for version in (path for path in (models / CORE).iterdir() if path.name.isdigit()):
        shutil.rmtree(version)
    build(
        Request(package=folder / "package", target="cpu", repository=models, engines=folder / "engines", photos=photos)
    )
    return models, architecture.describe()


def divide_cores(usable: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the cores of server and parts, and those of the load generator: one of eight."""
    if len(usable) < 2:
        raise SystemExit("error: one core is too few: the load generator needs one of its own")
    count = max(1, len(usable) // 8)
    return sorted(usable)[:-count], sorted(usable)[-count:]


def generator_warning(model: str, concurrency: int, used: float, cores: int) -> str | None:
    """Return a warning if the load generator was so busy that it may have limited the rate."""
    if used <= BUSY * cores:
        return None
    return f"warning: {model}, {concurrency} in flight: the load generator used {used:.2f} of its {cores} cores"


def print_tables(document: dict[str, Any]) -> None:
    """Print what was measured."""
    for show in (tables.share_table, tables.latency_table, tables.cpu_table, tables.points_table):
        print(f"{show(document)}\n")
    for model, rows in document["closed"].items():
        for row in rows:
            if text := generator_warning(model, row["concurrency"], row["generator_cpu"], document["generator_cores"]):
                print(text)


def measure(options: argparse.Namespace, cores: list[int], document: dict[str, Any]) -> None:
    """Measure the published network and the small one into the record."""
    pinned = {"cores": len(cores), "generator_cores": len(os.sched_getaffinity(0))}
    pinned["photographs"] = len(find_jpegs(options.photos))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with start_bench(options.repository, options, cores, folder) as (bench, alone, engine):
            document |= pinned | measure_published(bench, alone, options, engine)
        document["small"] = None
        if not options.only_published and document["hardware"] == "cpu":
            models, network = small_repository(folder, options.repository)
            with start_bench(models, options, cores, folder) as (bench, alone, _):
                small = compare_with_parts(bench, alone, max(options.concurrency), options.rounds, options.seconds)
            document["small"] = {"network": network, **pinned, **small}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--photos", type=Path, default=Path("demo/photos"), help="folder of JPEGs")
    parser.add_argument("--package", type=Path, default=Path("demo/package"), help="the engine's, for the GPU's limit")
    parser.add_argument("--perf-analyzer", default="perf_analyzer", help="the command (pip install perf-analyzer)")
    parser.add_argument("--concurrency", type=parse_numbers(int), default=[1, 2, 4], help="requests in flight: 1,2,4")
    parser.add_argument("--rates", type=parse_numbers(float), default=[0.5, 0.8], help="of the highest rate: 0.5,0.8")
    parser.add_argument("--rounds", type=int, default=3, help="of parts and pipeline in turns")
    parser.add_argument("--seconds", type=float, default=10.0, help="minimum of a window, which has whole cycles")
    parser.add_argument("--only-published", type=int, choices=(0, 1), default=0, help="1: without the small network")
    add_record_option(parser)
    options = parser.parse_args()
    if options.rounds < 1 or options.seconds <= 0:
        parser.error("--rounds must be 1 or more, --seconds above 0")
    analyzer.require_command(options.perf_analyzer)
    if shutil.which("taskset") is None:
        raise SystemExit("error: taskset not found, it keeps processes on their cores: apt-get install util-linux")
    find_jpegs(options.photos)
    cores, own = divide_cores(list(os.sched_getaffinity(0)))
    command = format_make_command("benchmark", parser, options, "perf_analyzer", "record")
    document: dict[str, Any] = {"circumstances": describe_circumstances(command)}
    os.sched_setaffinity(0, own)  # of this process and perf_analyzer; other processes move away by taskset
    try:
        measure(options, cores, document)
    except ExportError as error:
        raise SystemExit(f"error: {error}") from None
    except analyzer.QueueFull:
        raise queue_error(ENHANCE, max(options.concurrency)) from None
    os.sched_setaffinity(0, {*cores, *own})
    print_tables(document)
    finish_run(document, options.record)


if __name__ == "__main__":
    exit_on_interrupt(main)
