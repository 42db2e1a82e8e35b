"""The pace that processes share: who prepares waits for the network, and for nobody who has died."""

import subprocess
import sys
import threading
import time

import pytest

from imaging.pace import EMPTY, IDLE, NOTICE, Pace
from tests.conftest import ROOT

#: Another process that works as the network does, until a line comes or it is killed.
NETWORK = """
import sys
from pathlib import Path
from imaging.pace import Pace
with Pace(Path(sys.argv[1])).working():
    print("working", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def network(tmp_path):
    command = [sys.executable, "-c", NETWORK, str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "working\n"
    yield process
    process.kill()
    process.communicate()


def paused(pace, most):
    """A thread that pauses, seen to do so for longer than an idle network would be borne."""
    thread = threading.Thread(target=pace.pause, args=[most])
    thread.start()
    thread.join(20 * IDLE)
    assert thread.is_alive()
    return thread


def ended(thread):
    thread.join(10)
    return not thread.is_alive()


def count(pace):
    return pace._read()


def test_fewer_than_the_most_do_not_pause(tmp_path, network):
    pace = Pace(tmp_path)
    pace.prepared()
    pace.pause(2)
    assert count(pace) == 1


def test_the_pause_ends_when_the_network_has_ended_one(tmp_path, network):
    pace = Pace(tmp_path)
    pace.prepared()
    Pace(tmp_path).prepared()  # another process prepares too
    thread = paused(pace, 2)
    network.communicate("done\n")
    assert ended(thread)
    assert count(pace) == 1


def test_whoever_rests_is_free_before_the_end(tmp_path, network):
    """The network's last run took a second longer than that: he rests for this second, and not until the end."""
    pace = Pace(tmp_path)
    pace.prepared()
    pace._note(time.time(), NOTICE + 1)
    began = time.monotonic()
    pace.rest(1)
    assert time.monotonic() - began > 0.9
    assert count(pace) == 1
    network.communicate("done\n")


def test_nobody_rests_beside_a_network_that_is_quicker_than_the_notice(tmp_path, network):
    pace = Pace(tmp_path)
    pace.prepared()
    pace._note(time.time(), NOTICE / 2)
    pace.rest(1)
    assert count(pace) == 1
    network.communicate("done\n")


def test_whoever_rests_waits_for_the_network_to_begin(tmp_path):
    """What the network's last run tells is of that one; what was just handed over has yet to begin."""
    pace = Pace(tmp_path)
    with pace.working():
        pass
    handing = time.monotonic()
    pace.prepared()
    pace.rest(1)  # nobody begins in this test: the network has nothing to do
    assert time.monotonic() - handing > IDLE / 2


def test_the_network_notes_when_it_began_and_what_its_last_run_took(tmp_path):
    pace, network = Pace(tmp_path), Pace(tmp_path)
    assert pace._run() == (0, 0)
    before = time.time()
    with network.working():
        assert before <= pace._run()[0] <= time.time() + 1e-5
        time.sleep(0.1)
    began, took = pace._run()
    with network.working():
        assert pace._run()[0] > began
        assert pace._run()[1] == took > 0.09


def test_one_that_ends_is_not_enough_for_two_too_many(tmp_path, network):
    pace, second = Pace(tmp_path), Pace(tmp_path)
    for _ in range(3):
        pace.prepared()
    with second.working():
        network.communicate("done\n")
        thread = paused(pace, 2)
        assert count(pace) == 2
    assert ended(thread)
    assert count(pace) == 1


def test_a_network_that_died_is_waited_for_by_nobody(tmp_path, network):
    pace = Pace(tmp_path)
    for _ in range(2):
        pace.prepared()
    thread = paused(pace, 2)
    network.kill()
    assert ended(thread)


def test_a_network_without_work_is_waited_for_by_nobody(tmp_path):
    """Who was counted went another way: his sender has gone, or his time was up."""
    pace = Pace(tmp_path)
    with pace.working():
        for _ in range(5):
            pace.prepared()
    pace.pause(2)
    pace.prepared()
    assert count(pace) == 5  # the network's batcher may only be late
    time.sleep(2 * EMPTY)
    pace.prepared()
    assert count(pace) == 1


def test_work_that_nobody_prepared_is_not_counted(tmp_path):
    """Tiles, and who asks the network directly."""
    pace = Pace(tmp_path)
    with pace.working():
        pass
    assert count(pace) == 0
    pace.prepared()
    assert count(pace) == 1


def test_work_that_fails_has_ended_too(tmp_path):
    pace = Pace(tmp_path)
    pace.prepared()
    with pytest.raises(RuntimeError), pace.working():
        raise RuntimeError
    assert count(pace) == 0
    time.sleep(2 * IDLE)
    assert pace._idle(IDLE)


def test_where_nothing_may_be_written_no_pace_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    one, other = (Pace.beside(str(tmp_path / model)) for model in ("preprocess", "restormer"))
    time.sleep(2 * IDLE)
    with other.working():
        for _ in range(3):
            one.prepared()
            one.pause(1)
    assert list(tmp_path.iterdir()) == []


def test_models_that_lie_side_by_side_share_their_pace(tmp_path):
    one, other = (Pace.beside(str(tmp_path / model)) for model in ("preprocess", "restormer"))
    with other.working():
        one.prepared()
        one.prepared()
    assert (count(one), count(other)) == (1, 1)


def test_many_processes_lose_no_count(tmp_path, network):
    script = "import sys; from pathlib import Path; from imaging.pace import Pace\npace = Pace(Path(sys.argv[1]))\n"
    script += "for _ in range(500): pace.prepared()"
    command = [sys.executable, "-c", script, str(tmp_path)]
    processes = [subprocess.Popen(command, cwd=ROOT) for _ in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    assert count(Pace(tmp_path)) == 2000
