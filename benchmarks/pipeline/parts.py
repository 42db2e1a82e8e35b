"""One part of the pipeline in a process of its own, without Triton: what it does alone is what a server can at most do.

The code is the server's, in the server's environment: `imaging` for the steps around the network, and for the network
the adapter as it was published, handed its tensors directly. So what Triton does between the parts, and nothing else,
is left out. ``.envs/server/bin/python -m benchmarks.pipeline.parts PART REPOSITORY PHOTOGRAPHS`` reads a number of
seconds a line, works through all photographs, again and again, for at least as long, and answers with a JSON line.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import runpy
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from operations.recording import find_jpegs

PREPROCESS, CORE, POSTPROCESS = NAMES = ("preprocess", "restormer", "postprocess")


@dataclass(frozen=True)
class Worked:
    """What a part did: photographs, wall seconds and processor seconds they took."""

    photographs: int
    seconds: float
    cpu: float


class Part:
    """Processes that do one part, idle until told to work. ``cores`` is where they run."""

    def __init__(self, name: str, processes: Sequence[subprocess.Popen[str]]) -> None:
        self.name, self._processes = name, processes

    def work(self, seconds: float, *, processes: int = 0) -> list[Worked]:
        """All of them, or so many, at a time for so long; what each did."""
        chosen = self._processes[: processes or None]
        for process in chosen:
            _pipe(process.stdin).write(f"{seconds}\n")
            _pipe(process.stdin).flush()
        return [Worked(**_answer(self.name, process)) for process in chosen]


@contextlib.contextmanager
def started(
    python: Path, name: str, repository: Path, photographs: Path, cores: Sequence[int], count: int
) -> Iterator[Part]:
    """``count`` processes of a part on these cores, which have done their first photograph. Ends them afterwards."""
    command = ["taskset", "-c", ",".join(map(str, cores)), str(python), "-m", "benchmarks.pipeline.parts"]
    # As server/process.py has it: what is shared out by processes is not shared out by threads as well.
    environment = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", **os.environ}
    processes = [
        subprocess.Popen(
            [*command, name, str(repository), str(photographs)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )
        for _ in range(count)
    ]  # fmt: skip
    try:
        for process in processes:
            _answer(name, process)
        yield Part(name, processes)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.communicate()


def rate(worked: Sequence[Worked]) -> float:
    """Photographs a second of processes that worked at the same time."""
    return sum(each.photographs / each.seconds for each in worked)


def cpu_ms(worked: Sequence[Worked]) -> float:
    """Processor milliseconds of a photograph."""
    return 1e3 * sum(each.cpu for each in worked) / sum(each.photographs for each in worked)


def _answer(name: str, process: subprocess.Popen[str]) -> dict[str, Any]:
    line = _pipe(process.stdout).readline()
    if not line:
        raise SystemExit(f"error: {name} does not run in process: its error stands above")
    answer: dict[str, Any] = json.loads(line)
    return answer


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


def task(name: str, repository: Path, photographs: Sequence[bytes]) -> Callable[[int], object]:
    """The part's work on the photograph of this number."""
    from imaging import Options, core_from_file, file_from_core

    if name == PREPROCESS:
        return lambda index: core_from_file(photographs[index])
    cores = [core_from_file(photograph) for photograph in photographs]
    if name == CORE:
        network = adapter(repository)
        return lambda index: network.execute([cores[index][None]])
    options, looks = Options(), [core ** np.float32(0.7) for core in cores]  # a brighter picture, whatever the network
    return lambda index: file_from_core(photographs[index], cores[index], looks[index], options)


def adapter(repository: Path, instances: int = 1) -> Any:
    """The published adapter of the network, initialized as the server does one of so many instances of it.

    What stands here for Triton's module only carries a tensor in and a tensor out.
    """
    version = max(int(path.name) for path in (repository / CORE).iterdir() if path.name.isdigit())
    module = types.ModuleType("triton_python_backend_utils")
    module.Tensor = lambda name, array: array  # type: ignore[attr-defined]
    module.InferenceResponse = lambda tensors: tensors[0]  # type: ignore[attr-defined]
    module.get_input_tensor_by_name = lambda request, name: types.SimpleNamespace(as_numpy=lambda: request)  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    model = runpy.run_path(str(repository / CORE / str(version) / "model.py"))["TritonPythonModel"]()
    arguments = {
        "model_config": json.dumps({"instance_group": [{"count": instances}]}),
        "model_name": CORE, "model_version": str(version),
    }  # fmt: skip
    model.initialize(arguments)
    return model


def main() -> None:
    """The process: ready, then work when told."""
    name, repository, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    photographs = [path.read_bytes() for path in find_jpegs(folder)]
    work = task(name, repository, photographs)
    work(0)
    print("{}", flush=True)
    for line in sys.stdin:
        began, cpu, count = time.perf_counter(), time.process_time(), 0
        for count in itertools.count(1):
            work((count - 1) % len(photographs))
            if count % len(photographs) == 0 and time.perf_counter() - began >= float(line):
                break
        done = Worked(count, time.perf_counter() - began, time.process_time() - cpu)
        print(json.dumps(vars(done)), flush=True)


if __name__ == "__main__":
    main()
