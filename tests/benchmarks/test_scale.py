"""The parts of the scaling benchmark that decide what it says. The measurement itself is `make benchmark-scale`."""

import json
from collections import Counter

import numpy as np
import pytest
import simplejpeg

from benchmarks import scale
from benchmarks.traffic import Answer

PARTS = [f"{part}_s" for part in scale.PARTS]


@pytest.mark.parametrize("megapixels", [1, 3, 12, 50])
def test_photographs_are_four_to_three_in_whole_blocks(megapixels):
    width, height = scale.sides(megapixels)
    assert width % 16 == height % 16 == 0
    assert width * height / 1e6 == pytest.approx(megapixels, rel=0.03)
    assert width / height == pytest.approx(4 / 3, rel=0.02)


@pytest.mark.parametrize(("width", "eighths"), [(1024, 8), (2384, 8), (2400, 4), (4000, 4), (8192, 2), (9600, 1)])
def test_a_jpeg_is_shrunk_while_896_pixels_are_left_of_its_shorter_side(width, eighths):
    data = simplejpeg.encode_jpeg(np.zeros((width * 3 // 4, width, 3), np.uint8))
    assert scale.eighths(data) == eighths


def test_what_parts_worked_is_read_off_what_the_counters_grew():
    before = Counter({("preprocess", "photograph_ms_sum"): 500, ("enhance", "queue_duration_us"): 7})
    after = Counter(before)
    after["preprocess", "photograph_ms_sum"] += 2_000
    after["preprocess", "compute_infer_duration_us"] += 9_000_000  # it paused
    after["preprocess", "compute_output_duration_us"] += 500_000
    after["restormer", "queue_duration_us"] += 250_000
    after["postprocess", "queue_duration_us"] += 250_000
    after["enhance", "queue_duration_us"] += 9_000_000  # an ensemble's own is none of its parts'
    found = scale.seconds_of_parts(before, after)
    assert found == {"preprocess_s": 2.5, "restormer_s": 0, "postprocess_s": 0, "queue_s": 0.5}


def test_the_rate_counts_what_was_enhanced_until_the_last_came_back():
    answers = [
        Answer(0, 1, "ok"),
        Answer(0, 2, "ok"),
        Answer(1, 0.1, "rejected"),
        Answer(2, 2, "ok"),
        Answer(3, 5, "expired"),
    ]
    assert scale.rate_of(answers) == pytest.approx(3 / 4)
    assert scale.rate_of(answers[2:3]) == 0


def clients(*rates, turned=0.0, busy=1.9):
    row = {"p50_s": 2.0, "overloaded_share": 0.0, "overloaded_p50_s": 0.02, "cores_busy": busy, "failed_because": {}}
    rows = [
        {"clients": 2**n, "rate": rate, "least": rate - 0.02, "most": rate + 0.02, "cores_of_the_load": n / 10,
         "restormer_s": 0.5 + n / 10, **row}
        for n, rate in enumerate(rates)
    ]  # fmt: skip
    rows[-1]["overloaded_share"] = turned
    return {"rows": rows, "cores": 2, "queue": 4, "fit": {"per_client_s": 1.0, "r2": 0.999}}


def test_the_sentence_on_clients_says_where_the_rate_ends_and_why():
    words = scale.why_clients(clients(0.5, 0.97, 1.0, 0.9, turned=0.75))
    assert "from 2 clients on" in words
    assert "the cores are what ends it" in words
    assert "From 8 clients on some are turned away, because 4 may wait" in words
    assert "75%" in words
    assert "Beyond 4 it falls, to 90% with 8: whoever is turned away asks again after 0.2 s, and those" in words
    assert "who ask take 0.30 of the cores instead of 0.20, and a run of the network 0.80 s instead of 0.70." in words
    assert "it falls" not in scale.why_clients(clients(0.5, 1.0, 0.97))
    unsure = clients(0.5, 0.97, 1.0, 0.9)
    unsure["rows"][-1]["most"] = 1.0  # a round of it was as fast as one of the best
    assert "it falls" not in scale.why_clients(unsure)


def test_a_row_of_clients_has_the_rates_of_its_rounds_and_the_latencies_of_all():
    rounds = [
        scale.Clients([Answer(0, 1, "ok"), Answer(1, 1, "ok")], {"cores_busy": 1.0}, dict.fromkeys(PARTS, 2.0)),
        scale.Clients([Answer(0, 4, "ok"), Answer(0, 0.1, "rejected")], {"cores_busy": 2.0}, dict.fromkeys(PARTS, 1.0)),
    ]
    row = scale.clients_row(2, rounds)
    assert (row["rate"], row["least"], row["most"]) == (0.625, 0.25, 1.0)
    assert (row["ok"], row["rejected"], row["overloaded_share"]) == (3, 1, 0.25)
    assert row["p50_s"] == 1
    assert (row["cores_busy"], row["restormer_s"]) == (1.5, 1.0)


def test_it_blames_neither_cores_that_were_idle_nor_a_queue_that_was_not_full():
    words = scale.why_clients(clients(1.0, 1.0, busy=1.0))
    assert "the cores are what ends it" not in words
    assert words.endswith("Nobody was turned away.")
    assert "failed" not in words


def test_it_does_not_hide_what_failed_for_another_reason():
    found = clients(1.0, 1.0)
    found["rows"][1]["failed_because"] = {"INTERNAL: broken": 3}
    assert "With 2, 3 failed: INTERNAL: broken." in scale.why_clients(found)


def test_the_sentence_on_batches_says_whether_company_pays():
    def batch(whole):
        rows = [
            {"batch": 1, "seconds": 1.0, "in_process_s": 1.0},
            {"batch": 8, "seconds": 8.0, "in_process_s": 8 * whole},
        ]
        return scale.why_batch({"rows": rows, "fit": {"r2": 1.0}})

    assert "little or nothing" in batch(1.05)
    assert "company would pay" in batch(0.6)
    assert "one image already" not in batch(0.6)
    assert "takes 0.60 to 0.60 times as long" in batch(0.6)
    without = scale.why_batch(
        {"rows": [{"batch": 1, "seconds": 1.0}, {"batch": 8, "seconds": 4.0}], "fit": {"r2": 0.9}}
    )
    assert "0.50 s in a batch of 8" in without


def test_the_sentence_on_megapixels_tells_the_decoders_steps_once_each():
    rows = [
        {"megapixels": size, "eighths": eighths, "preprocess_s": 0.01 * size, "restormer_s": 1.0}
        for size, eighths in ((1.0, 8), (2.0, 6), (3.0, 6), (12.0, 3))
    ]
    fit = {"per_megapixel_s": 0.02, "r2": 0.99}
    words = scale.why_megapixels({"rows": rows, "fit": fit, **{f"fit_{part}": fit for part in scale.PARTS}})
    assert "8/8 from 1 MP on (10.0 ms a megapixel), 6/8 from 2 MP on" in words
    assert "from 3 MP on" not in words


def test_the_table_has_a_row_for_each_figure_and_the_sentence_below_it():
    document = {"clients": {**clients(1.0, 1.2), "why": "Because."}}
    made = scale.lines(json.loads(json.dumps(document)))
    assert [line.split()[:2] for line in made[2:4]] == [["1", "1.00"], ["2", "1.20"]]
    assert made[-1] == "Because."


def test_the_sentence_on_instances_names_a_process_that_waited():
    def instances(worked):
        rows = [{"servers": n, "instances": m, "rate": 1.0, "cores_busy": 1.0} for n, m in scale.SETUPS]
        parts = [
            {"part": part, "instances": count, "rate": 5.0 * count, "worked_share": worked}
            for part in ("preprocess", "postprocess")
            for count in (1, 2)
        ]
        return scale.why_instances({"rows": rows, "parts": parts, "cores": 2})

    assert "One process for preprocess worked only 40% of the time" in instances(0.4)
    assert "worked only" not in instances(0.95)
    assert "prepare 2.00 and finish 2.00 times as many" in instances(0.95)
