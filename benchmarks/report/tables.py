"""Generated tables, from the records in ``benchmarks/results``: the benchmarks print them, the pages show them.

A function takes a record and returns one table. ``make report`` fills `PAGES`; every conclusion on those pages is
written by hand, with its date.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

from benchmarks.network.peak import peak_of
from export.markdown import cell, table

RESULTS = Path(__file__).parents[1] / "results"
#: The records, and the command that writes each.
RECORDS = {
    "core": "make benchmark-core",
    "core-gpu": "make benchmark-core",
    "gpu": "make benchmark-gpu",
    "profile": "make profile",
    "profile-standard": "make profile STANDARD=1 PRECISION=int8",
    "profile-gpu": "make profile TRTEXEC=…",
    "pipeline": "make benchmark",
    "pipeline-gpu": "make benchmark",
    "tune": "make tune SLO_P99_MS=…",
    "tune-gpu": "make tune SLO_P99_MS=…",
    "roofline": "make roofline GPU=h100 PRICE=2.5",
    "imaging": "make benchmark-imaging",
    "client": "make benchmark-client",
    "bulk": "make benchmark-bulk",
    "load": "make test-load",
    "rolling": "make test-rolling",
    "docker": "make test-docker",
    "fuzz": "make fuzz",
}
SPEED = tuple(name for name in RECORDS if name.startswith(("core", "gpu", "profile", "pipeline", "tune", "roofline")))
OURS = "our cpu engine"  #: the first words of this project's runtimes in a record
ON_GPU = "GPU: "  #: the first words of what runs on a GPU
EQUAL_DB = 200.0  #: recorded for two outputs of the same bits
#: The fewest requests from which a percentile is shown.
FEWEST = {"p50_ms": 1, "p90_ms": 10, "p99_ms": 100}
Record = dict[str, Any]
Rows = Mapping[str, Mapping[str, Any]]
Column = tuple[str, str] | tuple[str, str, str]  #: header, key in the rows, and perhaps a format


class RecordError(Exception):
    """A record that no table can be made of; the message says which command records it again."""


def load_record(name: str) -> Record | None:
    """Return a record, or None if it was not recorded yet. Raises `RecordError` if it is not JSON."""
    path = RESULTS / f"{name}.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None
    except ValueError as error:
        raise RecordError(f"{path} is not JSON ({error}): {command_of(name)}") from None


def command_of(name: str) -> str:
    """Return the command that makes a record."""
    return f"{RECORDS[name]} RECORD=benchmarks/results/{name}.json"


def measured_rows(network: Mapping[str, Any]) -> dict[str, Record]:
    """Return the rows of the runtimes that were measured; the first is the base of the comparison."""
    return {name: row for name, row in network["rows"].items() if "median_s" in row}


def is_within_spread(row: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether the rounds of two rows overlap, so that the ratio of their medians is chance."""
    return bool(row["least_s"] <= other["most_s"] and other["least_s"] <= row["most_s"])


def peak_share(name: str, row: Mapping[str, Any], gflop: float, peak: Mapping[str, float | None]) -> float | None:
    """Return a runtime's share of a matrix product's speed in its precision, or None if that was not measured."""
    top = peak_of(peak, row["precision"], on_gpu=name.startswith(ON_GPU))
    return gflop / row["median_s"] / top if top else None


def decibels(row: Mapping[str, Any]) -> str | None:
    """Return a row's PSNR, or None for equal outputs."""
    return None if row["psnr_db"] >= EQUAL_DB else f"{row['psnr_db']:.1f}"


def span(row: Mapping[str, Any], unit: str = "_s") -> str:
    """Return the minimum and the maximum of the rounds."""
    return "–".join(cell(row[f"{end}{unit}"]) for end in ("least", "most"))


def percentile(row: Mapping[str, Any], name: str) -> float | None:
    """Return a percentile of a row's latency, or None if the requests are too few for it."""
    return float(row[name]) if (row.get("requests") or 0) >= FEWEST[name] else None


def _grid(title: str, rows: Rows, *columns: Column) -> str:
    """Return a table of named rows."""
    return _joined(title, (rows, columns))


