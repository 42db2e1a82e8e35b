"""Tables and sentences of docs/performance.md, of the recorded runs; the words between are in performance.md.j2."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import ceil
from statistics import median
from typing import Any

from benchmarks.network import core
from benchmarks.report import plots
from operations.recording import is_noisy

#: What a record of the core has to have for the comparison on a GPU to be whole.
GPU_ROWS = tuple(each.name for each in core.on_gpu())
ISA = {"amx_bf16": "AMX", "avx512_bf16": "AVX512_BF16", "avx512f": "AVX-512", "avx2": "AVX2"}
#: The settings that `make tune` searches.
TUNED = ("versions", "preprocess_instances", "postprocess_instances", "core_instances", "core_batch", "core_delay_us")
#: What two records have in common that were made in one go.
ONE_GO = ("commit", "cpu", "cores", "memory_gib", "system", "versions")
TOP = 10  #: layers of a profile that the page shows
Document = dict[str, Any]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; columns of figures to the right."""
    cells = [list(row) for row in rows]
    figures = [all(row[at][:1].isdigit() or row[at] == "–" for row in cells) for at in range(len(head))]
    rule = "".join("---:|" if of_figures else "---|" for of_figures in figures)
    return "\n".join([f"| {' | '.join(head)} |", f"|{rule}", *(f"| {' | '.join(row)} |" for row in cells)])


