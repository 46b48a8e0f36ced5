"""The rules of turn-taking, sound by sound and word by word."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pipecat.audio.turn.smart_turn.local_smart_turn_v3 import LocalSmartTurnAnalyzerV3
from pipecat.frames.frames import (
    BotStartedSpeakingFrame,
    BotStoppedSpeakingFrame,
    EagerEndOfTurnCancelFrame,
    EagerTranscriptionFrame,
    InterimTranscriptionFrame,
    InterruptionFrame,
    LLMRunFrame,
    TranscriptionFrame,
    UserBackchannelFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.utils.asyncio.task_manager import TaskManager

from voice_bot import memory
from voice_bot.settings import TurnTaking
from voice_bot.turn_taking import Cut, Lexicon, RealWordsStartStrategy, SmartTurnStopStrategy

SOUND, BOT_BEGINS, BOT_ENDS = VADUserStartedSpeakingFrame(), BotStartedSpeakingFrame(), BotStoppedSpeakingFrame()


def interim(text: str) -> InterimTranscriptionFrame:
    return InterimTranscriptionFrame(text, "", "now")


def final(text: str) -> TranscriptionFrame:
    return TranscriptionFrame(text, "", "now", finalized=True)


@pytest.mark.parametrize(
    ("text", "real"),
    [
        ("Mm-hm.", []),
        ("Mm hmm, uh-huh!", []),
        ("Yeah, okay, right.", []),
        ("I see.", []),
        ("Got it, of course.", []),
        ("I see a problem", ["a", "problem"]),
        ("Yeah but why?", ["but", "why"]),
        ("Stop!", ["stop"]),
        ("It\u2019s fine", ["it\u2019s", "fine"]),
        ("", []),
        ("...", []),
    ],
)
def test_what_counts_as_real_words(text, real):
    assert Lexicon(TurnTaking()).real_words(text) == real


@pytest.mark.parametrize(
    ("frames", "begins", "backchannels"),
    [
        pytest.param([SOUND], True, [], id="a sound while the bot is silent"),
        pytest.param([interim("so")], True, [], id="words that the VAD did not hear"),
        pytest.param([interim(" ")], False, [], id="no words"),
        pytest.param([BOT_BEGINS, SOUND], False, [], id="a sound across the bot"),
        pytest.param([BOT_BEGINS, SOUND, interim("mm")], False, [], id="the beginning of a backchannel"),
        pytest.param([BOT_BEGINS, SOUND, interim("but")], False, [], id="one word, which may be misheard"),
        pytest.param([BOT_BEGINS, SOUND, interim("but what")], True, [], id="two words"),
        pytest.param([BOT_BEGINS, SOUND, interim("yeah okay great")], False, [], id="many words that mean: go on"),
        pytest.param([BOT_BEGINS, SOUND, interim("stop")], True, [], id="a command"),
        pytest.param([BOT_BEGINS, SOUND, final("Paris?")], True, [], id="a whole utterance of one word"),
        pytest.param([BOT_BEGINS, SOUND, final("Mm-hm.")], False, ["Mm-hm."], id="a backchannel"),
        pytest.param([BOT_BEGINS, SOUND, BOT_ENDS, final("Mm-hm.")], False, ["Mm-hm."], id="a late backchannel"),
        pytest.param([BOT_BEGINS, SOUND, BOT_ENDS, interim("but")], True, [], id="a word when the bot has ended"),
        pytest.param([BOT_BEGINS, BOT_ENDS, SOUND], True, [], id="a sound after the bot"),
        pytest.param([BOT_BEGINS, SOUND, BOT_ENDS, final("Okay."), final("Okay.")], True, ["Okay."], id="okay twice"),
    ],
)
async def test_what_begins_a_turn(frames, begins, backchannels):
    strategy = RealWordsStartStrategy(TurnTaking())
    begun: list[bool] = []
    pushed: list[Any] = []
    strategy.add_event_handler("on_user_turn_started", _noting(begun, True))
    strategy.add_event_handler("on_push_frame", _noting(pushed))
    for frame in frames:
        await strategy.process_frame(frame)
    assert bool(begun) is begins
    assert [f.text for f in pushed if isinstance(f, UserBackchannelFrame)] == backchannels


async def test_in_a_turn_nothing_begins_another_and_no_word_is_lost():
    strategy = RealWordsStartStrategy(TurnTaking())
    begun: list[bool] = []
    reset: list[bool] = []
    strategy.add_event_handler("on_user_turn_started", _noting(begun, True))
    strategy.add_event_handler("on_reset_aggregation", _noting(reset, True))
    await strategy.handle_user_turn_started()
    for frame in (SOUND, BOT_BEGINS, interim("yes"), final("Yes.")):
        await strategy.process_frame(frame)
    assert not begun and not reset
    await strategy.handle_user_turn_stopped()
    await strategy.process_frame(BOT_ENDS)
    await strategy.process_frame(SOUND)
    assert begun


class Turn:
    """A stop strategy with the controller's side played by the test."""

    def __init__(self, **settings: Any):
        self.cut = Cut()
        self.strategy = SmartTurnStopStrategy(
            TurnTaking(**settings), self.cut, turn_analyzer=LocalSmartTurnAnalyzerV3()
        )
        self.stops: list[bool] = []
        self.speculations: list[Any] = []
        self.pushed: list[Any] = []
        self.strategy.add_event_handler("on_user_turn_inference_triggered", self._on_inference)
        self.strategy.add_event_handler("on_user_turn_stopped", self._on_stop)
        self.strategy.add_event_handler("on_push_frame", _noting(self.pushed))

    async def _on_inference(self, strategy: Any, speculation: Any) -> None:
        self.speculations.append(speculation and speculation.text)

    async def _on_stop(self, strategy: Any, params: Any) -> None:
        self.stops.append(params.confirms_speculation)
        await self.strategy.handle_user_turn_stopped()

    async def __aenter__(self) -> Turn:
        setup: Any = _Setup(TaskManager(loop=asyncio.get_running_loop()))
        await self.strategy.setup(setup)
        await self.strategy.handle_user_turn_started()
        await self.cut.on_after_process_frame(None, InterruptionFrame())
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.strategy.cleanup()

    async def see(self, *frames: Any) -> None:
        for frame in frames:
            await self.strategy.process_frame(frame)

    async def until(self, done: Any) -> None:
        async with asyncio.timeout(10):
            while not done():
                await asyncio.sleep(0.02)


