"""Sends Pipecat's spans, and the SDK's below them, to a collector by OTLP/HTTP."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

SERVICE = "triton-voice-bot"
CONTENT = frozenset(
    {
        "transcript",
        "text",
        "input",
        "output",
        "tools",
        "gen_ai.system_instructions",
        "user_id",
        "settings.system_instruction",
    }
)
"""Attributes of Pipecat's spans that hold what people said, what the bot was told, or who they are."""
PACKAGES = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")


def missing() -> str | None:
    """Returns the package that tracing lacks, or None."""
    for package in PACKAGES:
        try:
            found = importlib.util.find_spec(package)
        except ModuleNotFoundError:
            found = None
        if found is None:
            return package
    return None


def set_up(url: str, content: bool) -> TracerProvider:
    """Makes OpenTelemetry's provider of this process one that sends to a collector.

    Args:
        url: OTLP/HTTP endpoint of the collector, e.g. `http://localhost:4318/v1/traces`.
        content: Whether what is said goes with the spans.

    Returns:
        The provider; its `shutdown` sends what is left.
    """
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

    from pipecat_triton.tracing import ReservedIds

    class WithoutContent(SpanExporter):
        """Leaves out what was said."""

        def __init__(self, exporter: SpanExporter):
            self._exporter = exporter

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            return self._exporter.export([_without(span, ReadableSpan) for span in spans])

        def shutdown(self) -> None:
            self._exporter.shutdown()

        def force_flush(self, timeout_millis: int = 30000) -> bool:
            return self._exporter.force_flush(timeout_millis)

    exporter: SpanExporter = OTLPSpanExporter(endpoint=url)
    provider = TracerProvider(resource=Resource.create({"service.name": SERVICE}), id_generator=ReservedIds())
    provider.add_span_processor(BatchSpanProcessor(exporter if content else WithoutContent(exporter)))
    trace.set_tracer_provider(provider)
    return provider


def _without(span: Any, kind: Any) -> Any:
    """A copy of a span without `CONTENT` and without exceptions' messages, which may repeat it."""
    kept: Mapping[str, Any] = {name: value for name, value in span.attributes.items() if name not in CONTENT}
    return kind(
        name=span.name,
        context=span.context,
        parent=span.parent,
        resource=span.resource,
        attributes=kept,
        events=[event for event in span.events if event.name != "exception"],
        links=span.links,
        kind=span.kind,
        status=span.status,
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )
