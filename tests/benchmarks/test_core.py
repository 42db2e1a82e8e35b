"""The comparison of runtimes: real candidates on a small network, in processes of their own."""

import numpy as np
import pytest
import torch

from benchmarks import core
from export.architecture import restormer
from export.network import Restormer


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    torch.manual_seed(0)
    network = Restormer(restormer(dim=8, blocks=(1, 1, 1, 1), refinement=1)).eval()
    folder = tmp_path_factory.mktemp("core")
    image = np.random.default_rng(0).random((1, 3, 64, 64), np.float32)
    return folder, core.written(network, image, folder)


def test_candidates_agree_with_the_paper_and_say_why_they_cannot_run(written):
    folder, gflop = written
    assert gflop > 0.01
    wanted = [each for each in core.candidates() if "compile" not in each.kind]  # which would take a minute each
    workers = core.compared(wanted, folder, rounds=2)
    assert workers[0].candidate.name == core.BASE
    reference = np.load(folder / workers[0].first["output"])
    peak = {"float32_gflops": 100.0, "bfloat16_gflops": 200.0, "copy_gb_s": 10.0}
    rows = {w.candidate.name: core.row(w, 1.0, gflop, peak, reference, folder) for w in workers}
    for name, row in rows.items():
        if "not_run" in row:
            assert any(half in name for half in ("bf16", "bfloat16", "fp16", "int8"))
            assert "this CPU has no" in row["not_run"]
        else:
            assert row["psnr_db"] > (90 if row["precision"] == "fp32" else 30), name
            assert row["rounds"] == 2
            assert row["memory_mib"] > 50
            assert row["speedup"] == pytest.approx(1 / row["median_s"])
    assert "median_s" in rows["our cpu engine, fp32"]


def test_a_candidate_that_dies_is_a_row_and_not_the_end(written):
    folder, _ = written
    (worker,) = core.compared([core.Candidate("nothing", "openvino", "no such graph")], folder, rounds=1)
    assert not worker.is_running
    assert "no such graph" in worker.first["not_run"]


def test_the_verdict_says_what_the_peak_allows():
    row = {"speedup": 4.0, "median_s": 2.5, "precision": "fp32"}
    networks = {"standard 256": {"gflop": 300.0, "rows": {core.BASE: {"median_s": 10.0}, "our cpu engine, fp32": row}}}
    said = core.verdict({"networks": networks, "peak": {"float32_gflops": 200.0, "bfloat16_gflops": None}})
    assert "missed, 4.0 by our cpu engine, fp32" in said
    assert "would be 6.7" in said
    assert "reached" in core.verdict(
        {"networks": {"standard 256": {**networks["standard 256"], "rows": {**networks["standard 256"]["rows"],
         "our cpu engine, fp32": {**row, "speedup": 10.5}}}}, "peak": {"float32_gflops": 200.0}}
    )  # fmt: skip
