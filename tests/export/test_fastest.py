"""--precision auto: what this processor does fastest, measured; and the next where it is not faithful enough."""

import dataclasses

import pytest

from export import build, fastest, machine
from export.errors import ExportError, GateError
from export.precision import PRECISIONS
from export.request import Request
from export.targets import cpu
from tests.conftest import bare_repository


@pytest.fixture
def package(tiny):
    return tiny["package"]


def test_only_what_this_processor_executes_is_timed_or_taken(package, capsys):
    found = fastest.fastest_first(package)
    said = capsys.readouterr().err
    assert set(found) == {name for name, precision in PRECISIONS.items() if not cpu.why_not(precision)}
    for name in PRECISIONS.keys() - set(found):
        assert f"not {name}: " in said
    assert "the only one" in said or all(f"{name} takes" in said for name in found)


def test_precisions_are_timed_in_turns_and_sorted(package, monkeypatch, capsys):
    """A processor that executes one alone is told that it executes two."""
    monkeypatch.setattr(fastest, "_seconds", lambda package, names: dict(zip(names, (2.0, 1.0), strict=True)))
    monkeypatch.setattr(cpu, "why_not", lambda precision: "" if precision.name in ("fp32", "bf16") else "not here")
    assert fastest.fastest_first(package) == ["bf16", "fp32"]
    assert "bf16 takes 1.000 s" in capsys.readouterr().err


def test_seconds_are_measured_by_running_the_network_also_in_int8(package, monkeypatch):
    """A processor without INT8 arithmetic runs its graph too, only not fast: the branch is the same."""
    monkeypatch.setattr(fastest, "ROUNDS", 1)
    found = fastest._seconds(package, ["fp32", "int8"])
    assert list(found) == ["fp32", "int8"]
    assert all(0.001 < seconds < 600 for seconds in found.values())


@pytest.fixture
def request_for_auto(package, tmp_path, monkeypatch):
    """A request; and what was built for it, by a builder that pretends: bf16 ends as ``outcome`` says."""
    monkeypatch.setattr(machine, "gpus", list)
    monkeypatch.setattr(fastest, "fastest_first", lambda package: ["bf16", "fp32"])
    built, original = [], build.build

    def pretending(outcome):
        def pretended(request):
            if request.precision == "auto":
                return original(request)
            built.append((request.precision, request.target))
            if request.precision == "bf16" and outcome:
                raise outcome
            return [tmp_path]

        monkeypatch.setattr(build, "build", pretended)

    places = {"repository": bare_repository(tmp_path / "models"), "engines": tmp_path / "engines"}
    return Request(package=package, precision="auto", **places), built, pretending


def test_one_that_does_not_pass_its_gate_gives_way_to_the_next_which_is_kept(request_for_auto, monkeypatch, capsys):
    request, built, pretending = request_for_auto
    pretending(GateError("44.0 dB are below the gate"))
    build.build(request)
    assert built == [("bf16", "cpu"), ("fp32", "cpu")]
    assert "bf16 is rejected: 44.0 dB" in capsys.readouterr().err
    monkeypatch.setattr(fastest, "fastest_first", lambda package: pytest.fail("measured again with nothing changed"))
    build.build(request)
    assert built[2:] == [("fp32", "cpu")]
    assert "fp32, as measured before" in capsys.readouterr().err


def test_another_gate_is_measured_again(request_for_auto):
    request, built, pretending = request_for_auto
    pretending(None)
    build.build(request)
    build.build(dataclasses.replace(request, gate=50.0))
    assert built == [("bf16", "cpu"), ("bf16", "cpu")]
    assert len(list((request.engines / ".cache").glob("auto-*.json"))) == 2


def test_what_is_wrong_otherwise_ends_it_and_is_not_kept(request_for_auto):
    request, built, pretending = request_for_auto
    pretending(ExportError("another build is publishing"))
    with pytest.raises(ExportError, match="another build"):
        build.build(request)
    assert built == [("bf16", "cpu")]
    assert not (request.engines / ".cache").exists()


def test_a_gpu_gets_fp16_and_rtx_is_asked_for_by_name(monkeypatch, tmp_path, package):
    monkeypatch.setattr(machine, "gpus", lambda: [("NVIDIA H100", "9.0")])
    with pytest.raises(ExportError, match="not a restormer repository"):
        build.build(Request(package=package, precision="auto", repository=tmp_path))
    repository = bare_repository(tmp_path / "models")
    with pytest.raises(ExportError, match="--precision fp16"):
        build.build(Request(package=package, precision="auto", target="rtx", repository=repository))
