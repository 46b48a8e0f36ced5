"""Takes spans by OTLP/HTTP and keeps them: a collector for one look, not for operation."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PATH = "/v1/traces"


@dataclass(frozen=True)
class Span:
    """One span.

    Attributes:
        trace: Id of its trace, hexadecimal.
        id: Its id.
        parent: Its parent's id; empty at the root.
        name: Its name.
        service: Who made it: `service.name` of its resource.
        start_ns: Nanoseconds since the epoch.
        end_ns: Likewise.
        attributes: Strings, numbers and truth values by name.
        events: Names and moments, in order.
    """

    trace: str
    id: str
    parent: str
    name: str
    service: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any] = field(default_factory=dict)
    events: tuple[tuple[str, int], ...] = ()


class SpanReceiver:
    """An OTLP/HTTP endpoint on loopback. OpenTelemetry's SDKs speak protobuf to it, Triton speaks JSON.

    Attributes:
        spans: What came, in order of arrival.
    """

    def __init__(self) -> None:
        self.spans: list[Span] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                kind = self.headers["content-type"]
                receiver.spans.extend(_from_json(body) if kind.startswith("application/json") else _from_protobuf(body))
                self.send_response(200)
                self.send_header("content-type", kind)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing is logged."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, name="span-receiver", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Where spans are to be sent."""
        return f"http://127.0.0.1:{self._server.server_port}{PATH}"

    def close(self) -> None:
        """Takes no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def below(spans: Iterable[Span], root: Span) -> list[Span]:
    """Returns a span and all that hangs below it, each before its children, in the order of their starts."""
    children: dict[str, list[Span]] = {}
    for span in spans:
        children.setdefault(span.parent, []).append(span)

    def walk(span: Span) -> list[Span]:
        inner = sorted(children.get(span.id, ()), key=lambda child: child.start_ns)
        return [span, *(deeper for child in inner for deeper in walk(child))]

    return walk(root)


def _from_json(body: bytes) -> list[Span]:
    return [
        Span(
            trace=span["traceId"].lower(),
            id=span["spanId"].lower(),
            parent=span.get("parentSpanId", "").lower(),
            name=span["name"],
            service=_facts(resource.get("resource", {}).get("attributes", ())).get("service.name", ""),
            start_ns=int(span["startTimeUnixNano"]),
            end_ns=int(span["endTimeUnixNano"]),
            attributes=_facts(span.get("attributes", ())),
            events=tuple((event["name"], int(event["timeUnixNano"])) for event in span.get("events", ())),
        )
        for resource in json.loads(body)["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]


def _facts(attributes: Iterable[dict[str, Any]]) -> dict[str, Any]:
    facts = {}
    for attribute in attributes:
        ((kind, value),) = attribute["value"].items()
        facts[attribute["key"]] = int(value) if kind == "intValue" else value
    return facts


def _from_protobuf(body: bytes) -> list[Span]:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    def facts(attributes: Any) -> dict[str, Any]:
        return {a.key: getattr(a.value, a.value.WhichOneof("value") or "string_value") for a in attributes}

    return [
        Span(
            trace=span.trace_id.hex(),
            id=span.span_id.hex(),
            parent=span.parent_span_id.hex(),
            name=span.name,
            service=facts(resource.resource.attributes).get("service.name", ""),
            start_ns=span.start_time_unix_nano,
            end_ns=span.end_time_unix_nano,
            attributes=facts(span.attributes),
            events=tuple((event.name, event.time_unix_nano) for event in span.events),
        )
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
