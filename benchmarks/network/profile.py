"""Time every layer of the network on this machine's processor (``make profile``).

The published ``cpu`` engine runs in OpenVINO with its counters (PERF_COUNT) and the settings of its JSON. ``--package``
and ``--standard`` (the owner's base, random weights) use the graph that a build for the ``cpu`` target would make
instead. In INT8 they quantize every layer that a CPU can run in INT8.

Layers are shown by kind (benchmarks/network/kinds.py), with the arithmetic and memory traffic that they reach.
``--trtexec`` makes the same tables of a GPU's figures, from two files of trtexec and the graph that it was given.

The counters cost time: the tables also show a run without them. Times are medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from benchmarks.network import kinds
from benchmarks.network.kinds import Layer, Node
from benchmarks.network.peak import measured_peaks
from benchmarks.network.random_weights import random_image, standard_network
from benchmarks.report import tables
from export.errors import ExportError
from export.names import MODEL
from export.network import int8
from export.network.cpu_form import cpu_graph
from export.network.graph import onnx_bytes
from export.network.rewrites import rewrite_network
from export.package.model_package import network_from_package, package_from_folder
from export.precision import PRECISIONS, Precision, precision_from_name
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

RECORDED, PRINTED = 40, 15  #: slowest layers of a runtime in a record and in a table; its kinds count all
Image = NDArray[np.float32]
Subject = tuple[onnx.ModelProto, dict[str, str], dict[str, Any]]  #: graph, OpenVINO's settings, head of the record


class OpenVino:
    """The graph in OpenVINO, with its counters and without."""

    def __init__(self, graph: Path, nodes: dict[str, Node], settings: dict[str, str]) -> None:
        self._nodes = nodes
        self.run_plain = cpu.compile_engine(graph, settings)
        self._compiled = cpu.compile_engine(graph, {**settings, "PERF_COUNT": "YES"})
        self._request = self._compiled.create_infer_request()
        self._runs = 0
        self._before: dict[str, float] = {}
        self._rounds: list[dict[str, float]] = []

    def run_counted(self, image: Image) -> None:
        """Run with counters."""
        self._request.infer([image])
        self._runs += 1
        # OpenVINO's counters are means over all runs so far.
        totals = {
            found.node_name: found.real_time.total_seconds() * 1e3 * self._runs
            for found in self._request.get_profiling_info()
            if found.status == openvino.ProfilingInfo.Status.EXECUTED
        }
        self._rounds.append({name: max(total - self._before.get(name, 0.0), 0.0) for name, total in totals.items()})
        self._before = totals

    def layers(self) -> list[Layer]:
        """Return the layers that ran, with the median of all rounds but the first."""
        types = {found.node_name: found.node_type for found in self._request.get_profiling_info()}
        made = []
        for node in self._compiled.get_runtime_model().get_ordered_ops():
            name = node.get_friendly_name()
            times = [turn[name] for turn in self._rounds[1:] if name in turn]
            if not times:
                continue
            info = {key: str(value.astype(str)) for key, value in node.get_rt_info().items()}
            other = kinds.NORM if name.startswith(kinds.FROM_NORM) else kinds.ELEMENTWISE
            ports = (*node.inputs(), *node.outputs())
            made.append(
                kinds.layer_from_nodes(
                    name, info.get("originalLayersNames", "").split(","),
                    kinds.REORDER if info["layerType"] == "Reorder" else other, self._nodes,
                    ms=statistics.median(times), type=f"{types[name]} {info['primitiveType']}",
                    precision=info["runtimePrecision"],
                    bytes=sum(prod(port.get_shape()) * port.get_element_type().size for port in ports),
                )
            )  # fmt: skip
        return made


def profile(runtime: OpenVino, image: Image, rounds: int, peak: Mapping[str, float | None]) -> dict[str, Any]:
    """Run with counters and without in turns, after a warm-up; return the figures."""
    seconds: dict[str, list[float]] = {"plain": [], "counted": []}
    for turn in range(rounds + 1):
        show_progress(f"round {turn}/{rounds}")
        for what, run in (("plain", runtime.run_plain), ("counted", runtime.run_counted)):
            began = time.perf_counter()
            run(image)
            seconds[what].append(time.perf_counter() - began)
    show_progress()
    plain, counted = ([second * 1e3 for second in seconds[what][1:]] for what in ("plain", "counted"))
    return {
        "runtime": "OpenVINO",
        "rounds": rounds,
        "counted_ms": statistics.median(counted),
        "plain_ms": statistics.median(plain),
        "least_ms": min(plain),
        "most_ms": max(plain),
        **layer_figures(runtime.layers(), peak),
    }


def layer_figures(layers: list[Layer], peak: Mapping[str, float | None]) -> dict[str, Any]:
    """Return the layers, the costliest first, and their kinds beside the peak of the processor."""
    return {
        "total_ms": sum(each.ms for each in layers),
        "kinds": kinds.summarize_kinds(layers, peak),
        "layers": [asdict(each) for each in sorted(layers, key=lambda each: -each.ms)],
    }


def published_engine(repository: Path) -> Path:
    """Return the engine file of the highest version. Raises `ExportError` if there is none for a CPU."""
    found = versions(repository / MODEL)
    engine = repository / MODEL / str(found[-1] if found else 1) / "model.onnx"
    if not engine.is_file():
        raise ExportError(f"no cpu engine at {engine}: build one with --precision fp32 --target cpu")
    return engine


def load_subject(arguments: argparse.Namespace) -> Subject:
    """Load what is profiled. Raises `ExportError` if it cannot be."""
    if arguments.standard or arguments.package:
        return _export_subject(arguments)
    if arguments.precision or arguments.side:
        raise ExportError("--precision and --side need --standard or --package: an engine has its own")
    return _load_engine(arguments.engine or published_engine(arguments.repository))


def _export_subject(arguments: argparse.Namespace) -> Subject:
    """Export the graph of a package, or of the standard network."""
    precision = precision_from_name(arguments.precision or "fp32")
    _require_precision(precision)
    if precision.name == "int8" and not arguments.standard:
        raise ExportError("--precision int8 needs --standard: an INT8 engine comes from a plan, so give it as --engine")
    side = arguments.side or SIDE
    if side < 8 or side % 8:
        raise ExportError(f"--side {side} must be a multiple of 8: the network halves an image three times")
    if arguments.standard:
        name, network = "the owner's base network, 25.4 M parameters, random weights", standard_network()
    else:
        package = package_from_folder(arguments.package)
        name, network = f"the network of {arguments.package}", network_from_package(package)
    show_progress("exporting the graph ...")
    ready, ranges = rewrite_network(network), None
    if precision.name == "int8":  # random weights have no photographs: another random image gives their ranges
        ranges = int8.calibrate(ready, {"other": random_image(side, seed=1)}, "minmax")
    about = {"network": name, "side": side, "precision": precision.name}
    return cpu_graph(ready, ranges, side=side), cpu.settings(precision), about


def _require_precision(precision: Precision) -> None:
    if reason := cpu.why_not(precision):
        raise ExportError(f"{reason}: use --precision fp32, which every CPU executes")


def _load_engine(engine: Path) -> Subject:
    """Load an engine with the JSON beside it."""
    beside = engine.with_name(f"{engine.name}.json")
    if not engine.is_file() or not beside.is_file():
        raise ExportError(f"no engine with its JSON at {engine}: build one with --precision fp32 --target cpu")
    try:
        stated = json.loads(beside.read_text(encoding="utf-8"))
        if stated["target"] != "cpu":
            raise ExportError(f"{engine} is for {stated['target']}: build one with --target cpu")
        settings = dict(word.split("=", 1) for word in shlex.split(stated["command"]) if "=" in word)
        name = f"the network of {settings['PACKAGE']}, {stated['network']['parameters']:,} parameters"
        _require_precision(PRECISIONS[stated["precision"]])
        about = {"network": name, "side": stated["profile"]["compiled"][-1], "precision": stated["precision"]}
        return onnx.load(engine), stated["runtime"]["settings"], about
    except (OSError, ValueError, KeyError, TypeError, DecodeError) as error:
        raise ExportError(
            f"{engine} or the JSON beside it is damaged ({type(error).__name__} {error}): build it again"
        ) from error


def profile_from_trtexec(profiled: Path, info: Path, graph: Path) -> dict[str, Any]:
    """Return the figures of trtexec's files. Raises `ExportError` if they are not what they should be."""
    try:
        model = onnx.load(graph)
        times, layers = (json.loads(path.read_text(encoding="utf-8")) for path in (profiled, info))
        found = kinds.layers_from_trtexec(times, layers, kinds.graph_nodes(model))
    except (OSError, ValueError, KeyError, TypeError, DecodeError) as error:
        raise ExportError(
            "these are not trtexec's --exportProfile, its --exportLayerInfo and its graph: "
            f"{type(error).__name__} {error}"
        ) from error
    side = model.graph.input[0].type.tensor_type.shape.dim[-1].dim_value
    about = {"network": str(graph), "side": side, "precision": "as the graph is typed", "runtime": "TensorRT"}
    return {**about, **layer_figures(found, {})}


