"""`EagerTurnAnalyzerUserTurnStopStrategy` in Pipecat's user aggregator, with the language model behind it."""

from __future__ import annotations

import asyncio

import pytest
from pipecat.audio.turn.base_turn_analyzer import BaseTurnAnalyzer, BaseTurnParams, EndOfTurnState
from pipecat.frames.frames import (
    EagerTranscriptionFrame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMTextFrame,
    TranscriptionFrame,
    UserStoppedSpeakingFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair, LLMUserAggregatorParams
from pipecat.turns.user_turn_strategies import UserTurnStrategies
from service_stage import staged

from llm_client import until_running
from pipecat_triton import EagerTurnAnalyzerUserTurnStopStrategy, TritonLLMService

SLOW = "word " * 300


class Judge(BaseTurnAnalyzer):
    """An analyzer that thinks until the test tells its verdict."""

    def __init__(self):
        super().__init__()
        self.verdicts: asyncio.Queue[EndOfTurnState] = asyncio.Queue()

    @property
    def speech_triggered(self):
        return False

    @property
    def params(self):
        return BaseTurnParams()

    def append_audio(self, buffer, is_speech):
        return EndOfTurnState.INCOMPLETE

    async def analyze_end_of_turn(self):
        return await self.verdicts.get(), None

    def clear(self):
        pass


def started():
    return VADUserStartedSpeakingFrame(start_secs=0.2)


def stopped():
    return VADUserStoppedSpeakingFrame(stop_secs=0.2)


def eager(text):
    return EagerTranscriptionFrame(text, "", "")


def final(text):
    return TranscriptionFrame(text, "", "", finalized=True)


@pytest.fixture
def judge():
    return Judge()


@pytest.fixture
async def turn(server, says, judge):
    """The aggregator and a language model that always says "Noon."; the context is `turn.context`."""
    context = LLMContext()
    strategies = UserTurnStrategies(stop=[EagerTurnAnalyzerUserTurnStopStrategy(turn_analyzer=judge)])
    user, _ = LLMContextAggregatorPair(context, user_params=LLMUserAggregatorParams(user_turn_strategies=strategies))
    llm = TritonLLMService(url=server.grpc, settings=TritonLLMService.Settings(extra=says("Noon.")))
    async with staged(user, llm) as stage:
        stage.context, stage.llm = context, llm
        yield stage


def answered(turn):
    return turn.metrics("LLMUsageMetricsData")


def said(turn):
    return "".join(frame.text for frame in turn.of(LLMTextFrame))


def heard(turn):
    return [m["content"] for m in turn.context.messages]


async def test_the_answer_is_ready_before_the_verdict_and_comes_with_it(turn, judge):
    await turn.send(started(), stopped(), eager("what time is it"))
    await turn.until(lambda: answered(turn))
    await turn.send(final("What time is it?"))
    assert not turn.of(LLMFullResponseStartFrame)
    judge.verdicts.put_nowait(EndOfTurnState.COMPLETE)
    await turn.until_down(LLMFullResponseEndFrame)
    assert turn.of(UserStoppedSpeakingFrame)
    assert said(turn) == "Noon."
    assert heard(turn) == ["What time is it?"]
    assert len(answered(turn)) == 1


async def test_a_final_transcript_that_says_something_else_is_answered_instead(turn, judge):
    await turn.send(started(), stopped(), eager("what time"))
    await turn.until(lambda: answered(turn))
    await turn.send(final("What time is it in Rome?"))
    judge.verdicts.put_nowait(EndOfTurnState.COMPLETE)
    await turn.until_down(LLMFullResponseEndFrame)
    await turn.until(lambda: len(answered(turn)) == 2)
    assert said(turn) == "Noon."
    assert heard(turn) == ["What time is it in Rome?"]


async def test_when_the_user_goes_on_the_answer_is_stopped_and_the_whole_turn_answered(turn, judge, server, says):
    turn.llm._settings.extra = says(SLOW, step_ms=20)
    await turn.send(started(), stopped(), eager("what time"))
    await until_running(server, 1)
    await turn.send(final("What time"))
    judge.verdicts.put_nowait(EndOfTurnState.INCOMPLETE)
    await turn.send(started())
    await until_running(server, 0)
    turn.llm._settings.extra = says("Noon.")
    await turn.send(stopped(), eager("is it"), final("is it?"))
    judge.verdicts.put_nowait(EndOfTurnState.COMPLETE)
    await turn.until_down(LLMFullResponseEndFrame)
    assert said(turn) == "Noon."
    assert heard(turn) == ["What time is it?"]


async def test_an_eager_transcript_outside_of_a_turn_is_not_answered(turn, judge):
    await turn.send(eager("mm-hm"), started(), stopped(), final("Hello."))
    judge.verdicts.put_nowait(EndOfTurnState.COMPLETE)
    await turn.until_down(LLMFullResponseEndFrame)
    assert len(answered(turn)) == 1
    assert heard(turn) == ["Hello."]


async def test_without_eager_transcripts_it_is_the_strategy_that_it_is_built_on(turn, judge):
    await turn.send(started(), stopped(), final("Hello."))
    judge.verdicts.put_nowait(EndOfTurnState.COMPLETE)
    await turn.until_down(LLMFullResponseEndFrame)
    assert (said(turn), heard(turn), len(answered(turn))) == ("Noon.", ["Hello."], 1)
