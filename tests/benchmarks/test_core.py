"""The comparison of runtimes: real candidates on a small network, in processes of their own."""

import copy
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from onnx import numpy_helper

from benchmarks.network import core, gpu, peak, roofline
from benchmarks.network.random_weights import random_image, randomize
from benchmarks.report import tables
from export.errors import ExportError
from export.network import int8
from export.network.architecture import restormer
from export.network.restormer import Restormer
from export.network.rewrites import rewrite_network
from tests.conftest import ROOT

IMAGE, OTHER = random_image(64, seed=0), random_image(64, seed=1)
MISSING = core.Candidate("missing", "openvino", "no such graph")


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return Restormer(restormer(dim=8, blocks=(1, 1, 1, 1), refinement=1)).eval()


@pytest.fixture(scope="module")
def folder(network, tmp_path_factory):
    """The inputs of the candidates for the small network."""
    folder = tmp_path_factory.mktemp("core")
    assert core.write_inputs(network, IMAGE, folder, {"other": OTHER}) > 0.01  # GFLOP
    return folder


def test_candidates_agree_with_the_paper_or_give_a_reason(folder):
    wanted = [each for each in core.candidates() if "compile" not in each.kind]  # compiling takes a minute each
    workers = core.compare(wanted, folder, rounds=2)
    assert workers[0].candidate.name == core.BASE
    reference = np.load(folder / workers[0].first["output"])
    rows = {worker.candidate.name: core.row(worker, 1.0, reference, folder) for worker in workers}
    for name, row in rows.items():
        if "not_run" in row:
            assert any(half in name for half in ("bf16", "bfloat16", "fp16", "int8"))
            assert "this CPU has no" in row["not_run"]
        else:
            assert row["psnr_db"] > (90 if row["precision"] == "fp32" else 30), name
            assert len(row["seconds"]) == 2
            assert row["memory_mib"] > 50
            assert row["speedup"] == pytest.approx(1 / row["median_s"])
    assert "median_s" in rows["our cpu engine, fp32"]


def test_a_candidate_that_dies_is_a_row(folder):
    (worker,) = core.compare([MISSING], folder, rounds=1)
    assert not worker.is_running
    assert "no such graph" in worker.first["not_run"]


def test_steps_have_seconds_or_a_reason(folder):
    """Two candidates that run, and one without a graph."""
    engine, plain = (core.Candidate(name, "openvino", name) for name in ("engine", "plain"))
    dead, first, second = core.steps_of(core.compare([MISSING, engine, plain], folder, rounds=2), folder)
    assert "no such graph" in dead["not_run"]
    assert first["speedup"] == 1  # the first that ran
    assert second["speedup"] == pytest.approx(first["median_s"] / second["median_s"])
    assert second["psnr_db"] > 90


def test_a_random_network_has_no_ones_and_zeros_that_a_runtime_removes(network):
    parameters = dict(randomize(copy.deepcopy(network)).named_parameters())
    inner = [each for name, each in parameters.items() if name.endswith((".temperature", "norm1.bias"))]
    assert len(inner) == 2 * 8
    assert not any(torch.any((each == 0) | (each == 1)) for each in inner)


def test_overlapping_rounds_are_within_the_spread():
    one = {"least_s": 1.0, "most_s": 2.0}
    assert tables.is_within_spread(one, {"least_s": 1.9, "most_s": 3.0})
    assert tables.is_within_spread(one, {"least_s": 1.2, "most_s": 1.3})
    assert not tables.is_within_spread(one, {"least_s": 2.1, "most_s": 3.0})


def test_a_slow_candidate_is_timed_once_and_the_base_twice(folder):
    worker = core.Worker(MISSING, folder)
    assert not worker.needs_turn(1)
    worker.first = {}
    assert worker.needs_turn(1)
    worker.seconds = [core.SLOWEST + 1]
    assert not worker.needs_turn(1)
    assert worker.needs_turn(core.BASE_TURNS)
    worker.seconds = [core.SLOWEST - 1] * 2
    assert worker.needs_turn(1)


def test_a_gpus_graphs_have_the_measured_size_and_real_ranges(network):
    ready = rewrite_network(network)
    ranges = {name: 2.0 + at for at, name in enumerate(int8.candidates(ready))}
    made = roofline.typed_graphs(network, side=64, ranges=ranges)
    sides = {[dim.dim_value for dim in each.graph.input[0].type.tensor_type.shape.dim][-1] for each in made.values()}
    assert sides == {64}
    scales = {tensor.name: numpy_helper.to_array(tensor) for tensor in made["int8"].graph.initializer}
    assert scales["latent.0.attn.qkv.input_scale"] == pytest.approx(ranges["latent.0.attn.qkv"] / 127, rel=1e-3)


