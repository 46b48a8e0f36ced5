"""What an engine tells about itself while it runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finished:
    """One answered request, times in seconds.

    Attributes:
        e2e_s: From its arrival to its last token.
        queue_s: Until it was first scheduled.
        prefill_s: From then to the first token.
        decode_s: From the first token to the last.
        prompt_tokens: Length of its prompt.
        generation_tokens: Length of its reply.
    """

    e2e_s: float
    queue_s: float
    prefill_s: float
    decode_s: float
    prompt_tokens: int
    generation_tokens: int


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the engine.

    Attributes:
        running: Requests in the batch after the step.
        waiting: Requests that wait for room.
        cache_usage: Part of the KV cache in use, 0 to 1.
        prefix_queries: Prompt tokens looked up in the prefix cache.
        prefix_hits: How many of them were found.
        prompt_tokens: Prompt tokens of requests whose prefill ended.
        generation_tokens: Tokens generated.
        preemptions: Requests that lost their place to others.
        first_tokens_s: From arrival to first token, of requests that had it now.
        token_gaps_s: From the token before, of the other requests.
        finished: Requests that ended.
    """

    running: int
    waiting: int
    cache_usage: float
    prefix_queries: int = 0
    prefix_hits: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    preemptions: int = 0
    first_tokens_s: tuple[float, ...] = ()
    token_gaps_s: tuple[float, ...] = ()
    finished: tuple[Finished, ...] = ()


class Observer:
    """Hears from the engine; this one ignores it all. Called in the engine's event loop, so it must be quick."""

    def in_flight(self, count: int) -> None:
        """Hear how many requests have not been answered fully."""

    def stepped(self, step: Step) -> None:
        """Hear what a step did."""

    def ticked(self) -> None:
        """Hear that the engine made a step, when there are no statistics of it."""

    def refused(self) -> None:
        """Hear that a request was not taken: the queue full, the engine dead, the server stopping. In any thread."""

    def died(self) -> None:
        """Hear that the engine's process is gone. Requests fail from now on."""
