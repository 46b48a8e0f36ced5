"""What the bot tells Prometheus, on `/metrics` of its web server."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from voice_bot.latency import STAGES, TurnLatency

PREFIX = "triton_voice_bot"
CONTENT_TYPE = CONTENT_TYPE_LATEST
WAIT_S = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1, 1.25, 1.5, 2, 2.5, 3, 4, 6, 10)
"""Bounds for what a person waits: fine where an answer still feels prompt."""
STAGE_S = (0.005, 0.01, 0.02, 0.04, 0.08, 0.12, 0.16, 0.2, 0.3, 0.4, 0.6, 0.8, 1.2, 2, 4, 8)
REFUSALS = ("full", "address", "rate")
"""Why somebody could not converse: all lines busy, too many from one address, too many requests."""


class BotMetrics:
    """Counts of one bot.

    Args:
        limit: Conversations that are possible at once.
    """

    def __init__(self, limit: int):
        self.registry = registry = CollectorRegistry()
        self.active = Gauge(f"{PREFIX}_conversations_active", "People who converse now", registry=registry)
        Gauge(f"{PREFIX}_conversations_limit", "People who can converse at once", registry=registry).set(limit)
        self.begun = Counter(f"{PREFIX}_conversations", "Conversations that began", registry=registry)
        self.refused = Counter(
            f"{PREFIX}_refusals", "Requests to converse that were refused", ["reason"], registry=registry
        )
        self.interrupted = Counter(f"{PREFIX}_interruptions", "Answers that were interrupted", registry=registry)
        self.errors = Counter(f"{PREFIX}_errors", "Errors in conversations", registry=registry)
        self._answer = Histogram(
            f"{PREFIX}_answer_seconds",
            "From the user's last sound to the bot's first",
            buckets=WAIT_S,
            registry=registry,
        )
        self._stage = Histogram(
            f"{PREFIX}_stage_seconds", "Parts of that wait", ["stage"], buckets=STAGE_S, registry=registry
        )
        for reason in REFUSALS:  # a counter that is there from the start can be seen to rise
            self.refused.labels(reason)
        for stage in STAGES:
            self._stage.labels(stage.removesuffix("_ms"))

    def answered(self, latency: TurnLatency) -> None:
        """Counts an answer."""
        self._answer.observe(latency.total_ms / 1000)
        for stage, ms in latency.stages.items():
            self._stage.labels(stage.removesuffix("_ms")).observe(ms / 1000)

    def page(self) -> bytes:
        """Returns the page for Prometheus."""
        return generate_latest(self.registry)
