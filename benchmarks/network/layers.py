"""Where the time of the network goes, layer by layer, on this machine's processor (``make profile``).

The published ``cpu`` engine, with the settings its JSON states, in OpenVINO and its counters (PERF_COUNT); and the same
graph in ONNX Runtime and its profiler. ``--package`` and ``--standard`` (the paper's network, random weights) take the
graph that `make engine TARGET=cpu` would build instead; INT8 has all layers of a plan in it that a CPU can take.

Layers are told apart by kind (benchmarks/network/kinds.py), with the arithmetic and the memory traffic that they reach.
``--trtexec`` makes the same tables of what trtexec timed on a GPU: two files of its own, and the graph it was given.

The counters cost time themselves: the table says what a run takes without them. Times are medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
from google.protobuf.message import DecodeError

from benchmarks.network.core import random_network
from benchmarks.network.kinds import (
    ELEMENTWISE,
    FROM_NORM,
    NORM,
    REORDER,
    Layer,
    Node,
    by_kind,
    layer,
    layers_of_onnxruntime,
    layers_of_trtexec,
    nodes,
)  # fmt: skip
from benchmarks.network.peak import peaks
from export.errors import ExportError
from export.names import INPUT, MODEL
from export.network import int8
from export.network.cpu_form import cpu_graph
from export.network.graph import onnx_bytes
from export.network.rewrites import rewritten
from export.package.model_package import network_from_package, package_from_folder
from export.precision import PRECISIONS, precision_from_name
from export.publish import versions
from export.targets import cpu
from imaging import SIDE
from operations.recording import (
    add_record_option,
    describe_circumstances,
    exit_on_interrupt,
    finish_run,
    format_make_command,
    show_progress,
)

KEPT = 40  #: layers of a runtime, the slowest, that a record tells one by one; all are in its kinds
STANDARD_SIDE = 256  #: of the standard network, as the papers' figures are


class OpenVino:
    """The graph in OpenVINO, counted."""

    name = "OpenVINO"

    def __init__(self, graph: Path, known: dict[str, Node], settings: dict[str, str]) -> None:
        self._known = known
        self._plain = cpu.compiled(graph, settings)
        self._compiled = cpu.compiled(graph, {**settings, "PERF_COUNT": "YES"})
        self._request = self._compiled.create_infer_request()
        self._runs = 0
        self._before: dict[str, float] = {}
        self._rounds: list[dict[str, float]] = []

    def plain(self, image: np.ndarray) -> None:
        """A run without counters."""
        self._plain(image)

    def counted(self, image: np.ndarray) -> None:
        """A run with them."""
        self._request.infer([image])
        self._runs += 1
        # OpenVINO's counters are means over all runs so far, in microseconds.
        totals = {
            found.node_name: found.real_time.total_seconds() * 1e3 * self._runs
            for found in self._request.get_profiling_info()
            if found.status == openvino.ProfilingInfo.Status.EXECUTED
        }
        self._rounds.append({name: max(total - self._before.get(name, 0.0), 0.0) for name, total in totals.items()})
        self._before = totals

    def layers(self) -> list[Layer]:
        """The layers that ran, with the median of all rounds but the first."""
        types = {found.node_name: found.node_type for found in self._request.get_profiling_info()}
        made = []
        for node in self._compiled.get_runtime_model().get_ordered_ops():
            name = node.get_friendly_name()
            times = [turn[name] for turn in self._rounds[1:] if name in turn]
            if not times:
                continue
            info = {key: str(value.astype(str)) for key, value in node.get_rt_info().items()}
            kind = REORDER if info["layerType"] == "Reorder" else NORM if name.startswith(FROM_NORM) else ELEMENTWISE
            ports = (*node.inputs(), *node.outputs())
            made.append(
                layer(
                    name, info.get("originalLayersNames", "").split(","), kind, self._known,
                    ms=statistics.median(times), type=f"{types[name]} {info['primitiveType']}",
                    precision=info["runtimePrecision"],
                    bytes=sum(prod(port.get_shape()) * port.get_element_type().size for port in ports),
                )
            )  # fmt: skip
        return made


class OnnxRuntime:
    """The graph in ONNX Runtime, profiled."""

    name = "ONNX Runtime"

    def __init__(self, graph: Path, known: dict[str, Node], folder: Path) -> None:
        self._known = known
        options = onnxruntime.SessionOptions()
        options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
        self._plain = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def plain(self, image: np.ndarray) -> None:
        """A run without its profiler."""
        self._plain.run(None, {INPUT: image})

    def counted(self, image: np.ndarray) -> None:
        """A run with it."""
        self._session.run(None, {INPUT: image})

    def layers(self) -> list[Layer]:
        """The layers that ran, with the median of all rounds but the first."""
        events = json.loads(Path(self._session.end_profiling()).read_text(encoding="utf-8"))
        return layers_of_onnxruntime(events, self._known)


def profiled(
    runtime: OpenVino | OnnxRuntime, image: np.ndarray, rounds: int, peak: Mapping[str, float | None]
) -> dict[str, Any]:
    """A runtime's figures, as the JSON has them. With counters and without take turns; the first round is a warm-up."""
    seconds: dict[str, list[float]] = {"plain": [], "counted": []}
    for turn in range(rounds + 1):
        show_progress(f"{runtime.name}: round {turn}/{rounds}")
        for what, run in (("plain", runtime.plain), ("counted", runtime.counted)):
            began = time.perf_counter()
            run(image)
            seconds[what].append(time.perf_counter() - began)
    show_progress()
    plain, counted = ([second * 1e3 for second in seconds[what][1:]] for what in ("plain", "counted"))
    return {
        "runtime": runtime.name,
        "rounds": rounds,
        "counted_ms": statistics.median(counted),
        "plain_ms": statistics.median(plain),
        "least_ms": min(plain),
        "most_ms": max(plain),
        **told(runtime.layers(), peak),
    }


