"""OpenTelemetry: one span per call and its context in the headers, or neither if it is not installed."""

import subprocess
import sys

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from restormer_client import InvalidPhotograph


@pytest.fixture(scope="module")
def spans():
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


def test_call_opens_a_span_and_propagates_it(fake, enhancer, spans):
    spans.clear()
    enhancer.enhance(b"x")
    (span,) = spans.get_finished_spans()
    assert span.name == "restormer enhance"
    assert span.kind is SpanKind.CLIENT
    assert fake.requests[0].headers["traceparent"].split("-")[1:3] == [
        f"{span.context.trace_id:032x}",
        f"{span.context.span_id:016x}",
    ]


def test_map_spans_have_the_callers_span_as_parent(fake, enhancer, spans):
    spans.clear()
    with trace.get_tracer("test").start_as_current_span("batch") as batch:
        list(enhancer.map([b"x", b"y"]))
    calls = [span for span in spans.get_finished_spans() if span.name == "restormer enhance"]
    assert [span.parent.span_id for span in calls] == [batch.context.span_id] * 2


def test_failed_call_marks_its_span(fake, enhancer, spans):
    spans.clear()
    fake.answers.append(InvalidPhotograph)
    with pytest.raises(InvalidPhotograph):
        enhancer.enhance(b"x")
    (span,) = spans.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR


def test_without_opentelemetry_no_headers_are_sent():
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from restormer_client import tracing\n"
        "with tracing.span('enhance', 'h:1') as headers: assert headers == []\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
