"""OpenTelemetry, if its API is installed: a span a call, the trace's context in the call's headers. Else nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any


@contextmanager
def span(model: str, url: str) -> Iterator[list[tuple[str, str]]]:
    """A client span around a call; yields the headers that carry its context on to Triton."""
    found = _opentelemetry()
    if found is None:
        yield []
        return
    trace, propagate, tracer = found
    attributes = {"rpc.system": "grpc", "rpc.method": "ModelInfer", "server.address": url, "triton.model_name": model}
    with tracer.start_as_current_span(f"restormer {model}", kind=trace.SpanKind.CLIENT, attributes=attributes):
        carrier: dict[str, str] = {}
        propagate.inject(carrier)
        yield [(name.lower(), value) for name, value in carrier.items()]


@cache
def _opentelemetry() -> tuple[ModuleType, ModuleType, Any] | None:
    """Its API and our tracer; imported with the first call, because that takes a while."""
    try:
        from opentelemetry import propagate, trace
    except ModuleNotFoundError:
        return None
    return trace, propagate, trace.get_tracer("restormer_client")
