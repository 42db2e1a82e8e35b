"""What the pipeline reaches of what its parts allow: `make benchmark`, perf_analyzer against a real server of its own.

The physics first. A photograph passes three parts. Where all of them run on the same cores, the time of one is the sum
of theirs, so that no pipeline does more than 1 / (1/t₁ + 1/t₂ + 1/t₃) photographs a second, with tᵢ what part i does
alone, saturated, in process and without Triton (``parts.py``). Where a GPU has the network, the slowest part
is the bound. What the server reaches of that is what Triton leaves of it: copies between processes, queues, waiting.

Server and parts run on the same cores, the load generator on the last one, in one run and in turns; its own CPU is
reported. Rates are the server's own counters in the middle of a run, over whole cycles of the photographs, because
those differ in size. Percentiles are perf_analyzer's, of all requests of a point: of few, the 99th is the slowest.

- *closed*: so many requests on their way all the time; *open*: so many a second at even intervals, whatever comes back.
- *queue, input, infer, output*: where a request was, by Triton's counters, its steps added up.
- The same once more with a network so small that it hides nothing, random weights.
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
from benchmarks.pipeline.parts import CORE, NAMES
from benchmarks.pipeline.points import ENHANCE, STEPS, TILED, Bench, Load, Point, rates, row
from export.errors import ExportError
from operations.recording import (
    add_record_option,
    describe_circumstances,
    find_jpegs,
    finish_run,
    format_make_command,
    parse_numbers,
    print_status,
)
from traffic.server import SERVER_PYTHON, describe_engine, read_provenance, run_server

GOALS = {"cpu": 0.90, "gpu": 0.95}  #: of what the parts allow
WINDOWS = 2  #: of a point of the sweep: their rates are its spread
BUSY = 0.8  #: of its cores: a load generator that uses more may be what holds the rate back


def allowed(alone: dict[str, float], *, on_gpu: bool) -> float:
    """Photographs a second that the parts allow, on cores that they share; a GPU's network works beside the others."""
    if on_gpu:
        return min(alone[CORE], allowed({name: rate for name, rate in alone.items() if name != CORE}, on_gpu=False))
    return 1 / sum(1 / each for each in alone.values())


def against_parts(
    bench: Bench, alone: dict[str, parts.Part], concurrency: int, rounds: int, seconds: float, core: int = 0
) -> dict[str, Any]:
    """`enhance` beside its parts, in turns: one photograph at a time, and so many.

    The parts work before and after it, and the mean counts: a machine that drifts would else favour what came first.
    ``core``: how many at a time keep a GPU's network busiest, 0 where the cores have the network.
    """
    turns: list[dict[str, Any]] = []
    for number in range(rounds):
        saying = f"round {number + 1}/{rounds}:"
        before, network = by_themselves(alone, seconds / 2, saying), [network_alone(bench, core)] if core else []
        expected = turns[-1]["reached"] if turns else allowed(_rates([before], network), on_gpu=bool(core))
        points = {}
        for many in sorted({1, concurrency}):
            print_status(f"{saying} {ENHANCE}, {many} at a time")
            points[many] = bench.closed(ENHANCE, many, windows=1, expected=expected)
        both = [before, by_themselves(alone, seconds / 2, saying)]
        network += [network_alone(bench, core)] if core else []
        each = _rates(both, network)
        turns.append(
            {
                "parts": each,
                "cpu_ms": {name: parts.cpu_ms(both[0][name][0] + both[1][name][0]) for name in alone},
                "latency_ms": {
                    name: statistics.mean(1e3 / parts.rate(worked[name][1]) for worked in both) for name in alone
                },
                "allowed": allowed(each, on_gpu=bool(core)),
                "reached": rates(ENHANCE, points[concurrency].moments)[0],
                "points": points,
            }
        )
    return summary(turns, concurrency, GOALS["gpu" if core else "cpu"])


def by_themselves(alone: dict[str, parts.Part], seconds: float, saying: str) -> dict[str, tuple[Any, Any]]:
    """What each part does alone, on all its processes and on one."""
    found = {}
    for name, part in alone.items():
        print_status(f"{saying} {name} alone")
        worked = part.work(seconds)
        found[name] = worked, part.work(seconds, processes=1) if len(worked) > 1 else worked
    return found


