"""Traces of calls, where OpenTelemetry is installed and set up; otherwise nothing is recorded and nothing is sent.

A call is a span under the caller's current one, and its W3C `traceparent` goes to the server as gRPC metadata. Triton
makes its own spans below it when it is started with `--trace-config mode=opentelemetry` (`triton-voice serve --trace`).
"""

from __future__ import annotations

from typing import Any

try:
    from opentelemetry import propagate, trace
except ImportError:  # the extra `tracing` is not installed
    trace = None  # type: ignore[assignment]

TRACER = "triton_voice"


class CallSpan:
    """One call to the server, from its first request to its last response.

    Args:
        name: What is called, e.g. `magpie`.
        **attributes: Facts about it, without what was said.
    """

    def __init__(self, name: str, **attributes: str | int | float | bool):
        self._span: Any = None
        self._marked: set[str] = set()
        if trace is not None:
            self._span = trace.get_tracer(TRACER).start_span(name, kind=trace.SpanKind.CLIENT, attributes=attributes)

    def headers(self) -> dict[str, str]:
        """Returns the metadata that has the server's spans belong to this one; empty if nobody records it."""
        carrier: dict[str, str] = {}
        if self._span is not None and self._span.is_recording():
            propagate.inject(carrier, trace.set_span_in_context(self._span))
        return carrier

    def mark(self, event: str) -> None:
        """Notes a moment, once."""
        if self._span is not None and event not in self._marked:
            self._marked.add(event)
            self._span.add_event(event)

    def tell(self, **attributes: str | int | float | bool) -> None:
        """Adds facts."""
        if self._span is not None:
            self._span.set_attributes(attributes)

    def end(self, error: BaseException | None = None) -> None:
        """Ends the span; further calls do nothing.

        Args:
            error: Why the call failed. Only its kind is kept: its sentence may repeat what was said.
        """
        span, self._span = self._span, None
        if span is not None:
            if error is not None:
                span.set_status(trace.Status(trace.StatusCode.ERROR, type(error).__name__))
            span.end()
