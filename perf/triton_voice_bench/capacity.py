"""`triton-voice bench capacity`: measured step times and memory turned into streams per machine.

A model of three continuously batched engines that share one device. Each engine's step takes `t(n)` for `n` streams, as
measured; between two measured sizes it is interpolated, beyond the largest it goes on with the last slope.

- The recogniser steps whenever audio waits. A chunk waits for the step under way and then for its own, so it is
  answered within `2 t(n) + overhead`, where `n = N t(n) / period` of the `N` callers' chunks arrive during a step. The
  largest `n` that keeps within the latency target gives `N = n period / t(n)`.
- The synthesiser makes one frame of every utterance in a step: `t(N)` must not exceed a frame's length.
- The language model makes one token of every reply in a step: `t(N)` must not exceed the time that a token may take.
- A conversation is a mix of the three. With a step of each engine every `T` (half the latency target, a frame, the
  time of a token), the device is busy for the sum of `t(n) / T`, where `n` is the number active on average plus two
  standard deviations, though no more than there are conversations; the three are added as if their peaks came together.
  What beginning a sentence costs once is added. That sum must stay below the utilisation that is asked for, and the
  streams' memory below what is left.

What the model leaves out (Triton, gRPC, Python, the operating system) is held against what was measured through the
server. Where that contradicts the model, steps are taken to be longer by the least factor that ends the contradiction.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MANY = 100_000
"""No machine is said to serve more streams than this."""
GIB = 2**30


class Assumptions(BaseModel):
    """What is assumed of the users and asked of the machine; all of it can be changed.

    Attributes:
        latency_ms: From a chunk's last sample to its answer, at most.
        token_ms: Time that a token of a reply may take; speech needs about five tokens a second.
        utilisation: Share of the device's time that may be planned for; the rest absorbs bursts.
        turn_s: From one question's beginning to the next's.
        caller_share: Share of that in which the caller speaks and the recogniser works.
        bot_share: Share of that in which the caller hears speech.
        reply_tokens: Length of a reply.
        sentences: Sentences of a reply, each a request to the synthesiser.
        context_tokens: Length of a conversation that the language model remembers.
        deviations: Standard deviations above the average number of active streams that there must be room for.
        memory_share: Share of the memory that may be used.
    """

    model_config = ConfigDict(frozen=True)

    latency_ms: Annotated[float, Field(gt=0)] = 100.0
    token_ms: Annotated[float, Field(gt=0)] = 50.0
    utilisation: Annotated[float, Field(gt=0, le=1)] = 0.8
    turn_s: Annotated[float, Field(gt=0)] = 10.0
    caller_share: Annotated[float, Field(gt=0, le=1)] = 0.35
    bot_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    reply_tokens: Annotated[int, Field(ge=1)] = 40
    sentences: Annotated[int, Field(ge=1)] = 2
    context_tokens: Annotated[int, Field(ge=1)] = 4096
    deviations: Annotated[float, Field(ge=0)] = 2.0
    memory_share: Annotated[float, Field(gt=0, le=1)] = 0.9


@dataclass(frozen=True)
class Curve:
    """Time of a step by the number of streams in it.

    Attributes:
        sizes: Numbers of streams, rising.
        milliseconds: Time of a step of each.
        source: Where they were measured.
    """

    sizes: tuple[float, ...]
    milliseconds: tuple[float, ...]
    source: str

    @classmethod
    def of(cls, points: Sequence[tuple[float, float]], source: str) -> Curve | None:
        """Makes one of measured points; None without any. A larger batch that was faster counts as one as slow."""
        best: dict[float, float] = {}
        for size, value in sorted(points):
            best[size] = max(value, *best.values()) if best else value
        return cls(tuple(best), tuple(best.values()), source) if best else None

    def at(self, streams: float) -> float:
        """Returns the time of a step in milliseconds: interpolated, or extrapolated with the last slope."""
        if streams <= self.sizes[0] or len(self.sizes) == 1:
            return self.milliseconds[0] * max(1.0, streams / self.sizes[0] if len(self.sizes) == 1 else 1.0)
        right = min(bisect_left(self.sizes, streams), len(self.sizes) - 1)
        (x0, x1), (y0, y1) = self.sizes[right - 1 : right + 1], self.milliseconds[right - 1 : right + 1]
        return y0 + (y1 - y0) * (streams - x0) / (x1 - x0)

    def changed(self, factor: float = 1.0, added_ms: float = 0.0) -> Curve:
        """Returns the curve of a device whose steps take so many times as long, and then so much longer."""
        return replace(self, milliseconds=tuple(value * factor + added_ms for value in self.milliseconds))


@dataclass(frozen=True)
class Check:
    """The model's prediction beside what the server did.

    Attributes:
        bench: Whose rows.
        predicted: Streams by the model, under the rule of the benchmark.
        served: The largest number of streams of which all kept up; 0 if none did.
        failed: The smallest number of which not all did; None if all rows kept up.
        factor: By which steps are taken to be longer, so that the model does not contradict that.
    """

    bench: str
    predicted: int
    served: int
    failed: int | None
    factor: float = 1.0

    @property
    def verdict(self) -> str:
        """In words."""
        if self.failed is not None and self.predicted >= self.failed:
            return f"too optimistic: {self.failed} did not keep up"
        if self.predicted < self.served:
            return f"too pessimistic: {self.served} kept up"
        between = f"{self.failed} did not" if self.failed is not None else "more were not tried"
        return f"agrees: {self.served} kept up, {between}"


@dataclass
class Demand:
    """What one model needs.

    Attributes:
        name: Of the model.
        curve: Its steps.
        alone: Streams of it that the machine serves by itself.
        cycle_ms: Between two steps in the mix.
        active: Streams in a step for each conversation, on average.
        share: Share of the device that its step occupies.
        note: What `alone` means.
        turn_ms: Time of the device that each turn takes besides the steps, to begin its sentences.
        turn_s: Length of a turn.
        check: Against the server.
    """

    name: str
    curve: Curve
    alone: int
    cycle_ms: float
    active: float
    share: float
    note: str
    turn_ms: float = 0.0
    turn_s: float = 1.0
    check: Check | None = None

    def load(self, conversations: float, deviations: float) -> float:
        """Returns the share of the device's time that it takes for so many conversations."""
        mean = conversations * self.active
        spread = math.sqrt(mean * max(0.0, 1 - self.active))
        peak = max(mean, min(conversations, mean + deviations * spread))
        slow = self.check.factor if self.check else 1.0
        steps = min(1.0, peak) * self.curve.at(max(1.0, peak)) / self.cycle_ms
        once = conversations * self.turn_ms / 1000 / self.turn_s
        return slow * self.share * (steps + once)


