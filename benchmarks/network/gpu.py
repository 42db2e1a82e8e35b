"""Measure the owner's base network in PyTorch on a GPU (``make benchmark-gpu``), in less than eight minutes.

Needs only Python, PyTorch, NumPy and Pillow: on a machine without the project's environments run
``python3 -m benchmarks.network.gpu``. The weights and images are random, so decibels show only that two forms compute
the same. ``--device cpu --size tiny --side 16`` runs the same code without a GPU.

Each row is a candidate at one batch size: the median time of a call by CUDA events, the peak of allocated memory, and
the lowest PSNR of an image of the batch against float32 without TF32 on the same device. The roof is the minimum
time at the device's own measured rates: an operation takes as long as its arithmetic at the rate of a large matrix
product of its type, or its bytes at the rate of a large copy (the roofline model: Williams, Waterman and Patterson,
"Roofline", 2009). It counts unfused operations, as eager PyTorch runs them; ``torch.compile`` fuses, so it
may exceed this roof. A row that fails gives its reason, and the next one runs.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.network.random_weights import randomize
from export.metrics import psnr
from export.network.architecture import OWNER_SIZES, owner_network
from export.network.half import emulation
from export.network.restormer import Restormer
from export.network.rewrites import HALVES, rewrite_network, to_floating_type
from operations.recording import (
    add_record_option,
    describe_circumstances,
    exit_on_interrupt,
    finish_run,
    parse_numbers,
    write_record,
)

BUDGET = 450.0  #: seconds for all rows; a row that needs more than is left is not started
SECONDS = 2.0  #: minimum time of the calls of a row; each row has at least `CALLS` calls
CALLS = 3
ARITHMETIC_SIDE = 128  #: side of the image on which half arithmetic is compared with its emulation on a CPU
Row = dict[str, Any]
Operations = list[tuple[float, float]]  #: floating-point operations and bytes of each


@dataclass(frozen=True)
class Candidate:
    """A form of the network.

    ``batches`` limits the batch sizes that it is measured at; ``needs`` is how many seconds a row may take.
    """

    name: str
    precision: str = "fp32"
    tf32: bool = True
    autocast: bool = False
    channels_last: bool = False
    cuda_graph: bool = False
    compiled: bool = False
    batches: tuple[int, ...] = ()
    needs: float = 15.0

    @property
    def arithmetic(self) -> str:
        """The type of most products: it selects the rate of the roof."""
        if self.autocast:
            return "fp16"
        return "tf32" if self.precision == "fp32" and self.tf32 else self.precision


CANDIDATES = (
    Candidate("eager float32, TF32 off", tf32=False),
    Candidate("eager float32, TF32 on"),
    Candidate("eager float16, float32 islands", "fp16"),
    Candidate("eager bfloat16, float32 islands", "bf16"),
    Candidate("autocast float16", autocast=True),
    Candidate("eager float16, channels-last", "fp16", channels_last=True),
    Candidate("float16, CUDA graph", "fp16", cuda_graph=True),
    Candidate("torch.compile float16", "fp16", compiled=True, batches=(8,), needs=180.0),
)
REFERENCE = CANDIDATES[0]


class Device:
    """The device that is measured, and its clock and memory counter."""

    def __init__(self, name: str) -> None:
        self.torch = torch.device(name)
        self.is_cuda = self.torch.type == "cuda"
        self.name = torch.cuda.get_device_name(self.torch) if self.is_cuda else "CPU"

    def time_call(self, run: Callable[[], Any]) -> float:
        """Return the milliseconds of one call: by CUDA events, or by the wall clock of a CPU."""
        if not self.is_cuda:
            started = time.perf_counter()
            run()
            return (time.perf_counter() - started) * 1e3
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))

    def reset_memory(self) -> None:
        """Free cached memory and start a new peak."""
        if self.is_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_mib(self) -> float | None:
        """Return the peak of allocated memory since `reset_memory`, or None on a CPU."""
        return torch.cuda.max_memory_allocated() / 2**20 if self.is_cuda else None


class Work(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context that lists the floating-point operations and the bytes read and written of every operation."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: Operations = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            count = flop_registry.get(func._overloadpacket)
            flops = count(*args, **(kwargs or {}), out_val=result) if count else 0
            results = result if isinstance(result, tuple) else (result,)
            tensors = [each for each in (*args, *results) if isinstance(each, Tensor)]
            self.operations.append((float(flops), float(sum(each.numel() * each.element_size() for each in tensors))))
        return result


def count_work(network: Restormer, batch: int, side: int) -> Operations:
    """Count the operations of a network for a batch of square images, without computing them."""
    meta = copy.deepcopy(network).to("meta")
    work = Work()
    with work:
        meta(torch.empty(batch, 3, side, side, device="meta"))
    return work.operations


def roof_ms(operations: Operations, flops: float, bandwidth: float) -> float:
    """Return the minimum time in milliseconds, by rates in FLOP/s and bytes/s."""
    return 1e3 * sum(max(each / flops, moved / bandwidth) for each, moved in operations)


def measure_rates(device: Device) -> dict[str, float]:
    """Measure matrix products (FLOP/s, by type) and a copy (bytes/s, read and written); the best of ten calls each."""
    side, numbers = (8192, 2**28) if device.is_cuda else (128, 2**18)
    rates = {}
    for name, dtype, tf32 in (
        ("fp32", torch.float32, False),
        ("tf32", torch.float32, True),
        ("fp16", torch.float16, True),
        ("bf16", torch.bfloat16, True),
    ):
        allow_tf32(tf32)
        square = torch.rand(side, side, device=device.torch).to(dtype)
        rates[name] = 2e3 * side**3 / _best_ms(device, partial(torch.matmul, square, square))
    source = torch.rand(numbers, device=device.torch)
    target = torch.empty_like(source)
    rates["copy"] = 2e3 * source.nbytes / _best_ms(device, lambda: target.copy_(source))
    return rates


def _best_ms(device: Device, run: Callable[[], Any]) -> float:
    return min(device.time_call(run) for _ in range(11))


def allow_tf32(allowed: bool) -> None:
    """Let float32 products and convolutions use TF32, or not."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def prepare_call(candidate: Candidate, network: Restormer, images: Tensor) -> Callable[[], Tensor]:
    """Return a call that runs the candidate on these images and returns its output."""
    allow_tf32(candidate.tf32)
    layout = torch.channels_last if candidate.channels_last else torch.contiguous_format
    images = images.contiguous(memory_format=layout)
    model: Any = copy.deepcopy(to_floating_type(network, candidate.precision))
    model = model.to(images.device, memory_format=layout)
    if candidate.compiled:
        model = torch.compile(model)
    if candidate.cuda_graph:
        return _captured(model, images)

    def run() -> Tensor:
        with torch.autocast(images.device.type, torch.float16) if candidate.autocast else nullcontext():
            output: Tensor = model(images)
        return output

    return run


