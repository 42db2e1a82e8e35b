"""Run ``make demo``: enhance the photographs of demo/photos with a real server; print a JSON line as the last line.

Start Triton, or use a server that ``make serve`` started (and leave it running). Enhance each photograph over gRPC and
write into ``out/``: the enhanced photographs, pictures of before and after, and ``index.html``. Then evaluate the
package and its engine on the pairs of demo/test.jsonl, as ``make evaluate`` does.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from restormer_client import EnhanceError, Enhancer

from demo.curve import apply_curve
from demo.page import FIGURES, PagePhotograph, page_html
from export import evaluate
from export.errors import ExportError
from export.files import sha256
from export.metrics import psnr
from export.request import photographs as find_photographs
from export.termination import exit_on_sigterm

DEMO = Path(__file__).parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server-python", type=Path, required=True, help="interpreter of the server's environment")
    parser.add_argument("--photos", type=Path, default=DEMO / "photos", help="folder of photographs to enhance")
    parser.add_argument("--package", type=Path, default=DEMO / "package", help="package of the engine that is served")
    parser.add_argument("--pairs", type=Path, default=DEMO / "test.jsonl", help="pairs to evaluate on")
    parser.add_argument("--output", type=Path, default=Path("out"), help="folder for the results")
    parser.add_argument("--record", type=Path, help="JSON file to add the figures to, for `make report`")
    parser.add_argument("server_flags", nargs="*", help="after --: flags of python -m server")
    arguments = parser.parse_args()
    started = time.monotonic()
    command = [str(arguments.server_python), "-m", "server", *arguments.server_flags]
    try:
        paths = find_photographs(arguments.photos, "--photos")
        with exit_on_sigterm(), run_server(command) as server:
            engine = json.loads(Path(f"{server['engine']}.json").read_text(encoding="utf-8"))
            if sha256(Path(f"{server['engine']}.json")) != server["engine_sha256"]:
                raise EnhanceError("the running server serves an older engine: make stop, then repeat the command")
            with Enhancer(server["url"]) as enhancer:
                version = enhancer.metadata().version
                photographs = [enhance_photograph(enhancer, path, arguments.output) for path in paths]
            evaluation = evaluate_served(server, arguments.package, arguments.pairs, arguments.output / "evaluate")
    except (EnhanceError, ExportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        return error.returncode  # the server printed the reason
    architecture = engine["network"]["architecture"]
    subtitle = f"Triton {version} · engine {engine['precision']} on {engine['target']} · {architecture}"
    index = arguments.output / "index.html"
    index.write_text(page_html(photographs, subtitle=subtitle), encoding="utf-8")
    make_overview(photographs).save(arguments.output / "overview.jpg", quality=88, optimize=True)
    print(f"look at {index}", file=sys.stderr)
    figures = summarize(photographs, time.monotonic() - started, engine["precision"], version) | evaluation
    if arguments.record:
        write_record(arguments.record, figures, engine, photographs)
    print(json.dumps(figures))
    return 0


@contextlib.contextmanager
def run_server(command: list[str]) -> Iterator[dict[str, str]]:
    """Run the server during the block and yield its `status`; use a running server, and do not stop it."""
    status = [*command, "status"]
    before = subprocess.run(status, capture_output=True, text=True, check=False)
    if before.returncode == 0:
        print("using the server that is running", file=sys.stderr)
        yield json.loads(before.stdout)
        return
    try:
        subprocess.run([*command, "start"], check=True)
        yield json.loads(subprocess.run(status, stdout=subprocess.PIPE, text=True, check=True).stdout)
    finally:
        subprocess.run([*command, "stop"], check=True)


def evaluate_served(server: dict[str, str], package: Path, pairs: Path, output: Path) -> dict[str, object]:
    """Evaluate the package and the served version; return the means by stage, and the package's claims."""
    version = Path(server["engine"]).parent
    request = evaluate.EvaluationRequest(
        package=package, pairs=pairs, versions=(int(version.name),), repository=version.parents[1], url=server["url"],
        output=output,
    )  # fmt: skip
    summary = evaluate.evaluate(request)
    print(evaluate.format_table(summary), file=sys.stderr)
    means = {
        stage: {column: round(figures[column]["mean"], 4) for column in evaluate.COLUMNS}
        for stage, figures in summary["stages"].items()
    }
    return {"test": means, "claimed": summary["claims"].get("test", {})}


