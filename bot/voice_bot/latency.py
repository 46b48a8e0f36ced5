"""How long the user waited for an answer, split by stage."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from pipecat.frames.frames import (
    BotStartedSpeakingFrame,
    LLMTextFrame,
    TranscriptionFrame,
    UserStoppedSpeakingFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.observers.base_observer import BaseObserver, FramePushed

STAGES = ("endpointing_ms", "final_transcript_ms", "turn_decision_ms", "first_token_ms", "first_audio_ms")
"""Consecutive parts of the wait. Endpointing: the silence that voice activity detection waits for. Final transcript:
from there until the recogniser's last word. Turn decision: until Smart Turn and its limits call the turn over. First
token: until the language model's first text, tools included. First audio: until the first sample leaves the bot."""


@dataclass(frozen=True)
class TurnLatency:
    """One answer's wait.

    Attributes:
        turn: Number of the turn, from 1.
        total_ms: From the user's last sound to the bot's first sample, as the bot's machine sees it.
        stages: Milliseconds by the names in `STAGES`; their sum is the total.
    """

    turn: int
    total_ms: float
    stages: dict[str, float]

    def message(self) -> dict[str, object]:
        """Returns it as the page gets it."""
        return {"type": "turn-latency", "turn": self.turn, "total_ms": self.total_ms, "stages": self.stages}


@dataclass
class _Turn:
    """Moments of a turn, seconds since the epoch."""

    silence: float
    moments: dict[str, float] = field(default_factory=dict)


class TurnLatencyObserver(BaseObserver):
    """Watches the frames that mark the stages.

    Args:
        on_latency: Told about each answer.
    """

    def __init__(self, on_latency: Callable[[TurnLatency], Awaitable[None]]):
        super().__init__(observe_every_push=False)
        self._on_latency = on_latency
        self._turn: _Turn | None = None
        self._count = 0

    async def on_push_frame(self, data: FramePushed) -> None:
        """Notes a moment; on the bot's first audio reports the turn."""
        frame, now = data.frame, time.time()
        if isinstance(frame, VADUserStoppedSpeakingFrame):
            self._turn = _Turn(frame.timestamp - frame.stop_secs, {"endpointing_ms": frame.timestamp})
        elif self._turn is None:
            return
        elif isinstance(frame, VADUserStartedSpeakingFrame):
            self._turn = None  # the user goes on: the wait begins with the next silence
        elif isinstance(frame, TranscriptionFrame):
            self._turn.moments["final_transcript_ms"] = now
        elif isinstance(frame, UserStoppedSpeakingFrame):
            self._turn.moments["turn_decision_ms"] = now
        elif isinstance(frame, LLMTextFrame):
            self._turn.moments.setdefault("first_token_ms", now)
        elif isinstance(frame, BotStartedSpeakingFrame):
            turn, self._turn = self._turn, None
            if "turn_decision_ms" in turn.moments:
                self._count += 1
                turn.moments["first_audio_ms"] = now
                await self._on_latency(_split(self._count, turn))


def _split(number: int, turn: _Turn) -> TurnLatency:
    """Cuts the wait at its moments; a stage that was over before its predecessor took no time of its own."""
    stages, reached = {}, turn.silence
    for stage in STAGES:
        moment = max(reached, turn.moments.get(stage, reached))
        stages[stage] = round(1000 * (moment - reached), 1)
        reached = moment
    return TurnLatency(number, round(1000 * (reached - turn.silence), 1), stages)