def _joined(title: str, *groups: tuple[Rows, Sequence[Column]]) -> str:
    """Return a table whose rows are joined by name from groups of columns."""

    def value(row: Mapping[str, Any], key: str, form: str = "") -> Any:
        found = row.get(key)
        return format(found, form) if form and found is not None else found

    names = dict.fromkeys(name for rows, _ in groups for name in rows)
    cells = [
        [name, *(value(rows.get(name, {}), *column[1:]) for rows, columns in groups for column in columns)]
        for name in names
    ]
    return table([title, *(column[0] for _, columns in groups for column in columns)], cells)


def networks_table(*documents: Record) -> str:
    """Compare every runtime on every network: seconds, times as fast as the base, decibels against it."""
    networks: dict[str, Record] = {}
    for document in documents:
        for name, network in document["networks"].items():
            for runtime, row in measured_rows(network).items():
                title = f"**{runtime}**" if runtime.startswith(OURS) else runtime
                networks.setdefault(name, {})[title] = row | {"decibels": decibels(row)}
    groups = (
        (rows, ((f"{name}: s", "median_s"), ("×", "speedup", ".2f"), ("dB", "decibels")))
        for name, rows in networks.items()
    )
    return _joined("one photograph", *groups)


def network_table(network: Record, peak: Mapping[str, float | None]) -> str:
    """Compare every runtime on one network, with spread, memory and the share of the processor's peak."""
    rows = dict(network["rows"])
    for name, row in measured_rows(network).items():
        share = peak_share(name, row, network["gflop"], peak)
        first = row["ready_s"] + row["first_s"]
        rows[name] = row | {"span": span(row), "decibels": decibels(row), "peak": share, "first": first}
    return _grid("runtime", rows, ("s", "median_s"), ("min–max", "span"), ("×", "speedup", ".2f"),
                 ("dB", "decibels"), ("MiB", "memory_mib"), ("of the peak", "peak", ".0%"),
                 ("first answer (s)", "first"), ("not run", "not_run"))  # fmt: skip


def gpu_table(document: Record) -> str:
    """Show PyTorch on a GPU; a row that did not run has its reason in the record."""
    head = (document["device"], "batch", "ms", "photographs a second", "peak memory (MiB)", "dB", "share of the roof")
    keys = ("candidate", "batch", "median_ms", "photographs_per_second", "peak_mib", "psnr_db", "roof_share")
    return table(head, ([row.get(key) for key in keys] for row in document["rows"]))


def steps_table(steps: Sequence[Record]) -> str:
    """Compare rewrites of the network; a note marks those that the rounds cannot tell from the step before."""
    rows: list[list[Any]] = []
    before: Record | None = None
    for step in steps:
        if reason := step.get("not_run"):
            rows.append([step["step"], None, None, None, None, f"not run: {reason}"])
            continue
        note = "within the spread" if before and is_within_spread(step, before) else ""
        rows.append([step["step"], step["median_s"], span(step), f"{step['speedup']:.2f}", decibels(step), note])
        before = step
    return table(("step", "s", "min–max", "×", "dB", "note"), rows)


def kinds_table(*profiles: Record) -> str:
    """Show the time of a network by kind of layer, for each profile of a runtime."""
    groups = []
    for found in profiles:
        types = ", ".join(sorted({precision for row in found["kinds"] for precision in row["precisions"]}))
        rows = {
            row["kind"]: row | {"peak": row["least_ms"] and row["least_ms"] / row["ms"], "gb_s": row["gb_s"] or None}
            for row in found["kinds"]
        }
        title = f"{found['network'].partition(',')[0]}, {found['runtime']} ({types})"
        columns: list[Column] = [(f"{title}: layers", "count"), ("ms", "ms")]
        columns += [("share", "share", ".1%"), ("of the peak", "peak", ".0%"), ("GB/s", "gb_s")]
        groups.append((rows, columns))
    return _joined("kind of layer", *groups)


def layers_table(found: Record, top: int) -> str:
    """Show the slowest layers of a profile."""
    slowest = sorted(found["layers"], key=lambda row: -row["ms"])[:top]
    rows = [(f"`{row['module'] or row['name']}`", row["kind"], row["type"], row["ms"]) for row in slowest]
    return table(("slowest layers", "kind", "run as", "ms"), rows)


