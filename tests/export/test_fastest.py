"""--precision auto: the fastest precision of this CPU, or the next where that misses its gate."""

import dataclasses

import pytest

import hosts
from export import build, fastest
from export.errors import ExportError, GateError
from export.precision import PRECISIONS
from export.request import Request
from export.targets import cpu
from tests.conftest import bare_repository


@pytest.fixture
def package(tiny):
    return tiny["package"]


def test_only_precisions_that_the_cpu_executes_are_timed(package, capsys):
    result = fastest.rank_precisions(package)
    output = capsys.readouterr().err
    assert set(result) == {name for name, precision in PRECISIONS.items() if not cpu.why_not(precision)}
    for name in PRECISIONS.keys() - set(result):
        assert f"not {name}: " in output
    assert "the only one" in output or all(f"{name} takes" in output for name in result)


def test_precisions_are_sorted_by_time(package, monkeypatch, capsys):
    """Pretend that the CPU executes two precisions."""
    monkeypatch.setattr(fastest, "_measure_seconds", lambda package, names: dict(zip(names, (2.0, 1.0), strict=True)))
    monkeypatch.setattr(cpu, "why_not", lambda precision: "" if precision.name in ("fp32", "bf16") else "not here")
    assert fastest.rank_precisions(package) == ["bf16", "fp32"]
    assert "bf16 takes 1.000 s" in capsys.readouterr().err


def test_times_are_measured_in_int8_too(package, monkeypatch):
    """A CPU without INT8 arithmetic runs the graph too, only slowly."""
    monkeypatch.setattr(fastest, "ROUNDS", 1)
    result = fastest._measure_seconds(package, ["fp32", "int8"])
    assert list(result) == ["fp32", "int8"]
    assert all(0.001 < seconds < 600 for seconds in result.values())


@pytest.fixture
def request_for_auto(package, tmp_path, monkeypatch):
    """A request, the builds made for it, and a fake builder in which bf16 raises ``outcome``."""
    monkeypatch.setattr(hosts, "gpus", list)
    monkeypatch.setattr(fastest, "rank_precisions", lambda package: ["bf16", "fp32"])
    built, original = [], build.build

    def pretending(outcome):
        def pretended(request, **options):
            if request.precision == "auto":
                return original(request)
            built.append((request.precision, request.target))
            if request.precision == "bf16" and outcome:
                raise outcome
            return [tmp_path]

        monkeypatch.setattr(build, "build", pretended)

    places = {"repository": bare_repository(tmp_path / "models"), "engines": tmp_path / "engines"}
    return Request(package=package, precision="auto", **places), built, pretending


def test_a_precision_that_misses_its_gate_is_replaced_by_the_next(request_for_auto, monkeypatch, capsys):
    request, built, pretending = request_for_auto
    pretending(GateError("44.0 dB are below the gate"))
    build.build(request)
    assert built == [("bf16", "cpu"), ("fp32", "cpu")]
    assert "bf16 is rejected: 44.0 dB" in capsys.readouterr().err
    monkeypatch.setattr(fastest, "rank_precisions", lambda package: pytest.fail("measured again with nothing changed"))
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


def test_other_errors_end_the_build_and_are_not_cached(request_for_auto):
    request, built, pretending = request_for_auto
    pretending(ExportError("another build is publishing"))
    with pytest.raises(ExportError, match="another build"):
        build.build(request)
    assert built == [("bf16", "cpu")]
    assert not (request.engines / ".cache").exists()


def test_auto_precision_is_rejected_for_rtx(monkeypatch, tmp_path, package):
    monkeypatch.setattr(hosts, "gpus", lambda: [("NVIDIA H100", "9.0")])
    with pytest.raises(ExportError, match="not a restormer repository"):
        build.build(Request(package=package, precision="auto", repository=tmp_path))
    repository = bare_repository(tmp_path / "models")
    with pytest.raises(ExportError, match="--precision fp16"):
        build.build(Request(package=package, precision="auto", target="rtx", repository=repository))
