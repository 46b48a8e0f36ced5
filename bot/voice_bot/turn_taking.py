"""When a turn begins and when it ends: voice activity, real words, Smart Turn, and limits for every wait."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from loguru import logger
from pipecat.audio.turn.smart_turn.base_smart_turn import SmartTurnParams
from pipecat.audio.turn.smart_turn.local_smart_turn_v3 import LocalSmartTurnAnalyzerV3
from pipecat.audio.vad.silero import SileroVADAnalyzer
from pipecat.audio.vad.vad_analyzer import VADParams
from pipecat.frames.frames import (
    BotStartedSpeakingFrame,
    BotStoppedSpeakingFrame,
    EagerEndOfTurnCancelFrame,
    EagerTranscriptionFrame,
    Frame,
    InterimTranscriptionFrame,
    InterruptionFrame,
    LLMRunFrame,
    TranscriptionFrame,
    UserBackchannelFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.processors.aggregators.llm_response_universal import LLMUserAggregatorParams
from pipecat.turns.types import ProcessFrameResult
from pipecat.turns.user_start import BaseUserTurnStartStrategy
from pipecat.turns.user_turn_strategies import UserTurnStrategies

from pipecat_triton import EagerTurnAnalyzerUserTurnStopStrategy
from voice_bot.settings import TurnTaking

_WORD = re.compile(r"[\w'\u2019-]+")


WARM_UP_S = 1
"""Silence on which Smart Turn is tried out, so that the first turn's verdict takes no longer than the others'."""
CUT_LIMIT_S = 2.0
"""How long the user's words wait for the bot's to be written down; a busy machine takes some hundredths."""


async def user_params(turn: TurnTaking, sample_rate: int, cut: Cut) -> LLMUserAggregatorParams:
    """Returns what Pipecat's user aggregator needs, with its two small models loaded and warm.

    Args:
        turn: When turns begin and end.
        sample_rate: Of the user's audio in the pipeline, Hz.
        cut: Told by the assistant's aggregator when an interruption has reached it.
    """
    vad, smart_turn = await asyncio.to_thread(_load, turn)
    smart_turn.set_sample_rate(sample_rate)
    smart_turn.append_audio(bytes(2 * WARM_UP_S * sample_rate), is_speech=True)
    await smart_turn.analyze_end_of_turn()
    smart_turn.clear()
    return LLMUserAggregatorParams(
        vad_analyzer=vad,
        user_turn_strategies=UserTurnStrategies(
            start=[RealWordsStartStrategy(turn)],
            stop=[SmartTurnStopStrategy(turn, cut, turn_analyzer=smart_turn)],
        ),
        user_turn_stop_timeout=turn.watchdog_s,
        empty_user_turn=None,  # `Conversation` goes on after such a turn in its own way
    )


def _load(turn: TurnTaking) -> tuple[SileroVADAnalyzer, LocalSmartTurnAnalyzerV3]:
    vad = VADParams(
        confidence=turn.vad_confidence,
        start_secs=turn.vad_start_s,
        stop_secs=turn.vad_stop_s,
        min_volume=turn.vad_min_volume,
    )
    limits = SmartTurnParams(stop_secs=turn.incomplete_timeout_s)
    return SileroVADAnalyzer(params=vad), LocalSmartTurnAnalyzerV3(params=limits)


class Cut:
    """Whether the interruption that begins a turn has been through the whole pipeline.

    What the user heard of an answer is written into the conversation at the pipeline's end, when the interruption gets
    there; what the user says, near its beginning. Words that are final when they begin the turn ("Paris?" across the
    bot) would overtake the answer that they cut, and the language model would read the two in the wrong order.
    """

    def __init__(self) -> None:
        self._made = asyncio.Event()
        self._made.set()

    def begin(self) -> None:
        """Notes that an interruption is about to be sent."""
        self._made.clear()

    async def on_after_process_frame(self, speaker: Any, frame: Frame) -> None:
        """Notes that it has arrived: a handler of the assistant aggregator's event of this name."""
        if isinstance(frame, InterruptionFrame):
            self._made.set()

    async def wait(self) -> None:
        """Waits until what was heard of the answer is written down."""
        try:
            async with asyncio.timeout(CUT_LIMIT_S):
                await self._made.wait()
        except TimeoutError:
            logger.warning(f"an interruption has not got through the pipeline in {CUT_LIMIT_S:g} s")
            self._made.set()


class Lexicon:
    """Which words are worth stopping for.

    Args:
        turn: Has the backchannels, words or phrases, and the commands.
    """

    def __init__(self, turn: TurnTaking):
        self._phrases = tuple(f" {' '.join(_words(b))} " for b in turn.backchannels if len(_words(b)) > 1)
        self._backchannels = frozenset(turn.backchannels)
        self._commands = frozenset(turn.command_words)

    def real_words(self, text: str) -> list[str]:
        """Returns the words that are no backchannel, in lower case."""
        joined = f" {' '.join(_words(text))} "
        for phrase in self._phrases:
            joined = joined.replace(phrase, " ")
        return [word for word in joined.split() if word not in self._backchannels]

    def commands(self, words: list[str]) -> bool:
        """Whether a word among them interrupts by itself."""
        return not self._commands.isdisjoint(words)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


