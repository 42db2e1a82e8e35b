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

from benchmarks.network import core, peak, roofline
from export.errors import ExportError
from export.metrics import psnr
from export.network import int8
from export.network.architecture import restormer
from export.network.cpu_form import channels_last
from export.network.graph import onnx_from_network
from export.network.restormer import Restormer
from export.network.rewrites import rewritten
from export.precision import PRECISIONS
from export.targets import cpu
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    torch.manual_seed(0)
    network = Restormer(restormer(dim=8, blocks=(1, 1, 1, 1), refinement=1)).eval()
    folder = tmp_path_factory.mktemp("core")
    image = np.random.default_rng(0).random((1, 3, 64, 64), np.float32)
    other = np.random.default_rng(1).random((1, 3, 64, 64), np.float32)
    return folder, core.written(network, image, folder, {"other": other}), network


def test_candidates_agree_with_the_paper_and_say_why_they_cannot_run(written):
    folder, gflop, _ = written
    assert gflop > 0.01
    wanted = [each for each in core.candidates() if "compile" not in each.kind]  # which would take a minute each
    workers = core.compared(wanted, folder, rounds=2)
    assert workers[0].candidate.name == core.BASE
    reference = np.load(folder / workers[0].first["output"])
    rows = {w.candidate.name: core.row(w, 1.0, reference, folder) for w in workers}
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


def test_a_candidate_that_dies_is_a_row_and_not_the_end(written):
    folder, *_ = written
    (worker,) = core.compared([core.Candidate("nothing", "openvino", "no such graph")], folder, rounds=1)
    assert not worker.is_running
    assert "no such graph" in worker.first["not_run"]


def test_steps_tell_seconds_an_image_and_which_of_them_died(written):
    """Two that run, one with two images a call, and one that has no graph: real processes."""
    folder, *_ = written
    names = {"first": ("no such graph", 1), "engine": ("engine", 1), "two a call": ("engine", 2)}
    found = [core.Candidate(name, "openvino", graph, batch=batch) for name, (graph, batch) in names.items()]
    first, engine, two = core.steps_of(core.compared(found, folder, rounds=2), folder)
    assert "no such graph" in first["not_run"]
    assert engine["speedup"] == 1  # the first that ran
    assert two["speedup"] == pytest.approx(engine["median_s"] / two["median_s"])
    assert two["psnr_db"] > 90


def test_what_was_tried_is_the_engine_but_for_what_its_name_says(written):
    folder, _, network = written
    form = channels_last(rewritten(core.awake(copy.deepcopy(network))))
    image = torch.from_numpy(np.load(folder / "image.npy"))
    with torch.inference_mode():
        engine, centred, bare = (
            each(image) for each in (form, core.centring_folded(form), core.without_temperature(form))
        )
    assert psnr(centred.numpy(), engine.numpy()) > 100
    assert psnr(bare.numpy(), engine.numpy()) < 100
    onnx_from_network(core.without_temperature(form), side=64)


def test_more_in_int8_is_the_engine_with_more_convolutions_on_the_grid(written):
    """Real candidates; that a step names other layers than the one before it shows in its output."""
    folder, _, network = written
    image, other = np.load(folder / "image.npy"), np.random.default_rng(1).random((1, 3, 64, 64), np.float32)
    steps = core.tried_in_int8(network, image, other, folder, rounds=1)
    if cpu.why_not(PRECISIONS["int8"]):
        assert steps == []
        return
    assert len(steps) == 4
    assert steps[0]["psnr_db"] == 200
    assert all(30 < step["psnr_db"] < 200 for step in steps[1:])
    assert len({step["psnr_db"] for step in steps}) == 4


def test_the_random_network_has_no_ones_and_zeros_that_a_runtime_takes_out(written):
    *_, network = written
    woken = core.awake(copy.deepcopy(network))
    inner = {name: each for name, each in woken.named_parameters() if name.endswith((".temperature", "norm1.bias"))}
    assert len(inner) == 2 * 8
    assert not [name for name, each in inner.items() if torch.any((each == 0) | (each == 1))]


def test_rounds_that_overlap_say_nothing():
    one = {"least_s": 1.0, "most_s": 2.0}
    assert core.is_within_spread(one, {"least_s": 1.9, "most_s": 3.0})
    assert core.is_within_spread(one, {"least_s": 1.2, "most_s": 1.3})
    assert not core.is_within_spread(one, {"least_s": 2.1, "most_s": 3.0})


def test_a_slow_candidate_is_timed_once_and_the_base_twice(written):
    worker = core.Worker(core.Candidate("nothing", "openvino", "no such graph"), written[0])
    assert not worker.wants(1)
    worker.first = {}
    assert worker.wants(1)
    worker.seconds = [core.SLOWEST + 1]
    assert not worker.wants(1)
    assert worker.wants(core.BASE_TURNS)
    worker.seconds = [core.SLOWEST - 1] * 2
    assert worker.wants(1)


