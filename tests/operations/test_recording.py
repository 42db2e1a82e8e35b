"""Test records of runs: circumstances, noise of the machine, and figures kept from earlier runs."""

import json

import pytest

from operations import recording


def make_probes(*seconds, stolen=0.0):
    return {"seconds": list(seconds), "stolen_shares": [stolen]}


def test_probes_are_timed_and_their_spread_is_relative_to_the_median():
    measured = recording.run_probes()
    assert len(measured["seconds"]) == recording.PROBES
    assert min(measured["seconds"]) > 0
    assert recording.noise_from_probes(make_probes(1.0, 1.1, 1.2))["spread"] == pytest.approx(0.2 / 1.1)


@pytest.mark.parametrize(("later", "warns"), [(make_probes(1.0, 1.1), False), (make_probes(1.3, 1.3), True)])
def test_drift_during_the_run_is_noise(monkeypatch, tmp_path, capsys, later, warns):
    """The machine may be steady before and after the run, and yet slower after it."""
    monkeypatch.setattr(recording, "run_probes", lambda: later)
    circumstances = {"noise": recording.noise_from_probes(make_probes(1.0, 1.0))}
    assert not recording.is_noisy(circumstances["noise"])
    recording.finish_run({"circumstances": circumstances}, tmp_path / "record.json")
    assert circumstances["noise"]["seconds"] == [1.0, 1.0, *later["seconds"]]
    assert ("noisy" in capsys.readouterr().err) == recording.is_noisy(circumstances["noise"]) == warns


def test_stolen_time_is_noise():
    assert recording.is_noisy(recording.noise_from_probes(make_probes(1.0, stolen=0.2)))


def test_calculations_are_not_probed(monkeypatch, tmp_path):
    monkeypatch.setattr(recording, "run_probes", lambda: pytest.fail("probed"))
    recording.finish_run({"circumstances": {"noise": {}}, "calculation": True}, tmp_path / "record.json")


def test_figures_of_earlier_runs_are_kept(tmp_path, capsys):
    record = tmp_path / "new" / "record.json"
    recording.finish_run({"a": 1, "b": 1}, record)
    recording.finish_run({"b": 2}, record, {**recording.read_record(record), "b": 2})
    assert json.loads(record.read_text(encoding="utf-8")) == {"a": 1, "b": 2}
    assert capsys.readouterr().out.splitlines() == ['{"a": 1, "b": 1}', '{"b": 2}']
    assert recording.read_record(tmp_path / "none.json") == recording.read_record(None) == {}