def network_alone(bench: Bench, concurrency: int) -> float:
    """Images a second through a GPU's network: Triton's `restormer`, which has its batcher and instances."""
    point = bench.closed(CORE, concurrency, windows=1, expected=0.0)
    # Where it is held back, the network alone can do more, and the share of it is flattered.
    if warning := warning_of(CORE, concurrency, point.generator, len(os.sched_getaffinity(0))):
        print_status(warning)
    return rates(CORE, point.moments)[0]


def busiest(bench: Bench, concurrencies: Sequence[int]) -> int:
    """How many at a time get most out of the network alone, of those that its queue holds."""
    found: dict[int, float] = {}
    for concurrency in concurrencies:
        print_status(f"{CORE}, {concurrency} at a time")
        with contextlib.suppress(analyzer.Full):
            found[concurrency] = network_alone(bench, concurrency)
    if not found:
        raise too_many(CORE, min(concurrencies))
    return max(found, key=lambda each: found[each])


def too_many(model: str, concurrency: int) -> SystemExit:
    """The end of a run whose queue turns away what was asked for."""
    return SystemExit(f"error: the queue of {model} does not hold {concurrency}: a lower --concurrency")


def _rates(times: Sequence[dict[str, tuple[Any, Any]]], network: Sequence[float]) -> dict[str, float]:
    """Photographs a second of each part, the mean of these times; ``network``: of a GPU's, which is none of them."""
    found = {name: statistics.mean(parts.rate(worked[name][0]) for worked in times) for name in times[0]}
    return found | ({CORE: statistics.mean(network)} if network else {})


def summary(turns: Sequence[dict[str, Any]], concurrency: int, goal: float) -> dict[str, Any]:
    """Medians over the rounds, as the JSON line has them; what is reached, and of what, is of one round, the median."""
    ratios = [turn["reached"] / turn["allowed"] for turn in turns]
    ratio = statistics.median_low(ratios)
    typical = turns[ratios.index(ratio)]
    rows = {many: row(ENHANCE, [turn["points"][many] for turn in turns]) for many in turns[0]["points"]}
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
            "alone": _medians([turn["cpu_ms"] for turn in turns]),
            "served": _cpu_ms([turn["points"][concurrency] for turn in turns]),
        },
        "generator_cpu": rows[concurrency]["generator_cpu"],
        "light": light(turns),
        "closed": [{"concurrency": many, **found} for many, found in rows.items()],
    }


def light(turns: Sequence[dict[str, Any]]) -> dict[str, float]:
    """What the ensemble adds to the latency of its parts, one photograph at a time.

    ``added_ms``: time in the server beyond that of the parts in process, round by round. ``between_ms``: time in the
    server when no part was at work, by Triton's counters: queues and copies.
    """
    one = [row(ENHANCE, [turn["points"][1]]) for turn in turns]
    # A GPU's network is not run in process: its own time by Triton's counters stands for it.
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


def _medians(tables: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(table[key] for table in tables) for key in tables[0]}


def _cpu_ms(points: Sequence[Point]) -> dict[str, float]:
    """CPU milliseconds a photograph of the server's processes."""
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
    """Closed loops of every model, and open ones at shares of what those reached. ``known``: rows of `enhance` that are
    there already."""
    closed: dict[str, list[dict[str, Any]]] = {}
    opened: dict[str, list[dict[str, Any]]] = {}
    for model in STEPS:
        closed[model], expected = list(known) if model == ENHANCE else [], 0.0
        # Tiles are many runs of the network for each photograph: no more at a time than it has processes.
        few = [each for each in concurrencies if each <= 2] or [1]
        for concurrency in few if model == TILED else concurrencies:
            if concurrency in [each["concurrency"] for each in closed[model]]:
                continue
            print_status(f"{model}, {concurrency} at a time")
            try:
                point = bench.closed(model, concurrency, windows=1 if model == TILED else WINDOWS, expected=expected)
            except analyzer.Full:
                print_status(f"{model}: its queue does not hold {concurrency}")
                break
            closed[model].append({"concurrency": concurrency, **row(model, [point])})
            expected = closed[model][-1]["rate"]
        if not closed[model]:
            raise too_many(model, min(concurrencies))
        closed[model].sort(key=lambda each: int(each["concurrency"]))
        most = max(each["rate"] for each in closed[model])
        opened[model] = [open_row(bench, model, share * most) for share in shares]
    return closed, opened