def told(layers: list[Layer], peak: Mapping[str, float | None]) -> dict[str, Any]:
    """The layers as the JSON has them, the costliest first, and their kinds beside what the processor reaches."""
    return {
        "total_ms": sum(each.ms for each in layers),
        "kinds": by_kind(layers, peak),
        "layers": [asdict(each) for each in sorted(layers, key=lambda each: -each.ms)],
    }


def slowest(found: dict[str, Any]) -> dict[str, Any]:
    """A profile that tells its slowest layers only: of the standard network all are a megabyte."""
    return found | {"layers": found["layers"][:KEPT]}


def lines(document: dict[str, Any], top: int) -> list[str]:
    """The tables."""
    made = [f"{document['network']}, {document['side']}x{document['side']}, {document['precision']}"]
    for found in (document, *document["others"]):
        whole = (
            f"{found['plain_ms']:.0f} ms a run ({found['least_ms']:.0f} to {found['most_ms']:.0f}), "
            f"{found['counted_ms']:.0f} with counters; "
            if "plain_ms" in found
            else ""
        )
        made += [
            "",
            f"{found['runtime']}: {whole}its layers together {found['total_ms']:.1f} ms",
            f"  {'kind':<24} {'layers':>6} {'ms':>9} {'share':>6} {'GFLOP/s':>8} {'of peak':>8} {'GB/s':>6}",
        ]
        for row in found["kinds"]:
            rates = f"{row['gflop_s'] or '–':>8{'.0f' if row['gflop_s'] else ''}}"
            rates += f" {format(row['least_ms'] / row['ms'], '.0%') if row['least_ms'] else '–':>8}"
            rates += f" {row['gb_s'] or '–':>6{'.1f' if row['gb_s'] else ''}}"
            made.append(f"  {row['kind']:<24} {row['count']:6} {row['ms']:9.2f} {row['share']:6.1%} {rates}")
        made += ["", f"  {'the costliest layers':<44} {'ms':>9}  {'kind':<22} {'runs as'}"]
        for each in found["layers"][:top]:
            title = each["module"] or each["name"]
            made.append(f"  {title[-44:]:<44} {each['ms']:9.3f}  {each['kind']:<22} {each['type']}")
    return made


