"""Test the comparison of a running server with PyTorch: with a real server, and with errors that it must find."""

import json
import sys

import numpy as np
import pytest

from operations import served_fidelity


def run(monkeypatch, capsys, *options):
    monkeypatch.setattr(sys, "argv", ["served_fidelity", *options])
    code = served_fidelity.main()
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_served_engine_is_compared_one_by_one_and_in_a_batch(triton, monkeypatch, capsys):
    code, figures = run(monkeypatch, capsys, "--url", triton.url, "--batch", "2", "--at-least", "90")
    assert code == 0
    assert len(figures["photographs"]) == 2
    assert all(90 < served_fidelity.decibels(row) <= 200 for row in figures["photographs"])
    assert run(monkeypatch, capsys, "--url", triton.url, "--batch", "1", "--at-least", "201")[0] == 1


@pytest.mark.parametrize("order", [[0, 1, 2], [1, 0, 2]])
def test_results_that_a_batch_swaps_are_found(order):
    images = {str(n): np.full((1, 3, 4, 4), n / 4, np.float32) for n in range(3)}
    rows = served_fidelity.compare(images, lambda image: image, lambda image: image[order] if len(image) > 1 else image)
    assert [row["alone"] for row in rows] == [200] * 3
    assert (min(map(served_fidelity.decibels, rows)) < 20) == (order != [0, 1, 2])


def test_too_few_photographs_are_reported(monkeypatch, capsys):
    with pytest.raises(SystemExit, match="has 24 photographs, --batch is 25"):
        run(monkeypatch, capsys, "--batch", "25")
