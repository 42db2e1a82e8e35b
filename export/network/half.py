"""Emulate half precision on a CPU as a tensor core computes it, and measure the headroom of float16 tensors.

PyTorch's own float16 and bfloat16 on a CPU are slow and sum in an unspecified order. A tensor core multiplies halves
and adds in float32. So does this emulation: each convolution and product is summed in float32 and rounded once.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.module_tracker import ModuleTracker

from export.errors import ExportError

LARGEST = 65504.0  #: the largest float16
HEADROOM = 2.0  #: minimum bits between the largest magnitude of a float16 tensor and `LARGEST`
_HALVES = (torch.float16, torch.bfloat16)
_SUMS = {torch.ops.aten.convolution.default, torch.ops.aten.bmm.default, torch.ops.aten.mm.default}
#: Operations, besides views, that only move values.
_MOVES = {"cat", "clone", "copy_", "_unsafe_view", "pixel_unshuffle"}


@dataclass(frozen=True)
class Range:
    """The largest magnitude of a float16 tensor; ``bits`` is the headroom to 65,504."""

    tensor: str
    peak: float

    @property
    def bits(self) -> float:
        """log2(65,504 / peak); negative or minus infinity if it overflows."""
        if not math.isfinite(self.peak):
            return -math.inf
        return math.log2(LARGEST / self.peak) if self.peak else math.inf


class Half(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context in which sums of halves (float16, bfloat16) on a CPU are computed in float32 and rounded once.

    ``peaks``, if given, collects the largest magnitude of every float16 result (of sums before they are rounded).
    """

    def __init__(self, peaks: dict[str, float] | None = None, where: Callable[[], str] = str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._peaks, self._where = peaks, where

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        tensors = [a for a in args if isinstance(a, Tensor)]
        half = next((a.dtype for a in tensors if a.dtype in _HALVES and a.device.type == "cpu"), None)
        if func in _SUMS and half is not None:
            exact = func(*(a.float() if isinstance(a, Tensor) else a for a in args), **options)
            result = exact.to(half)
        else:
            result = exact = func(*args, **options)
        self._record(func, result, exact)
        return result

    def _record(self, func: Any, result: Any, exact: Any) -> None:
        if isinstance(result, tuple):  # LayerNorm's, with its statistics
            result, exact = result[0], exact[0]
        if self._peaks is None or not isinstance(result, Tensor) or result.dtype != torch.float16:
            return
        operation = func._schema.name.removeprefix("aten::")
        if operation not in _MOVES and not func.is_view:
            module = self._where().partition(".")[2] or "network"  # without the class of the whole network
            name = f"{module}: {operation}"
            peak = float(exact.abs().max())
            self._peaks[name] = max(self._peaks.get(name, 0.0), peak) if math.isfinite(peak) else math.inf


class Tf32(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context in which float32 inputs of convolutions and products are rounded to TF32's ten bits of mantissa."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _SUMS:
            args = tuple(_round_to_tf32(a) if isinstance(a, Tensor) and a.dtype == torch.float32 else a for a in args)
        return func(*args, **(kwargs or {}))


def _round_to_tf32(x: Tensor) -> Tensor:
    """Round to the nearest number whose last 13 of 23 mantissa bits are zero, ties away from zero."""
    return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def measure_ranges(network: nn.Module, images: Mapping[str, NDArray[np.float32]]) -> list[Range]:
    """Measure every float16 tensor of a half precision network on photographs; sort by headroom, smallest first."""
    peaks: dict[str, float] = {}
    with ModuleTracker() as tracker, torch.no_grad(), Half(peaks, lambda: max(tracker.parents, key=len)):
        for image in images.values():
            network(torch.from_numpy(image))
    return sorted((Range(name, peak) for name, peak in peaks.items()), key=lambda reached: reached.bits)


def require_headroom(ranges: list[Range]) -> None:
    """Raise `ExportError` for a tensor with less than two bits of headroom to the largest float16."""
    if ranges and ranges[0].bits < HEADROOM:
        tensor, peak, bits = ranges[0].tensor, ranges[0].peak, ranges[0].bits
        raise ExportError(
            f"{tensor} reaches {peak:.3g}: {bits:.1f} bits below float16's largest number, "
            f"the minimum is {HEADROOM:.0f}; nothing was published. --precision bf16 has float32's range"
        )


def format_ranges(ranges: list[Range], rows: int = 10) -> list[str]:
    """Format the tensors with the least headroom as a table."""
    head = f"{'float16 tensor':<48} {'largest':>10} {'headroom':>9}"
    body = [f"{r.tensor:<48} {r.peak:10.4g} {r.bits:4.1f} bits" for r in ranges[:rows]]
    return [head, *body, f"({len(ranges)} tensors; shown are the {min(rows, len(ranges))} with the least headroom)"]


def emulation(network: nn.Module, *, tf32: bool = False) -> Any:
    """Return the context that a network runs in on a CPU: `Tf32` if requested, `Half` for half precision, else none."""
    if tf32:
        return Tf32()  # type: ignore[no-untyped-call]
    is_half = any(p.dtype in _HALVES and p.device.type == "cpu" for p in network.parameters())
    return Half() if is_half else nullcontext()