def test_the_products_of_the_peak_are_right(monkeypatch):
    monkeypatch.setattr(peak, "SIDE", 512)
    numbers = np.arange(512 * 512).reshape(512, 512) % 127
    assert (peak._onnxruntime("MatMulInteger")()[0] == numbers @ (numbers - 63)).all()
    for product in (peak._onnxruntime("MatMul"), peak._openvino("fp32")):
        assert np.allclose(product()[0], (numbers / 127) @ (numbers / 127), rtol=1e-4)


def test_a_share_is_of_the_highest_peak_in_the_precision_and_of_the_gpus_own():
    before = {"float32_gflops": 100.0, "bfloat16_gflops": None, "int8_gops": 900.0, "gpu_float32_gflops": 1000.0}
    peaks = peak.higher_of(before, before | {"float32_gflops": 150.0, "gpu_float32_gflops": 900.0})
    assert peaks == before | {"float32_gflops": 150.0}
    row = {"median_s": 2.0, "precision": "fp32"}
    assert tables.peak_share("our cpu engine, fp32", row, 300.0, peaks) == 1.0
    assert tables.peak_share("GPU: PyTorch eager float32", row, 300.0, peaks) == 0.15
    assert tables.peak_share("our cpu engine, bf16", row | {"precision": "bf16"}, 300.0, peaks) is None
    assert tables.peak_share("our cpu engine, int8", row | {"precision": "int8"}, 900.0, peaks) == 0.5


def test_the_peaks_of_a_gpu_are_the_rates_of_the_measurement_in_pytorch(monkeypatch):
    cpu = gpu.Device("cpu")
    monkeypatch.setattr(gpu, "Device", lambda name: cpu)
    found = peak._gpu_peaks()
    assert found.keys() == {"gpu_float32_gflops", "gpu_float16_gflops"}
    assert all(0.001 < each < 1e5 for each in found.values())


def test_the_printed_tables_have_the_reasons_of_what_did_not_run(capsys):
    figures = {"median_s": 1.0, "least_s": 0.9, "most_s": 1.1, "speedup": 1.0, "psnr_db": 200.0, "precision": "fp32",
               "memory_mib": None, "ready_s": 1.0, "first_s": 1.0}  # fmt: skip
    dead = {"not_run": "its process died"}
    rows = {core.BASE: figures, "other": dead}
    core.print_tables(
        {
            "peak": {"float32_gflops": 400.0},
            "networks": {"demo 512": {"gflop": 300.0, "parameters": 1, "weights": "trained", "rows": rows}},
            "ladder_of": "the network",
            "ladder": [{"step": "first"} | dead],
        }
    )
    assert capsys.readouterr().out.count("its process died") == 2


def measure(network, folder, found, monkeypatch):
    """Measure these candidates on the inputs that are there."""
    monkeypatch.setattr(core, "candidates", lambda: found)
    monkeypatch.setattr(core, "write_inputs", lambda *given: 1.0)
    return core.measure_network("it", network, IMAGE, "random", {}, folder, 1)


def test_a_candidate_that_compiles_for_minutes_is_a_row_with_its_reason(network, folder, monkeypatch):
    kept = [core.Candidate(core.BASE, "paper"), core.Candidate("torch.compile float32", "compile")]
    monkeypatch.setattr(core, "COMPILED", 32)
    found = measure(network, folder, kept, monkeypatch)
    assert found["rows"]["torch.compile float32"] == {"not_run": core.TOO_LONG}
    assert len(found["rows"][core.BASE]["seconds"]) == 1


def test_a_tensorrt_build_may_take_longer_than_other_starts(folder, monkeypatch):
    """Without TensorRT, the candidate says within seconds why it does not run."""
    monkeypatch.setattr(core, "PATIENCE", 0.01)
    slow, build = (core.Candidate("a candidate", kind, "engine") for kind in ("openvino", "tensorrt"))
    assert core.Worker(slow, folder).reason == "no answer within 0.01 s"
    assert "no answer" not in core.Worker(build, folder).reason


def test_a_base_that_cannot_be_timed_fails_in_one_line(network, folder, monkeypatch):
    with pytest.raises(ExportError, match="could not be timed on it: .*no such graph"):
        measure(network, folder, [MISSING], monkeypatch)


def test_ctrl_c_ends_the_candidates_too(folder):
    """The comparison in a process of its own, with more rounds than can pass."""
    program = (
        "from pathlib import Path; from benchmarks.network import core; "
        "from operations.recording import exit_on_interrupt; found = [core.Candidate('ours', 'openvino', 'engine')]; "
        f"exit_on_interrupt(lambda: core.compare(found, Path({str(folder)!r}), 10**6))"
    )
    run = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.PIPE, text=True,
                           start_new_session=True)  # fmt: skip
    while "round 2" not in (line := run.stderr.readline()):
        assert line, "it ended before"
    os.killpg(run.pid, signal.SIGINT)
    rest = run.communicate(timeout=60)[1]  # returns when no candidate holds the other end any more
    assert run.returncode == 1
    assert rest.splitlines()[-1] == "interrupted"
    assert "Traceback" not in rest