def runs_table(found: Record) -> str:
    """Show the time of a run without counters and with them, and the sum of its layers."""
    return _grid("runtime", {found["runtime"]: found}, ("a run (ms)", "plain_ms"), ("with counters (ms)", "counted_ms"),
                 ("sum of its layers (ms)", "total_ms"))  # fmt: skip


def pipeline_cases(*documents: Record) -> dict[str, Record]:
    """Return what the pipeline was measured with: the published network, and a small one that hides nothing."""
    cases = {}
    for document in documents:
        where = "GPU" if document["hardware"] == "gpu" else "CPU"
        cases[f"{where}, published network"] = document
        if document["small"]:
            cases[f"{where}, small network, random weights"] = document["small"]
    return cases


def share_table(*documents: Record) -> str:
    """Compare the pipeline with what its parts allow, and a GPU's network with what the datasheet allows."""
    rows = {
        name: case
        | {f"{part} alone": rate for part, rate in case["parts"].items()}
        | {"spread": f"{case['least']:.3f}–{case['most']:.3f}", "limit": _limit(case.get("roofline"))}
        for name, case in pipeline_cases(*documents).items()
    }
    parts = ((header, header) for header in ("preprocess alone", "restormer alone", "postprocess alone"))
    return _grid("photographs a second", rows, *parts, ("allowed", "allowed"), ("reached", "reached"),
                 ("share", "ratio", ".3f"), ("min–max", "spread"), ("goal", "goal", ".2f"), ("met", "met"),
                 ("restormer of the GPU's limit", "limit"))  # fmt: skip


def _limit(limit: Record | None) -> str | None:
    """Return the share of a GPU's limit, or why it was not compared; None on a CPU."""
    return str(limit.get("why_not") or f"{limit['share']:.0%} of {limit['limit']:.0f}") if limit else None


def latency_table(*documents: Record) -> str:
    """Compare the latency of one photograph at a time with that of its parts in process."""
    rows = {name: case["light"] for name, case in pipeline_cases(*documents).items()}
    return _grid("one at a time (ms)", rows, ("parts in process", "parts_ms"), ("served", "ensemble_ms"),
                 ("added", "added_ms"), ("minimum", "least"), ("maximum", "most"),
                 ("between the parts", "between_ms"))  # fmt: skip


def cpu_table(*documents: Record) -> str:
    """Show the CPU time of a photograph by process, alone and served."""
    cases = pipeline_cases(*documents).items()
    rows = {f"{name}, {way}": spent for name, case in cases for way, spent in case["cpu_ms"].items()}
    processes = ("preprocess", "restormer", "postprocess", "tritonserver")
    return _grid("CPU ms a photograph", rows, *((process, process) for process in processes))


def points_table(*documents: Record, models: Iterable[str] = ("restormer", "enhance", "enhance_tiled")) -> str:
    """Show throughput, latency and where requests were, by requests in flight and by the rate they were sent at."""
    where = ("queue_ms", "input_ms", "infer_ms", "output_ms")
    rows: list[list[Any]] = []
    for document in documents:
        for model in models:
            for point in (*document["closed"][model], *document["open"][model]):
                load = (
                    f"{point['concurrency']} in flight" if "concurrency" in point else f"{point['asked']:.3g} a second"
                )
                if point["rate"] is None:
                    rows.append([f"`{model}`, {load}", None, "its queue was full", *[None] * 9])
                    continue
                latency = [percentile(point, name) for name in FEWEST]
                rows.append([f"`{model}`, {load}", point["requests"], point["rate"], span(point, ""), *latency,
                             *(point[name] for name in where), f"{point['batch']:.2g}"])  # fmt: skip
    names = [f"{name.removesuffix('_ms')} (ms)" for name in (*FEWEST, *where)]
    return table(["load", "requests", "photographs a second", "min–max", *names, "batch"], rows)


def tune_table(document: Record) -> str:
    """Show the settings that were tried for a level of service; the chosen ones are bold."""
    instances = ("versions", "preprocess_instances", "postprocess_instances", "core_instances")
    chosen, rows = document["chosen"], {}
    for number, row in enumerate(document["tried"], start=1):
        is_chosen = chosen and all(row[name] == chosen[name] for name in (*instances, "core_batch", "core_delay_us"))
        rows[f"**{number}: chosen**" if is_chosen else str(number)] = row | {
            "around": f"{row['preprocess_instances']} + {row['postprocess_instances']}",
            "lost": f"{row['lost']} of {row['photographs'] + row['lost']}",
        }
    return _grid("tried", rows, ("version", "versions"), ("precision", "precision"),
                 ("preprocess + postprocess", "around"), ("instances of the network", "core_instances"),
                 ("batch", "core_batch"), ("delay (µs)", "core_delay_us"), ("photographs a second", "rate"),
                 ("p50 (ms)", "p50_ms"), ("p99 (ms)", "p99_ms"), ("failed", "lost"),
                 ("meets the objective", "meets"))  # fmt: skip