def profile_graph(model: onnx.ModelProto, settings: dict[str, str], side: int, rounds: int) -> dict[str, Any]:
    """Profile the graph in OpenVINO; return the figures, and the peak of the processor."""
    peak = measured_peaks()
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder, "model.onnx")
        graph.write_bytes(onnx_bytes(model))
        runtime = OpenVino(graph, kinds.graph_nodes(model), settings)
        return {"settings": settings, "peak": peak, **profile(runtime, random_image(side, seed=0), rounds, peak)}


def arguments_from(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Read the command line."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--engine", type=Path, help="an engine file with its JSON beside it (default: the published one)"
    )
    which.add_argument("--package", type=Path, help="a model package")
    which.add_argument(
        "--trtexec", type=Path, nargs=3, metavar=("PROFILE", "LAYERS", "GRAPH"),
        help="trtexec's files of --exportProfile and --exportLayerInfo, with batch 1, and the ONNX graph it was given",
    )  # fmt: skip
    which.add_argument(
        "--standard", action="store_const", const=1, help="the owner's base network, 25.4 M parameters, random weights"
    )
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--precision", help="with --package or --standard: fp32, bf16, fp16, or int8 (--standard only)")
    parser.add_argument("--side", type=int, help="with --package or --standard: pixels, a multiple of 8")
    parser.add_argument("--rounds", type=int, default=7)
    add_record_option(parser)
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds must be 1 or more")
    return arguments


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments = arguments_from(parser)
    command = "" if arguments.trtexec else format_make_command("profile", parser, arguments, "record")
    try:
        if arguments.trtexec:
            found = profile_from_trtexec(*arguments.trtexec)
            about = describe_circumstances(command)
        else:
            model, settings, found = load_subject(arguments)
            about = describe_circumstances(command)
            found |= profile_graph(model, settings, found["side"], arguments.rounds)
    except ExportError as error:
        raise SystemExit(f"error: {error}") from None
    document: dict[str, Any] = {"circumstances": about, **found}
    print(f"{document['network']}, {document['side']}x{document['side']}, {document['precision']}\n")
    print(f"{tables.runs_table(document)}\n\n{tables.kinds_table(document)}\n")
    print(f"{tables.layers_table(document, PRINTED)}\n")
    # All layers of the standard network are a megabyte.
    finish_run(document, arguments.record, document | {"layers": document["layers"][:RECORDED]})


if __name__ == "__main__":
    exit_on_interrupt(main)
