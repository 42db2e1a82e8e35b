"""PRECISION=auto: what this processor does fastest, measured; and the next where it is not faithful enough."""

import pytest

from export import build, cpu, fastest, machine
from export.build import Request
from export.errors import ExportError
from export.precision import PRECISIONS


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


def test_seconds_are_measured_by_running_the_network(package):
    (seconds,) = fastest._seconds(package, ["fp32"]).values()
    assert 0.001 < seconds < 600


def test_one_that_is_not_faithful_enough_gives_way_to_the_next(monkeypatch, tmp_path, capsys):
    (tmp_path / "restormer").mkdir()
    (tmp_path / "restormer/config.pbtxt").touch()
    monkeypatch.setattr(fastest, "fastest_first", lambda package: ["bf16", "fp32"])
    monkeypatch.setattr(machine, "gpus", list)
    built, original = [], build.build

    def pretended(request):
        if request.precision == "auto":
            return original(request)
        built.append((request.precision, request.target))
        if request.precision == "bf16":
            raise ExportError("44.0 dB are below the gate")
        return [tmp_path]

    monkeypatch.setattr(build, "build", pretended)
    assert build.build(Request(package=tmp_path, precision="auto", repository=tmp_path)) == [tmp_path]
    assert built == [("bf16", "cpu"), ("fp32", "cpu")]
    assert "bf16 is not taken: 44.0 dB" in capsys.readouterr().err


def test_a_gpu_gets_fp16_and_rtx_is_asked_for_by_name(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "gpus", lambda: [("NVIDIA H100", "9.0")])
    with pytest.raises(ExportError, match="no model repository"):
        build.build(Request(package=tmp_path, precision="auto", repository=tmp_path))
    with pytest.raises(ExportError, match="PRECISION=fp16"):
        build.build(Request(package=tmp_path, precision="auto", target="rtx", repository=tmp_path))