def limits_table(document: Record) -> str:
    """Show by precision what a GPU's datasheet allows."""
    price = document["price_an_hour"]
    rows = {
        precision: row | {"rate": 1e3 / row["fused_ms"], "cores": row["cores"] and ceil(row["cores"])}
        for precision, row in document["precisions"].items()
    }
    costs = [(f"cost of 1,000 photographs at {price:g} an hour", "cost_per_thousand", ".4f")] if price else []
    return _grid(document["gpu"], rows, ("fused (ms)", "fused_ms"), ("unfused (ms)", "unfused_ms"),
                 ("memory-bound time", "memory_share", ".0%"), ("photographs a second", "rate", ".0f"),
                 ("CPU cores beside it", "cores"), *costs)  # fmt: skip


def layer_limits_table(document: Record, precision: str = "fp16") -> str:
    """Show by kind of layer where the time of a network goes at a GPU's limit."""
    rows = document["precisions"][precision]["kinds"]
    return _grid(f"{precision}, one image", rows, ("layers", "layers"), ("GMAC", "gmacs"), ("MB", "megabytes"),
                 ("ms", "ms", ".2f"), ("memory-bound layers", "bound_by_memory"))  # fmt: skip


def rates_table(document: Record) -> str:
    """Show the photographs a second that each GPU's datasheet allows, by precision and batch."""
    rows = {
        gpu["name"]: {
            f"{precision}, batch {batch}": 1e3 / ms
            for precision in ("fp16", "int8")
            for batch, ms in gpu["fused_ms"][precision].items()
        }
        for gpu in document["gpus"].values()
    }
    columns = next(iter(rows.values()))
    return _grid("photographs a second, fused", rows, *((column, column, ".0f") for column in columns))


def guide_table(document: Record) -> str:
    """Show what the owner's guide expects of TensorRT beside the limits, and which of them it exceeds."""
    rows = []
    for entry in document["guide"]:
        gpu, precision, (low, high) = document["gpus"][entry["gpu"]], entry["precision"], entry["rates"]
        batch = str(document["batch"])
        limits = {how: 1e3 / gpu[f"{how}_ms"][precision][batch] for how in ("unfused", "fused")}
        limits["blocks on chip"] = 1e3 / document["on_chip_ms"][entry["gpu"]][precision]
        exceeded = [how for how, rate in limits.items() if low > rate]
        rows.append([gpu["name"], precision, f"{low}–{high}" if high > low else str(low),
                     *(f"{rate:.0f}" for rate in limits.values()), ", ".join(exceeded) or "none"])  # fmt: skip
    headers = ("photographs a second", "precision", "guide", "unfused", "fused", "blocks on chip",
               "limits that the guide exceeds")  # fmt: skip
    return table(headers, rows)


def blocks_table(document: Record) -> str:
    """Show the limits of a block whose inner maps stay on the chip; stages with equal blocks share a row."""
    equal: dict[tuple[int, int], dict[str, Record]] = {}
    for stage, row in document["blocks"].items():
        equal.setdefault((row["width"], row["side"]), {})[stage] = row
    rows = {}
    for stages in equal.values():
        totals = {name: sum(row[name] for row in stages.values()) for name in ("blocks", "ms")}
        rows[", ".join(stages)] = next(iter(stages.values())) | totals
    return _grid(f"{document['gpu']}, fp16, one image", rows, ("blocks", "blocks"), ("channels", "width"),
                 ("side of the map", "side"), ("GMAC a block", "gmacs", ".2f"), ("MB a block", "megabytes", ".1f"),
                 ("arithmetic (ms)", "arithmetic_ms", ".3f"), ("memory (ms)", "memory_ms", ".3f"),
                 ("all blocks (ms)", "ms", ".2f"))  # fmt: skip