def significant(value: float | None, digits: int = 3) -> str:
    """A figure with so many digits that count, thousands set apart; – for none."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    shown = float(f"{value:.{digits}g}")
    decimals = max(digits - len(str(int(abs(shown)))) if abs(shown) >= 1 else _after_the_point(shown, digits), 0)
    return f"{shown:,.{decimals}f}"


def _after_the_point(value: float, digits: int) -> int:
    return digits - 1 - int(f"{value:e}".rpartition("e")[2])


def where(document: Document) -> str:
    """Machine, versions, commit, command and noise of a record, in small print under what it tells."""
    found = document["circumstances"]
    isa = next((words for flag, words in ISA.items() if flag in found["isa"]), "no AVX2")
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    gpus = f", {', '.join(found['gpus'])}" if found["gpus"] else ""
    noise = f" · the same work varied by {found['noise']['spread']:.0%} before and after it"
    if document.get("calculation"):
        noise = ""
    elif is_noisy(found["noise"]):
        noise = f"{noise}, {found['noise']['stolen']:.0%} of the time was stolen: **a noisy machine**"
    machine = f"{found['cpu']}, {found['cores']} cores, {isa}, {found['memory_gib']:.0f} GiB{gpus}"
    parts = (f"`{found['command']}`", machine, versions, f"commit {found['commit']}, {found['time'][:10]}{noise}")
    return f"<sub>{' · '.join(parts)}</sub>"


def core_tables(document: Document) -> str:
    """Every runtime on every network."""
    return "\n\n".join(core_table(name, network, document["peak"]) for name, network in document["networks"].items())


def core_table(name: str, network: Document, peak: Document) -> str:
    """Every runtime on one network; the first is what the others are compared with."""
    size = f"{network['side']}x{network['side']}"
    title = f"{name.rpartition(' ')[0]}, {network['parameters'] / 1e6:.1f} M, {network['weights']} weights, {size}"
    head = (title, "s", "least–most", "rounds", "×", "dB", "MiB", "of the peak", "to the first answer (s)")
    rows = [
        (
            f"**{runtime}**" if runtime.startswith(core.OURS) else runtime,
            significant(row["median_s"]),
            _range(row),
            f"{len(row['seconds'])}",
            f"{row['speedup']:.2f}",
            _decibels(row),
            "–" if row["memory_mib"] is None else f"{row['memory_mib']:,.0f}",
            _share(core.peak_share(runtime, row, network["gflop"], peak)),
            significant(row["ready_s"] + row["first_s"]),
        )
        for runtime, row in core.ran(network).items()
    ]
    return table(head, rows) + _not_run(network["rows"])


def _not_run(rows: Document) -> str:
    """The names of those that have no figures, and why, under a table."""
    others = [f"{name} ({row['not_run'].rstrip('.')})" for name, row in rows.items() if "not_run" in row]
    return f"\n\nNot run: {'; '.join(others)}." if others else ""


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def _range(row: Document) -> str:
    return _between(row["least_s"], row["most_s"])


def _between(least: float, most: float) -> str:
    return f"{significant(least)}–{significant(most)}"


def _decibels(row: Document) -> str:
    return "–" if row["psnr_db"] >= plots.SAME else f"{row['psnr_db']:.1f}"


def goals_sentence(document: Document | None, pipeline: Document | None) -> str | None:
    """The two goals side by side, and whether they were measured in one go; None where one was not."""
    best = document and core.fastest_engine(document, core.GOAL_NETWORK)
    if not document or not pipeline or not best:
        return None
    network, served = document["circumstances"], pipeline["circumstances"]
    is_one = "+" not in network["commit"] and all(network[key] == served[key] for key in ONE_GO)
    day, times = network["time"][:10], [found["time"][11:16] for found in (network, served)]
    is_one = is_one and served["time"][:10] == day
    how = f"at one commit, {network['commit']}, begun at {' and '.join(times)} of {day}" if is_one else "not in one go"
    small = pipeline["small"]
    hidden = f", {small['ratio']:.3f} with a network that hides nothing" if small else ""
    return (
        f"The two goals, measured {how}: our engine is {best[1]['speedup']:.1f} times as fast as {core.BASE} (goal "
        f"{core.GOAL:g}, on a machine with AMX), and `enhance` reaches {pipeline['ratio']:.3f} of what its parts allow"
        f"{hidden} (goal {pipeline['goal']:.2f})."
    )


def ladder_table(document: Document) -> str:
    """What each step brought."""
    head = (document["ladder_of"], "s", "least–most", "×", "× the step before", "dB")
    steps = [step for step in document["ladder"] if "median_s" in step]
    rows = [
        (step["step"], significant(step["median_s"]), _range(step), f"{step['speedup']:.2f}", _gain(step, before),
         _decibels(step))
        for before, step in zip([None, *steps], steps, strict=False)
    ]  # fmt: skip
    return table(head, rows) + _not_run({step["step"]: step for step in document["ladder"]})


def _gain(step: Document, other: Document | None) -> str:
    """How many times as fast a step is as another; and whether the rounds of the two can tell."""
    if other is None:
        return "–"
    return f"{step['speedup'] / other['speedup']:.2f}" + (
        ", within the spread" if core.is_within_spread(step, other) else ""
    )


def tried_table(document: Document, key: str) -> str | None:
    """What was tried beyond the ladder (`core.TRIED`), each alone, beside the engine as it is, which comes first."""
    steps = [step for step in document[key] if "median_s" in step]
    if not steps:
        return None
    head = (core.TRIED[key], "s an image", "least–most", "× the engine", "dB")
    rows = [
        (step["step"], significant(step["median_s"]), _range(step), _gain(step, other), _decibels(step))
        for other, step in zip([None, *steps[:1] * len(steps)], steps, strict=False)
    ]
    return table(head, rows) + _not_run({step["step"]: step for step in document[key]})


def settings_table(document: Document) -> str:
    """Threads and the cache of compiled engines, by the engine."""
    keys, found = ("median_s", "ready_s", "first_s"), document["settings"]["rows"]
    rows = [[name, *(significant(row[key]) for key in keys)] for name, row in found.items() if "median_s" in row]
    head = (f"settings of the engine, {document['ladder_of']}", "s", "ready (s)", "first call (s)")
    return table(head, rows) + _not_run(found)


def streams_sentence(document: Document) -> str:
    """What comes of one image after another over all cores, and of one a core."""
    rates = (
        f"{name} {significant(median(found))} ({significant(min(found))}–{significant(max(found))})"
        for name, found in document["settings"]["streams"].items()
    )
    return f"Images a second with as many on their way as the engine has streams: {', '.join(rates)}."


def packing_sentence(document: Document) -> str | None:
    """What the first call takes beside a later one: what is prepared then, weights above all. None if nothing ran."""
    rows = [row for row in document["settings"]["rows"].values() if "median_s" in row]
    ratios = [row["first_s"] / row["median_s"] for row in rows]
    if not ratios:
        return None
    return (
        f"A first call takes {min(ratios):.2f} to {max(ratios):.2f} times a later one: OpenVINO packs weights for its "
        "kernels when it compiles, in *ready*, and what it then leaves to the first call is what that takes more."
    )


def missing_rows(*documents: Document | None) -> list[str]:
    """What of the comparison on a GPU was not measured in any of these records of the core."""
    networks = [network for document in documents if document for network in document["networks"].values()]
    measured = {name for network in networks for name in core.ran(network)}
    return [row.removeprefix("GPU: ") for row in GPU_ROWS if row not in measured]


def profile_tables(document: Document) -> str:
    """Where the time of the network goes: by kind of layer in each runtime, and the layers that take most of ours."""
    runtimes = (document, *document["others"])
    head = [f"{document['side']}x{document['side']}, {document['precision']}"]
    for found in runtimes:
        # Its own word for what it computes in: a runtime may take a graph in another type than it was built for.
        types = ", ".join(sorted({precision for row in found["kinds"] for precision in row["precisions"]}))
        head += [f"{found['runtime']} ({types}): layers", "ms", "share", "of the peak", "GB/s"]
    kinds = dict.fromkeys(row["kind"] for found in runtimes for row in found["kinds"])
    rows = [[kind, *(cell for found in runtimes for cell in _kind_cells(found, kind))] for kind in kinds]
    layers = sorted(document["layers"], key=lambda row: -row["ms"])[:TOP]
    slowest = (
        (f"`{row.get('module') or row['name']}`", row["kind"], row["type"], significant(row["ms"])) for row in layers
    )
    return f"{table(head, rows)}\n\n{table(('the slowest layers', 'kind', 'run as', 'ms'), slowest)}"


def _kind_cells(found: Document, kind: str) -> list[str]:
    row = next((row for row in found["kinds"] if row["kind"] == kind), None)
    if row is None:
        return ["–"] * 5
    return [
        f"{row['count']}", significant(row["ms"]), f"{row['share']:.1%}",
        _share(row["least_ms"] and row["least_ms"] / row["ms"]), significant(row["gb_s"] or None, 2),
    ]  # fmt: skip


def bound_sentence(document: Document) -> str | None:
    """How far what multiplies is from the speed of a matrix product, kind by kind, and what multiplies nothing; None
    where that speed was not measured in each of its precisions."""
    bound = [row for row in document["kinds"] if row["gflop"]]
    if not bound or any(row["least_ms"] is None for row in bound):
        return None
    total, spent, least = document["total_ms"], *(sum(row[name] for row in bound) for name in ("ms", "least_ms"))
    kinds = ", ".join(
        f"{row['kind']} {significant(max(row['ms'] - row['least_ms'], 0.0))} ({row['least_ms'] / row['ms']:.0%} of the "
        "peak)"
        for row in sorted(bound, key=lambda row: row["least_ms"] - row["ms"])
    )
    others = ", ".join(row["kind"] for row in document["kinds"] if not row["gflop"])
    return (
        f"Of the {significant(total)} ms of {document['runtime']}'s layers, those that multiply take "
        f"{significant(spent)}, where a matrix product of this machine in the same precisions would take "
        f"{significant(least)}. What they take more, in ms by kind: {kinds}. The other {significant(total - spent)} ms "
        f"multiply nothing: {others}. Without those the network would be {total / spent:.2f} times as fast, and at the "
        f"peak {total / least:.1f} times."
    )


def profile_sentence(document: Document) -> str:
    """What each runtime takes with and without its counters; of trtexec, which has its own way, its layers."""
    return "; ".join(
        f"{found['runtime']} {significant(found['plain_ms'])} ms "
        f"({_between(found['least_ms'], found['most_ms'])}), with its counters {significant(found['counted_ms'])}, its "
        f"layers together {significant(found['total_ms'])}"
        if "plain_ms" in found
        else f"{found['runtime']}, its layers together {significant(found['total_ms'])} ms"
        for found in (document, *document["others"])
    )


def served_sentence(document: Document) -> str:
    """Which engine a record's servers had."""
    found = document["engine"]
    return (
        f"Served: the {found['precision']} engine for {found['target']} that `{found['command']}` builds, of the "
        f"checkpoint {found['checkpoint_sha256'][:12]}."
    )


