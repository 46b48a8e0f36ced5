"""Where the services' calls stand in Pipecat's traces: below its `stt`, `llm` and `tts` spans.

Pipecat opens an `stt` span only when there is a transcript, because it knows the turn only then; the recogniser's calls
have been made by that time. So the span's id is chosen when the segment begins, the calls name it as their parent, and
the span gets it later. That needs `ReservedIds` as the id generator of the application's `TracerProvider`; without it
the calls are children of the turn.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from pipecat.utils.tracing.setup import is_tracing_available

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from pipecat.services.ai_service import AIService

_next_span_id: ContextVar[int | None] = ContextVar("next_span_id", default=None)

if is_tracing_available():
    from opentelemetry import context as contexts
    from opentelemetry import trace
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

    class ReservedIds(RandomIdGenerator):
        """Random ids, but for a span whose id was told before."""

        def generate_span_id(self) -> int:
            """Returns the reserved id, once, or a random one."""
            reserved = _next_span_id.get()
            if reserved is None:
                return super().generate_span_id()
            _next_span_id.set(None)
            return reserved


class ReservedSpan:
    """A span that is yet to come, and whose children are there already.

    Args:
        context: The context that its children are made in.
        span_id: Its id; None if ids cannot be reserved.
    """

    def __init__(self, context: Context, span_id: int | None):
        self._context = context
        self._span_id = span_id
        self._taken = span_id is None

    def children(self) -> contextlib.AbstractContextManager[None]:
        """Spans made in here are its children."""
        return under(self._context)

    @contextlib.contextmanager
    def made(self) -> Iterator[None]:
        """The first span made in here is it; only the first time."""
        if self._taken:
            yield
            return
        self._taken = True
        token = _next_span_id.set(self._span_id)
        try:
            yield
        finally:
            _next_span_id.reset(token)


@contextlib.contextmanager
def under(context: Context | None) -> Iterator[None]:
    """Makes a context the current one; None changes nothing."""
    if context is None:
        yield
        return
    token = contexts.attach(context)
    try:
        yield
    finally:
        contexts.detach(token)


def current(service: AIService) -> Context | None:
    """Returns the context of the service's turn, or else conversation; None where nothing is traced."""
    tracing: Any = service._tracing_context
    if not service._tracing_enabled or tracing is None:
        return None
    return tracing.get_turn_context() or tracing.get_conversation_context()


def reserve(service: AIService) -> ReservedSpan | None:
    """Reserves a span in the service's conversation; None where nothing is traced."""
    context = current(service)
    if context is None:
        return None
    ids = getattr(trace.get_tracer_provider(), "id_generator", None)
    if not isinstance(ids, ReservedIds):
        return ReservedSpan(context, None)
    about = trace.get_current_span(context).get_span_context()
    span_id = ids.generate_span_id()
    to_be = trace.SpanContext(about.trace_id, span_id, is_remote=False, trace_flags=about.trace_flags)
    return ReservedSpan(trace.set_span_in_context(trace.NonRecordingSpan(to_be)), span_id)


def make_unheard(service: AIService, span: ReservedSpan, began_s: float, error: bool) -> None:
    """Makes the `stt` span of a segment without a transcript, which Pipecat does not make.

    Args:
        service: The recogniser.
        span: The reservation.
        began_s: When the segment began, seconds since the epoch.
        error: Whether it failed.
    """
    tracer = trace.get_tracer("pipecat_triton")
    with span.made():
        made = tracer.start_span("stt", context=current(service), start_time=int(began_s * 1e9))
    if error:
        made.set_status(trace.StatusCode.ERROR)
    made.end()


def of_audio_context(service: AIService, context_id: str) -> Context | None:
    """Returns the context of Pipecat's open `tts` span of an audio context, or else the turn's."""
    entry = getattr(service, "_tts_spans", {}).get(context_id)
    return current(service) if entry is None else trace.set_span_in_context(entry["span"])