def records_table() -> str:
    """Show how each record of the speed page was made: command, machine, commit, date, and how steady that was."""
    rows: list[list[Any]] = []
    for name in SPEED:
        if (document := load_record(name)) is None:
            continue
        about = document["circumstances"]
        machine = f"{about['cpu']}, {about['cores']} cores, {about['memory_gib']:.0f} GiB"
        noise = [f"{about['noise']['spread']:.0%}", f"{about['noise']['stolen']:.0%}"]
        rows.append([name, f"`{about['command']}`", ", ".join([machine, *about["gpus"]]), about["commit"],
                     about["time"][:10], *([None] * 2 if document.get("calculation") else noise)])  # fmt: skip
    return table(
        ("record", "command", "machine", "commit", "date", "variation of the same work", "CPU time stolen"), rows
    )


def cost_table(document: Record) -> str:
    """Show what a photograph costs around the network, by its size."""
    rows = {size: row | {"megabytes": row["bytes"] / 1e6} for size, row in document["sizes"].items()}
    return _grid("megapixels", rows, ("file (MB)", "megabytes", ".1f"), ("floor (ms)", "floor", ".0f"),
                 ("preprocess (ms)", "preprocess", ".0f"), ("postprocess (ms)", "postprocess", ".0f"),
                 ("ratio", "ratio", ".2f"), ("bytes a pixel", "bytes_a_pixel", ".1f"))  # fmt: skip


def files_table(document: Record) -> str:
    """Show preprocess and postprocess by stage, and for other kinds of files."""
    main = document["sizes"]["12"]
    rows = [[f"stage: {name}", main[name]] for name in ("decode small", "decode", "fit", "apply", "encode")]
    rows += [[f"all stages: {name}", value] for name, value in document["other_files"].items()]
    return table(("12 megapixels", "ms"), rows)


def imaging_figures_table(document: Record) -> str:
    """Show the growth with the size, the rate of a core, and the first photograph of a process."""
    fit = document["fit"]
    rows: list[tuple[str, float]] = [
        ("12 megapixels, times the floor", document["ratio"]),
        ("CPU ms a megapixel", fit["ms_a_megapixel"]),
        ("CPU ms at any size", fit["ms_fixed"]),
        ("12 megapixels, photographs a second a core", document["photographs_a_second_a_core"]),
    ]
    for name, first in document["first_request"].items():
        rows += [(f"loops {name}, wall ms: {what}", value) for what, value in first.items()]
    return table(("figure", "value"), rows)


def fuzz_table(document: Record) -> str:
    """Show the outcomes of damaged photographs."""
    rows = {name: row | {"wrong": len(row["wrong"])} for name, row in document.items()}
    return _grid("sent", rows, ("files", "files"), ("enhanced", "enhanced"), ("rejected", "rejected"),
                 ("wrong", "wrong"), ("memory growth (MiB)", "growth_mib"))  # fmt: skip


def clients_table(document: Record) -> str:
    """Compare the throughput of the clients on both models."""
    groups = []
    for model, title in (("identity", "`identity`, 6 MB"), ("enhance", "`enhance`")):
        rows = {name: row | {"span": span(row, "")} for name, row in document[model].items()}
        first = (f"{title}, {document['in_flight'][model]} in flight", "photographs_a_second")
        groups.append((rows, (first, ("min–max", "span"), ("of perf_analyzer", "of_perf_analyzer", ".2f"))))
    return _joined("photographs a second", *groups)


def calls_table(document: Record) -> str:
    """Compare what one call costs beyond the time in the server."""
    groups = (
        (rows, ((f"overhead, {int(size):,} bytes", "overhead_us", ",.0f"), ("CPU", "cpu_us", ",.0f")))
        for size, rows in document["one_at_a_time"].items()
    )
    return _joined("µs a call, one call at a time", *groups)


