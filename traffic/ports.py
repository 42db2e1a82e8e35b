"""Free ports of this machine."""

import contextlib
import socket


def free_ports(count: int) -> list[int]:
    """Return a number of different ports that no process listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def free_port() -> int:
    """Return one free port."""
    return free_ports(1)[0]
