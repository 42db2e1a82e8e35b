"""A job that is interrupted by Ctrl-C."""

import os
import signal

import pytest

from bulk.job import Interrupt


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