def noise(side: int, *, seed: int) -> np.ndarray:
    """An image ``[1, 3, side, side]`` of nothing."""
    return np.random.default_rng(seed).random((1, 3, side, side), np.float32)


def published(repository: Path) -> Path:
    """The engine file of the highest version; `ExportError` if there is none for a CPU."""
    found = versions(repository / MODEL)
    engine = repository / MODEL / str(found[-1] if found else 1) / "model.onnx"
    if not engine.is_file():
        raise ExportError(f"no cpu engine at {engine}: make engine PRECISION=fp32 TARGET=cpu")
    return engine


def subject(arguments: argparse.Namespace) -> tuple[onnx.ModelProto, dict[str, str], dict[str, Any]]:
    """What is profiled: its graph, OpenVINO's settings, and what the JSON says of it."""
    if arguments.standard or arguments.package:
        precision = precision_from_name(arguments.precision or "fp32")
        cpu.require_precision(precision)
        if precision.name == "int8" and not arguments.standard:
            raise ExportError("an INT8 graph comes of a plan: make engine PRECISION=int8 TARGET=cpu, then make profile")
        side = arguments.side or (STANDARD_SIDE if arguments.standard else SIDE)
        if side < 8 or side % 8:
            raise ExportError(f"--side {side}: the network halves an image three times: give a multiple of 8")
        if arguments.standard:
            name, network = "the standard network, 26.1 M parameters, random weights", random_network()
        else:
            package = package_from_folder(arguments.package)
            name, network = f"the network of {arguments.package}", network_from_package(package)
        show_progress("exporting the graph ...")
        ready, ranges = rewritten(network), None
        if precision.name == "int8":  # random weights have no photographs: their ranges are of another random image
            ranges = int8.calibrated(ready, {"other": noise(side, seed=1)}, "minmax", lambda: None)
        return cpu_graph(ready, ranges, side=side), cpu.settings(precision), {
            "network": name, "side": side, "precision": precision.name,
        }  # fmt: skip
    engine = arguments.engine or published(arguments.repository)
    beside = engine.with_name(f"{engine.name}.json")
    if not engine.is_file() or not beside.is_file():
        raise ExportError(f"no engine with its JSON at {engine}: make engine PRECISION=fp32 TARGET=cpu")
    if arguments.precision or arguments.side:
        raise ExportError(
            "an engine has a precision and a side of its own: leave PRECISION and SIDE out, or add STANDARD=1 or "
            "PACKAGE=folder"
        )
    try:
        stated = json.loads(beside.read_text(encoding="utf-8"))
        if stated["target"] != "cpu":
            raise ExportError(f"{engine} is for {stated['target']}: make engine PRECISION=fp32 TARGET=cpu")
        words = dict(word.split("=", 1) for word in shlex.split(stated["command"]) if "=" in word)
        name = f"the network of {words['PACKAGE']}, {stated['network']['parameters']:,} parameters"
        cpu.require_precision(PRECISIONS[stated["precision"]])
        return onnx.load(engine), stated["runtime"]["settings"], {
            "network": name, "side": stated["profile"]["compiled"][-1], "precision": stated["precision"],
        }  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, DecodeError) as error:
        raise ExportError(
            f"{engine} or the JSON beside it is damaged ({type(error).__name__} {error}): build it again"
        ) from error