class _Setup:
    """What a strategy takes from the pipeline's setup."""

    def __init__(self, task_manager: TaskManager):
        self.task_manager = task_manager
        self.audio_in_sample_rate = 16000


async def test_a_turn_without_words_ends_soon_and_asks_nothing():
    async with Turn(empty_timeout_s=0.1) as turn:
        await turn.see(SOUND, VADUserStoppedSpeakingFrame(stop_secs=0.2))
        await turn.until(lambda: turn.stops)
        assert turn.stops == [False]


async def test_an_answer_is_begun_at_the_pause_and_confirmed_by_the_same_words():
    async with Turn() as turn:
        await turn.see(SOUND, VADUserStoppedSpeakingFrame(stop_secs=0.2))
        await turn.see(EagerTranscriptionFrame("what time", "", "now"))
        assert turn.speculations == ["what time"]
        await turn.see(final("What time?"))
        await turn.strategy.trigger_user_turn_stopped()
        assert turn.stops == [True] and turn.speculations == ["what time"]


async def test_other_words_are_asked_again():
    async with Turn() as turn:
        await turn.see(SOUND, VADUserStoppedSpeakingFrame(stop_secs=0.2))
        await turn.see(EagerTranscriptionFrame("what", "", "now"), final("What time?"))
        assert turn.speculations == ["what", "What time?"]


async def test_without_eager_nothing_is_begun_before_the_turn_ends():
    async with Turn(eager=False) as turn:
        await turn.see(SOUND, VADUserStoppedSpeakingFrame(stop_secs=0.2), final("What time?"))
        await turn.strategy.trigger_user_turn_stopped()
        assert turn.speculations == [None] and turn.stops == [False]


async def test_an_answer_given_up_for_a_tool_as_the_turn_ended_is_asked_for_again():
    async with Turn() as turn:
        await turn.see(SOUND, VADUserStoppedSpeakingFrame(stop_secs=0.2), final("The weather?"))
        await turn.strategy.trigger_user_turn_stopped()
        assert turn.stops == [True]
        await turn.see(EagerEndOfTurnCancelFrame())
        assert [type(frame) for frame in turn.pushed if isinstance(frame, LLMRunFrame)] == [LLMRunFrame]
        await turn.see(EagerEndOfTurnCancelFrame())
        assert len([frame for frame in turn.pushed if isinstance(frame, LLMRunFrame)]) == 1


def test_the_memory_forgets_from_the_front_and_begins_with_the_user():
    messages: list[Any] = [
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "tool_calls": [{"id": "1"}]},
        {"role": "tool", "tool_call_id": "1", "content": "{}"},
        {"role": "assistant", "content": "Fine."},
        {"role": "user", "content": "Thanks."},
    ]
    kept = memory.Memory("aria", "en", LLMContext(list(messages)))
    kept.trim(6)
    assert kept.context.messages == messages
    assert [said["text"] for said in kept.transcript()] == ["Hello.", "Weather?", "Fine.", "Thanks."]
    kept.trim(5)
    assert kept.context.messages == messages[1:]
    kept.trim(4)
    assert kept.context.messages == messages[5:], "a tool's result stayed without its call"


def _noting(noted: list[Any], what: Any = None) -> Any:
    async def note(strategy: Any, *args: Any) -> None:
        noted.append(args[0] if what is None else what)

    return note
