"""Measure a package on pairs as its authors do: PyTorch, then every published version behind a real Triton.

The network alone is measured at 512x512, input and target each resized to the square; ``enhance`` is measured at the
photographs' own resolution. Results are written only after all measurements succeeded.
"""

import contextlib
import csv
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from export import triton
from export.errors import ExportError
from export.fidelity import Runner, difference_picture, torch_runner
from export.files import checkpoint_path, sha256, write_bytes
from export.markdown import table
from export.metrics import figures
from export.names import MODEL
from export.package.claims import SPLITS, Claims, claims_from_folder
from export.package.model_package import network_from_package, package_from_folder
from export.package.pairs import Pair, Pixels, open_image, pairs_from_file, resize_to_square, tensor_from_pixels
from export.progress import say, step, track
from export.publish import documents, versions
from imaging import SIDE, InvalidPhotograph

#: The measured columns: title, digits, and the metric of a claim they are compared with.
COLUMNS = {
    "l1": ("L1", 4, "l1"), "psnr": ("PSNR dB", 2, "psnr"),
    "ssim_windowed": ("SSIM windowed", 4, "ssim"), "ssim_global": ("SSIM global", 4, "ssim"),
}  # fmt: skip
TORCH = "PyTorch float32"


@dataclass(frozen=True, kw_only=True)
class EvaluationRequest:
    """What to measure: a package, its published versions (all, unless ``versions`` names some), and how.

    ``url`` is a running Triton; without it one is started with ``server_python``, the server environment's interpreter.
    """

    package: Path
    pairs: Path
    data: Path | None = None
    versions: tuple[int, ...] = ()
    repository: Path = Path("model_repository")
    server_python: Path | None = None
    url: str = ""
    output: Path = Path("out/evaluate")


@dataclass
class Measurements:
    """One row per image and stage; ``worst`` is the last core stage's image with the lowest PSNR, and its picture."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    worst: tuple[str, Pixels] = ("", np.empty(0, np.uint8))

    def add(self, stage: str, pair: Pair, size: tuple[int, int], resized: bool, figures: dict[str, float]) -> None:
        """Add a row."""
        origin = {"stage": stage, "input": pair.name, "target": str(pair.target), "size": "{}x{}".format(*size)}
        self.rows.append({**origin, "target_resized": resized, **figures})


def evaluate(request: EvaluationRequest) -> dict[str, Any]:
    """Measure, write the results into ``output``, return their summary. Raises `ExportError`."""
    pairs, measurements = pairs_from_file(request.pairs, request.data), Measurements()
    stages = _choose_versions(request, measurements.remarks)
    for remark in measurements.remarks:
        say(f"remark: {remark}")
    if not next(path for path in (request.output, *request.output.parents) if path.exists()).is_dir():
        raise ExportError(f"--output {request.output} is not a folder, and cannot become one: choose another")
    with step("reading the package"):
        run = torch_runner(network_from_package(package_from_folder(request.package)))
    squares = _read_squares(pairs, measurements.remarks)
    with contextlib.ExitStack() as stack:
        # Triton is started first, so that a failed start is reported before the long part.
        client: Any = stack.enter_context(triton.connect(_address(request, stages, stack))) if stages else None
        runners = {TORCH: run, **{stage: triton.core_runner(client, str(v)) for v, stage in stages.items()}}
        for stage, run in runners.items():
            _measure_core(stage, pairs, squares, run, measurements)
        if stages:
            _measure_enhance(f"enhance (version {max(stages)})", pairs, client, measurements)
    summary = _summary(request, measurements, claims_from_folder(request.package))
    _write(request.output, summary, measurements)
    return summary


def format_table(summary: dict[str, Any]) -> str:
    """Format the summary as a Markdown table, followed by the remarks."""
    rows = []
    for name, stage in summary["stages"].items():
        resized = f", {stage['targets_resized']} targets resized" if stage["targets_resized"] else ""
        cells = [
            f"{stage[c]['mean']:.{digits}f} ± {stage[c]['deviation']:.{digits}f}"
            for c, (_, digits, _) in COLUMNS.items()
        ]
        rows.append([name, f"{stage['images']}{resized}", *cells])
    for split, claims in summary["claims"].items():
        rows.append([f"claimed, {split}", "", *(claims.get(metric, "–") for _, _, metric in COLUMNS.values())])
        for name, agrees in summary["agrees"][split].items():
            cells = [{True: "agrees", False: "differs"}.get(agrees.get(c), "–") for c in COLUMNS]
            rows.append([f"– {name}", "", *cells])
    headers = ["stage", "images", *(title for title, _, _ in COLUMNS.values())]
    return "\n".join([table(headers, rows), *(f"remark: {remark}" for remark in summary["remarks"])])


def _choose_versions(request: EvaluationRequest, remarks: list[str]) -> dict[int, str]:
    """Return the versions to measure, each with the name of its stage."""
    published = versions(request.repository / MODEL)
    chosen = sorted(set(request.versions)) or published
    if missing := [str(version) for version in chosen if version not in published]:
        known = ", ".join(map(str, published)) or "none"
        raise ExportError(f"version {', '.join(missing)} is not published in {request.repository} (published: {known})")
    if not chosen or not (request.url or request.server_python):
        reason = "no --server-python" if chosen else "no engine is published"
        remarks.append(f"only PyTorch is measured, no version: {reason}")
        return {}
    checkpoint, stages = sha256(checkpoint_path(request.package)), {}
    for version in chosen:
        engines = documents(request.repository / MODEL / str(version))
        stages[version] = f"version {version} ({', '.join(sorted({e.get('precision', 'unknown') for e in engines}))})"
        if any(engine.get("package", {}).get("checkpoint_sha256") != checkpoint for engine in engines):
            remarks.append(f"version {version} was built from another checkpoint than this package's")
    return stages


def _read_squares(pairs: list[Pair], remarks: list[str]) -> list[tuple[Pixels, Pixels]]:
    """Read every pair at the network's size."""
    squares, unequal = [], []
    with step(f"reading {len(pairs)} pairs"):
        for pair in track(pairs):
            image, target = open_image(pair.input), open_image(pair.target)
            unequal += [pair.name] if image.size != target.size else []
            squares.append((resize_to_square(image), resize_to_square(target)))
    if unequal:
        remarks.append(f"input and target differ in shape in {len(unequal)} pairs, the first is {unequal[0]}")
    return squares


