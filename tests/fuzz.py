"""Damaged photographs by the thousand (``make fuzz``): in process, and through a running server.

Every file is a good one of some format with bytes changed, cut, repeated or spliced with another's, or with a number of
its header replaced; the seed of each is printed with a failure, and gives the same file again. In process, each file
is decoded small and whole, enhanced without a network and encoded, in worker processes: a file passes if it is
enhanced or refused as `InvalidRequest` in one line, in less than a second a megapixel (two at the least, for what is
tiny). A worker that dies has crashed. Through the server, the answer has to be a photograph or `InvalidPhotograph`, and
a good photograph sent afterwards has to come back. What grows between the second quarter of the files and the last,
leaks.
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

from demo.run import run_server
from imaging import InvalidRequest, Options, core_from_file, file_from_core
from operations.recording import add_record_option, finish_run
from tests.imaging.test_codec import FILES, TAGGED
from tests.photographs import encoded, opened, pixels

GOOD = [data for data, *_ in FILES.values()] + list(TAGGED.values())
GOOD += [encoded(pixels(24, 32), kind) for kind in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "AVIF")]
SECONDS_PER_MEGAPIXEL, LEAST_SECONDS = 1.0, 2.0
FORMATS = ("", "jpeg", "png", "webp", "tiff", "bmp")
CHUNK = 100


def damaged(seed: int) -> bytes:
    """The file of a seed."""
    dice = random.Random(seed)
    data = bytearray(dice.choice(GOOD))
    for _ in range(dice.choice((1, 1, 2, 4, 16))):
        at = int(len(data) * dice.random() ** dice.choice((1, 3)))  # headers more often than what follows
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
            case 6:  # a number as large, as small or as odd as headers may hold
                number = dice.choice((0, 1, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF))
                data[at : at + 4] = number.to_bytes(4, dice.choice(("big", "little")))
    return bytes(data)


def tried(seeds: range) -> tuple[dict[str, int], list[str], int]:
    """How many of these were enhanced and refused, what went wrong, and the memory of this process in KiB."""
    counts, wrong = {"enhanced": 0, "refused": 0}, []
    for seed in seeds:
        data, megapixels, started = damaged(seed), 0.0, time.perf_counter()
        try:
            core = core_from_file(data)
            result = file_from_core(data, core, core**0.7, Options(format=FORMATS[seed % len(FORMATS)], strength=0.9))
            size = opened(result).size
            megapixels = size[0] * size[1] / 1e6
            counts["enhanced"] += 1
        except InvalidRequest as error:
            counts["refused"] += 1
            if "\n" in str(error):
                wrong.append(f"seed {seed}: more than one line: {error!r}")
        except Exception as error:  # noqa: BLE001  any other exception is what we are looking for
            wrong.append(f"seed {seed}: {type(error).__name__}: {error}")
        seconds = time.perf_counter() - started
        if seconds > max(LEAST_SECONDS, SECONDS_PER_MEGAPIXEL * megapixels):
            wrong.append(f"seed {seed}: took {seconds:.1f} s")
    gc.collect()
    return counts, wrong, int(Path("/proc/self/statm").read_text().split()[1]) * 4


def grown(memory: list[int]) -> float:
    """From the second quarter's mean to the last one's, in MiB: what allocators keep is there by then."""
    quarter = max(1, len(memory) // 4)
    return (statistics.mean(memory[-quarter:]) - statistics.mean(memory[quarter : 2 * quarter] or memory)) / 1024


def progress(what: str, done: int, count: int, started: float) -> None:
    """One line, written over."""
    left = (time.monotonic() - started) / done * (count - done)
    line = f"\r  {what}: {done} of {count}, {left:.0f} s left "
    print(line, end="\n" if done == count else "", file=sys.stderr, flush=True)


def row(count: int, started: float, totals: dict[str, int], memory: list[int], wrong: list[str]) -> dict[str, object]:
    """A row of the table."""
    seconds, growth = round(time.monotonic() - started), round(grown(memory))
    return {"files": count, **totals, "seconds": seconds, "growth_mib": growth, "wrong": wrong}


def in_process(count: int, first: int, jobs: int) -> dict[str, object]:
    """``count`` files in worker processes."""
    chunks = [range(i, min(i + CHUNK, first + count)) for i in range(first, first + count, CHUNK)]
    totals, wrong, memory = {"enhanced": 0, "refused": 0}, [], []
    started, done = time.monotonic(), 0
    with ProcessPoolExecutor(jobs) as pool:
        futures = {pool.submit(tried, chunk): chunk for chunk in chunks}
        for future in as_completed(futures):
            try:
                counts, found, held = future.result()
            except BrokenProcessPool:
                wrong.append(f"seeds {futures[future].start} to {futures[future].stop - 1}: a worker died")
                break
            totals = {name: totals[name] + counts[name] for name in totals}
            wrong += found
            memory.append(held)
            done += len(futures[future])
            progress("in process", done, count, started)
    return row(count, started, totals, memory, wrong)


def through_server(count: int, first: int, url: str, server: int) -> dict[str, object]:
    """``count`` files through the server whose process is ``server``, a good photograph after every hundred."""
    totals, wrong, memory = {"enhanced": 0, "refused": 0}, [], []
    good, started = encoded(pixels(64, 64)), time.monotonic()
    with Enhancer(url) as enhancer:
        for number, seed in enumerate(range(first, first + count), 1):
            try:
                opened(enhancer.enhance(damaged(seed), tiled=seed % 4 == 0, timeout=30))
                totals["enhanced"] += 1
            except InvalidPhotograph:
                totals["refused"] += 1
            except EnhanceError as error:
                wrong.append(f"seed {seed}: {type(error).__name__}: {error}")
            if number % 100 == 0:
                enhancer.enhance(good)
                enhancer.enhance(good, tiled=True)
                memory.append(resident(server))
                progress("through the server", number, count, started)
    return row(count, started, totals, memory, wrong)


def resident(process: int) -> int:
    """Memory of a process and its stubs in KiB: private pages, so that what they share counts once."""
    group = [path for path in Path("/proc").glob("[0-9]*") if _group(path) == process]
    lines = [line for path in group for line in (path / "smaps_rollup").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def _group(path: Path) -> int:
    try:
        return int((path / "stat").read_text().rsplit(")", 1)[1].split()[2])
    except OSError:
        return -1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--served", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    add_record_option(parser)
    parser.add_argument("--server-python", type=Path, help="interpreter of the server's environment; none: no server")
    parser.add_argument("server_flags", nargs="*", help="after --: passed on to python -m server")
    arguments = parser.parse_args()
    results = {"in process": in_process(arguments.files, arguments.seed, arguments.jobs)}
    if arguments.server_python:
        with run_server([str(arguments.server_python), "-m", "server", *arguments.server_flags]) as server:
            found = through_server(arguments.served, arguments.seed, server["url"], server["pid"])
        results["through the server"] = found
    columns = ("files", "enhanced", "refused", "seconds", "growth_mib")
    print(f"{'':<20}" + "".join(f"{name:>12}" for name in (*columns, "wrong")))
    for name, row in results.items():
        print(f"{name:<20}" + "".join(f"{row[column]:12}" for column in columns) + f"{len(row['wrong']):12}")
    for row in results.values():
        for line in row["wrong"]:
            print(line, file=sys.stderr)
    finish_run(results, arguments.record)
    return 1 if any(row["wrong"] for row in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