ENGINE, INT8 = f"{core.OURS}, fp32", f"{core.OURS}, int8, every convolution it can take"


def figures(speedup, decibels, precision="fp32"):
    median = 10.0 / speedup
    seconds = [median, 0.9 * median, 1.1 * median]
    known = {"median_s": median, "least_s": min(seconds), "most_s": max(seconds), "seconds": seconds}
    return known | {
        "memory_mib": None,
        "speedup": speedup,
        "psnr_db": decibels,
        "precision": precision,
    }


def step(name, median, speedup, *, least=None, most=None):
    times = {"median_s": median, "least_s": least or median, "most_s": most or median}
    return {"step": name, **times, "speedup": speedup, "psnr_db": 200.0}


def record(speedup, decibels, isa=("avx2", "amx_bf16"), top=400.0, **more):
    """A record as `core.recorded` makes it, of one engine; ``more``: rows beside it, the same on both networks."""
    rows = {core.BASE: figures(1.0, 200.0), ENGINE: figures(speedup, decibels), **more}
    about = {"gflop": 300.0, "parameters": 10**6, "rows": rows}
    return {
        "circumstances": {"isa": list(isa)},
        "peak": {"float32_gflops": top, "bfloat16_gflops": None},
        "networks": {"standard 256": about | {"weights": "random"}, "demo 512": about | {"weights": "trained"}},
        "ladder_of": "the network",
        "ladder": [{"step": "first", "not_run": "its process died"}],
        "tried": [
            step("the engine as it is", 1.0, 1.0),
            step("two images a call", 1.1, 0.91),
            {"step": "four images a call", "not_run": "too little memory"},
        ],
        "tried_in_int8": [],
        "settings": {"rows": {"1 thread": {"not_run": "its process died"}}, "streams": {"1 stream": [0.5, 0.4, 0.7]}},
    }


@pytest.mark.parametrize(
    ("speedup", "decibels", "isa", "said"),
    [
        (10.2, 54.0, ["amx_bf16"], "is reached: our cpu engine, fp32 is 10.2 times as fast, at 54.0 dB"),
        (9.9, 54.0, ["amx_bf16"], "is **missed**: our cpu engine, fp32 is 9.9"),
        (10.2, 44.9, ["amx_bf16"], "is **missed**: none of our engines that ran here keeps 45 dB"),
        (3.0, 117.0, ["avx2"], "this one has none. Here our cpu engine, fp32 is 3.0 times as fast, at 117.0 dB"),
        (10.2, 54.0, ["avx2"], "is 10.2 times as fast, at 54.0 dB: reached even here."),
        (12.0, 44.9, ["avx2"], "this one has none. Here none of our engines that ran here keeps 45 dB"),
    ],
)
def test_the_goal_is_one_of_speed_and_fidelity_on_a_machine_with_amx(speedup, decibels, isa, said):
    assert said in core.verdict(record(speedup, decibels, isa))


def test_the_verdict_takes_the_fastest_of_those_that_are_faithful():
    unfaithful = record(4.0, 60.0, **{INT8: figures(12.0, 30.0, "int8")})
    assert "**missed**: our cpu engine, fp32 is 4.0" in core.verdict(unfaithful)
    faithful = record(4.0, 60.0, **{INT8: figures(12.0, 50.0, "int8")})
    assert f"reached: {INT8} is 12.0" in core.verdict(faithful)
    assert "allows in int8 was not measured" in core.verdict(faithful)


def test_the_verdict_says_what_the_peak_allows_and_what_was_tried():
    said = core.verdict(record(4.0, 60.0, top=200.0))  # 300 GFLOP in 10 s is 30 GFLOP/s
    assert "at the 200 GFLOP/s" in said
    assert "would be 6.7 times as fast: 10 is out of reach here." in said
    assert "out of reach" not in core.verdict(record(4.0, 60.0))
    assert said.endswith("as times the engine's speed: two images a call, 0.91.")
    unsure = record(4.0, 60.0)
    unsure["tried_in_int8"] = [step("INT8", 1.0, 1.0, most=1.2), step("more of it", 1.1, 0.91)]
    assert core.verdict(unsure).endswith("two images a call, 0.91. Within the spread of the rounds: more of it.")


def test_the_verdict_says_how_far_the_rounds_are_apart_and_what_another_base_gives():
    own = record(10.0, 60.0, **{core.OWN: figures(2.0, 100.0)})  # medians 10, 1 and 5 s
    own["networks"]["standard 256"]["rows"][core.BASE]["seconds"] = [10.0, 12.0, 9.0]
    own["networks"]["standard 256"]["rows"][ENGINE]["seconds"] = [1.0, 1.0, 1.0, 20.0]  # the base was timed less often
    said = core.verdict(own)
    assert "Round by round that is 9.0 to 12.0 times." in said
    assert "beside the fastest of eager float32 that we know of" in said
    assert "with its channels last, it is 5.0 times." in said