def enhance_photograph(enhancer: Enhancer, path: Path, output: Path) -> PagePhotograph:
    """Enhance one photograph over gRPC, save it, and measure it against its target."""
    before = path.read_bytes()
    print(f"  {path.name} ...", end="", file=sys.stderr, flush=True)
    started = time.monotonic()
    after = enhancer.enhance(before, timeout=120)
    seconds = time.monotonic() - started
    output.mkdir(parents=True, exist_ok=True)
    (output / path.name).write_bytes(after)
    image, result = open_image(before), open_image(after)
    both = join_pictures([[image, result]], gap=max(4, image.width // 200))
    both.save(output / f"{path.stem}-before-after.jpg", quality=90)
    credit = json.loads((DEMO / "CREDITS.json").read_text(encoding="utf-8")).get(path.name, {})
    figures = measure_photograph(image, result, DEMO / "targets" / path.name)
    print(f" {image.width}x{image.height}, {seconds:.2f} s", file=sys.stderr)
    return PagePhotograph(
        name=path.stem, before=before, after=after, pixels=f"{image.width}x{image.height}", seconds=seconds,
        credit=f"{credit['by']} ({credit['from']}), light synthetic" if credit else "", psnr=figures,
    )  # fmt: skip


def measure_photograph(image: Image.Image, result: Image.Image, target_path: Path) -> dict[str, float]:
    """Measure PSNR at full resolution against the fused target, for input, global curve and result; {} without one."""
    target = open_image(target_path.read_bytes()) if target_path.is_file() else None
    if target is None or target.size != image.size:
        return {}
    curves = json.loads((DEMO / "results/curve.json").read_text(encoding="utf-8"))
    curve = np.array(curves["stretched 3:2"])  # the photographs' aspect ratio
    before, after, reference = (np.asarray(each, np.float32) / np.float32(255) for each in (image, result, target))
    compared = (before, apply_curve(curve, before), after)
    return {name: psnr(each, reference) for name, each in zip(FIGURES, compared, strict=True)}


def open_image(data: bytes) -> Image.Image:
    """Decode the picture, turn it upright and convert it to RGB."""
    return ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")


def make_overview(photographs: list[PagePhotograph]) -> Image.Image:
    """Join all photographs in one picture: before above, after below (the README's picture)."""
    height, rows = 320, []
    for files in ([p.before for p in photographs], [p.after for p in photographs]):
        images = map(open_image, files)
        rows.append([image.resize((image.width * height // image.height, height)) for image in images])
    return join_pictures(rows, gap=6)


def join_pictures(rows: list[list[Image.Image]], gap: int) -> Image.Image:
    """Join rows of pictures of one height."""
    height = rows[0][0].height + gap
    width = sum(image.width + gap for image in rows[0])
    picture = Image.new("RGB", (width - gap, len(rows) * height - gap), "white")
    for number, row in enumerate(rows):
        left = 0
        for image in row:
            picture.paste(image, (left, number * height))
            left += image.width + gap
    return picture


def summarize(photographs: list[PagePhotograph], seconds: float, precision: str, version: str) -> dict[str, object]:
    """Return the figures for the last line of output: means over the photographs that have a target."""

    def mean(name: str) -> float | None:
        values = [p.psnr[name] for p in photographs if p.psnr]
        return round(float(np.mean(values)), 2) if values else None

    return {
        "photos": len(photographs),
        "seconds": round(seconds, 1),
        **{name: mean(name) for name in FIGURES},
        "precision": precision,
        "server": f"Triton {version}",
    }


def write_record(
    path: Path, figures: dict[str, object], engine: dict[str, Any], photographs: list[PagePhotograph]
) -> None:
    """Add the figures of this precision to the JSON file, for ``make report``."""
    document = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    decisive = engine["fidelity"]["decided_by"]
    stage = next(stage for stage in engine["fidelity"]["ladder"] if stage["rung"] == decisive)
    rows = {p.name: p.psnr for p in photographs}
    document[str(engine["precision"])] = {**figures, "fidelity": stage, "photographs": rows}
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
