"""Tells an `Observer` of each step: vLLM's statistics, or that there was one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.metrics.loggers import StatLoggerBase
from vllm.v1.metrics.stats import IterationStats, SchedulerStats

from vllm_chat.observer import Finished, Observer, Step


class StepLogger(StatLoggerBase):
    """vLLM's interface for statistics, see `vllm.v1.metrics.loggers`.

    Args:
        observer: Hears of each step.
        on_end: Called after each step that ended a request.
    """

    def __init__(self, observer: Observer, on_end: Callable[[], None]):
        self._observer = observer
        self._on_end = on_end

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        """Take a step's statistics from vLLM."""
        if scheduler_stats is None:
            return
        prefix = scheduler_stats.prefix_cache_stats
        where = {
            "running": scheduler_stats.num_running_reqs,
            "waiting": scheduler_stats.num_waiting_reqs + scheduler_stats.num_skipped_waiting_reqs,
            "cache_usage": scheduler_stats.kv_cache_usage,
            "prefix_queries": prefix.queries,
            "prefix_hits": prefix.hits,
        }
        if iteration_stats is None:
            self._observer.stepped(Step(**where))
            return
        self._observer.stepped(
            Step(
                **where,
                prompt_tokens=iteration_stats.num_prompt_tokens,
                generation_tokens=iteration_stats.num_generation_tokens,
                preemptions=iteration_stats.num_preempted_reqs,
                first_tokens_s=tuple(iteration_stats.time_to_first_tokens_iter),
                token_gaps_s=tuple(iteration_stats.inter_token_latencies_iter),
                finished=tuple(
                    Finished(
                        e2e_s=done.e2e_latency,
                        queue_s=done.queued_time,
                        prefill_s=done.prefill_time,
                        decode_s=done.decode_time,
                        prompt_tokens=done.num_prompt_tokens,
                        generation_tokens=done.num_generation_tokens,
                    )
                    for done in iteration_stats.finished_requests
                ),
            )
        )

        if iteration_stats.finished_requests:
            self._on_end()

    def log_engine_initialized(self) -> None:
        """Nothing to say."""


def factory(observer: Observer, on_end: Callable[[], None]) -> Callable[[Any, int], StepLogger]:
    """What `AsyncLLM` takes as one of its `stat_loggers`, see `StepLogger`."""
    return lambda vllm_config, engine_index: StepLogger(observer, on_end)


def count_steps(llm: AsyncLLM, observer: Observer) -> None:
    """Has an observer hear of each step of an engine without statistics: whoever watches it tells hanging from busy so.

    vLLM calls this method of its output processor after each step's outputs, whether there are statistics or not.
    """
    processor: Any = llm.output_processor
    update = processor.update_scheduler_stats

    def ticked(stats: SchedulerStats | None) -> None:
        update(stats)
        observer.ticked()

    processor.update_scheduler_stats = ticked