def test_a_gpus_graphs_are_of_the_size_that_is_measured_and_have_real_ranges(written):
    *_, network = written
    ready = rewritten(network)
    ranges = {name: 2.0 + at for at, name in enumerate(int8.candidates(ready))}
    made = roofline.graphs(network, side=64, ranges=ranges)
    sides = {[dim.dim_value for dim in each.graph.input[0].type.tensor_type.shape.dim][-1] for each in made.values()}
    assert sides == {64}
    scales = {tensor.name: numpy_helper.to_array(tensor) for tensor in made["int8"].graph.initializer}
    assert scales["latent.0.attn.qkv.input_scale"] == pytest.approx(ranges["latent.0.attn.qkv"] / 127, rel=1e-3)


def test_the_peaks_are_of_products_that_are_right_and_in_int8_count_as_operations(monkeypatch):
    monkeypatch.setattr(peak, "SIDE", 512)
    numbers = np.arange(512 * 512).reshape(512, 512) % 127
    assert (peak._onnxruntime("MatMulInteger")()[0] == numbers @ (numbers - 63)).all()
    for product in (peak._onnxruntime("MatMul"), peak._openvino("fp32")):
        assert np.allclose(product()[0], (numbers / 127) @ (numbers / 127), rtol=1e-4)
    document = record(4.0, 60.0, **{INT8: figures(12.0, 50.0, "int8")})
    document["peak"]["int8_gops"] = 900.0
    assert "at the 900 GOP/s that a matrix product reaches here in int8, would be 30.0 times" in core.verdict(document)


def test_the_peak_is_the_highest_that_was_seen_and_a_gpus_rows_have_their_own():
    before = {"float32_gflops": 100.0, "bfloat16_gflops": None, "gpu_float32_gflops": 1000.0}
    seen = peak.higher(before, before | {"float32_gflops": 150.0, "gpu_float32_gflops": 900.0})
    assert seen == {"float32_gflops": 150.0, "bfloat16_gflops": None, "gpu_float32_gflops": 1000.0}
    row = {"median_s": 2.0, "precision": "fp32"}
    assert core.peak_share(ENGINE, row, 300.0, seen) == 1.0
    assert core.peak_share("GPU: PyTorch eager float32", row, 300.0, seen) == 0.15
    assert core.peak_share(ENGINE, row | {"precision": "bf16"}, 300.0, seen) is None


def test_the_tables_name_what_did_not_run():
    made = core.lines(record(4.0, 60.0, **{INT8: {"not_run": "no VNNI"}}))
    assert sum("not run: its process died" in line for line in made) == 2
    assert sum("not run: no VNNI" in line for line in made) == 2
    assert sum("not run: too little memory" in line for line in made) == 1
    assert made[-1] == core.verdict(record(4.0, 60.0, **{INT8: {"not_run": "no VNNI"}}))


def measured(written, found, monkeypatch):
    """These candidates on what is written already."""
    folder, gflop, network = written
    monkeypatch.setattr(core, "candidates", lambda: found)
    monkeypatch.setattr(core, "written", lambda *given: gflop)
    image = np.load(folder / "image.npy")
    return core.measured("it", network, image, "random", {}, folder, 1)


def test_what_takes_minutes_to_compile_is_a_row_with_its_reason(written, monkeypatch):
    """At a size beyond `COMPILED`; the other candidates are left out here, which have their own test."""
    kept = [core.Candidate(core.BASE, "paper"), core.Candidate("torch.compile float32", "compile")]
    monkeypatch.setattr(core, "COMPILED", 32)
    found = measured(written, kept, monkeypatch)
    assert found["rows"]["torch.compile float32"] == {"not_run": core.TOO_LONG}
    assert len(found["rows"][core.BASE]["seconds"]) == 1


def test_a_base_that_cannot_be_timed_ends_in_one_line(written, monkeypatch):
    with pytest.raises(ExportError, match="could not be timed on it: .*no such graph"):
        measured(written, [core.Candidate(core.BASE, "openvino", "no such graph")], monkeypatch)


def test_ctrl_c_ends_in_one_word_and_takes_the_candidates_along(written):
    """The comparison in a process of its own, with more rounds than anybody waits for."""
    program = (
        "from pathlib import Path; from benchmarks.network import core; "
        "from operations.recording import exit_on_interrupt; found = [core.Candidate('ours', 'openvino', 'engine')]; "
        f"exit_on_interrupt(lambda: core.compared(found, Path({str(written[0])!r}), 10**6))"
    )
    run = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.PIPE, text=True,
                           start_new_session=True)  # fmt: skip
    while "round 2" not in (said := run.stderr.readline()):
        assert said, "it ended before"
    os.killpg(run.pid, signal.SIGINT)
    rest = run.communicate(timeout=60)[1]  # to its end: no candidate holds its other end any more
    assert run.returncode == 1
    assert rest.splitlines()[-1] == "interrupted"
    assert "Traceback" not in rest