def timed_by_trtexec(profile: Path, info: Path, graph: Path) -> dict[str, Any]:
    """What trtexec timed, as the JSON has it; `ExportError` if its files are not what they should be."""
    try:
        model = onnx.load(graph)
        found = layers_of_trtexec(
            *(json.loads(path.read_text(encoding="utf-8")) for path in (profile, info)), nodes(model)
        )
    except (OSError, ValueError, KeyError, TypeError, DecodeError) as error:
        raise ExportError(
            "these are not trtexec's --exportProfile, its --exportLayerInfo and its graph: "
            f"{type(error).__name__} {error}"
        ) from error
    side = model.graph.input[0].type.tensor_type.shape.dim[-1].dim_value
    words = {"network": str(graph), "side": side, "precision": "as the graph is typed", "runtime": "TensorRT"}
    return {**words, **told(found, {}), "others": []}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--engine", type=Path, help="an engine file, its JSON beside it (default: the published one)")
    which.add_argument("--package", type=Path, help="a model package")
    which.add_argument(
        "--trtexec", type=Path, nargs=3, metavar=("PROFILE", "LAYERS", "GRAPH"),
        help="files of trtexec's --exportProfile and --exportLayerInfo, with batch 1, and the ONNX graph it was given",
    )  # fmt: skip
    which.add_argument(
        "--standard", action="store_const", const=1, help="the paper's network, 26.1 M parameters, random weights"
    )
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument(
        "--precision", help="of a package or the standard network: fp32, bf16 or fp16; int8 of the latter only"
    )
    parser.add_argument("--side", type=int, help="of a package or the standard network: pixels, a multiple of 8")
    parser.add_argument("--runtime", choices=("both", "openvino", "onnxruntime"), default="both")
    parser.add_argument("--setting", action="append", default=[], metavar="NAME=VALUE", help="one more of OpenVINO's")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--top", type=int, default=15, help="how many layers the table lists")
    add_record_option(parser)
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.top < 0:
        parser.error("--rounds wants 1 or more, --top 0 or more")
    if wrong := [each for each in arguments.setting if "=" not in each]:
        parser.error(f"--setting {wrong[0]}: write NAME=VALUE")
    by_module = arguments.trtexec or arguments.setting or arguments.runtime != "both"  # no settings of the target
    command = "" if by_module else format_make_command("profile", parser, arguments, "top", "record")
    try:
        if arguments.trtexec:
            found = timed_by_trtexec(*arguments.trtexec)
            about = describe_circumstances(command)
        else:
            model, settings, found = subject(arguments)
            about = describe_circumstances(command)
            found |= measured(model, settings, found["side"], arguments)
    except ExportError as error:
        raise SystemExit(f"error: {error}") from None
    document = {"circumstances": about, **found}
    print("\n".join(lines(document, arguments.top)))
    kept = slowest(document) | {"others": [slowest(found) for found in document["others"]]}
    finish_run(document, arguments.record, kept)


def measured(
    model: onnx.ModelProto, settings: dict[str, str], side: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """The first runtime's figures, and beside them those of the others."""
    settings = {**settings, **dict(each.split("=", 1) for each in arguments.setting)}
    known, peak = nodes(model), peaks()
    image = noise(side, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder, "model.onnx")
        graph.write_bytes(onnx_bytes(model))
        makers: dict[str, Callable[[], OpenVino | OnnxRuntime]] = {
            "openvino": lambda: OpenVino(graph, known, settings),
            "onnxruntime": lambda: OnnxRuntime(graph, known, Path(folder)),
        }
        wanted = [make for name, make in makers.items() if arguments.runtime in ("both", name)]
        try:
            # One after the other, so that neither finds the other's threads or tensors in its caches.
            found = [profiled(make(), image, arguments.rounds, peak) for make in wanted]
        except RuntimeError as error:  # OpenVINO knows a setting or does not
            raise ExportError(
                f"the graph does not compile with {settings}: {str(error).strip().splitlines()[-1]}"
            ) from error
    return {"settings": settings, "peak": peak, **found[0], "others": found[1:]}


if __name__ == "__main__":
    exit_on_interrupt(main)