@dataclass
class Capacity:
    """The result.

    Attributes:
        name: Of the machine.
        assumptions: See there.
        demands: By model.
        conversations: Whole conversations at once; None if a model's measurements are missing.
        bound_by: What limits them.
        memory_bytes: Of one conversation; None if not known.
        fixed_bytes: Of the models; None if not known.
        total_bytes: Of the machine or its GPU.
        missing: What could not be said, and the command that measures it.
        notes: Assumptions that the measurements bring.
        estimate: The formula, if the figures are scaled to another machine; empty if they rest on measurements.
    """

    name: str
    assumptions: Assumptions
    demands: dict[str, Demand] = field(default_factory=dict)
    conversations: int | None = None
    bound_by: str = ""
    memory_bytes: int | None = None
    fixed_bytes: int | None = None
    total_bytes: int = 0
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    estimate: str = ""

    def load(self, conversations: float) -> dict[str, float]:
        """Returns each model's share of the device's time."""
        deviations = self.assumptions.deviations
        return {name: demand.load(conversations, deviations) for name, demand in self.demands.items()}

    @property
    def memory_limit(self) -> int | None:
        """Conversations that fit into the memory."""
        if self.memory_bytes is None or self.fixed_bytes is None:
            return None
        left = self.assumptions.memory_share * self.total_bytes - self.fixed_bytes
        return max(0, min(MANY, int(left // self.memory_bytes)))


def largest(fits: Callable[[int], bool]) -> int:
    """Returns the largest number from 0 to `MANY` that fits, if everything below one that fits does."""
    low, high = 0, 1
    while high < MANY and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def callers(curve: Curve, period_ms: float, within_ms: float, utilisation: float = 1.0) -> int:
    """Returns how many callers a recogniser serves.

    Args:
        curve: Its steps.
        period_ms: Length of a chunk.
        within_ms: For two steps.
        utilisation: Share of its time that may be planned for.
    """
    sizes = largest(lambda n: 2 * curve.at(n) <= within_ms)
    rates = (size * period_ms / curve.at(size) for size in range(1, min(sizes, 4096) + 1))
    return int(utilisation * max(rates, default=0.0))