def open_row(bench: Bench, model: str, rate: float) -> dict[str, Any]:
    """A row of an open loop. perf_analyzer stops at the first request that is turned away: then there is only that."""
    print_status(f"{model}, {rate:.2f} a second")
    before = bench.server.read_counters()[model, "request_failure"]
    try:
        return {"asked": rate, **row(model, [bench.open(model, rate, windows=1)]), "rejected": 0}
    except analyzer.Full:
        rejected = bench.server.read_counters()[model, "request_failure"] - before
        return {"asked": rate, "rate": None, "rejected": int(rejected)}


def limit_of(engine: Path, package: Path) -> dict[str, Any]:
    """What the GPU's datasheet allows the engine (calculated by the roofline), or why that is not known."""
    from benchmarks.network import roofline
    from export.files import checkpoint_path, sha256
    from export.machine import gpus
    from export.package.model_package import network_from_package, package_from_folder

    document = read_provenance(engine)
    name = gpus()[0][0]
    gpu = roofline.gpu_from_name(name)
    if gpu is None:
        return {"why_not": f"no datasheet of {name} in benchmarks/network/roofline.py"}
    if sha256(checkpoint_path(package)) != document["package"]["checkpoint_sha256"]:
        return {"why_not": f"{engine} was not built from {package}: PACKAGE="}
    precision, batch = document["precision"], document["profile"]["max"][0]
    made = roofline.typed_graphs(network_from_package(package_from_folder(package)))
    layers = roofline.graph_layers(made[precision], fused=True, tf32=precision == "tf32")
    return {"gpu": gpu.name, "precision": precision, "limit": 1e3 / roofline.minimum_ms(layers, gpu, batch)}


def of_limit(limit: dict[str, Any], rate: float) -> dict[str, Any]:
    """The limit with what was measured beside it."""
    return limit | ({} if "why_not" in limit else {"measured": rate, "share": rate / limit["limit"]})


def report(bench: Bench, alone: dict[str, parts.Part], options: argparse.Namespace, engine: Path) -> dict[str, Any]:
    """Everything about the published engine, as the JSON line has it."""
    on_gpu, most, about = engine.suffix == ".plan", max(options.concurrency), describe_engine(engine)
    limit = limit_of(engine, options.package) if on_gpu else None  # before the minutes: it reads PACKAGE
    core = busiest(bench, options.concurrency) if on_gpu else 0
    goal = against_parts(bench, alone, most, options.rounds, options.seconds, core)
    closed, opened = sweep(bench, options.concurrency, options.rates, goal.pop("closed"))
    rates_ = {model: max(rows, key=lambda each: each["rate"]) for model, rows in closed.items()}
    return {
        **goal,
        "engine": about,
        "hardware": "gpu" if on_gpu else "cpu",
        "closed": closed,
        "open": opened,
        "saturated": {
            model: {key: each[key] for key in ("concurrency", "rate", "batch")} for model, each in rates_.items()
        },
        "roofline": of_limit(limit, rates_[CORE]["rate"]) if limit else None,
    }


@contextlib.contextmanager
def benches(
    repository: Path, options: argparse.Namespace, cores: Sequence[int], folder: Path
) -> Iterator[tuple[Bench, dict[str, parts.Part], Path]]:
    """A server of a repository and its parts in process, on these cores; and the engine that it serves."""
    photographs = [path.read_bytes() for path in find_jpegs(options.photos)]
    smallest = min(photographs, key=len)
    all_of_them = str(analyzer.written(photographs, folder / "all.json"))
    one = str(analyzer.written([smallest], folder / "one.json"))
    loads = [
        Load(CORE, (), 3),  # random pixels, all of one size: no cycle, but more than one
        Load(ENHANCE, ("--input-data", all_of_them), len(photographs)),
        Load(TILED, ("--input-data", one), 1),
    ]
    pinned = ["taskset", "-c", ",".join(map(str, cores))]
    with run_server(repository, wrapper=pinned) as server, contextlib.ExitStack() as stack:
        engine = server.engine
        alone = {}
        for name in NAMES:
            if name == CORE and engine.suffix == ".plan":
                continue
            count = 1 if name == CORE else len(cores)
            alone[name] = stack.enter_context(
                parts.started(SERVER_PYTHON, name, repository, options.photos, cores, count)
            )
        command = analyzer.command(options.perf_analyzer, server)
        yield Bench(server, command, {load.model: load for load in loads}, options.seconds), alone, engine