def waiting_sentence(document: Document) -> str | None:
    """What preprocess takes more when it is served, and what for; None where it takes no more."""
    found = document["cpu_ms"]
    more = found["served"]["preprocess"] - found["alone"]["preprocess"]
    if more <= 0:
        return None
    return (
        f"Served, preprocess takes {significant(more)} ms more, {more * document['reached'] / 1e3:.1%} of a core: "
        "copies from and to Triton."
    )


def light_table(document: Document) -> str:
    """One photograph at a time: the parts in process, the whole as served, and what passes between the parts."""
    head = ("ms, one photograph at a time", "its parts in process", "served", "more", "least–most", "between the parts")
    rows = [
        [name, *(significant(found[key]) for key in ("parts_ms", "ensemble_ms", "added_ms")),
         _between(found["least"], found["most"]), significant(found["between_ms"])]
        for name, found in _lights(document).items()
    ]  # fmt: skip
    return table(head, rows)


def light_sentence(document: Document) -> str:
    """Whether the rounds can tell what the ensemble adds to its parts."""
    unsure = [name for name, found in _lights(document).items() if found["least"] <= 0]
    said = (
        f"With {' and '.join(unsure)} not every round finds that the whole takes longer than its parts in process"
        if unsure
        else "In every round the whole takes longer than its parts in process"
    )
    return f"{said}; the time between the parts is by Triton's own counters, and needs no comparison."