def client_figures_table(document: Record) -> str:
    """Show the client's memory, deadlines and imports."""
    long, deadline, start = document["long"], document["deadline"], document["start"]
    held = document["held"].items()
    rows = [(f"peak memory of a call, {name} (in photographs)", row["photographs_held"]) for name, row in held]
    rows += [
        ("memory of the benchmark in a `map` over 10,000 photographs, after 1,000 (MiB)", long["after_a_tenth_mib"]),
        ("memory of the benchmark in a `map` over 10,000 photographs, at the end (MiB)", long["after_all_mib"]),
        ("overrun of a deadline of 200 ms, median (ms)", deadline["median_ms"]),
        (f"overrun of a deadline of 200 ms, maximum of {deadline['calls']} calls (ms)", deadline["most_ms"]),
        ("`import restormer_client` (ms)", start["import_ms"]),
        ("imports of the first call, gRPC and protobuf (ms)", start["first_call_imports_ms"]),
    ]
    return table(("figure", "value"), rows)


def goals_table(document: Record) -> str:
    """Show the goals of the overload test."""
    rows = [
        (goal, f"{figure:.3g}", f"{'≥' if goal.startswith('goodput') else '≤'} {bound:.3g}", met)
        for goal, (figure, bound, met) in document["goals"].items()
    ]
    return table(("goal", "measured", "limit", "met"), rows)


def overload_table(document: Record) -> str:
    """Show the outcomes of the overload test, by phase."""
    phases = {"idle": "idle", "flood": "overload", "bulk": "bulk", "waiting": "interactive beside bulk"}
    rows = {title: document["overload"][name] for name, title in phases.items()}
    return _grid("phase", rows, ("enhanced", "ok"), ("rejected", "rejected"), ("expired", "expired"),
                 ("failed", "failed"), ("p50 (s)", "p50"), ("p99 (s)", "p99"))  # fmt: skip


def faults_table(document: Record) -> str:
    """Show the outcomes of the faults test."""
    found = document["faults"]
    rows: list[list[Any]] = []
    for model in ("preprocess", "restormer"):
        row = found[f"{model}'s process killed"]
        answers = f"{row['after']['failed']} of {sum(row['after'].values())} failed: `{next(iter(row['words']))}`"
        state = f"ready: {cell(row['ready_says'])}; health check passes: {cell(row['deep_check'])}"
        rows.append(
            [f"kill the process of `{model}`", answers, f"{state}; processes restarted: {row['processes_now']}"]
        )
    killed = found["the server killed"]
    restart = f"serves {killed['seconds_to_start']:.0f} s after the next start"
    left = f"Python processes left: {killed['processes_left']}, then {killed['processes_left_then']}"
    failed = f"both failed, {killed['in_flight']:.1f} s after they were sent"
    rows.append(["kill Triton with two photographs in flight", failed, f"{left}; {restart}"])
    rows += shared_memory_rows(found["shared memory filled"])
    large, (before, peak, after) = found["large"], found["large"]["memory_mib"]
    beside = large["beside"]
    small = f"{beside['ok']} of {sum(beside.values())} small ones ok, at most {large['beside_slowest']:.1f} s"
    answers = f"{large['outcome']} after {large['seconds']:.1f} s; {small} (alone {large['before_p50']:.1f} s)"
    memory = f"memory (MiB) before {before:.0f}, at the peak {peak:.0f}, after {after:.0f}"
    rows.append([f"send 100 megapixels ({large['megabytes']:.0f} MB) among small ones", answers, memory])
    return table(("fault", "responses", "afterwards"), rows)


def shared_memory_rows(shared: Record) -> list[list[Any]]:
    """Return the rows of filled shared memory, or the reason why there are none."""
    if reason := shared.get("not run"):
        return [["fill /dev/shm", f"not run: {reason}", ""]]
    return [
        [f"fill all but {shared['mib']} MiB of /dev/shm, send {shared['file_mb']:.0f} MB", shared["too_large"][0],
         f"the next small photograph: {shared['between']}; processes alive: {shared['processes_now']}"],
        ["fill the rest, send small, large, small", ", ".join(kind for kind, _ in shared["full"]),
         f"emptied again: {shared['after']}"],
    ]  # fmt: skip


def bulk_table(document: Record) -> str:
    """Compare a Ray job with the plain client, and two servers with one."""
    rows = {
        f"`{model}`, {program}": document[model][program] | {"of": document[model]["ratio"] if program == "bulk" else 1}
        for model in ("enhance", "identity")
        for program in ("restormer-client", "bulk")
    }
    rows |= {f"`enhance`, bulk, servers: {count}": document["servers"][count] for count in ("one", "two")}
    return _grid("model and program", rows, ("photographs a second", "photographs_a_second"), ("minimum", "least"),
                 ("maximum", "most"), ("relative to the plain client", "of", ".3f"),
                 ("CPU a photograph (ms)", "cpu_ms", ".1f"),
                 ("start and stop (s)", "start_seconds", ".1f"))  # fmt: skip


