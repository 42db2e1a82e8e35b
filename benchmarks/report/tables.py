"""Prints the measured figures of the pages from the recorded results (``python -m benchmarks.report.tables``).

The results in ``benchmarks/results`` are written by ``make benchmark-transfer``, ``make benchmark-imaging``,
``make benchmark-client``, ``make benchmark-bulk``, ``make test-load``, ``make test-rolling`` and ``make fuzz``, each
with ``RECORD=…``, and by ``python -m benchmarks.pipeline.frame``. Speed has a page of its own: ``make report``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.pipeline.bulk import GOAL as BULK_GOAL
from benchmarks.pipeline.client import GOAL, LARGE, LONG, OURS
from benchmarks.pipeline.imaging import GPU_RATE, REFERENCE

RESULTS = Path(__file__).parents[1] / "results"


def near_table() -> str:
    """How near preprocess comes to a full decode and Pillow's resize."""
    lines = [
        "| aspect ratio | megapixels | photographs | decoded at | core tensor: PSNR (dB) | largest difference "
        "| output: PSNR (dB) | largest difference |",
        "|---" * 8 + "|",
    ]
    for row in _document("frame")["rows"]:
        figures = [f"{row[f'{what}_psnr']:.1f} | {row[f'{what}_difference']:.0f}/255" for what in ("core", "output")]
        decoded = "full size" if row["shrink"] == 1 else f"1/{row['shrink']}"
        cells = [row["aspect"], row["megapixels"], row["photographs"], decoded, *figures]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def frames_table() -> str:
    """The transfer with letterbox and with stretch, by aspect ratio: PSNR and fine detail."""
    frames = _document("transfer")["frames"]
    ways = list(frames["1:1"]["network"])
    titles = [f"{look}: {way}" for look in ("true look", "network's look") for way in ways]
    lines = [f"| | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    for aspect, questions in frames.items():
        cells = [
            f"{questions[question][way]['psnr']:.2f} ({questions[question][way]['detail']:.2f})"
            for question in ("true look", "network")
            for way in ways
        ]
        lines.append(f"| {aspect} | {' | '.join(cells)} |")
    return "\n".join(lines)


def transfer_table() -> str:
    """Ways to full resolution: with the true look, and with the network's."""
    document = _document("transfer")
    titles = {"true look": "with the true look", "network": "with the network's look"}
    lines = ["| | PSNR (dB) | SSIM | fine detail |", "|---|---|---|---|"]
    for key, title in titles.items():
        lines.append(f"| *{title}* | | | |")
        for way, row in document[key].items():
            lines.append(f"| {way} | {row['psnr']:.2f} | {row['ssim']:.3f} | {row['detail']:.2f} |")
    return "\n".join(lines)


def cost_table() -> str:
    """What a photograph costs around the network, by its size."""
    titles = ("megapixels", "file (MB)", "floor (ms)", "preprocess (ms)", "postprocess (ms)", "ratio", "bytes a pixel")
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for size, row in _document("imaging")["sizes"].items():
        cells = [f"{row[name]:.0f}" for name in ("floor", "preprocess", "postprocess")]
        memory = f"{row['bytes_a_pixel']:.1f}"
        lines.append(f"| {size} | {row['bytes'] / 1e6:.1f} | {' | '.join(cells)} | {row['ratio']:.2f} | {memory} |")
    return "\n".join(lines)


def cost_sentences() -> str:
    """The rest of what `make benchmark-imaging` found."""
    found = _document("imaging")
    main, fit, first = found["sizes"][str(REFERENCE)], found["fit"], found["first_request"]
    stages = ", ".join(f"{name} {main[name]:.0f}" for name in ("decode small", "decode", "fit", "apply", "encode"))
    starts = "; ".join(
        f"{name}: import {row['import']:.0f}, first {row['first']:.0f}, second {row['second']:.0f}"
        for name, row in first.items()
    )
    others = ", ".join(f"{name} {value:.0f}" for name, value in found["other_files"].items())
    lines = [
        f"- At {REFERENCE} megapixels: **{found['ratio']:.2f} times the floor**; the obvious way with Pillow and",
        f"  NumPy takes {found['naive_ratio']:.1f} times. By stage, in ms: {stages}.",
        f"- CPU time grows by {fit['ms_a_megapixel']:.1f} ms a megapixel, and {fit['ms_fixed']:.0f} ms whatever the",
        f"  size (R² {fit['r_squared']:.4f}).",
        f"- {found['photographs_a_second_a_core']:.1f} photographs of {REFERENCE} megapixels a second a core; beside",
        f"  a GPU that runs the network {GPU_RATE} times a second,",
        f"  {found[f'cores_beside_{GPU_RATE}_a_second']:.1f} cores (a calculation).",
        f"- The first photograph of a process, wall ms: {starts}.",
        f"- Other files of {REFERENCE} megapixels, preprocess and postprocess together, in ms: {others}.",
    ]
    return "\n".join(lines)


def fuzz_table() -> str:
    """What came of the damaged photographs."""
    lines = ["| | files | enhanced | refused | wrong | memory grown (MiB) |", "|---|---|---|---|---|---|"]
    for name, row in _document("fuzz").items():
        cells = [f"{row[column]:,}" for column in ("files", "enhanced", "refused")]
        lines.append(f"| {name} | {' | '.join(cells)} | {len(row['wrong'])} | {row['growth_mib']} |")
    return "\n".join(lines)


def client_tables() -> str:
    """What `make benchmark-client` found: throughput, then a call by itself, then the rest."""
    found = _document("client")
    lines = [
        f"| photographs a second | `identity`, {LARGE / 1e6:.0f} MB, {found['in_flight']['identity']} in flight "
        f"| least–most | of perf_analyzer | `enhance`, {found['in_flight']['enhance']} in flight | least–most "
        "| of perf_analyzer |",
        "|---" * 7 + "|",
    ]
    for name in found["identity"]:
        cells = []
        for model in ("identity", "enhance"):
            row = found[model][name]
            cells += [f"{row['photographs_a_second']:.3g}", f"{row['least']:.3g}–{row['most']:.3g}"]
            cells.append(f"{row['of_perf_analyzer']:.2f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    sizes = list(found["one_at_a_time"])
    lines += [
        "",
        "| one at a time, µs a call | " + " | ".join(f"overhead, {int(s):,} bytes | CPU" for s in sizes) + " |",
        "|---" * (1 + 2 * len(sizes)) + "|",
    ]
    for name in found["one_at_a_time"][sizes[0]]:
        cells = []
        for size in sizes:
            row = found["one_at_a_time"][size][name]
            cells += [f"{row['overhead_us']:,.0f}", f"{row['cpu_us']:,.0f}" if "cpu_us" in row else "–"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    long, deadline, start = found["long"], found["deadline"], found["start"]
    lines += [
        "",
        f"- The goal, {GOAL} of perf_analyzer's throughput: "
        + ", ".join(
            f"{'reached' if (ratio := found[model][OURS]['of_perf_analyzer']) >= GOAL else 'missed'} for `{model}` "
            f"({ratio:.2f})"
            for model in ("identity", "enhance")
        )
        + ".",
        "- Held at the peak of a call, beside the photograph itself: "
        + ", ".join(f"{name} {row['photographs_held']:.1f} photographs" for name, row in found["held"].items())
        + ".",
        f"- A `map` over {LONG:,} photographs: {long['after_a_tenth_mib']:.0f} MiB after a tenth of them, "
        f"{long['after_all_mib']:.0f} MiB after all.",
        f"- A deadline of 200 ms on a server that takes longer is overrun by {deadline['median_ms']:.1f} ms at the "
        f"median, {deadline['most_ms']:.1f} ms at most ({deadline['calls']} calls).",
        f"- `import restormer_client` takes {start['import_ms']:.0f} ms; the first call imports gRPC and protobuf, "
        f"{start['first_call_imports_ms']:.0f} ms.",
    ]
    return "\n".join(lines)


def load_table() -> str:
    """What an overload had to be, and was."""
    found = _document("load")
    lines = ["| | found | wanted | |", "|---|---|---|---|"]
    for claim, (figure, bound, met) in found["goals"].items():
        sign = "≥" if claim.startswith("goodput") else "≤"
        lines.append(f"| {claim} | {figure:.3g} | {sign} {bound:.3g} | {'met' if met else '**missed**'} |")
    return "\n".join(lines)


def load_sentences() -> str:
    """The circumstances of the load table."""
    document = _document("load")
    found, machine = document["overload"], document["machine"]
    flood, bulk = found["flood"], found["bulk"]
    return (
        f"{machine['cores']} cores ({machine['cpu']}), demo network in float32, the demo photographs: alone "
        f"{found['idle']['p50']:.2f} s a photograph,\ncapacity {found['capacity']:.2f} a second. Sent "
        f"{found['rate']:.2f} a second for {document['seconds']:g} s: {flood['ok']} enhanced, {flood['rejected']} "
        f"turned away (median {flood['rejected_p50'] * 1000:.0f} ms),\n{flood['expired']} waited in vain, "
        f"{flood['failed']} failed. Beside six bulk workers ({bulk['goodput']:.2f} a second) somebody waiting had his "
        f"in {found['waiting']['p50']:.2f} s at the median."
    )


def faults_table() -> str:
    """What was done to the server, what clients saw, and what helped."""
    found = _document("load")["faults"]
    lines = ["| what was done | what clients saw | afterwards |", "|---|---|---|"]
    for model in ("preprocess", "restormer"):
        row = found[f"{model}'s process killed"]
        (words,) = row["words"]
        deep = "passes" if row["deep_check"] else "fails"
        lines.append(
            f"| the process of `{model}` killed | {row['after']['failed']} of {sum(row['after'].values())} that came "
            f"back after it failed: `{words}` | Triton says ready: {_yes(row['ready_says'])}; the deep check {deep}; "
            f"processes that came back by themselves: {row['processes_now']} |"
        )
    killed = found["the server killed"]
    lines.append(
        f"| Triton killed, two photographs in flight | both fail at once ({killed['in_flight']:.1f} s after "
        f"they were sent, killed after 3), `UNAVAILABLE`; then connections are refused | {killed['processes_left']} of "
        f"its Python processes still there a minute later; the next start ends them ({killed['processes_left_then']} "
        f"left) and serves after {killed['seconds_to_start']:.0f} s |"
    )
    return "\n".join([*lines, *shared_memory_rows(found["shared memory filled"]), _large_row(found["large"])])


def shared_memory_rows(shared: dict[str, Any]) -> list[str]:
    """The rows of filled shared memory, or the reason why there are no figures."""
    if reason := shared.get("not run"):
        return [f"| /dev/shm filled | not run: {reason} | |"]
    return [
        f"| /dev/shm of the {shared['mib']} MiB asked for, and a file of {shared['file_mb']:.0f} MB | "
        f"{'it fails' if shared['too_large'][0] == 'failed' else 'it is enhanced'}, with Triton's sentence about "
        f"`--shm-size`; the next small one: {shared['between']} | nothing to do, {shared['processes_now']} processes "
        "live |",
        f"| the rest of /dev/shm filled | small, large, small: {', '.join(kind for kind, _ in shared['full'])} | "
        f"emptied again: {shared['after']} |",
    ]


def _large_row(large: dict[str, Any]) -> str:
    before, peak, after = large["memory_mib"]
    beside = large["beside"]
    return (
        f"| 100 megapixels ({large['megabytes']:.0f} MB) among small ones | {large['outcome']} after "
        f"{large['seconds']:.1f} s; {beside['ok']} of {sum(beside.values())} small ones beside it ok, the slowest "
        f"{large['beside_slowest']:.1f} s (alone {large['before_p50']:.1f} s) | memory {before:.0f} MiB before, "
        f"{peak:.0f} at the peak, {after:.0f} after |"
    )


def batches_sentence() -> str:
    """What one photograph a call is worth in preprocess."""
    found = _document("load")["faults"]["batches"]

    def mean(size: str, figure: str) -> str:
        return f"{sum(run[figure] for run in found[size]) / len(found[size]) * 1000:.0f}"

    return (
        f"Eight photographs at once to two processes of `preprocess`, means of {len(found['1'])} runs: with eight a "
        f"call a photograph takes\n{mean('8', 'photograph_p50')} ms at the median and the eight "
        f"{mean('8', 'burst_p50')} ms; with one a call {mean('1', 'photograph_p50')} and {mean('1', 'burst_p50')} ms."
    )


def bulk_table() -> str:
    """A Ray job beside the plain client."""
    found = _document("bulk")
    lines = [
        "| through one server | photographs a second | least–most | of the plain client | CPU a photograph (ms) | "
        "starts, ends (s) |",
        "|---" * 6 + "|",
    ]
    for model, title in (("enhance", "`enhance`"), ("identity", "nothing behind it")):
        for way in ("restormer-client", "bulk"):
            row = found[model][way]
            ratio = f"**{found[model]['ratio']:.3f}**" if way == "bulk" else "1"
            lines.append(
                f"| {title}, {way} | {row['photographs_a_second']:.3g} | {row['least']:.3g}–{row['most']:.3g} | "
                f"{ratio} | {row['cpu_ms']:.1f} | {row['start_seconds']:.1f} |"
            )
    return "\n".join(lines)


def bulk_sentences() -> str:
    """The rest of what `make benchmark-bulk` found."""
    found = _document("bulk")
    ratio, rounds = found["enhance"]["ratio"], ", ".join(f"{each:.2f}" for each in found["enhance"]["ratios"])
    servers = found["servers"]
    return "\n".join(
        [
            f"- The goal, {BULK_GOAL} of the plain client's rate: {'reached' if ratio >= BULK_GOAL else 'missed'} "
            f"({ratio:.3f}; by round, {found['count']['enhance']} photographs each: {rounds}).",
            f"- Two servers, a core each, with everything else on the same two cores: {servers['ratio']:.2f} times one "
            f"server with the",
            f"  other core for everything else ({servers['two']['photographs_a_second']:.3g} and "
            f"{servers['one']['photographs_a_second']:.3g} a second).",
        ]
    )


def _yes(fact: bool) -> str:
    return "yes" if fact else "no"


def image_table() -> str:
    """What the image of the CPU server adds to its base, in MB."""
    image = _document("docker")["image"]
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
    rows = [(why, sum(parts.get(name, 0) for name in names)) for why, names in reasons.items()]
    rows.append(("the rest", added - sum(size for _, size in rows)))
    lines = ["| in the image of the CPU server | MB |", "|---|---|"]
    lines += [f"| {why} | {size} |" for why, size in rows]
    return "\n".join([*lines, f"| **all that is added to the base** | **{added}** |"])


def replaced_sentence() -> str:
    """How long a container with a dead Python process takes to be replaced."""
    seconds = _document("docker")["dead_process_seconds"]
    return f"{seconds} seconds after its Python process was killed, a new server answered"


def rolling_table() -> str:
    """What was lost while servers were replaced."""
    found = _document("rolling")
    titles = {
        "resent, enhance": "the whole pipeline, the project's client, servers stopped in use",
        "resent, identity": "`identity` in its place, the project's client, servers stopped in use",
        "drained": "`identity`, a client that never sends twice, drained as the Deployment says",
        "at once": "the same client, not drained",
    }
    lines = [
        "| | servers replaced | photographs sent | lost | a server was away (s) |",
        "|---|---|---|---|---|",
    ]
    for name, title in titles.items():
        row = found[name]
        seconds = sorted(row["seconds without it"])
        away = f"{seconds[0]:.0f}" if len(seconds) == 1 else f"{seconds[0]:.0f} to {seconds[-1]:.0f}"
        lines.append(f"| {title} | {row['replaced']} | {row['sent']:,} | {row['failed']} | {away} |")
    return "\n".join(lines)


def dead_sentence() -> str:
    """How long a server with a dead Python process takes to end, as process 1."""
    found = _document("rolling")["dead"]
    return f"{found['seconds']:.0f} s after its Python process was killed and the check was called, it had ended"


def _document(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return document


if __name__ == "__main__":
    for made in (
        near_table, frames_table, transfer_table, cost_table, cost_sentences, fuzz_table, client_tables, load_table,
        load_sentences, faults_table, batches_sentence, image_table, replaced_sentence, rolling_table, dead_sentence,
        bulk_table, bulk_sentences,
    ):  # fmt: skip
        print(made(), end="\n\n")
