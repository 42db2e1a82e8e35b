"""Where a server is and how it is reached: the target, TLS, who we are, and the options of the channel."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import grpc

#: Targets that gRPC resolves to several addresses: the photographs go round them.
_SEVERAL = ("dns:", "ipv4:", "ipv6:", "xds:")
_OPTIONS: tuple[tuple[str, Any], ...] = (
    # None of our own: the server's bound holds. (tritonclient's `channel_args` bring gRPC's 4 MiB back.)
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # Retries are ours (calls.py): gRPC's go by the status alone, and Triton says UNAVAILABLE for a full queue as well.
    ("grpc.enable_retries", 0),
    # A server that comes back is found within the deadline: gRPC's own pause between attempts grows to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.dns_min_time_between_resolutions_ms", 5000),
    # Triton closes connections that are pinged more often than every 300 s ("Too many pings").
    ("grpc.keepalive_time_ms", 330_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # A pool of its own: two clients do not share one TCP connection, nor its flow control.
    ("grpc.use_local_subchannel_pool", 1),
)


@dataclass(frozen=True)
class TLS:
    """Paths of PEM files. ``ca``: who may have signed the server's certificate (else gRPC's own list). ``cert`` and
    ``key``: ours, for mutual TLS. ``name``: the name on the server's certificate, where the URL has another."""

    ca: str | Path | None = None
    cert: str | Path | None = None
    key: str | Path | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ValueError("mutual TLS needs both: cert= and key=")


@dataclass(frozen=True)
class Connection:
    """What of an `Enhancer` travels between processes. The token and the headers are not in its ``repr``."""

    url: str
    tls: TLS | None = None
    token: str | Callable[[], str] | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if "://" in self.url and not self.url.startswith(("dns://", "xds://", "unix://")):
            raise ValueError(f"{self.url!r} is no gRPC address: host:port without http:// (Triton's is port 8001)")
        if self.token is not None and self.tls is None and not self.is_loopback:
            raise ValueError("a token would travel in the clear: give tls=TLS(...) as well")
        if not callable(self.token):
            self.metadata()

    @property
    def is_loopback(self) -> bool:
        """Whether the server is on this machine."""
        if self.url.startswith("unix:"):
            return True
        address = re.sub(r"^(dns|ipv4|ipv6):/*", "", self.url)
        host = address.rpartition(":")[0].strip("[]") or address
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    def options(self) -> list[tuple[str, Any]]:
        """The channel's options."""
        options = list(_OPTIONS)
        if self.url.startswith(_SEVERAL):
            options.append(("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})))
        if self.is_loopback:
            options.append(("grpc.enable_http_proxy", 0))  # gRPC sends even loopback through http_proxy
        if self.tls and self.tls.name:
            options.append(("grpc.ssl_target_name_override", self.tls.name))
        return options

    def credentials(self) -> grpc.ChannelCredentials | None:
        """TLS as gRPC takes it, None for plaintext. Raises `OSError` where a file cannot be read."""
        if self.tls is None:
            return None
        import grpc

        paths = (self.tls.ca, self.tls.key, self.tls.cert)
        return grpc.ssl_channel_credentials(*(Path(path).read_bytes() if path else None for path in paths))

    def metadata(self) -> list[tuple[str, str]]:
        """The headers of a call. Raises `ValueError` where one cannot travel; it names the header, not its value."""
        pairs = [(name.lower(), value) for name, value in self.headers.items()]
        if self.token is not None:
            token = self.token() if callable(self.token) else self.token
            pairs.append(("authorization", f"Bearer {token.strip()}"))
        for name, value in pairs:
            if not re.fullmatch(r"[0-9a-z_.-]+", name) or not (value.isascii() and value.isprintable()):
                raise ValueError(f"header {name!r}: names are letters, digits, _ . -, values one line of ASCII")
        return pairs
