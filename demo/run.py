"""``make demo``: every photograph of demo/photos through the real server; pictures, a page, and one JSON line.

Starts Triton, or uses the one that ``make serve`` left running (and then leaves it running), enhances each photograph
over gRPC, and writes into ``out/``: the enhanced photographs, before and after side by side, and ``index.html``.
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

import numpy as np
from PIL import Image
from restormer_client import EnhanceError, Enhancer

from demo.page import Shown, page
from demo.pairs import curve_applied
from export.metrics import psnr

DEMO = Path(__file__).parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server-python", type=Path, required=True, help="interpreter of the server's environment")
    parser.add_argument("--grpc-port", type=int, default=8001)
    parser.add_argument("--metrics-port", type=int, default=8002)
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--state", type=Path, default=Path(".run"), help="the server's state folder")
    parser.add_argument("--photos", type=Path, default=DEMO / "photos")
    parser.add_argument("--output", type=Path, default=Path("out"))
    arguments = parser.parse_args()
    started = time.monotonic()
    try:
        with served(arguments), Enhancer(f"127.0.0.1:{arguments.grpc_port}") as enhancer:
            version = enhancer.server_version()
            shown = [enhanced(enhancer, path, arguments.output) for path in photographs(arguments.photos)]
    except (EnhanceError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        return error.returncode  # the server has said why
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    engine = json.loads((arguments.repository / "restormer/1/model.onnx.json").read_text(encoding="utf-8"))
    subtitle = (
        f"Triton {version} · engine {engine['precision']} on {engine['target']} · {engine['network']['architecture']}"
    )
    index = arguments.output / "index.html"
    index.write_text(page(shown, subtitle=subtitle), encoding="utf-8")
    overview(shown).save(arguments.output / "overview.jpg", quality=88, optimize=True)
    print(f"look at {index}", file=sys.stderr)
    print(json.dumps(totals(shown, time.monotonic() - started, engine["precision"], version)))
    return 0


@contextlib.contextmanager
def served(arguments: argparse.Namespace) -> Iterator[None]:
    """The server for as long as the block runs; one that was there before stays."""
    names = ("grpc_port", "metrics_port", "repository", "state")
    flags = [part for name in names for part in (f"--{name.replace('_', '-')}", str(getattr(arguments, name)))]
    command = [str(arguments.server_python), "-m", "server", *flags]
    if subprocess.run([*command, "status"], stderr=subprocess.DEVNULL, check=False).returncode == 0:
        print("using the server that is running", file=sys.stderr)
        yield
        return
    subprocess.run([*command, "start"], check=True)
    try:
        yield
    finally:
        subprocess.run([*command, "stop"], check=True)


def photographs(folder: Path) -> list[Path]:
    paths = sorted(folder.glob("*.jpg"))
    if not paths:
        raise FileNotFoundError(f"no *.jpg in {folder}: put photographs there, or give another folder with --photos")
    return paths


def enhanced(enhancer: Enhancer, path: Path, output: Path) -> Shown:
    """One photograph: enhanced over gRPC, measured against its target, and saved."""
    before = path.read_bytes()
    print(f"  {path.name} ...", end="", file=sys.stderr, flush=True)
    started = time.monotonic()
    after = enhancer.enhance(before, timeout=120)
    seconds = time.monotonic() - started
    output.mkdir(parents=True, exist_ok=True)
    (output / path.name).write_bytes(after)
    image, result = opened(before), opened(after)
    side_by_side(image, result).save(output / f"{path.stem}-before-after.jpg", quality=90)
    credit = json.loads((DEMO / "CREDITS.json").read_text(encoding="utf-8")).get(path.name, {})
    figures = measured(np.asarray(image), np.asarray(result), DEMO / "targets" / path.name)
    print(f" {image.width}x{image.height}, {seconds:.2f} s", file=sys.stderr)
    return Shown(
        name=path.stem, before=before, after=after, pixels=f"{image.width}x{image.height}", seconds=seconds,
        credit=f"{credit['by']} ({credit['from']}), light synthetic" if credit else "", **figures,
    )  # fmt: skip


def measured(image: np.ndarray, result: np.ndarray, target_path: Path) -> dict[str, float]:
    """PSNR at full resolution against the fused target: of the input, of the global curve, of the served result."""
    if not target_path.is_file():
        return {}
    curve = np.array(json.loads((DEMO / "results/curve.json").read_text(encoding="utf-8")))
    unit = [np.asarray(array, np.float32) / 255 for array in (image, result, opened(target_path.read_bytes()))]
    return {
        "psnr_in": psnr(unit[0], unit[2]),
        "psnr_curve": psnr(curve_applied(curve, unit[0]), unit[2]),
        "psnr_out": psnr(unit[1], unit[2]),
    }


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def side_by_side(before: Image.Image, after: Image.Image) -> Image.Image:
    gap = max(4, before.width // 200)
    picture = Image.new("RGB", (before.width * 2 + gap, before.height), "white")
    picture.paste(before, (0, 0))
    picture.paste(after, (before.width + gap, 0))
    return picture


def overview(shown: list[Shown], *, height: int = 320, gap: int = 6) -> Image.Image:
    """All photographs in one picture: before above, after below (the README's picture)."""
    rows = []
    for kind in ("before", "after"):
        images = [opened(getattr(p, kind)) for p in shown]
        rows.append([image.resize((image.width * height // image.height, height)) for image in images])
    width = sum(image.width + gap for image in rows[0]) - gap
    picture = Image.new("RGB", (width, 2 * height + gap), "white")
    for row, images in enumerate(rows):
        left = 0
        for image in images:
            picture.paste(image, (left, row * (height + gap)))
            left += image.width + gap
    return picture


def totals(shown: list[Shown], seconds: float, precision: str, version: str) -> dict[str, object]:
    """The last line of output: means over the photographs that have a target."""

    def mean(name: str) -> float | None:
        values = [value for p in shown if (value := getattr(p, name)) is not None]
        return round(float(np.mean(values)), 2) if values else None

    return {
        "photos": len(shown),
        "seconds": round(seconds, 1),
        **{name: mean(name) for name in ("psnr_in", "psnr_curve", "psnr_out")},
        "precision": precision,
        "server": f"Triton {version}",
    }


if __name__ == "__main__":
    sys.exit(main())
