"""A bulk job: send the remaining photographs through Ray Data's actors in blocks, with progress and a summary."""

import contextlib
import logging
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import restormer_client
from restormer_client import Enhancer
from restormer_client.folder import Progress
from restormer_client.tiny import TINY_PHOTOGRAPH

import bulk
from bulk import manifest, plan, storage
from bulk.errors import BulkError
from bulk.plan import Job
from bulk.worker import Worker

#: Blocks an actor works on concurrently: while one ends, the next keeps the server busy.
BLOCKS_PER_ACTOR = 2
#: Photographs in a block for each request that an actor may have in flight. A block is the unit of progress and of the
#: manifest's parts; a crash costs only the requests in flight (docs/scaling.md).
PHOTOS_PER_SLOT = 2
READY_TIMEOUT = 30.0  #: seconds to wait for the server to be ready before the job starts


@dataclass(kw_only=True)
class Summary:
    """Result of a run. ``seconds`` is the duration of the whole run, ``busy_seconds`` that of the processing alone.

    ``found``: outputs without a row in the manifest, left by a killed run. ``rejections``: by a full queue.
    ``skipped``: files of the folder without the extension of a photograph.
    """

    photographs: int
    done_before: int
    enhanced: int = 0
    found: int = 0
    failed: int = 0
    rejections: int = 0
    skipped: int = 0
    bytes_out: int = 0
    seconds: float = 0.0
    busy_seconds: float = 0.0
    photographs_a_second: float = 0.0
    cost_per_thousand: float | None = None

    def count(self, rows: list[dict[str, Any]]) -> None:
        """Add the rows of a block."""
        for row in rows:
            is_enhanced = row["status"] == manifest.ENHANCED
            self.failed += not is_enhanced
            self.enhanced += is_enhanced and row["seconds"] is not None
            self.found += is_enhanced and row["seconds"] is None
            self.rejections += row["rejections"]
            self.bytes_out += row["bytes"] or 0

    def finish(self, seconds: float, busy: float, price: float | None) -> None:
        """Set durations, rate and cost; the cost covers the whole run, including its start."""
        self.seconds, self.busy_seconds = round(seconds, 3), round(busy, 3)
        self.photographs_a_second = round(self.enhanced / busy, 4) if busy else 0.0
        if price is not None and self.enhanced:
            self.cost_per_thousand = round(price * seconds / 3600 / self.enhanced * 1000, 6)


def run(job: Job) -> Summary:
    """Process the remaining photographs. Raise `BulkError` if the job cannot continue, and `EnhanceError` or `OSError`
    before it starts."""
    started = time.monotonic()
    output = storage.open_folder(job.output)
    found = plan.find_photographs(job.input, output, job.options.get("format"))
    everything, others = (plan.select_shard(files, job.shard) for files in found)
    is_resumed = manifest.check_output(output, job.options)
    sizes = output.sizes() if is_resumed else {}
    recorded = plan.recorded_sizes(manifest.read_rows(output)) if is_resumed else {}
    todo = plan.remaining(everything, recorded, sizes)
    summary = Summary(photographs=len(everything), done_before=len(everything) - len(todo), skipped=len(others))
    if summary.done_before:
        print(f"{summary.done_before} of {len(everything)} are already done", file=sys.stderr)
    busy = 0.0
    if todo:
        _check_server(job)
        if not is_resumed:
            manifest.write_job(output, job.options)
        for key in plan.damaged_outputs(todo, recorded, sizes):
            output.remove(key)  # the actors keep every output that exists
        busy = _run_with_ray(job, output, todo, summary)
    if others and everything:  # without a photograph the output has not been started
        fields = {"status": manifest.SKIPPED, "error": "no photograph extension"}
        manifest.write_part(output, [{"key": key, "source": source, **fields} for key, source in others.items()])
    if job.shard == (1, 1):  # otherwise another shard may be running
        manifest.merge_parts(output)
        for name in list(filter(storage.is_leftover, output.names())):  # of killed writes, on any node and in any run
            output.remove(name)
    summary.finish(time.monotonic() - started, busy, job.price)
    return summary


def _check_server(job: Job) -> None:
    """Enhance a tiny photograph with the job's options, to detect errors that would affect every photograph."""
    with Enhancer(**job.server) as enhancer:
        enhancer.wait_until_ready(READY_TIMEOUT)
        enhancer.enhance(TINY_PHOTOGRAPH, priority="bulk", timeout=job.timeout, **job.options)


