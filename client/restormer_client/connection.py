"""Connection settings: address, TLS, token, headers and gRPC channel options."""

from __future__ import annotations

import ipaddress
import json
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

if TYPE_CHECKING:
    import grpc

#: Target schemes that gRPC may resolve to several addresses; requests are balanced over them.
_MULTI_ADDRESS_SCHEMES = ("dns:", "ipv4:", "ipv6:", "xds:")
#: Names that Linux distributions give to loopback in /etc/hosts.
_LOOPBACK_NAMES = ("localhost", "localhost.localdomain", "localhost4", "localhost6", "ip6-localhost", "ip6-loopback")
_OPTIONS: tuple[tuple[str, Any], ...] = (
    # No limit in the client: the server sets it. (Any `channel_args` of tritonclient restore gRPC's 4 MiB limit.)
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # calls.py does the retries: gRPC goes by the status alone, and Triton reports a full queue as UNAVAILABLE too.
    ("grpc.enable_retries", 0),
    # Reconnect to a restarted server within the deadline: gRPC's default backoff grows to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.dns_min_time_between_resolutions_ms", 5000),
    # Triton closes connections that ping more often than every 300 s ("Too many pings").
    ("grpc.keepalive_time_ms", 330_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # Give each client its own TCP connection and flow control.
    ("grpc.use_local_subchannel_pool", 1),
)


@dataclass(frozen=True)
class TLS:
    """Paths of PEM files. ``ca``: authority of the server's certificate (default: gRPC's own list). ``cert`` and
    ``key``: the client's, for mutual TLS. ``name``: the name on the server's certificate if it differs from the URL."""

    ca: str | Path | None = None
    cert: str | Path | None = None
    key: str | Path | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ValueError("mutual TLS needs both cert= and key=")


@dataclass(frozen=True)
class Connection:
    """Settings of an `Enhancer` that are pickled with it. ``repr`` leaves out the token and the headers."""

    url: str
    tls: TLS | None = None
    token: str | Callable[[], str] | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not self.url.strip():
            raise ValueError("the server's address is empty: use host:port (Triton's gRPC port is 8001)")
        if "://" in self.url and not self.url.startswith(("dns://", "xds://", "unix://")):
            raise ValueError(
                f"{self.url!r} is not a gRPC address: use host:port without http:// (Triton's gRPC port is 8001)"
            )
        for _, port in map(_split, self._addresses):
            if port.isdecimal() and not 0 < int(port) < 65536:
                raise ValueError(f"{self.url!r} has the port {port}: it must be from 1 to 65535")
        if self.token is not None and self.tls is None and not self.is_loopback:
            raise ValueError("a token must not be sent in plaintext: add tls=TLS(...)")
        if not callable(self.token):
            self.metadata()

    @property
    def is_loopback(self) -> bool:
        """Whether the server is on this machine, by its address: no name is looked up."""
        return all(map(_is_loopback, self._addresses))

    @property
    def _addresses(self) -> list[str]:
        """The hosts, each with its port if the URL names one; none of a socket of this machine."""
        if self.url.startswith(("unix:", "unix-abstract:")):
            return []
        addresses = re.sub(r"^(dns|ipv4|ipv6):(//[^/]*/)?/*", "", self.url.lower())
        return [unquote(address) for address in addresses.split(",")]

    def options(self) -> list[tuple[str, Any]]:
        """Return the gRPC channel options."""
        options = list(_OPTIONS)
        if self.url.startswith(_MULTI_ADDRESS_SCHEMES):
            options.append(("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})))
        if self.is_loopback:
            options.append(("grpc.enable_http_proxy", 0))  # gRPC uses http_proxy even for loopback
        if self.tls and self.tls.name:
            options.append(("grpc.ssl_target_name_override", self.tls.name))
        return options

    def credentials(self) -> grpc.ChannelCredentials | None:
        """Return gRPC's TLS credentials, None for plaintext. Raise `OSError` if a file cannot be read."""
        if self.tls is None:
            return None
        import grpc

        paths = (self.tls.ca, self.tls.key, self.tls.cert)
        return grpc.ssl_channel_credentials(*(Path(path).read_bytes() if path else None for path in paths))

    def open_channel(self, library: Any, credentials: grpc.ChannelCredentials | None) -> Any:
        """Open a channel of ``grpc`` or ``grpc.aio`` with the result of `credentials`."""
        if credentials is None:
            return library.insecure_channel(self.url, self.options())
        return library.secure_channel(self.url, credentials, self.options())

    def metadata(self) -> list[tuple[str, str]]:
        """Return the headers of a call. Raise `ValueError` for an invalid one, naming the header but not its value."""
        pairs = [(name.lower(), value) for name, value in self.headers.items()]
        if self.token is not None:
            token = self.token() if callable(self.token) else self.token
            pairs.append(("authorization", f"Bearer {token.strip()}"))
        for name, value in pairs:
            if not re.fullmatch(r"[0-9a-z_.-]+", name) or not (value.isascii() and value.isprintable()):
                raise ValueError(
                    f"header {name!r}: a name must be letters, digits, '_', '.' or '-', a value one line of ASCII"
                )
        return pairs


def _split(address: str) -> tuple[str, str]:
    """Split an address into host and port, which is empty without one."""
    has_port = "]:" in address or address.count(":") == 1
    host, _, port = address.rpartition(":") if has_port else (address, "", "")
    return host, port


def _is_loopback(address: str) -> bool:
    """Return whether ``host``, ``host:port``, ``ipv6`` or ``[ipv6]:port`` is loopback, in any spelling of sockets.

    The unspecified address counts: a connection to it reaches this machine.
    """
    host = _split(address)[0].strip("[]").partition("%")[0].rstrip(".")
    try:
        if ":" not in host:
            return socket.inet_aton(host)[0] in (0, 127)  # 127.1 and 0x7f000001 too
        ip = ipaddress.IPv6Address(host)
        return (ip.ipv4_mapped or ip).is_loopback or ip.is_unspecified
    except (OSError, ValueError):
        return host in _LOOPBACK_NAMES
