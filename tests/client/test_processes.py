"""One client in several processes: forked during calls, spawned, and in a pool."""

import multiprocessing
import os
import subprocess
import sys
import threading

import pytest


def _enhance(enhancer, photo):
    return enhancer.enhance(photo, timeout=20)


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_connected_client_works_in_other_processes(fake, enhancer, method):
    """The parent connects first; each child opens its own connection, and the parent's still works."""
    assert enhancer.enhance(b"before") == b"before"
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.starmap(_enhance, [(enhancer, b"%d" % n) for n in range(8)]) == [b"%d" % n for n in range(8)]
    assert enhancer.enhance(b"after") == b"after"


def test_global_client_works_after_a_fork(fake, enhancer):
    """A web server may fork its workers after the application has used the client."""
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


def test_fork_while_other_threads_send(fake, enhancer):
    stop, results = threading.Event(), []

    def work():
        while not stop.is_set():
            results.append(enhancer.enhance(b"x"))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert pool.starmap(_enhance, [(enhancer, b"%d" % n) for n in range(4)]) == [b"%d" % n for n in range(4)]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert set(results) == {b"x"}


def test_import_does_not_load_grpc():
    """The import is fast, and a fork after it copies no gRPC state."""
    heavy = {"grpc", "numpy", "PIL", "tritonclient"}
    code = f"import restormer_client, sys; sys.exit(sorted({heavy} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
