"""Enhance thousands of damaged photographs, in process and through a server (``make fuzz``).

Each file is a valid one with bytes changed, cut, repeated or replaced by those of another file, or with a number of its
header replaced. A failure is printed with its seed, which makes the same file again.

In process, worker processes decode each file small and in full, enhance it without a network and encode it. A file
passes if it is enhanced or rejected as `InvalidRequest` with one line, within `SECONDS_PER_MEGAPIXEL`. A worker that
dies has crashed. Through the server, the answer has to be a photograph or `InvalidPhotograph`, and good photographs
that are sent in between have to be enhanced. Memory that grows from the second quarter of the files to the last is a
leak.
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from restormer_client import EnhanceError, Enhancer, InvalidPhotograph

from export.markdown import table
from imaging import InvalidRequest, Options, core_from_file, file_from_core
from operations.recording import add_record_option, exit_on_interrupt, finish_run, show_progress
from tests.acceptance.leftovers import expect_no_leftovers
from tests.imaging.test_codec import FILES, TAGGED
from tests.imaging.test_colour import NAMED
from tests.photographs import encode_image, open_image, pixels
from traffic.server import Server, run_server

GOOD = [data for data, *_ in FILES.values()] + list(TAGGED.values())
GOOD += NAMED.values()
GOOD += [encode_image(pixels(24, 32), kind) for kind in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "AVIF")]
SECONDS_PER_MEGAPIXEL, MINIMUM_SECONDS = 1.0, 2.0
FORMATS = ("", "jpeg", "png", "webp", "tiff", "bmp")
CHUNK = 100


def damage_file(seed: int) -> bytes:
    """Return the damaged file of a seed."""
    dice = random.Random(seed)
    data = bytearray(dice.choice(GOOD))
    for _ in range(dice.choice((1, 1, 2, 4, 16))):
        at = int(len(data) * dice.random() ** dice.choice((1, 3)))  # mostly in headers
        length = dice.choice((1, 2, 4, 64, 1024))
        match dice.randrange(7):
            case 0:
                data[at : at + 1] = bytes([data[at] ^ 1 << dice.randrange(8)]) if at < len(data) else b""
            case 1:
                data[at : at + length] = dice.randbytes(length)
            case 2:
                del data[at : at + length]
            case 3:
                data[at:at] = data[at : at + length]
            case 4:
                del data[at:]
            case 5:
                other = dice.choice(GOOD)
                data[at:] = other[int(len(other) * dice.random()) :]
            case 6:  # an extreme number in a header
                number = dice.choice((0, 1, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF))
                data[at : at + 4] = number.to_bytes(4, dice.choice(("big", "little")))
    return bytes(data)


def try_in_process(seeds: range) -> tuple[dict[str, int], list[str], float]:
    """Return the outcomes of these files, the failures, and the memory of this process in MiB."""
    counts, failures = {"enhanced": 0, "rejected": 0}, []
    for seed in seeds:
        data, megapixels, started = damage_file(seed), 0.0, time.perf_counter()
        try:
            core = core_from_file(data)
            result = file_from_core(data, core, core**0.7, Options(format=FORMATS[seed % len(FORMATS)], strength=0.9))
            size = open_image(result).size
            megapixels = size[0] * size[1] / 1e6
            counts["enhanced"] += 1
        except InvalidRequest as error:
            counts["rejected"] += 1
            if "\n" in str(error):
                failures.append(f"seed {seed}: more than one line: {error!r}")
        except Exception as error:  # noqa: BLE001  any other exception is a failure
            failures.append(f"seed {seed}: {type(error).__name__}: {error}")
        seconds = time.perf_counter() - started
        if seconds > max(MINIMUM_SECONDS, SECONDS_PER_MEGAPIXEL * megapixels):
            failures.append(f"seed {seed}: took {seconds:.1f} s")
    gc.collect()
    return counts, failures, int(Path("/proc/self/statm").read_text().split()[1]) * 4 / 1024


def memory_growth(memory: list[float]) -> float:
    """Return the growth from the mean of the second quarter to that of the last; allocators have settled by then."""
    quarter = max(1, len(memory) // 4)
    return statistics.mean(memory[-quarter:]) - statistics.mean(memory[quarter : 2 * quarter] or memory)


def summarize(
    count: int, started: float, totals: dict[str, int], memory: list[float], failures: list[str]
) -> dict[str, object]:
    """Return the figures of one run."""
    seconds = round(time.monotonic() - started)
    return {"files": count, **totals, "seconds": seconds, "growth_mib": round(memory_growth(memory)), "wrong": failures}


def run_in_process(count: int, first: int, jobs: int) -> dict[str, object]:
    """Try ``count`` files in worker processes."""
    chunks = [range(i, min(i + CHUNK, first + count)) for i in range(first, first + count, CHUNK)]
    totals, failures, memory = {"enhanced": 0, "rejected": 0}, [], []
    started = time.monotonic()
    with ProcessPoolExecutor(jobs) as pool:
        futures = {pool.submit(try_in_process, chunk): chunk for chunk in chunks}
        for number, future in enumerate(as_completed(futures), 1):
            try:
                counts, messages, mebibytes = future.result()
            except BrokenProcessPool:
                failures.append(f"seeds {futures[future].start} to {futures[future].stop - 1}: a worker died")
                break
            totals = {name: totals[name] + counts[name] for name in totals}
            failures += messages
            memory.append(mebibytes)
            show_progress(f"in process: {number} of {len(chunks)} hundreds")
    return summarize(count, started, totals, memory, failures)


def run_through_server(count: int, first: int, server: Server) -> dict[str, object]:
    """Send ``count`` files to a server, with good photographs after every hundred."""
    totals, failures, memory = {"enhanced": 0, "rejected": 0}, [], []
    good, started = encode_image(pixels(64, 64)), time.monotonic()
    with Enhancer(server.url) as enhancer:
        for number, seed in enumerate(range(first, first + count), 1):
            try:
                open_image(enhancer.enhance(damage_file(seed), tiled=seed % 4 == 0, timeout=30))
                totals["enhanced"] += 1
            except InvalidPhotograph:
                totals["rejected"] += 1
            except EnhanceError as error:
                failures.append(f"seed {seed}: {type(error).__name__}: {error}")
            if number % CHUNK == 0 or number == count:
                enhancer.enhance(good)
                enhancer.enhance(good, tiled=True)
                memory.append(server.measure_memory())
                show_progress(f"through the server: {number} of {count}")
    return summarize(count, started, totals, memory, failures)


def main() -> int:
    """Run the command line; exit with 1 if a file failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.acceptance.fuzz", description=str(__doc__).splitlines()[0])
    parser.add_argument("--files", type=int, default=20_000, help="in process (default %(default)s)")
    parser.add_argument("--served", type=int, default=2_000, help="through a server (default %(default)s; 0: none)")
    parser.add_argument("--seed", type=int, default=0, help="of the first file (default %(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="worker processes (default %(default)s)")
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    add_record_option(parser)
    options = parser.parse_args()
    results = {"in process": run_in_process(options.files, options.seed, options.jobs)}
    if options.served:
        with expect_no_leftovers(), run_server(options.repository) as server:
            results["through the server"] = run_through_server(options.served, options.seed, server)
    show_progress()
    columns = ("files", "enhanced", "rejected", "seconds", "growth_mib")
    rows = [[name, *(row[column] for column in columns), len(row["wrong"])] for name, row in results.items()]
    print(table(["", "files", "enhanced", "rejected", "seconds", "growth (MiB)", "failures"], rows))
    for row in results.values():
        for line in row["wrong"]:
            print(line, file=sys.stderr)
    finish_run(results, options.record)
    return int(any(row["wrong"] for row in results.values()))


if __name__ == "__main__":
    exit_on_interrupt(main)
