"""Answering while the turn analyzer still decides whether the user has finished."""

from __future__ import annotations

import asyncio
from typing import Any

from loguru import logger
from pipecat.audio.turn.base_turn_analyzer import BaseTurnAnalyzer
from pipecat.frames.frames import (
    EagerEndOfTurnCancelFrame,
    EagerTranscriptionFrame,
    Frame,
    TranscriptionFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.turns.types import ProcessFrameResult, UserTurnSpeculation
from pipecat.turns.user_stop import EagerMatchPolicy, NormalizedMatch, TurnAnalyzerUserTurnStopStrategy


class EagerTurnAnalyzerUserTurnStopStrategy(TurnAnalyzerUserTurnStopStrategy):
    """A turn analyzer (Smart Turn) decides the end of the turn; the language model starts before it has.

    When the user pauses, the STT service pushes an `EagerTranscriptionFrame` with what it has heard so far. This
    strategy has the language model answer it at once. The answer is held by the LLM service's `SpeculationGate` while
    the final transcript and the analyzer's verdict are on their way, and is

    - released when the turn ends and the final transcript says the same (`match_policy`),
    - dropped, and its generation stopped, when the user goes on or the final transcript says something else; then the
      committed transcript is answered as usual.

    The analyzer works in a task of its own: Pipecat's base class waits for it (50 to 100 ms for Smart Turn on a CPU)
    while the transcripts queue up behind. Pipecat's `EagerUserTurnStopStrategy` leaves turn detection to the STT
    provider; this one keeps it local.

    Use it with `TritonSTTService(eager_transcripts=True)`.
    """

    def __init__(
        self, *, turn_analyzer: BaseTurnAnalyzer, match_policy: EagerMatchPolicy | None = None, **kwargs: Any
    ) -> None:
        """Initialize the strategy.

        Args:
            turn_analyzer: Decides whether a pause ends the turn.
            match_policy: Decides whether the final transcript is close enough to the eager one to keep the answer. By
                default they may differ in case, punctuation and white space only.
            **kwargs: Passed to `TurnAnalyzerUserTurnStopStrategy`.
        """
        super().__init__(turn_analyzer=turn_analyzer, **kwargs)
        self._match_policy = match_policy or NormalizedMatch()
        self._speculation: UserTurnSpeculation | None = None
        self._committed: list[str] = []
        self._in_turn = False
        self._decision: asyncio.Task[None] | None = None

    async def handle_user_turn_started(self) -> None:
        """Ready the strategy for the turn that begins."""
        self._in_turn = True
        await super().handle_user_turn_started()

    async def handle_user_turn_stopped(self) -> None:
        """Forget the turn."""
        self._in_turn = False
        await self._stop_deciding()
        await super().handle_user_turn_stopped()

    async def cleanup(self) -> None:
        """Stop the analyzer's task."""
        await self._stop_deciding()
        await super().cleanup()

    async def process_frame(self, frame: Frame) -> ProcessFrameResult:
        """Follow the transcripts of the turn, then do as the base does.

        Args:
            frame: The frame to look at.

        Returns:
            Always CONTINUE.
        """
        if isinstance(frame, VADUserStartedSpeakingFrame):
            await self._stop_deciding()
        elif isinstance(frame, EagerTranscriptionFrame) and self._in_turn:
            await self._speculate(self._heard(frame.text))
        elif isinstance(frame, EagerEndOfTurnCancelFrame):
            self._speculation = None  # the frame itself has reached the LLM service
        elif isinstance(frame, TranscriptionFrame):
            self._committed.append(frame.text)
            await self._check_speculation(frame)
        return await super().process_frame(frame)

    async def trigger_user_turn_stopped(self, *, enable_user_speaking_frames: bool | None = None) -> None:
        """End the turn, with the answer that is already there if it fits.

        Args:
            enable_user_speaking_frames: As in the base.
        """
        if self._speculation is None:
            await super().trigger_user_turn_stopped(enable_user_speaking_frames=enable_user_speaking_frames)
        elif self._fits():
            self._speculation = None
            await self.trigger_user_turn_finalized(
                enable_user_speaking_frames=enable_user_speaking_frames, confirms_speculation=True
            )
        else:
            await self._withdraw("the turn ended with another text")
            await super().trigger_user_turn_stopped(enable_user_speaking_frames=enable_user_speaking_frames)

    async def _reset(self) -> None:
        await super()._reset()
        self._committed = []
        await self._withdraw("the turn ended unresolved")

    async def _discard_pending_end_of_turn(self) -> None:
        await super()._discard_pending_end_of_turn()
        await self._withdraw("the user goes on")

    async def _handle_vad_user_stopped_speaking(self, frame: VADUserStoppedSpeakingFrame) -> None:
        await self._stop_deciding()
        # What the base says before it waits for the analyzer, so that the frames in between find it said.
        self._vad_user_speaking = False
        self._vad_stopped = True
        decision = super()._handle_vad_user_stopped_speaking(frame)
        self._decision = self.task_manager.create_task(decision, f"{self}::decide")

    async def _stop_deciding(self) -> None:
        task, self._decision = self._decision, None
        if task is not None and task is not asyncio.current_task() and not task.done():
            await self.task_manager.cancel_task(task)

    def _heard(self, *more: str) -> str:
        return " ".join([*self._committed, *more])

    def _fits(self) -> bool:
        return self._speculation is not None and self._match_policy.matches(self._speculation.text, self._heard())

    async def _speculate(self, text: str) -> None:
        await self._withdraw("a newer one came")
        self._speculation = UserTurnSpeculation(text=text)
        await self.trigger_user_turn_inference_triggered(speculation=self._speculation)

    async def _check_speculation(self, frame: TranscriptionFrame) -> None:
        """Has the final transcript answered instead if the eager one was wrong; the analyzer may still be at work."""
        if frame.finalized and self._speculation is not None and not self._fits():
            await self._speculate(self._heard())

    async def _withdraw(self, why: str) -> None:
        if self._speculation is not None:
            logger.debug(f"{self}: eager answer dropped: {why}")
            self._speculation = None
            await self.trigger_user_turn_speculation_cancelled()