class RealWordsStartStrategy(BaseUserTurnStartStrategy):
    """Begins a turn at the first sound while the bot is silent, and at real words while it speaks.

    A sound made while the bot speaks is judged by its words even if the bot has finished by the time they are
    recognised: a late "mm-hm" is no question.
    """

    def __init__(self, turn: TurnTaking, **kwargs: Any):
        super().__init__(**kwargs)
        self._turn = turn
        self._lexicon = Lexicon(turn)
        self._bot_speaking = False
        self._spoken_over = False
        self._in_turn = False

    async def handle_user_turn_started(self) -> None:
        """Notes that a turn is open: nothing can begin another."""
        await super().handle_user_turn_started()
        self._in_turn = True
        self._spoken_over = False

    async def handle_user_turn_stopped(self) -> None:
        """Notes that the turn is over."""
        await super().handle_user_turn_stopped()
        self._in_turn = False

    async def process_frame(self, frame: Frame) -> ProcessFrameResult:
        """Decides on a sound or on words; see the class."""
        match frame:
            case BotStartedSpeakingFrame():
                self._bot_speaking = True
            case BotStoppedSpeakingFrame():
                self._bot_speaking = False
            case VADUserStartedSpeakingFrame() if not self._in_turn:
                self._spoken_over = self._bot_speaking
                if not self._bot_speaking:
                    return await self._begin()
            case TranscriptionFrame() | InterimTranscriptionFrame() if not self._in_turn and frame.text.strip():
                return await self._judge(frame)
        return ProcessFrameResult.CONTINUE

    async def _begin(self) -> ProcessFrameResult:
        await self.trigger_user_turn_started()
        return ProcessFrameResult.STOP

    async def _judge(self, frame: TranscriptionFrame | InterimTranscriptionFrame) -> ProcessFrameResult:
        if not (self._bot_speaking or self._spoken_over):
            return await self._begin()
        final = isinstance(frame, TranscriptionFrame)
        words = self._lexicon.real_words(frame.text)
        wanted = self._turn.barge_in_words if self._bot_speaking and not final else 1
        if len(words) >= wanted or self._lexicon.commands(words):
            return await self._begin()
        if final:
            self._spoken_over = self._bot_speaking
            await self.trigger_reset_aggregation()  # or it would begin the user's next message
            await self.push_frame(UserBackchannelFrame(frame.text, frame.user_id, frame.timestamp))
        return ProcessFrameResult.CONTINUE


class SmartTurnStopStrategy(EagerTurnAnalyzerUserTurnStopStrategy):
    """Ends a turn by Smart Turn and the final transcript, and never leaves one waiting.

    Added to what it is built on:

    - A turn of which no word was recognised ends after `empty_timeout_s`.
    - A turn that begins with the final transcript of speech already over (one word across the bot) keeps Smart Turn's
      verdict on that speech, instead of waiting for a timeout.
    - An answer is begun at the final transcript too if there was no interim one at the pause (a short utterance) and
      Smart Turn still decides, or waits for the user to go on.
    - An answer that the LLM service gave up for a tool, at the very moment when the turn ended, is asked for again.
    - Words that begin a turn by interrupting the bot count only when the answer that they cut is written down.
    """

    def __init__(self, turn: TurnTaking, cut: Cut, **kwargs: Any):
        super().__init__(**kwargs)
        self._settings = turn
        self._cut = cut
        self._confirmed = False
        self._silence_task: asyncio.Task[None] | None = None

    async def handle_user_turn_started(self) -> None:
        """Gets ready for the end of the turn that begins; the interruption is sent behind this."""
        self._cut.begin()
        self._confirmed = False
        if self._vad_stopped and not self._vad_user_speaking:
            self._in_turn = True
            self._text, self._committed, self._speculation = "", [], None
        else:
            await super().handle_user_turn_started()

    async def handle_user_turn_stopped(self) -> None:
        """Forgets the turn."""
        await self._stop_waiting()
        await super().handle_user_turn_stopped()

    async def cleanup(self) -> None:
        """Stops the timer."""
        await self._stop_waiting()
        await super().cleanup()

    async def process_frame(self, frame: Frame) -> ProcessFrameResult:
        """Follows sounds, words and withdrawn answers; see the class."""
        if isinstance(frame, VADUserStartedSpeakingFrame) or (
            isinstance(frame, TranscriptionFrame) and frame.text.strip()
        ):
            await self._stop_waiting()
        if isinstance(frame, TranscriptionFrame | EagerTranscriptionFrame):
            await self._cut.wait()  # before anything here knows of the words: no other task can end the turn with them
        result = await super().process_frame(frame)
        if isinstance(frame, VADUserStoppedSpeakingFrame):
            if self._in_turn and not self._committed:
                await self._stop_waiting()
                self._silence_task = self.task_manager.create_task(self._wait_for_words(), f"{self}::wait_for_words")
        elif isinstance(frame, TranscriptionFrame):
            late = self._in_turn and not self._vad_user_speaking and self._speculation is None
            if late and frame.finalized and self._settings.eager:
                await self._speculate(self._heard())
        elif isinstance(frame, EagerEndOfTurnCancelFrame):
            await self._ask_again()
        elif isinstance(frame, BotStartedSpeakingFrame):
            self._confirmed = False
        return result

    async def trigger_user_turn_stopped(self, *, enable_user_speaking_frames: bool | None = None) -> None:
        """Ends the turn; an answer that was begun for exactly its words is let out instead of being asked for again."""
        self._confirmed = self._in_turn and self._fits()
        await super().trigger_user_turn_stopped(enable_user_speaking_frames=enable_user_speaking_frames)

    async def _ask_again(self) -> None:
        """A withdrawn answer is given by the turn's end, unless the turn has ended while the news was on its way."""
        if self._confirmed:
            self._confirmed = False
            await self.push_frame(LLMRunFrame())

    async def _stop_waiting(self) -> None:
        task, self._silence_task = self._silence_task, None
        if task is not None:
            await self.task_manager.cancel_task(task)

    async def _wait_for_words(self) -> None:
        await asyncio.sleep(self._settings.empty_timeout_s)
        self._silence_task = None  # this very task: what follows must not cancel it
        if self._in_turn and not self._committed and not self._vad_user_speaking:
            await self.trigger_user_turn_stopped()
