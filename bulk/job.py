"""The job: what is left to do goes through Ray Data's actors, block by block; progress, and a summary at the end."""

from __future__ import annotations

import logging
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import restormer_client
from restormer_client import AsyncEnhancer, Enhancer
from restormer_client.folder import Progress
from restormer_client.tiny import TINY_PHOTOGRAPH

import bulk
from bulk import manifest, plan, storage
from bulk.errors import BulkError
from bulk.worker import Settings, Worker

#: Blocks an actor works on at a time: while one ends, the next keeps the server busy.
BLOCKS = 2
#: Photographs a block has for each that an actor may have at the server. A block is what progress and the manifest's
#: parts are counted in, not what a crash costs (docs/scaling.md).
BLOCK = 2
PATIENCE = 30.0  #: seconds the server may take to be ready before the job begins


@dataclass(frozen=True, kw_only=True)
class Job:
    """What was asked for. ``server`` are the arguments of `Enhancer`, ``wishes`` those of `Enhancer.enhance`.

    ``in_flight``: photographs at the server at a time, over all ``actors``. ``shard``: part ``(number, of)``.
    ``patience``, ``timeout``: seconds, as in `worker.Settings`. ``ray_address``: None begins a Ray of one's own here.
    ``price``: of everything that works, an hour.
    """

    input: str
    output: str
    server: dict[str, Any]
    wishes: dict[str, Any]
    in_flight: int
    actors: int
    timeout: float
    patience: float
    ray_address: str | None = None
    shard: tuple[int, int] = (1, 1)
    price: float | None = None
    verbose: bool = False


@dataclass(kw_only=True)
class Summary:
    """What came of a run. Seconds of the whole run (``seconds``) and of the part with photographs (``busy_seconds``).

    ``found``: outputs that were there without a row, as a run leaves them that was killed. ``turned_away``: how often a
    photograph found a queue full.
    """

    photographs: int
    done_before: int
    enhanced: int = 0
    found: int = 0
    failed: int = 0
    turned_away: int = 0
    bytes_out: int = 0
    seconds: float = 0.0
    busy_seconds: float = 0.0
    photographs_a_second: float = 0.0
    cost_per_thousand: float | None = None

    def count(self, rows: list[dict[str, Any]]) -> None:
        """The rows of a block."""
        for row in rows:
            is_enhanced = row["status"] == manifest.ENHANCED
            self.failed += not is_enhanced
            self.enhanced += is_enhanced and row["seconds"] is not None
            self.found += is_enhanced and row["seconds"] is None
            self.turned_away += row["turned_away"]
            self.bytes_out += row["bytes"] or 0

    def finish(self, seconds: float, busy: float, price: float | None) -> None:
        """Rate and cost; the cost is of the whole run, its start included."""
        self.seconds, self.busy_seconds = round(seconds, 3), round(busy, 3)
        self.photographs_a_second = round(self.enhanced / busy, 4) if busy else 0.0
        if price is not None and self.enhanced:
            self.cost_per_thousand = round(price * seconds / 3600 / self.enhanced * 1000, 6)


def run(job: Job) -> Summary:
    """Does what is left to do. Raises `BulkError` where it cannot go on, `EnhanceError` or `OSError` at its start."""
    started = time.monotonic()
    output = storage.place(job.output)
    everything = plan.shard(plan.photographs(job.input, output, job.wishes.get("format")), job.shard)
    is_ours = manifest.is_ours(output, job.wishes)
    sizes = output.sizes() if is_ours else {}
    todo = plan.left(everything, manifest.read(output), sizes) if is_ours else everything
    summary = Summary(photographs=len(everything), done_before=len(everything) - len(todo))
    if summary.done_before:
        print(f"{summary.done_before} of {len(everything)} are done already", file=sys.stderr)
    busy = 0.0
    if todo:
        _try_the_server(job)
        if not is_ours:
            manifest.claim(output, job.wishes)
        elif job.shard == (1, 1):  # else another part may be writing
            _clean(output, sizes)
        busy = _through_ray(job, output, todo, summary)
    if job.shard == (1, 1):  # a part of a job leaves its parts: another may be running
        manifest.fold(output)
    summary.finish(time.monotonic() - started, busy, job.price)
    return summary