def small_repository(folder: Path, repository: Path) -> tuple[Path, str]:
    """The same models with a Restormer that hides nothing in their middle, and its line of description."""
    from benchmarks.network.random_package import write_package
    from export.build import build
    from export.network.architecture import OWNER_EPS, restormer
    from export.request import Request

    architecture = restormer(
        dim=4, blocks=(1, 1, 1, 1), heads=(1, 1, 1, 1), refinement=0, reduces_level1=True, eps=OWNER_EPS
    )
    write_package(folder / "package", architecture)
    photos = folder / "photos"
    photos.mkdir()
    shutil.copy("demo/photos/coffee-table.jpg", photos)
    models = folder / "models"
    shutil.copytree(repository, models, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for version in (path for path in (models / CORE).iterdir() if path.name.isdigit()):
        shutil.rmtree(version)
    build(
        Request(package=folder / "package", target="cpu", repository=models, engines=folder / "engines", photos=photos)
    )
    return models, architecture.describe()


def lines(found: dict[str, Any]) -> list[str]:
    """The tables."""
    made = [*goal_lines("the published network", found)]
    if found["small"]:
        made += goal_lines(f"a small one, random weights ({found['small']['network']})", found["small"])
    head = ("a second", "least", "most", "p50 ms", "p90 ms", "p99 ms", "queue", "input", "infer", "output", "batch")
    keys = ("rate", "least", "most", "p50_ms", "p90_ms", "p99_ms", "queue_ms", "input_ms", "infer_ms", "output_ms")
    for kind, said in (("closed", "at a time"), ("open", "asked a second")):
        for model, rows in found[kind].items():
            made += ["", f"{model}, {said}", " " * 8 + "".join(f"{name:>10}" for name in head)]
            for each in rows:
                first = f"{each['concurrency' if kind == 'closed' else 'asked']:8.3g}"
                if each["rate"] is None:
                    made.append(f"{first}  the queue was full: perf_analyzer stopped")
                    continue
                numbers = [f"{each[key]:10.3f}" if key in keys[:3] else f"{each[key]:10.1f}" for key in keys]
                made.append(f"{first}{''.join(numbers)}{each['batch']:10.2f}")
    made.append("")
    for model, each in found["saturated"].items():
        made.append(
            f"saturated, {model}: {each['rate']:.3f} a second at {each['concurrency']}, a batch of {each['batch']:.2f}"
        )
    if limit := found["roofline"]:
        made.append(
            limit.get("why_not")
            or f"restormer: {limit['share']:.0%} of what the datasheet of {limit['gpu']} allows in "
            f"{limit['precision']} ({limit['limit']:.1f} a second, a calculation)"
        )
    return made


def goal_lines(what: str, found: dict[str, Any]) -> list[str]:
    """What was reached of what the parts allow, and where the rest went."""
    alone = ", ".join(f"{name} {rate:.2f}" for name, rate in found["parts"].items())
    by_itself, all_of, one = found["cpu_ms"]["alone"], found["cpu_ms"]["served"], found["light"]
    wall = 1e3 * found["cores"] / found["reached"]
    went = [f"{name} {all_of[name]:.1f} ({by_itself[name]:.1f} alone)" for name in by_itself if name in all_of]
    idle = wall - sum(all_of.values())
    return [
        f"{what}: photographs a second",
        f"  alone: {alone}; together they allow {found['allowed']:.3f}",
        f"  enhance {found['reached']:.3f}: {found['ratio']:.3f} of that ({found['least']:.3f}–{found['most']:.3f}); "
        f"goal {found['goal']}: {'reached' if found['met'] else 'MISSED'}",
        f"  CPU ms a photograph: {', '.join(went)}, tritonserver {all_of['tritonserver']:.1f}, idle {idle:.1f}",
        f"  the load generator used {found['generator_cpu']:.3f} of {found['generator_cores']} cores",
        f"  one at a time: alone {one['parts_ms']:.1f} ms, enhance {one['ensemble_ms']:.1f} ms: {one['added_ms']:.1f} "
        f"more ({one['least']:.1f}–{one['most']:.1f}); {one['between_ms']:.1f} between the parts, by Triton's counters",
    ]


def divided(usable: Sequence[int]) -> tuple[list[int], list[int]]:
    """The cores of server and parts, and the load generator's: one of eight."""
    if len(usable) < 2:
        raise SystemExit("error: one core is too few: the load generator needs one of its own")
    count = max(1, len(usable) // 8)
    return sorted(usable)[:-count], sorted(usable)[-count:]


def warning_of(model: str, concurrency: int, used: float, cores: int) -> str | None:
    """What there is to say of a load that the generator's cores were busy with, so that its rate may be theirs."""
    if used <= BUSY * cores:
        return None
    return (
        f"warning: {model}, {concurrency} at a time: the load generator used {used:.2f} of its {cores} cores: more "
        "than this rate it could hardly send"
    )


def held_back(closed: Mapping[str, Sequence[Mapping[str, Any]]], cores: int) -> list[str]:
    """A line of each load of a sweep whose rate may be the generator's."""
    found = (
        warning_of(model, row["concurrency"], row["generator_cpu"], cores)
        for model, rows in closed.items()
        for row in rows
    )
    return [warning for warning in found if warning]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--photos", type=Path, default=Path("demo/photos"), help="folder of JPEGs")
    parser.add_argument("--package", type=Path, default=Path("demo/package"), help="the engine's, for the GPU's limit")
    parser.add_argument("--perf-analyzer", default="perf_analyzer", help="the command (pip install perf-analyzer)")
    parser.add_argument("--concurrency", type=parse_numbers(int), default=[1, 2, 4], help="requests at a time: 1,2,4")
    parser.add_argument(
        "--rates", type=parse_numbers(float), default=[0.5, 0.8], help="of the most reached, open: 0.5,0.8"
    )
    parser.add_argument("--rounds", type=int, default=3, help="of parts and pipeline in turns")
    parser.add_argument("--seconds", type=float, default=10.0, help="of a window, at least; it has whole cycles")
    parser.add_argument("--only-published", type=int, choices=(0, 1), default=0, help="1: without the small network")
    add_record_option(parser)
    options = parser.parse_args()
    if options.rounds < 1 or options.seconds <= 0:
        parser.error("--rounds: 1 or more; --seconds: above 0")
    analyzer.require(options.perf_analyzer)
    if shutil.which("taskset") is None:
        raise SystemExit("error: taskset is missing, it keeps processes on their cores: apt-get install util-linux")
    photographs = find_jpegs(options.photos)
    cores, own = divided(list(os.sched_getaffinity(0)))
    command = format_make_command("benchmark", parser, options, "perf_analyzer", "record")
    document: dict[str, Any] = {"circumstances": describe_circumstances(command)}
    os.sched_setaffinity(0, own)  # this process and perf_analyzer; what it starts elsewhere goes there by taskset
    pinned = {"cores": len(cores), "generator_cores": len(own), "photographs": len(photographs)}
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            with benches(options.repository, options, cores, folder) as (bench, alone, engine):
                document |= pinned | report(bench, alone, options, engine)
            document["small"] = None
            if not options.only_published and document["hardware"] == "cpu":
                models, network = small_repository(folder, options.repository)
                with benches(models, options, cores, folder) as (bench, alone, _):
                    most = max(options.concurrency)
                    small = against_parts(bench, alone, most, options.rounds, options.seconds)
                document["small"] = {"network": network, **pinned, **small}
    except ExportError as error:
        raise SystemExit(f"error: {error}") from None
    except analyzer.Full:
        raise too_many(ENHANCE, max(options.concurrency)) from None
    except KeyboardInterrupt:
        raise SystemExit("interrupted") from None
    os.sched_setaffinity(0, {*cores, *own})
    print("\n".join([*lines(document), *held_back(document["closed"], len(own))]))
    finish_run(document, options.record)


if __name__ == "__main__":
    main()
