"""Test the measurement in PyTorch on a GPU: its rows on a CPU, and with substitutes for the CUDA calls."""

import contextlib
import json
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from benchmarks.network import gpu
from benchmarks.network.random_weights import randomize
from export.network.architecture import owner_network, restormer
from export.network.cost import multiply_accumulates
from export.network.restormer import Restormer
from export.network.rewrites import rewrite_network
from tests.conftest import ROOT

SIDE = 16
#: What a machine with only Python, PyTorch, NumPy and Pillow lacks.
MISSING = ("onnx", "onnxruntime", "openvino", "tabulate", "tritonclient", "numba", "simplejpeg", "skimage")


@pytest.fixture
def quick(monkeypatch):
    """One timed call a row, and no compiler: compiling takes minutes."""
    monkeypatch.setattr(gpu, "SECONDS", 0.0)
    monkeypatch.setattr(torch, "compile", lambda model: model)
    monkeypatch.setattr(gpu, "ARITHMETIC_SIDE", SIDE)
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    architecture = restormer(dim=8, blocks=(1, 1, 1, 1), refinement=1, reduces_level1=True)
    return rewrite_network(randomize(Restormer(architecture).eval()))


@pytest.fixture
def cuda(monkeypatch):
    """Replace CUDA's events, graphs and memory, so that the code that uses them runs on a CPU."""

    class Event:
        def __init__(self, *, enable_timing):
            assert enable_timing

        def record(self):
            self.time = time.perf_counter()

        def synchronize(self): ...

        def elapsed_time(self, end):
            return (end.time - self.time) * 1e3

    stream = SimpleNamespace(wait_stream=lambda other: None)
    substitutes = {
        "Event": Event, "CUDAGraph": lambda: SimpleNamespace(replay=lambda: None), "Stream": lambda: stream,
        "current_stream": lambda: stream, "graph": contextlib.nullcontext, "stream": contextlib.nullcontext,
        "empty_cache": lambda: None, "reset_peak_memory_stats": lambda: None, "max_memory_allocated": lambda: 3 << 20,
    }  # fmt: skip
    for name, substitute in substitutes.items():
        monkeypatch.setattr(torch.cuda, name, substitute)
    device = gpu.Device("cpu")
    device.is_cuda = True
    monkeypatch.setattr(
        gpu, "measure_rates", lambda device: dict.fromkeys(("fp32", "tf32", "fp16", "bf16", "copy"), 1e12)
    )
    return device


def test_only_pytorch_and_numpy_are_needed():
    code = f"import sys; sys.modules.update(dict.fromkeys({MISSING!r})); import benchmarks.network.gpu"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_every_row_on_a_cpu(quick, network, monkeypatch, tmp_path, capsys):
    record = tmp_path / "gpu.json"
    monkeypatch.setattr(gpu, "randomize", lambda made: network)
    monkeypatch.setattr(gpu, "rewrite_network", lambda made: made)
    arguments = ["--device", "cpu", "--size", "tiny", "--side", str(SIDE), "--batches", "1,2", "--record", str(record)]
    monkeypatch.setattr(sys, "argv", ["gpu", *arguments])
    gpu.main()
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures == json.loads(record.read_text())
    rows = {(row["candidate"], row["batch"]): row for row in figures["rows"]}
    assert len(rows) == 2 * (len(gpu.CANDIDATES) - 1)  # torch.compile has batch 8 only
    for (name, batch), row in rows.items():
        if "CUDA graph" in name:
            assert row["not_run"]
            continue
        assert row["photographs_per_second"] == pytest.approx(batch * 1e3 / row["median_ms"])
        assert row["roof_share"] == pytest.approx(row["roof_ms"] / row["median_ms"])
        assert row["psnr_db"] is None or row["psnr_db"] > (100 if "float32, TF32" in name else 35), name
    assert figures["arithmetic"].keys() == {"fp16", "bf16"}
    for row in figures["arithmetic"].values():
        assert row["between_db"] is None or row["between_db"] > 35  # None: the same bits


def test_the_code_for_cuda_and_batch_8_runs(quick, network, cuda):
    figures = gpu.run_all(cuda, network, SIDE, [8], lambda figures: None)
    assert [row["candidate"] for row in figures["rows"]] == [each.name for each in gpu.CANDIDATES]
    assert all(row["peak_mib"] == 3 and row["median_ms"] > 0 for row in figures["rows"])


def test_a_row_that_fails_gives_its_reason_and_the_next_one_runs(quick, network, monkeypatch):
    broken = gpu.Candidate("broken", compiled=True)

    def fail(model):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setattr(torch, "compile", fail)
    monkeypatch.setattr(gpu, "CANDIDATES", (broken, gpu.REFERENCE))
    saved = []
    gpu.run_all(gpu.Device("cpu"), network, SIDE, [1], lambda figures: saved.append(len(figures["rows"])))
    figures = gpu.run_all(gpu.Device("cpu"), network, SIDE, [1], lambda figures: None)
    assert figures["rows"][0]["not_run"] == "OutOfMemoryError: CUDA out of memory."
    assert "median_ms" in figures["rows"][1]
    assert saved == [1, 2]


def test_a_row_that_may_take_too_long_is_not_started(quick, network, monkeypatch):
    monkeypatch.setattr(gpu, "CANDIDATES", (gpu.REFERENCE, gpu.Candidate("compiled", needs=gpu.BUDGET)))
    figures = gpu.run_all(gpu.Device("cpu"), network, SIDE, [1], lambda figures: None)
    assert ["not_run" in row for row in figures["rows"]] == [False, True]


def test_operation_counts_match_the_cost_of_the_architecture():
    architecture = owner_network("tiny")
    with torch.no_grad():
        work = gpu.count_work(Restormer(architecture), 2, 64)
    assert sum(flops for flops, _ in work) == 2 * 2 * sum(multiply_accumulates(architecture, 64))


def test_the_roof_takes_the_longer_of_arithmetic_and_bytes():
    assert gpu.roof_ms([(10.0, 1.0), (1.0, 30.0)], flops=1.0, bandwidth=10.0) == pytest.approx(1e3 * (10 + 3))


def test_one_wrong_image_of_a_batch_lowers_the_decibels():
    exact = torch.zeros(3, 3, 8, 8)
    output = exact.clone()
    assert gpu.lowest_psnr(output, exact) is None
    output[1] += 0.1
    assert gpu.lowest_psnr(output, exact) == pytest.approx(20)


def test_a_machine_without_a_gpu_gets_one_line():
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.network.gpu"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "--device cpu" in done.stderr.splitlines()[-1]
