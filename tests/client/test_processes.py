"""One client in several processes: forked in the middle of its work, spawned, in a pool."""

import multiprocessing
import os
import subprocess
import sys
import threading

import pytest


def _enhanced(enhancer, photo):
    return enhancer.enhance(photo, timeout=20)


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_a_client_that_was_used_goes_to_other_processes(fake, enhancer, method):
    """The parent is connected before; the child connects for itself, and the parent goes on."""
    assert enhancer.enhance(b"before") == b"before"
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.starmap(_enhanced, [(enhancer, b"%d" % n) for n in range(8)]) == [b"%d" % n for n in range(8)]
    assert enhancer.enhance(b"after") == b"after"


def test_a_global_client_is_inherited_by_a_fork(fake, enhancer):
    """As in a web server that forks its workers after the application was loaded, and used."""
    assert enhancer.enhance(b"before") == b"before"
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writer, enhancer.enhance(b"child", timeout=20))
        finally:
            os._exit(0)
    assert enhancer.enhance(b"parent") == b"parent"
    watchdog = threading.Timer(60, os.kill, (child, 9))
    watchdog.start()
    os.waitpid(child, 0)
    watchdog.cancel()
    os.close(writer)
    assert os.read(reader, 100) == b"child"


def test_a_fork_while_other_threads_are_at_work(fake, enhancer):
    stop, made = threading.Event(), []

    def work():
        while not stop.is_set():
            made.append(enhancer.enhance(b"x"))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert pool.starmap(_enhanced, [(enhancer, b"%d" % n) for n in range(4)]) == [b"%d" % n for n in range(4)]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert set(made) == {b"x"}


def test_importing_does_not_import_grpc():
    """A fork after the import is a fork of nothing, and the import takes a moment."""
    heavy = {"grpc", "numpy", "PIL", "tritonclient"}
    code = f"import restormer_client, sys; sys.exit(sorted({heavy} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