def _run_with_ray(job: Job, output: storage.Folder, todo: plan.Photographs, summary: Summary) -> float:
    """Process the photographs with Ray and return the duration in seconds, without Ray's start."""
    # Turn off Ray's usage reports, which are on by default.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # By default, a thread of Ray Data that still runs after ray.shutdown() starts another Ray.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    if not job.verbose:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray

    with Interrupt() as interrupt:
        _start_ray(job)
        try:
            return _process_blocks(_build_dataset(job, output, todo), Progress(len(todo)), summary, interrupt)
        except (BulkError, ray.exceptions.RayError) as error:
            raise _bulk_error(error) from error
        finally:
            ray.shutdown()


def _process_blocks(dataset: Any, progress: Progress, summary: Summary, interrupt: "Interrupt") -> float:
    """Process the dataset block by block and return the duration in seconds."""
    started = time.monotonic()
    blocks = iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
    # Closing the iterator ends the threads of Ray Data, which must not outlive Ray.
    with progress, contextlib.closing(blocks):
        for rows in blocks:
            interrupt.check()
            block = rows.to_pylist()
            summary.count(block)
            for row in block:
                progress.advance(failed=row["status"] == manifest.FAILED)
                if row["status"] == manifest.FAILED:
                    progress.print_line(f"failed: {row['source']}: {row['error']}")
    return time.monotonic() - started


class Interrupt:
    """A context in which Ctrl-C always ends in `KeyboardInterrupt`.

    Python discards an exception that a signal handler raises in a destructor, and clean-up code may replace it by
    another. So the signal is recorded too.
    """

    def __enter__(self) -> Self:
        self._is_received = False
        self._previous = signal.signal(signal.SIGINT, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._previous)
        self.check()

    def _receive(self, *_: object) -> None:
        self._is_received = True
        raise KeyboardInterrupt

    def check(self) -> None:
        """Raise `KeyboardInterrupt` if Ctrl-C was pressed."""
        if self._is_received:
            raise KeyboardInterrupt


def _start_ray(job: Job) -> None:
    """Connect to the cluster, or start a local Ray."""
    import ray

    # Ray ships these packages to the nodes of a cluster; only their dependencies must be installed there.
    modules = [str(Path(module.__file__ or "").parent) for module in (bulk, restormer_client)]
    arguments: dict[str, Any] = {"address": "local", "include_dashboard": False}
    if job.ray_address:
        arguments = {"address": job.ray_address, "runtime_env": {"py_modules": modules}}
    try:
        ray.init(log_to_driver=job.verbose, logging_level=logging.INFO if job.verbose else logging.ERROR, **arguments)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = job.ray_address or "this machine"
        raise BulkError(f"cannot connect to Ray at {where}: {' '.join(str(error).split())}") from error
    cores = int(ray.cluster_resources().get("CPU", 0))
    if cores < job.actors:
        ray.shutdown()
        raise BulkError(f"{job.actors} actors need one core each, but Ray has {cores}: use --actors {max(cores, 1)}")


def _build_dataset(job: Job, output: storage.Folder, todo: plan.Photographs) -> Any:
    import ray.data

    if not job.verbose:  # an error that stops the job is reported in one line
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True
    blocks = plan.split_into_blocks(todo, PHOTOS_PER_SLOT * job.in_flight_per_actor)
    return ray.data.from_arrow(list(blocks)).map_batches(
        Worker,
        fn_constructor_args=(job, output),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=1,
        compute=ray.data.ActorPoolStrategy(
            size=job.actors,
            max_concurrent_calls_per_actor=BLOCKS_PER_ACTOR,
            max_tasks_in_flight_per_actor=BLOCKS_PER_ACTOR,
        ),
    )


def _bulk_error(error: BaseException) -> BulkError:
    """Return a `BulkError` for the root cause of an exception raised by Ray."""
    root = error
    # Ray's exception is a `BulkError` too, but with Ray's message; ``cause`` is the exception that the actor raised.
    while cause := getattr(root, "cause", None) or (None if isinstance(root, BulkError) else root.__cause__):
        root = cause
    line = str(root).splitlines()[0] if str(root) else ""  # Ray appends further lines
    return BulkError(
        line if isinstance(root, BulkError) else f"Ray: {type(root).__name__}: {line} (use --verbose for details)"
    )
