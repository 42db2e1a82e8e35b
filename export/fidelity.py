"""How faithful an engine is to the float32 network, on real photographs.

The photographs are prepared by ``imaging``, exactly as the server prepares them. The reference is the network as the
package has it, in PyTorch float32, before any rewrite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from export.errors import ExportError
from export.metrics import psnr
from export.network import Restormer
from imaging import SUFFIXES, InvalidPhotograph, decode_small, framed

Tensor = NDArray[np.float32]
Runner = Callable[[Tensor], Tensor]
MOST_PHOTOGRAPHS = 16


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """One rung of the ladder: the worst figures over all photographs. ``psnr`` is in dB, the errors in [0, 1]."""

    rung: str
    max_error: float
    mean_error: float
    psnr: float
    worst: str

    def row(self) -> str:
        """One line of the table."""
        return f"{self.rung:<28} {self.max_error:10.2e} {self.mean_error:10.2e} {self.psnr:8.1f}  {self.worst}"


HEADER = f"{'against torch float32':<28} {'max error':>10} {'mean':>10} {'PSNR dB':>8}  worst photograph"


def core_tensors(folder: Path) -> dict[str, Tensor]:
    """The photographs of a folder as core tensors ``[1, 3, 512, 512]``, by file name."""
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)[:MOST_PHOTOGRAPHS]
    if not paths:
        raise ExportError(
            f"no photographs in {folder}: fidelity is measured on photographs, give a folder as PHOTOS=..."
        )
    return dict(_prepared(paths))


def _prepared(paths: list[Path]) -> Iterator[tuple[str, Tensor]]:
    for path in paths:
        try:
            yield path.name, framed(decode_small(path.read_bytes()))[None]
        except InvalidPhotograph as error:
            raise ExportError(f"{path}: {error}") from error


def torch_runner(network: Restormer) -> Runner:
    """PyTorch float32 on this CPU."""

    def run(image: Tensor) -> Tensor:
        with torch.inference_mode():
            result: Tensor = network(torch.from_numpy(image)).numpy()
        return result

    return run


def fidelity(rung: str, run: Runner, images: dict[str, Tensor], references: dict[str, Tensor]) -> Fidelity:
    """Runs ``run`` on every image and compares with the reference; outputs clamped to [0, 1] as they are served.

    Raises `ExportError` if an output is not finite.
    """
    figures = {}
    for name, image in images.items():
        output, reference = run(image), references[name]
        if not np.isfinite(output).all():
            raise ExportError(f"{rung}: the output for {name} holds NaN or infinity")
        error = np.abs(np.clip(output, 0, 1) - np.clip(reference, 0, 1))
        figures[name] = (psnr(error, np.zeros_like(error)), float(error.max()), float(error.mean()))
    worst = min(figures, key=lambda name: figures[name][0])
    return Fidelity(
        rung=rung,
        psnr=min(figures[worst][0], 200.0),  # equal pictures: infinity is not JSON
        max_error=max(f[1] for f in figures.values()),
        mean_error=max(f[2] for f in figures.values()),
        worst=worst,
    )
