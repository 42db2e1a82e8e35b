"""OpenTelemetry, if its API is installed: a span a call, the trace's context in the call's headers. Else nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

try:
    from opentelemetry import propagate, trace
except ModuleNotFoundError:
    _tracer = None
else:
    _tracer = trace.get_tracer("restormer_client")


@contextmanager
def span(model: str, url: str) -> Iterator[list[tuple[str, str]]]:
    """A client span around a call; yields the headers that carry its context on to Triton."""
    if _tracer is None:
        yield []
        return
    attributes = {"rpc.system": "grpc", "rpc.method": "ModelInfer", "server.address": url, "triton.model_name": model}
    with _tracer.start_as_current_span(f"restormer {model}", kind=trace.SpanKind.CLIENT, attributes=attributes):
        carrier: dict[str, str] = {}
        propagate.inject(carrier)
        yield [(name.lower(), value) for name, value in carrier.items()]
