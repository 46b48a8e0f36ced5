"""What the SDK tells the server of the caller's trace: nothing without OpenTelemetry, or when nobody records."""

from __future__ import annotations

import subprocess
import sys

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from triton_voice import InvalidInput, tracing
from triton_voice.paths import project_root

WITHOUT = """
import sys
sys.modules["opentelemetry"] = None  # as if it were not installed
from triton_voice.tracing import CallSpan
import pipecat_triton
span = CallSpan("magpie", voice="aria")
span.mark("first response")
span.tell(audio_s=1.0)
assert span.headers() == {}
span.end()
"""


def use(monkeypatch, provider):
    monkeypatch.setattr(tracing.trace, "get_tracer", lambda name: provider.get_tracer(name))


def test_sdk_and_services_work_without_opentelemetry():
    root = project_root()
    paths = f"import sys; sys.path[:0] = [{str(root / 'client')!r}, {str(root / 'bot')!r}]\n"
    done = subprocess.run([sys.executable, "-c", paths + WITHOUT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_nothing_is_sent_where_nobody_records(monkeypatch):
    assert tracing.CallSpan("magpie").headers() == {}  # no provider was set up
    use(monkeypatch, TracerProvider(sampler=ALWAYS_OFF))
    assert tracing.CallSpan("magpie").headers() == {}


def test_a_call_is_a_span_below_the_callers_and_names_itself_to_the_server(monkeypatch):
    kept, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    use(monkeypatch, provider)
    with provider.get_tracer("app").start_as_current_span("app") as parent:
        call = tracing.CallSpan("magpie", voice="aria")
        headers = call.headers()
        call.mark("first response")
        call.mark("first response")
        call.end(InvalidInput("the words of a user"))
        call.end()
    span, app = kept.get_finished_spans()
    assert (span.name, span.kind, span.parent.span_id) == ("magpie", trace.SpanKind.CLIENT, app.context.span_id)
    version, trace_id, span_id, flags = headers.pop("traceparent").split("-")
    assert (version, trace_id) == ("00", f"{parent.get_span_context().trace_id:032x}")
    assert span_id == f"{span.context.span_id:016x}" and int(flags, 16) & trace.TraceFlags.SAMPLED
    assert not headers
    assert [event.name for event in span.events] == ["first response"]
    assert (span.status.status_code, span.status.description) == (trace.StatusCode.ERROR, "InvalidInput")
    assert "words" not in span.to_json()
