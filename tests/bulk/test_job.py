"""Jobs without Ray: one that is resumed, and one that is interrupted by Ctrl-C."""

import os
import signal

import pytest
from restormer_client.testing import FakeTriton

from bulk import job, manifest
from bulk.job import Interrupt, Job
from tests.bulk.test_manifest import make_row
from tests.bulk.test_worker import photographs, process


def test_resumed_job_makes_damaged_outputs_again(tmp_path, output, monkeypatch):
    """Cut, empty, recorded as empty, empty without a row; the last two are complete, one of them without a row."""
    (tmp_path / "photos").mkdir()
    photographs(tmp_path / "photos", 6)
    manifest.write_job(output, {})
    for number, data in enumerate([b"ol", b"", b"", b"", b"old", b"old"]):
        output.write(f"{number:02}.jpg", data)
    rows = [make_row("00.jpg", bytes=3), make_row("01.jpg", bytes=3), make_row("02.jpg", bytes=0)]
    manifest.write_part(output, [*rows, make_row("05.jpg", bytes=3)])
    with FakeTriton() as triton:

        def run_without_ray(_job, output, todo, summary):
            summary.count(process(triton, output, todo))
            return 1.0

        monkeypatch.setattr(job, "_run_with_ray", run_without_ray)
        settings = Job(
            input=str(tmp_path / "photos"), output=output.root, server={"url": triton.url}, options={}, in_flight=4,
            actors=1, timeout=10.0, patience=60.0,
        )  # fmt: skip
        summary = job.run(settings)
    assert (summary.done_before, summary.enhanced, summary.found) == (1, 4, 1)
    outputs = {row["key"]: output.read(row["key"]) for row in manifest.read_rows(output).to_pylist()}
    assert list(outputs.values()) == [*(b"photograph %d" % number for number in range(4)), b"old", b"old"]


def press_ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


class Destructor:
    def __del__(self):
        press_ctrl_c()


def interrupt_destructor():
    with Interrupt() as interrupt:
        Destructor()
        interrupt.check()
        pytest.fail("the interrupt was lost")


def interrupt_failing_clean_up():
    with Interrupt():
        try:
            press_ctrl_c()
        finally:
            raise RuntimeError("Ray has not been started yet")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("job", [interrupt_destructor, interrupt_failing_clean_up])
def test_interrupt_is_not_lost(job):
    with pytest.raises(KeyboardInterrupt):
        job()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