def _address(request: EvaluationRequest, stages: dict[int, str], stack: contextlib.ExitStack) -> str:
    if request.url or request.server_python is None:
        return request.url
    wanted = ",".join(map(str, stages))
    with step(f"starting Triton with version {wanted}"):
        return stack.enter_context(triton.start_triton(request.server_python, request.repository, "--versions", wanted))


def _measure_core(
    stage: str, pairs: list[Pair], squares: list[tuple[Pixels, Pixels]], run: Runner, measurements: Measurements
) -> None:
    lowest = float("inf")
    with step(stage):
        for pair, (image, target) in track(list(zip(pairs, squares, strict=True))):
            output = np.asarray(run(tensor_from_pixels(image)), np.float32)
            if not np.isfinite(output).all():
                raise ExportError(f"{stage}: the output for {pair.name} holds NaN or infinity; nothing was written")
            output = output.clip(0, 1)
            row = figures(output[0].transpose(1, 2, 0), target)
            if row["psnr"] < lowest:
                lowest = row["psnr"]
                picture = difference_picture(tensor_from_pixels(image), output, tensor_from_pixels(target))
                measurements.worst = (f"{pair.name} ({stage}, {lowest:.2f} dB)", picture)
            measurements.add(stage, pair, (SIDE, SIDE), False, row)


def _measure_enhance(stage: str, pairs: list[Pair], client: Any, measurements: Measurements) -> None:
    """Measure what a user gets from the file: both images upright, the target resized to the result."""
    with step(f"{stage} at the photographs' own resolution"):
        for pair in track(pairs):
            try:
                result = open_image(io.BytesIO(triton.enhance(client, pair.input.read_bytes())), upright=True)
            except InvalidPhotograph as error:
                measurements.remarks.append(f"enhance rejects {pair.name}: {error}")
                continue
            target = open_image(pair.target, upright=True)
            resized = target.resize(result.size, Image.Resampling.BILINEAR)  # a copy where the sizes are equal
            row = figures(np.asarray(result) / 255, np.asarray(resized))
            measurements.add(stage, pair, result.size, result.size != target.size, row)


def _summary(request: EvaluationRequest, measurements: Measurements, claims: Claims) -> dict[str, Any]:
    stages: dict[str, Any] = {}
    for name in dict.fromkeys(row["stage"] for row in measurements.rows):
        rows = [row for row in measurements.rows if row["stage"] == name]
        stages[name] = {"images": len(rows), "targets_resized": sum(row["target_resized"] for row in rows)}
        for column in COLUMNS:
            values = [row[column] for row in rows]
            stages[name][column] = {"mean": float(np.mean(values)), "deviation": float(np.std(values))}
    claimed = {split: claims.of(split) for split in SPLITS if claims.of(split)}
    agrees = {
        split: {
            name: {c: stated[m].agrees(**stage[c]) for c, (_, _, m) in COLUMNS.items() if m in stated}
            for name, stage in stages.items()
            if not name.startswith("enhance")  # claims are about the network's own square
        }
        for split, stated in claimed.items()
    }
    return {
        "package": str(request.package),
        "pairs": str(request.pairs),
        "stages": stages,
        "claims": {split: {m: str(claim) for m, claim in stated.items()} for split, stated in claimed.items()},
        "agrees": agrees,
        "worst": measurements.worst[0],
        "remarks": [*measurements.remarks, *claims.remarks],
        "output": str(request.output),
    }


def _write(folder: Path, summary: dict[str, Any], measurements: Measurements) -> None:
    text, picture = io.StringIO(), io.BytesIO()
    writer = csv.DictWriter(text, list(measurements.rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(measurements.rows)
    Image.fromarray(measurements.worst[1]).save(picture, "PNG")
    document = json.dumps({**summary, "images": measurements.rows}, indent=2, ensure_ascii=False) + "\n"
    write_bytes(folder / "images.csv", text.getvalue().encode())
    write_bytes(folder / "worst.png", picture.getvalue())
    write_bytes(folder / "evaluation.json", document.encode())
    say(f"written to {folder}: images.csv, evaluation.json, and worst.png of {summary['worst']}")
