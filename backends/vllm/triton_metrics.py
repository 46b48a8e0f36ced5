"""The engine's metrics on Triton's metrics page, under the stock backend's names where it has them."""

from __future__ import annotations

import bisect
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import triton_python_backend_utils as pb_utils

from vllm_chat.observer import Observer, Step

PUBLISH_S = 0.25
"""Every update of a Triton metric is a call to the server's process: events are added up and published this often."""
TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
TOKEN_GAP_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
REQUEST_S = (0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 60, 120, 240, 480)

_Kind = pb_utils.MetricFamily
#: A call to the server's process that is still to be made, and its argument.
_Update = tuple[Callable[[float], None], float]


class _Counter:
    """A sum that is published as a Triton counter."""

    def __init__(self, name: str, description: str, labels: dict[str, str]):
        self._family = pb_utils.MetricFamily(name=name, description=description, kind=_Kind.COUNTER)
        self._metric = self._family.Metric(labels=labels)
        self._pending = 0.0

    def add(self, value: float) -> None:
        self._pending += value

    def take(self) -> Iterator[_Update]:
        pending, self._pending = self._pending, 0.0
        if pending:
            yield self._metric.increment, pending


class _Gauge:
    """The last value, published when it has changed."""

    def __init__(self, name: str, description: str, labels: dict[str, str]):
        self._family = pb_utils.MetricFamily(name=name, description=description, kind=_Kind.GAUGE)
        self._metric = self._family.Metric(labels=labels)
        self._metric.set(0)
        self._shown = self.value = 0.0

    def take(self) -> Iterator[_Update]:
        if self.value != self._shown:
            self._shown = self.value
            yield self._metric.set, self._shown


class _Histogram:
    """A Prometheus histogram made of counters: `_bucket` by `le`, `_sum` and `_count` (Triton 2.51 has no other)."""

    def __init__(self, name: str, description: str, labels: dict[str, str], bounds: Sequence[float]):
        self._bounds = bounds
        self._pending = [0] * (len(bounds) + 1)  # by bucket, not yet cumulative
        self._family = pb_utils.MetricFamily(name=f"{name}_bucket", description=description, kind=_Kind.COUNTER)
        self._buckets = [
            self._family.Metric(labels={**labels, "le": le}) for le in [*(f"{bound:g}" for bound in bounds), "+Inf"]
        ]
        self._sum = _Counter(f"{name}_sum", description, labels)
        self._count = _Counter(f"{name}_count", description, labels)

    def add(self, value: float) -> None:
        self._pending[bisect.bisect_left(self._bounds, value)] += 1
        self._sum.add(value)
        self._count.add(1)

    def take(self) -> Iterator[_Update]:
        pending, self._pending = self._pending, [0] * len(self._pending)
        below = 0
        for metric, count in zip(self._buckets, pending, strict=True):
            below += count
            if below:
                yield metric.increment, below
        yield from self._sum.take()
        yield from self._count.take()


