"""The recogniser's metrics on Triton's /metrics, beside Triton's own."""

from __future__ import annotations

import bisect
import threading
from collections.abc import Sequence

import triton_python_backend_utils as pb_utils

from incidents import Incidents
from parakeet_engine import Observer

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56)
STREAMS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
PUBLISH_S = 0.5
"""Every update of a Triton metric is a call to the server's process: events are added up and published this often."""


class _Counter:
    """A sum that is published as a Triton counter."""

    def __init__(self, name: str, description: str, labels: dict[str, str]):
        kind = pb_utils.MetricFamily.COUNTER
        self._family = pb_utils.MetricFamily(name=name, description=description, kind=kind)
        self._metric = self._family.Metric(labels=labels)
        self._pending = 0.0

    def add(self, value: float) -> None:
        self._pending += value

    def publish(self) -> None:
        pending, self._pending = self._pending, 0.0
        if pending:
            self._metric.increment(pending)


class _Histogram:
    """A Prometheus histogram made of counters: `_bucket` by `le`, `_sum` and `_count` (Triton 2.51 has no other)."""

    def __init__(self, name: str, description: str, bounds: Sequence[float], labels: dict[str, str]):
        kind = pb_utils.MetricFamily.COUNTER
        self._bounds = bounds
        self._pending = [0] * (len(bounds) + 1)  # by bucket, not yet cumulative
        self._family = pb_utils.MetricFamily(name=f"{name}_bucket", description=description, kind=kind)
        self._buckets = [
            self._family.Metric(labels={**labels, "le": le}) for le in [*(f"{bound:g}" for bound in bounds), "+Inf"]
        ]
        self._sum = _Counter(f"{name}_sum", description, labels)
        self._count = _Counter(f"{name}_count", description, labels)

    def add(self, value: float) -> None:
        self._pending[bisect.bisect_left(self._bounds, value)] += 1
        self._sum.add(value)
        self._count.add(1)

    def publish(self) -> None:
        pending, self._pending = self._pending, [0] * len(self._pending)
        below = 0
        for metric, count in zip(self._buckets, pending, strict=True):
            below += count
            if below:
                metric.increment(below)
        self._sum.publish()
        self._count.publish()


class Metrics(Observer):
    """Turns the engine's events into metrics.

    Args:
        model: Value of the label `model`.
        max_streams: The limit beside the streams that hold a slot.
        incidents: Told of evictions, which no request tells of.
    """

    def __init__(self, model: str, max_streams: int, incidents: Incidents):
        self._incidents = incidents
        labels = {"model": model}
        gauge = pb_utils.MetricFamily.GAUGE
        self._active_family = pb_utils.MetricFamily(
            name="parakeet_active_streams", description="Streams that hold a slot", kind=gauge
        )
        self._active = self._active_family.Metric(labels=labels)
        self._active_now = 0
        self._limit_family = pb_utils.MetricFamily(
            name="parakeet_max_streams", description="Streams that can hold a slot", kind=gauge
        )
        self._limit = self._limit_family.Metric(labels=labels)
        self._limit.set(max_streams)
        self._audio = _Counter("parakeet_audio_seconds_total", "Audio recognised", labels)
        self._refusals = _Counter("parakeet_refusals_total", "Requests refused for want of room", labels)
        self._evictions = _Counter("parakeet_evictions_total", "Streams whose callers went silent or away", labels)
        self._step = _Histogram("parakeet_step_seconds", "Duration of a step of the model", SECONDS, labels)
        self._batch = _Histogram("parakeet_step_streams", "Streams in a step", STREAMS, labels)
        self._queue = _Histogram("parakeet_queue_seconds", "Wait before a request's audio is taken", SECONDS, labels)
        self._final = _Histogram("parakeet_finalization_seconds", "From END or finalize to the answer", SECONDS, labels)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._publish, name="parakeet-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops publishing."""
        self._stop.set()
        self._thread.join()

    def active_streams(self, count: int) -> None:
        """See `Observer`."""
        self._active_now = count

    def stepped(self, streams: int, seconds: float) -> None:
        """See `Observer`."""
        with self._lock:
            self._step.add(seconds)
            self._batch.add(streams)

    def answered(self, audio_s: float, queued_s: float, total_s: float, is_final: bool) -> None:
        """See `Observer`."""
        with self._lock:
            self._audio.add(audio_s)
            self._queue.add(queued_s)
            if is_final:
                self._final.add(total_s)

    def refused(self) -> None:
        """See `Observer`."""
        with self._lock:
            self._refusals.add(1)

    def evicted(self, conversation: str) -> None:
        """See `Observer`."""
        self._incidents.note("evicted", conversation)
        with self._lock:
            self._evictions.add(1)

    def _publish(self) -> None:
        while not self._stop.wait(PUBLISH_S):
            self._active.set(self._active_now)
            with self._lock:
                for metric in (self._audio, self._refusals, self._evictions):
                    metric.publish()
                for histogram in (self._step, self._batch, self._queue, self._final):
                    histogram.publish()