def _lights(document: Document) -> dict[str, Document]:
    return {name: case["light"] for name, case in _cases(document).items()}


def _cases(document: Document) -> dict[str, Document]:
    """The pipeline with the published network, and with one that hides nothing, if that was run."""
    cases = {"the published network": document, "a small one, random weights": document["small"]}
    return {name: case for name, case in cases.items() if case}


def goal_table(document: Document) -> str:
    """What the pipeline reaches of what its parts allow: with the published network, and one that hides nothing."""
    head = ["photographs a second", *(f"{part} alone" for part in document["parts"]), "so allowed", "reached", "share",
            "least–most", "goal"]  # fmt: skip
    rows = [
        [name, *(significant(rate) for rate in case["parts"].values()), significant(case["allowed"]),
         significant(case["reached"]), f"{case['ratio']:.3f}", f"{case['least']:.3f}–{case['most']:.3f}",
         f"{case['goal']:.2f} {_judged(case)}"]
        for name, case in _cases(document).items()
    ]  # fmt: skip
    return table(head, rows)


def _judged(case: Document) -> str:
    """Whether the goal was reached, and whether the rounds agree about it."""
    agreed = "" if case["least"] >= case["goal"] or case["most"] < case["goal"] else " at the median"
    return f"{'reached' if case['met'] else '**missed**'}{agreed}"


def spent_table(document: Document) -> str:
    """CPU time of a photograph, by who spends it: alone in process, and served."""
    processes, rows = [*document["parts"], "tritonserver"], []
    for name, case in _cases(document).items():
        for way, found in case["cpu_ms"].items():
            rows.append([f"{name}, {way}", *(significant(found.get(process)) for process in processes)])
    return table(["CPU ms a photograph", *processes], rows)


