"""The synthesiser's metrics on Triton's /metrics, beside Triton's own."""

from __future__ import annotations

import bisect
import threading
from collections.abc import Callable, Sequence

import triton_python_backend_utils as pb_utils

from magpie_engine.engine import EngineStats
from magpie_engine.observer import Observer

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12)
SPEEDS = (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64)
STREAMS = (1, 2, 4, 8, 16, 32, 64, 128)
PUBLISH_S = 0.5
"""Every update of a Triton metric is a call to the server's process: events are added up and published this often."""

#: Metric of each count in `EngineStats`: name, kind, help.
COUNTS = {
    "active": ("magpie_active_streams", "GAUGE", "Utterances that are being decoded"),
    "queued": ("magpie_queued_requests", "GAUGE", "Requests that wait for a slot"),
    "finished": ("magpie_finished_total", "COUNTER", "Utterances that came to their end"),
    "cancelled": ("magpie_cancelled_total", "COUNTER", "Requests cancelled while waiting or speaking"),
    "failed": ("magpie_failed_total", "COUNTER", "Requests that met an error after they were accepted"),
    "refused": ("magpie_refused_total", "COUNTER", "Requests refused because the queue was full"),
    "frames": ("magpie_frames_total", "COUNTER", "Codec frames decoded"),
}
LIMITS = {
    "max_streams": ("magpie_max_streams", "Utterances that can be decoded at once"),
    "max_queue": ("magpie_max_queue", "Requests that may wait for a slot"),
}
LABELS = {"model": "magpie"}


class _Count:
    """One of the engine's counts, as a gauge or a counter."""

    def __init__(self, name: str, kind: str, description: str, baseline: int) -> None:
        self._family = pb_utils.MetricFamily(  # Triton drops a family's metrics with the family
            name=name, description=description, kind=getattr(pb_utils.MetricFamily, kind)
        )
        self._metric = self._family.Metric(labels=LABELS)
        self._is_gauge = kind == "GAUGE"
        self._last = baseline

    def publish(self, value: int) -> None:
        change, self._last = value - self._last, value
        if change and self._is_gauge:
            self._metric.set(value)
        elif change:
            self._metric.increment(change)


class _Sum:
    """Adds up events for a counter."""

    def __init__(self, name: str, description: str) -> None:
        self._family = pb_utils.MetricFamily(name=name, description=description, kind=pb_utils.MetricFamily.COUNTER)
        self._metric = self._family.Metric(labels=LABELS)
        self.pending = 0.0

    def take(self) -> float:
        pending, self.pending = self.pending, 0.0
        return pending

    def publish(self, value: float) -> None:
        if value:
            self._metric.increment(value)


class _Histogram:
    """A Prometheus histogram made of counters: `_bucket` by `le`, `_sum` and `_count` (Triton 2.51 has no other)."""

    def __init__(self, name: str, description: str, bounds: Sequence[float]) -> None:
        kind = pb_utils.MetricFamily.COUNTER
        self._bounds = bounds
        self._pending = [0] * (len(bounds) + 1)  # by bucket, not yet cumulative
        self._pending_sum = 0.0
        self._family = pb_utils.MetricFamily(name=f"{name}_bucket", description=description, kind=kind)
        edges = [*(f"{bound:g}" for bound in bounds), "+Inf"]
        self._buckets = [self._family.Metric(labels={**LABELS, "le": edge}) for edge in edges]
        self._totals = [
            pb_utils.MetricFamily(name=f"{name}_{what}", description=description, kind=kind)
            for what in ("sum", "count")
        ]
        self._sum, self._count = (family.Metric(labels=LABELS) for family in self._totals)

    def add(self, value: float) -> None:
        self._pending[bisect.bisect_left(self._bounds, value)] += 1
        self._pending_sum += value

    def take(self) -> tuple[list[int], float]:
        """Takes what has been added since the last call."""
        taken = self._pending, self._pending_sum
        self._pending, self._pending_sum = [0] * len(self._pending), 0.0
        return taken

    def publish(self, pending: list[int], total: float) -> None:
        below = 0
        for metric, count in zip(self._buckets, pending, strict=True):
            below += count
            if below:
                metric.increment(below)
        if below:
            self._sum.increment(total)
            self._count.increment(below)


class Metrics(Observer):
    """Turns the engine's events and counts into metrics.

    Args:
        max_streams: Utterances that can be decoded at once.
        max_queue: Requests that may wait.
    """

    def __init__(self, max_streams: int, max_queue: int) -> None:
        self._limits = []  # kept: Triton drops a family's metrics with the family
        for (name, description), value in zip(LIMITS.values(), (max_streams, max_queue), strict=True):
            family = pb_utils.MetricFamily(name=name, description=description, kind=pb_utils.MetricFamily.GAUGE)
            metric = family.Metric(labels=LABELS)
            metric.set(value)
            self._limits.append((family, metric))
        self._step = _Histogram("magpie_step_seconds", "Duration of a decoding step, audio included", SECONDS)
        self._batch = _Histogram("magpie_step_streams", "Utterances in a decoding step", STREAMS)
        self._first = _Histogram("magpie_first_audio_seconds", "From a request to its first audio", SECONDS)
        self._speed = _Histogram("magpie_rtfx", "Seconds of audio per second, of each finished request", SPEEDS)
        self._histograms = (self._step, self._batch, self._first, self._speed)
        self._audio = _Sum("magpie_audio_seconds_total", "Audio sent to clients")
        self._underruns = _Sum(
            "magpie_underruns_total", "Pieces of audio that came after a client that plays at once had run dry"
        )
        self._counts: dict[str, _Count] = {}
        self._stats: Callable[[], EngineStats] = EngineStats
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._publish_forever, name="magpie-metrics", daemon=True)

    def watch(self, stats: Callable[[], EngineStats]) -> None:
        """Begins to publish; what the counts are now (the warm-up) is nobody's speech."""
        self._stats = stats
        now = stats()
        self._counts = {name: _Count(*about, getattr(now, name)) for name, about in COUNTS.items()}
        self._thread.start()

    def close(self) -> None:
        """Stops publishing."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def stepped(self, streams: int, seconds: float) -> None:
        """See `Observer`."""
        with self._lock:
            self._step.add(seconds)
            self._batch.add(streams)

    def first_audio(self, seconds: float) -> None:
        """See `Observer`."""
        with self._lock:
            self._first.add(seconds)

    def finished(self, audio_s: float, seconds: float) -> None:
        """See `Observer`."""
        with self._lock:
            self._speed.add(audio_s / max(seconds, 1e-6))

    def sent(self, audio_s: float, late: bool) -> None:
        """A piece of audio went to its client; `late`: the client's playout had run dry before."""
        with self._lock:
            self._audio.pending += audio_s
            self._underruns.pending += late

    def _publish_forever(self) -> None:
        while not self._stop.wait(PUBLISH_S):
            with self._lock:  # the engine does not wait for Triton
                taken = [histogram.take() for histogram in self._histograms]
                sums = [(total, total.take()) for total in (self._audio, self._underruns)]
            for histogram, (pending, total) in zip(self._histograms, taken, strict=True):
                histogram.publish(pending, total)
            for counter, value in sums:
                counter.publish(value)
            stats = self._stats()
            for name, count in self._counts.items():
                count.publish(getattr(stats, name))
