"""Run one part of the pipeline in a process of its own, without Triton: its rate bounds that of a server.

The code is the server's, in the server's environment: `imaging` for the steps around the network, and for the network
the published adapter, which gets its tensors directly. So only what Triton does between the parts is left out.
``.envs/server/bin/python -m benchmarks.pipeline.parts PART REPOSITORY PHOTOGRAPHS`` reads seconds from each line,
works through all photographs repeatedly for at least that long, and answers with a line of JSON.
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
class Work:
    """The work of a process: photographs, and the wall and CPU seconds that they took."""

    photographs: int
    seconds: float
    cpu: float


class Part:
    """Processes that run one part, idle until `work`."""

    def __init__(self, name: str, processes: Sequence[subprocess.Popen[str]]) -> None:
        self.name, self._processes = name, processes

    def work(self, seconds: float, *, processes: int = 0) -> list[Work]:
        """Let all processes, or this many, work at the same time; return the work of each."""
        chosen = self._processes[: processes or None]
        for process in chosen:
            _pipe(process.stdin).write(f"{seconds}\n")
            _pipe(process.stdin).flush()
        return [Work(**_read_answer(self.name, process)) for process in chosen]


@contextlib.contextmanager
def run_part(
    python: Path, name: str, repository: Path, photographs: Path, cores: Sequence[int], count: int
) -> Iterator[Part]:
    """Run ``count`` processes of a part on these cores, ready when their first photograph is done."""
    command = ["taskset", "-c", ",".join(map(str, cores)), str(python), "-m", "benchmarks.pipeline.parts"]
    # As in server/process.py: the processes share the cores, so each has one thread.
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
            _read_answer(name, process)
        yield Part(name, processes)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.communicate()


def rate(works: Sequence[Work]) -> float:
    """Return the photographs a second of processes that worked at the same time."""
    return sum(each.photographs / each.seconds for each in works)


def cpu_ms(works: Sequence[Work]) -> float:
    """Return the CPU milliseconds of a photograph."""
    return 1e3 * sum(each.cpu for each in works) / sum(each.photographs for each in works)


def _read_answer(name: str, process: subprocess.Popen[str]) -> dict[str, Any]:
    line = _pipe(process.stdout).readline()
    if not line:
        raise SystemExit(f"error: {name} does not run in process; its own error is above")
    answer: dict[str, Any] = json.loads(line)
    return answer


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


def part_function(name: str, repository: Path, photographs: Sequence[bytes]) -> Callable[[int], object]:
    """Return the function of a part, of the number of a photograph."""
    from imaging import Options, core_from_file, file_from_core

    if name == PREPROCESS:
        return lambda index: core_from_file(photographs[index])
    cores = [core_from_file(photograph) for photograph in photographs]
    if name == CORE:
        network = load_adapter(repository)
        return lambda index: network.execute([cores[index][None]])
    options, looks = Options(), [core ** np.float32(0.7) for core in cores]  # a brighter picture for any network
    return lambda index: file_from_core(photographs[index], cores[index], looks[index], options)


def load_adapter(repository: Path, instances: int = 1, **parameters: str) -> Any:
    """Load the published adapter of the network, initialized like one of ``instances`` in the server.

    ``parameters`` are those of its config. The stand-in for Triton's module only carries a tensor in and a tensor out.
    """
    version = max(int(path.name) for path in (repository / CORE).iterdir() if path.name.isdigit())
    module: Any = types.ModuleType("triton_python_backend_utils")
    module.Tensor = lambda name, array: array
    module.InferenceResponse = lambda tensors: tensors[0]
    module.get_input_tensor_by_name = lambda request, name: types.SimpleNamespace(as_numpy=lambda: request)
    sys.modules[module.__name__] = module
    model = runpy.run_path(str(repository / CORE / str(version) / "model.py"))["TritonPythonModel"]()
    config = {
        "instance_group": [{"count": instances}],
        "parameters": {name: {"string_value": value} for name, value in parameters.items()},
    }
    arguments = {"model_config": json.dumps(config), "model_name": CORE, "model_version": str(version)}
    model.initialize(arguments)
    return model


def main() -> None:
    """Get ready, then work for the seconds of every line."""
    name, repository, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    photographs = [path.read_bytes() for path in find_jpegs(folder)]
    run = part_function(name, repository, photographs)
    run(0)
    print("{}", flush=True)
    for line in sys.stdin:
        began, cpu, count = time.perf_counter(), time.process_time(), 0
        for count in itertools.count(1):
            run((count - 1) % len(photographs))
            if count % len(photographs) == 0 and time.perf_counter() - began >= float(line):
                break
        work = Work(count, time.perf_counter() - began, time.process_time() - cpu)
        print(json.dumps(vars(work)), flush=True)


if __name__ == "__main__":
    main()
