"""Optional OpenTelemetry tracing: one span per call, with the trace context in the call's headers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any


@contextmanager
def span(model: str, url: str) -> Iterator[list[tuple[str, str]]]:
    """Open a client span around a call; yield the headers that propagate its context to Triton."""
    api = _opentelemetry()
    if api is None:
        yield []
        return
    trace, propagate, tracer = api
    attributes = {"rpc.system": "grpc", "rpc.method": "ModelInfer", "server.address": url, "triton.model_name": model}
    with tracer.start_as_current_span(f"restormer {model}", kind=trace.SpanKind.CLIENT, attributes=attributes):
        carrier: dict[str, str] = {}
        propagate.inject(carrier)
        yield [(name.lower(), value) for name, value in carrier.items()]


@cache
def _opentelemetry() -> tuple[ModuleType, ModuleType, Any] | None:
    """Return OpenTelemetry's modules and this package's tracer, None if not installed; imported on first use."""
    try:
        from opentelemetry import propagate, trace
    except ModuleNotFoundError:
        return None
    return trace, propagate, trace.get_tracer("restormer_client")