def pipeline_table(document: Document, loop: str) -> str:
    """Throughput, latency and its parts of each model: by how many were in flight, or by the rate they were sent at."""
    asked = {"closed": ("concurrency", "in flight"), "open": ("asked", "sent a second")}[loop]
    latencies = ("p50", "p90", "p99", "queue", "input", "infer", "output")
    head = ["", asked[1], "requests", "a second", "least–most", *(f"{name} (ms)" for name in latencies), "batch"]
    rows = []
    for model, points in document[loop].items():
        for point in points:
            cells = [f"`{model}`", f"{point[asked[0]]:.3g}", f"{point.get('requests') or 0}"]
            if point["rate"] is None:
                rows.append([*cells, "its queue was full", *["–"] * (len(head) - len(cells) - 1)])
                continue
            cells += [significant(point["rate"]), _between(point["least"], point["most"])]
            cells += [significant(plots.told(point, name)) for name in latencies]
            rows.append([*cells, significant(point["batch"], 2)])
    return table(head, rows)


def limit_sentence(document: Document | None) -> str | None:
    """What was measured of a GPU's limit, where it was."""
    limit = document and document.get("roofline")
    if not limit:
        return None
    if "why_not" in limit:
        return f"not compared: {limit['why_not']}."
    return (
        f"`restormer` in {limit['precision']} on {limit['gpu']} reached {significant(limit['measured'])} photographs a "
        f"second, {limit['share']:.0%} of the {significant(limit['limit'])} calculated for its network and batch."
    )


def tune_table(document: Document) -> str:
    """What was tried for a level of service, the chosen row in bold."""
    head = ("version", "precision", "preprocess + postprocess", "networks", "batch", "delay (µs)", "a second",
            "p50 (ms)", "p99 (ms)", "lost", "meets it")  # fmt: skip
    chosen, rows = document["chosen"], []
    for row in document["tried"]:
        settings = (row["core_instances"], row["core_batch"], row["core_delay_us"])
        cells = [
            f"{row['versions']}",
            row["precision"],
            f"{row['preprocess_instances']} + {row['postprocess_instances']}",
        ]
        cells += [*(f"{each}" for each in settings), *(significant(row[name]) for name in ("rate", "p50_ms", "p99_ms"))]
        is_chosen = bool(chosen) and _is_same_choice(row, chosen)
        meets = "yes" if row["meets"] else "no"
        lost = f"{row['lost']} of {row['photographs'] + row['lost']}"
        rows.append([*cells, lost, f"**{meets}: chosen**" if is_chosen else meets])
    return table(head, rows)


def _is_same_choice(row: Document, other: Document) -> bool:
    return all(row[name] == other[name] for name in TUNED)


def tune_sentence(document: Document) -> str:
    """What came of the search."""
    wanted = f"99 of 100 photographs within {significant(document['slo_p99_ms'])} ms"
    wanted += f" at {significant(document['rate'])} a second" if document["rate"] else ""
    if not (row := document["chosen"]):
        return f"Wanted: {wanted}. Nothing tried meets that; the best: {significant(document['best']['p99_ms'])} ms."
    stays = _is_same_choice(row, document["tried"][0])
    chosen = (
        "What the server chooses by itself meets that, and nothing was better by more than chance; loaded again"
        if stays
        else "Chosen, and loaded again in turns with the server's own choice"
    )
    return (
        f"Wanted: {wanted}. {chosen}: {significant(row['p99_ms'])} ms in the slowest round, "
        f"{significant(row['rate'])} a second."
    )


def roofline_table(document: Document) -> str:
    """What a GPU's datasheet allows, by precision."""
    head = [f"{document['gpu']}: precision", "fused, ms", "a second", "as the graph stands, ms", "a second",
            "bound by memory", "cores beside"]  # fmt: skip
    price = document["price_an_hour"]
    rows = []
    for precision, row in document["precisions"].items():
        cells = [precision]
        for name in ("fused_ms", "standing_ms"):
            cells += [f"{row[name]:.1f}", f"{1e3 / row[name]:.0f}"]
        cells += [f"{row['memory_share']:.0%}", "–" if row["cores"] is None else f"{ceil(row['cores'])}"]
        rows.append(cells + ([f"{row['cost_per_thousand']:.4f}"] if price else []))
    return table(head + ([f"price of a thousand, at {price:g} an hour"] if price else []), rows)