def _try_the_server(job: Job) -> None:
    """A tiny photograph with what is asked of all: what is wrong with all of them is said now."""
    with Enhancer(**job.server) as enhancer:
        enhancer.wait_until_ready(PATIENCE)
        enhancer.enhance(TINY_PHOTOGRAPH, priority="bulk", timeout=job.timeout, **job.wishes)


def _clean(output: storage.Place, sizes: dict[str, int]) -> None:
    """Removes what writes left that were killed."""
    for name in filter(storage.is_leftover, sizes):
        output.remove(name)


def _through_ray(job: Job, output: storage.Place, todo: list[plan.Photograph], summary: Summary) -> float:
    """Returns the seconds in which photographs were on their way."""
    # Ray reports how it is used to its makers unless told not to.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if not job.verbose:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray

    _begin(job)
    try:
        dataset = _dataset(job, output, todo)
        began = time.monotonic()
        with Progress(len(todo)) as progress:
            for rows in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                done = rows.to_pylist()
                summary.count(done)
                for row in done:
                    progress.count(failed=row["status"] == manifest.FAILED)
                    if row["status"] == manifest.FAILED:
                        progress.say(f"failed: {row['source']}: {row['error']}")
        return time.monotonic() - began
    except (BulkError, ray.exceptions.RayError) as error:
        raise _reason(error) from error
    finally:
        ray.shutdown()


def _begin(job: Job) -> None:
    """Joins the cluster, or begins a Ray of one's own."""
    import ray

    # Nodes of a cluster need what bulk imports, not bulk itself: it comes along.
    modules = [str(Path(module.__file__ or "").parent) for module in (bulk, restormer_client)]
    where: dict[str, Any] = {"address": "local", "include_dashboard": False}
    if job.ray_address:
        where = {"address": job.ray_address, "runtime_env": {"py_modules": modules}}
    try:
        ray.init(log_to_driver=job.verbose, logging_level=logging.INFO if job.verbose else logging.ERROR, **where)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise BulkError(f"no Ray cluster at {job.ray_address}: {' '.join(str(error).split())}") from error
    cores = int(ray.cluster_resources().get("CPU", 0))
    if cores < job.actors:
        ray.shutdown()
        raise BulkError(f"{job.actors} actors need a core each, and Ray has {cores}: --actors {max(cores, 1)}")


def _dataset(job: Job, output: storage.Place, todo: list[plan.Photograph]) -> Any:
    import ray.data

    if not job.verbose:  # what ends a job is told in one line
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True
    in_flight = job.in_flight // job.actors
    settings = Settings(
        enhancer=AsyncEnhancer(**job.server), output=output, in_flight=in_flight, patience=job.patience,
        timeout=job.timeout, wishes=job.wishes,
    )  # fmt: skip
    return ray.data.from_arrow(list(plan.blocks(todo, BLOCK * in_flight))).map_batches(
        Worker,
        fn_constructor_args=(settings,),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=1,
        compute=ray.data.ActorPoolStrategy(
            size=job.actors, max_concurrent_calls_per_actor=BLOCKS, max_tasks_in_flight_per_actor=BLOCKS
        ),
    )


def _reason(error: BaseException) -> BulkError:
    """Ours, if it is behind what Ray raised; else what is behind it, or Ray's own."""
    seen = error
    # Ray's error is of our class as well, but says what Ray says; ``cause`` is what the actor raised.
    while behind := getattr(seen, "cause", None) or (None if isinstance(seen, BulkError) else seen.__cause__):
        seen = behind
    line = str(seen).splitlines()[0] if str(seen) else ""  # Ray adds lines of its own
    return BulkError(
        line if isinstance(seen, BulkError) else f"Ray: {type(seen).__name__}: {line} (--verbose tells more)"
    )