def image_table(document: Record) -> str:
    """Show what the image of the CPU server adds to its base, in MB."""
    image = document["image"]
    parts: dict[str, int] = image["parts_mb"]
    reasons = {
        "OpenVINO, which runs the network": ("openvino",),
        "LLVM and Numba, for the compiled loops": ("llvmlite", "numba"),
        "Triton 2.51, its Python backend and their libraries": ("triton",),
        "NumPy with OpenBLAS": ("numpy", "numpy.libs"),
        "codecs: imagecodecs, Pillow": ("imagecodecs", "imagecodecs.libs", "PIL", "pillow.libs"),
        "the client, for the health check: gRPC, ml_dtypes, RapidJSON":
            ("grpc", "ml_dtypes", "rapidjson.cpython-311-x86_64-linux-gnu.so"),
    }  # fmt: skip
    added = image["total_mb"] - image["base_mb"]
    rows: list[tuple[str, Any]] = [(why, sum(parts.get(name, 0) for name in names)) for why, names in reasons.items()]
    rows.append(("the rest", added - sum(size for _, size in rows)))
    return table(("in the image of the CPU server", "MB"), [*rows, ("**all that is added to the base**", added)])


def rolling_table(document: Record) -> str:
    """Show what was lost while servers were replaced."""
    titles = {
        "resent, enhance": "the whole pipeline, the project's client, servers stopped in use",
        "resent, identity": "`identity` in its place, the project's client, servers stopped in use",
        "drained": "`identity`, a client that never retries, drained as in the Deployment",
        "at once": "the same client, not drained",
    }
    rows = []
    for name, title in titles.items():
        row = document[name]
        seconds = row["seconds without it"]
        rows.append((title, row["replaced"], row["sent"], row["failed"], f"{min(seconds):.0f}–{max(seconds):.0f}"))
    return table(
        ("client and servers", "servers replaced", "photographs sent", "lost", "downtime of a server (s)"), rows
    )


def _from(make: Callable[..., str], *names: str) -> Callable[[], str]:
    """Return a function that makes a table of the records that exist; the first of them has to."""

    def made() -> str:
        documents = [document for name in names if (document := load_record(name))]
        try:
            return make(*documents) if documents else f"Not recorded yet: `{command_of(names[0])}`."
        except (KeyError, IndexError, TypeError, ValueError, StopIteration) as error:
            recorded = " or ".join(f"{name}.json" for name in names)
            raise RecordError(f"{recorded} lacks {error}: {command_of(names[0])}") from error

    return made


#: The tables of each page, by the name in their markers.
PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "docs/performance.md": {
        "networks": _from(networks_table, "core", "core-gpu"),
        "gpu": _from(gpu_table, "gpu"),
        "kinds": _from(kinds_table, "profile", "profile-standard", "profile-gpu"),
        "share": _from(share_table, "pipeline", "pipeline-gpu"),
        "points": _from(partial(points_table, models=("enhance",)), "pipeline", "pipeline-gpu"),
        "limits": _from(limits_table, "roofline"),
        "guide": _from(guide_table, "roofline"),
        "blocks": _from(blocks_table, "roofline"),
        "records": records_table,
    },
    "docs/photographs.md": {
        "fuzz": _from(fuzz_table, "fuzz"),
        "cost": _from(cost_table, "imaging"),
        "files": _from(files_table, "imaging"),
    },
    "docs/production.md": {
        "tune": _from(tune_table, "tune"),
        "goals": _from(goals_table, "load"),
        "overload": _from(overload_table, "load"),
        "faults": _from(faults_table, "load"),
    },
    "docs/scaling.md": {"bulk": _from(bulk_table, "bulk")},
    "docs/containers.md": {"image": _from(image_table, "docker")},
    "docs/kubernetes.md": {"rolling": _from(rolling_table, "rolling")},
    "client/README.md": {
        "clients": _from(clients_table, "client"),
        "calls": _from(calls_table, "client"),
        "client-figures": _from(client_figures_table, "client"),
    },
}
