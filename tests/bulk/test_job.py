"""Jobs without Ray: one that is resumed, and one that is interrupted by Ctrl-C."""

import signal
import subprocess
import sys

import pytest
from restormer_client.testing import FakeTriton

from bulk import job, manifest, storage
from bulk.plan import Job
from tests.bulk.test_manifest import make_row
from tests.bulk.test_worker import photographs, process
from tests.conftest import ROOT


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
            output.write(".03.jpg.a1b2c3d4", b"ph")  # of a node that was killed while it wrote
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
    assert not list(filter(storage.is_leftover, output.names()))


PRESS_CTRL_C = """
import os, signal
from bulk.job import Interrupt

def press_ctrl_c(*_):
    os.kill(os.getpid(), signal.SIGINT)

"""
IN_A_DESTRUCTOR = """
class Destructor:
    __del__ = press_ctrl_c

with Interrupt() as interrupt:
    Destructor()
    interrupt.check()
    print("lost")
"""
BEFORE_A_CLEAN_UP_THAT_FAILS = """
with Interrupt():
    try:
        press_ctrl_c()
    finally:
        raise RuntimeError("Ray has not been started yet")
"""


@pytest.mark.parametrize("job", [IN_A_DESTRUCTOR, BEFORE_A_CLEAN_UP_THAT_FAILS])
def test_interrupt_is_not_lost(job):
    """In a process of its own: signals belong to the whole process."""
    done = subprocess.run([sys.executable, "-c", PRESS_CTRL_C + job], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (-signal.SIGINT, "")
