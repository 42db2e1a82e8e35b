"""What a record says of the machine it was made on."""

import pytest

from operations import circumstances as module
from operations import command_line


def quiet(*seconds, stolen=0.0):
    return {"seconds": list(seconds), "stolen_shares": [stolen]}


def test_work_is_timed_and_its_spread_is_of_the_median():
    found = module.probes()
    assert len(found["seconds"]) == module.PROBES
    assert min(found["seconds"]) > 0
    assert module.noise(quiet(1.0, 1.1, 1.2))["spread"] == pytest.approx(0.2 / 1.1)


@pytest.mark.parametrize(("later", "warns"), [(quiet(1.0, 1.1), False), (quiet(1.3, 1.3), True)])
def test_a_machine_that_has_become_slower_meanwhile_is_noisy(monkeypatch, tmp_path, capsys, later, warns):
    """Steady before and steady after it, and yet not the same."""
    monkeypatch.setattr(module, "probes", lambda: later)
    where = {"noise": module.noise(quiet(1.0, 1.0))}
    assert not module.is_noisy(where["noise"])
    command_line.finish({"circumstances": where}, tmp_path / "record.json")
    assert where["noise"]["seconds"] == [1.0, 1.0, *later["seconds"]]
    assert ("this machine is noisy" in capsys.readouterr().err) == module.is_noisy(where["noise"]) == warns


def test_so_is_one_whose_time_goes_to_others():
    assert module.is_noisy(module.noise(quiet(1.0, stolen=0.2)))


def test_a_calculation_is_not_asked_how_quiet_it_was(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "probes", lambda: pytest.fail("it was"))
    command_line.finish({"circumstances": {"noise": {}}, "calculation": True}, tmp_path / "record.json")