def _captured(model: Callable[[Tensor], Tensor], images: Tensor) -> Callable[[], Tensor]:
    """Capture a call in a CUDA graph after calls on a side stream, as torch.cuda.graph's documentation asks."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(CALLS):
            model(images)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = model(images)

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay


def measure(
    candidate: Candidate, network: Restormer, images: Tensor, reference: Tensor, device: Device, roof: float
) -> Row:
    """Measure a candidate on a batch. ``reference``: float32 outputs on the CPU; ``roof``: milliseconds."""
    device.reset_memory()
    run = prepare_call(candidate, network, images)
    output = run().cpu()
    run()
    times: list[float] = []
    started = time.monotonic()
    while len(times) < CALLS or time.monotonic() - started < SECONDS:
        times.append(device.time_call(run))
    median = statistics.median(times)
    return {
        "median_ms": median,
        "least_ms": min(times),
        "most_ms": max(times),
        "calls": len(times),
        "photographs_per_second": len(images) * 1e3 / median,
        "peak_mib": device.peak_mib(),
        "psnr_db": lowest_psnr(output, reference),
        "roof_ms": roof,
        "roof_share": roof / median,
    }


def lowest_psnr(output: Tensor, reference: Tensor) -> float | None:
    """Return the lowest PSNR in dB of an image of the batch (peak 1.0); None if it is not finite, as for equal ones."""
    lowest = float(np.min([psnr(*pair) for pair in zip(output.numpy(), reference.numpy(), strict=True)]))
    return lowest if np.isfinite(lowest) else None


def compare_arithmetic(network: Restormer, device: Device) -> dict[str, Row]:
    """Compare half precision on the device with float32, and with its emulation on a CPU (`export.network.half`)."""
    torch.manual_seed(1)
    image = torch.rand(1, 3, ARITHMETIC_SIDE, ARITHMETIC_SIDE)
    exact, rows = network(image), {}
    for name in HALVES:
        half = to_floating_type(network, name)
        with emulation(half):
            emulated = half(image)
        real = half.to(device.torch)(image.to(device.torch)).cpu()
        rows[name] = {
            "device_db": lowest_psnr(real, exact),
            "emulation_db": lowest_psnr(emulated, exact),
            "between_db": lowest_psnr(real, emulated),
        }
    return rows


def attempt(work: Callable[[], Row]) -> Row:
    """Return the row of a piece of work, or the reason why there is none."""
    try:
        return work()
    except Exception as error:  # noqa: BLE001  any exception of PyTorch is a row of the table
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        return {"not_run": f"{type(error).__name__}: {first}"[:300]}


def run_all(device: Device, network: Restormer, side: int, batches: list[int], save: Callable[[Row], None]) -> Row:
    """Measure everything; after each row, print it and call ``save`` with the figures so far."""
    deadline = time.monotonic() + BUDGET
    figures: Row = {"device": device.name, "torch": torch.__version__, "cuda": torch.version.cuda, "side": side}
    figures["rates"] = rates = measure_rates(device)
    print(f"{device.name}: " + ", ".join(f"{name} {rate / 1e12:.3g}" for name, rate in rates.items()) + " (T/s)")
    figures["arithmetic"] = attempt(lambda: compare_arithmetic(network, device))
    for name, row in figures["arithmetic"].items():
        print(f"{name} at {ARITHMETIC_SIDE}x{ARITHMETIC_SIDE}: {row}")
    torch.manual_seed(0)
    images = torch.rand(max(batches), 3, side, side, device=device.torch)
    # Image by image: a form that mixes the images of a batch has low decibels.
    references = torch.cat([prepare_call(REFERENCE, network, image[None])().cpu() for image in images])
    figures["rows"] = []
    print(HEADER.format("", *COLUMNS))
    for candidate in CANDIDATES:
        typed = to_floating_type(network, candidate.precision if not candidate.autocast else "fp16")
        for batch in [each for each in batches if not candidate.batches or each in candidate.batches]:
            roof = roof_ms(count_work(typed, batch, side), rates[candidate.arithmetic], rates["copy"])
            work = partial(measure, candidate, network, images[:batch], references[:batch], device, roof)
            has_time = deadline - time.monotonic() > candidate.needs
            reason = {"not_run": f"not started: less than {candidate.needs:.0f} s of {BUDGET:.0f} s left"}
            row = {"candidate": candidate.name, "batch": batch, **(attempt(work) if has_time else reason)}
            print(format_row(row), flush=True)
            figures["rows"].append(row)
            save(figures)
    return figures


COLUMNS = {
    "batch": "batch", "ms": "median_ms", "a second": "photographs_per_second", "MiB": "peak_mib", "dB": "psnr_db",
    "of the roof": "roof_share",
}  # fmt: skip
HEADER = "{:<32}" + "{:>12}" * len(COLUMNS)


def format_row(row: Mapping[str, Any]) -> str:
    """Return a row of the table on the terminal."""
    if "not_run" in row:
        return f"{row['candidate']:<32}{row['batch']:>12}  {row['not_run']}"
    cells = [row[name] for name in COLUMNS.values()]
    return HEADER.format(row["candidate"], *("-" if each is None else f"{each:.4g}" for each in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="CUDA_VISIBLE_DEVICES chooses a GPU")
    parser.add_argument("--size", choices=OWNER_SIZES, default="base", help="which of the owner's networks")
    parser.add_argument("--side", type=int, default=512, help="of the images, a multiple of 8")
    parser.add_argument("--batches", type=parse_numbers(int), default=[1, 8, 32], help="batch sizes, as in 1,8,32")
    add_record_option(parser)
    options = parser.parse_args()
    if options.side < 8 or options.side % 8:
        parser.error("--side must be a multiple of 8")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"PyTorch {torch.__version__} sees no GPU; to try the code without one, add --device cpu")
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    network = rewrite_network(randomize(Restormer(owner_network(options.size)).eval()))
    about = {"circumstances": describe_circumstances(), "size": options.size}
    with torch.no_grad():
        figures = run_all(
            Device(options.device),
            network,
            options.side,
            options.batches,
            lambda figures: write_record({**about, **figures}, options.record),
        )
    finish_run({**about, **figures}, options.record)


if __name__ == "__main__":
    exit_on_interrupt(main)