def every_gpu(document: Document) -> str:
    """Photographs a second that each GPU's datasheet allows, by precision, fused."""
    precisions = list(document["precisions"])
    rows = [
        [gpu["name"], f"{gpu['bandwidth'] / 1e12:g}", *(f"{1e3 / gpu['fused_ms'][name]:.0f}" for name in precisions)]
        for gpu in document["gpus"].values()
    ]
    return table(["fused, photographs a second", "TB/s", *precisions], rows)


def int8_sentence(document: Document) -> str:
    """What holds half precision back, and what INT8 gains over it."""
    half, eights = document["precisions"]["fp16"], document["precisions"]["int8"]
    share, gain = half["memory_share"], half["fused_ms"] / eights["fused_ms"] - 1
    counts = "bytes count, not arithmetic" if share > 0.5 else "arithmetic counts, not bytes"
    gains = f"gains {gain:.0%}" if gain > 0 else "gains nothing"
    return (
        f"In half precision memory holds the network back for {share:.0%} of its time: {counts}. INT8 {gains}: "
        "what it quantizes is read and written between layers that stay in half precision."
    )


def bandwidth_sentence(document: Document) -> str | None:
    """What more bandwidth is worth: the GPU with the most beside the one whose table this is; None if it is that."""
    most = max(document["gpus"].values(), key=lambda gpu: gpu["bandwidth"])
    if most["name"] == document["gpu"]:
        return None
    wider = most["bandwidth"] / document["roofs"]["bandwidth"]
    faster = document["precisions"]["fp16"]["fused_ms"] / most["fused_ms"]["fp16"]
    return (
        f"{most['name']} has {wider:.2f} times {document['gpu']}'s bandwidth, and allows {faster:.2f} times its rate."
    )


def cores_sentence(document: Document) -> str:
    """Where the cores beside a GPU were measured."""
    found = document["cores_of"]
    where = f"on {found['cpu']}, {found['time'][:10]}" if found else "on a machine that its record does not name"
    return (
        f"*Cores beside*: what prepares and finishes so many photographs of 12 megapixels, by `make benchmark-imaging` "
        f"{where}."
    )


def roofline_layers(document: Document) -> str:
    """Where the time of the float16 network goes at that limit."""
    rows = (
        (kind, f"{row['layers']}", f"{row['gmacs']:.1f}", f"{row['megabytes']:,.0f}", f"{row['ms']:.2f}",
         f"{row['bound_by_memory']}")
        for kind, row in document["precisions"]["fp16"]["kinds"].items()
    )  # fmt: skip
    return table(("float16, one image", "layers", "GMAC", "MB", "ms", "bound by memory"), rows)


def ledger_table(document: Document) -> str:
    """What each rewrite leaves in the graph."""
    head = ("one image", "nodes", "casts", "MB that pass memory for what is neither convolution nor product")
    rows = (
        (step, f"{row['nodes']:,}", f"{row['casts']}", f"{row['megabytes']:,.0f}")
        for step, row in document["ledger"].items()
    )
    return table(head, rows)


#: What the template may call.
SLOTS: tuple[Callable[..., Any], ...] = (
    where, goals_sentence, core_tables, ladder_table, tried_table, settings_table, streams_sentence, packing_sentence,
    core.verdict, missing_rows, profile_tables, profile_sentence, bound_sentence, served_sentence, goal_table,
    spent_table, waiting_sentence, light_table, light_sentence, pipeline_table, limit_sentence, tune_table,
    tune_sentence, roofline_table, every_gpu, bandwidth_sentence, int8_sentence, cores_sentence,
    roofline_layers, ledger_table,
)  # fmt: skip
