"""Ports of this machine that nobody listens on."""

import contextlib
import socket


def free_ports(count: int) -> list[int]:
    """So many different ones."""
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def free_port() -> int:
    """One."""
    return free_ports(1)[0]