class Metrics(Observer):
    """Turns the engine's events into metrics; on a server without a metrics page it only passes on the engine's death.

    Triton's metric objects crash the process when they outlive the model, so `close` lets go of them explicitly.

    Args:
        labels: Labels of every metric.
        on_death: Called in a thread of its own when the engine has died.
    """

    def __init__(self, labels: dict[str, str], on_death: Callable[[], None]):
        self._on_death = on_death
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._by_name: dict[str, Any] = {}
        try:
            self._declare(labels)
        except pb_utils.TritonModelException:  # the server runs with --allow-metrics=false
            self._by_name.clear()
            return
        self._thread = threading.Thread(target=self._publish, name="llm-metrics", daemon=True)
        self._thread.start()

    def _declare(self, labels: dict[str, str]) -> None:
        def gauge(name: str, description: str) -> None:
            self._by_name[name] = _Gauge(name, description, labels)

        def counter(name: str, description: str) -> None:
            self._by_name[name] = _Counter(name, description, labels)

        def histogram(name: str, description: str, bounds: Sequence[float]) -> None:
            self._by_name[name] = _Histogram(name, description, labels, bounds)

        gauge("triton_voice_llm_requests_running", "Requests not yet answered fully: waiting, in prefill or streaming")
        gauge("triton_voice_llm_engine_up", "1 while the engine lives, 0 when it died")
        counter("triton_voice_llm_requests_refused_total", "Requests not taken: queue full, engine dead, stopping")
        counter("triton_voice_llm_steps_total", "Steps of the engine that told something")
        gauge("vllm:num_requests_running", "Requests in the engine's batch")
        gauge("vllm:num_requests_waiting", "Requests waiting for room in the batch")
        gauge("vllm:gpu_cache_usage_perc", "KV cache in use, 1 is all of it")
        counter("vllm:prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache")
        counter("vllm:prefix_cache_hits_total", "Prompt tokens found in the prefix cache")
        gauge("triton_voice_llm_prefix_cache_hit_rate", "Found / looked up, since the model was loaded")
        counter("vllm:prompt_tokens_total", "Prompt tokens processed")
        counter("vllm:generation_tokens_total", "Tokens generated")
        counter("vllm:num_preemptions_total", "Requests that lost their place to others")
        histogram("vllm:time_to_first_token_seconds", "From a request's arrival to its first token", FIRST_TOKEN_S)
        histogram("vllm:time_per_output_token_seconds", "From one token to the next", TOKEN_GAP_S)
        histogram("vllm:e2e_request_latency_seconds", "From a request's arrival to its last token", REQUEST_S)
        histogram("vllm:request_queue_time_seconds", "Wait until first scheduled", REQUEST_S)
        histogram("vllm:request_prefill_time_seconds", "From then to the first token", REQUEST_S)
        histogram("vllm:request_decode_time_seconds", "From the first token to the last", REQUEST_S)
        histogram("vllm:request_prompt_tokens", "Length of a request's prompt", TOKENS)
        histogram("vllm:request_generation_tokens", "Length of a reply", TOKENS)
        self._by_name["triton_voice_llm_engine_up"].value = 1
        self._queries = self._hits = 0

    def close(self) -> None:
        """Publish what is pending for the last time and let go of Triton's objects."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._by_name.clear()

    def in_flight(self, count: int) -> None:
        """See `Observer`."""
        self._set("triton_voice_llm_requests_running", count)

    def ticked(self) -> None:
        """See `Observer`."""
        with self._lock:
            if self._by_name:
                self._by_name["triton_voice_llm_steps_total"].add(1)

    def refused(self) -> None:
        """See `Observer`."""
        with self._lock:
            if self._by_name:
                self._by_name["triton_voice_llm_requests_refused_total"].add(1)

    def died(self) -> None:
        """See `Observer`."""
        self._set("triton_voice_llm_engine_up", 0)
        threading.Thread(target=self._on_death, name="llm-death", daemon=True).start()

    def stepped(self, step: Step) -> None:
        """See `Observer`."""
        with self._lock:
            named = self._by_name
            if not named:
                return
            named["vllm:num_requests_running"].value = step.running
            named["vllm:num_requests_waiting"].value = step.waiting
            named["vllm:gpu_cache_usage_perc"].value = step.cache_usage
            named["triton_voice_llm_steps_total"].add(1)
            named["vllm:prompt_tokens_total"].add(step.prompt_tokens)
            named["vllm:generation_tokens_total"].add(step.generation_tokens)
            named["vllm:num_preemptions_total"].add(step.preemptions)
            for seconds in step.first_tokens_s:
                named["vllm:time_to_first_token_seconds"].add(seconds)
            for seconds in step.token_gaps_s:
                named["vllm:time_per_output_token_seconds"].add(seconds)
            for done in step.finished:
                named["vllm:e2e_request_latency_seconds"].add(done.e2e_s)
                named["vllm:request_queue_time_seconds"].add(done.queue_s)
                named["vllm:request_prefill_time_seconds"].add(done.prefill_s)
                named["vllm:request_decode_time_seconds"].add(done.decode_s)
                named["vllm:request_prompt_tokens"].add(done.prompt_tokens)
                named["vllm:request_generation_tokens"].add(done.generation_tokens)
            if step.prefix_queries:
                self._queries += step.prefix_queries
                self._hits += step.prefix_hits
                named["vllm:prefix_cache_queries_total"].add(step.prefix_queries)
                named["vllm:prefix_cache_hits_total"].add(step.prefix_hits)
                named["triton_voice_llm_prefix_cache_hit_rate"].value = self._hits / self._queries

    def _set(self, name: str, value: float) -> None:
        with self._lock:
            if name in self._by_name:
                self._by_name[name].value = value

    def _publish(self) -> None:
        while True:
            ended = self._stop.wait(PUBLISH_S)
            with self._lock:
                updates = [update for metric in self._by_name.values() for update in metric.take()]
            for call, value in updates:  # without the lock: the engine's event loop must not wait for it
                call(value)
            updates.clear()
            if ended:
                return
