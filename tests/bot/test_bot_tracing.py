"""One trace of one turn: conversation, turn, Pipecat's spans, the SDK's calls and Triton's own spans."""

from __future__ import annotations

import asyncio

import pytest
from bot_room import conversing
from opentelemetry import trace
from pipecat.frames.frames import BotStoppedSpeakingFrame, VADUserStoppedSpeakingFrame

from voice_bot import tracing
from voice_bot.spans import Span, SpanReceiver, below

PATIENCE_S = 60
QUESTION_WORDS, REPLY = "What is the capital of France?", "It is Paris."


@pytest.fixture(scope="module")
def provider(collector: SpanReceiver):
    """Tracing as `triton-voice bot --trace` sets it up; OpenTelemetry allows that once in a process."""
    provider = tracing.set_up(collector.url, content=False)
    yield provider
    provider.shutdown()
    trace._TRACER_PROVIDER, trace._TRACER_PROVIDER_SET_ONCE = None, type(trace._TRACER_PROVIDER_SET_ONCE)()


async def traced(collector: SpanReceiver, provider, conversation: str, complete) -> list[Span]:
    """The spans of a conversation, once complete and joined: Triton sends its own some seconds later."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            await asyncio.to_thread(provider.force_flush)
            roots = [
                s
                for s in collector.spans
                if s.name == "conversation" and s.attributes["conversation.id"] == conversation
            ]
            everything = [s for s in collector.spans if roots and s.trace == roots[0].trace]
            if roots and complete(spans := below(everything, roots[0])) and len(spans) == len(everything):
                return spans
            await asyncio.sleep(0.2)


def triton_models(spans: list[Span]) -> set[str]:
    return {s.name for s in spans if s.service == "triton"} & {"parakeet", "nemotron", "magpie"}


async def test_a_turn_is_one_trace_from_the_bot_down_into_triton(server, says, collector, provider):
    async with conversing(
        server.grpc, hears=[QUESTION_WORDS], replies=[says(REPLY)], greet=True, greeting="Hello.", trace=collector.url
    ) as guest:
        await guest.events.until_frame(BotStoppedSpeakingFrame)
        await guest.say()
        await guest.events.until_frame(BotStoppedSpeakingFrame, 2)
    spans = await traced(collector, provider, guest.memory.label, lambda found: len(triton_models(found)) == 3)
    by_id = {span.id: span for span in spans}

    def ancestry(span: Span) -> list[str]:
        path = []
        while span.parent:
            span = by_id[span.parent]
            path.append(span.name)
        return path

    for service, model in (("stt", "parakeet"), ("llm", "nemotron"), ("tts", "magpie")):
        answered = [s for s in spans if s.service == "triton" and s.name == model]
        assert answered, f"Triton tells nothing of {model}"
        for span in answered:
            assert ancestry(span) == ["InferRequest", model, service, "turn", "conversation"]
            call = by_id[by_id[span.parent].parent]
            assert call.start_ns <= by_id[span.parent].start_ns
    # The turn of the question has all three; the greeting before it has speech alone.
    turns = {span.id: {s.name for s in spans if s.parent == span.id} for span in spans if span.name == "turn"}
    assert {"stt", "llm", "tts"} in turns.values()
    assert any(name == "first response" for s in spans for name, _ in s.events)
    said = repr([(s.attributes, s.events) for s in spans])
    for words in (QUESTION_WORDS, REPLY, "Hello.", "timer"):
        assert words not in said, "what was said left with the spans"


async def test_a_sound_without_words_is_traced_too(server, says, collector, provider):
    async with conversing(server.grpc, hears=[""], replies=[says("Yes.")], trace=collector.url) as guest:
        await guest.say()
        await guest.events.until_frame(VADUserStoppedSpeakingFrame)
        await asyncio.sleep(1)
    spans = await traced(collector, provider, guest.memory.label, lambda found: triton_models(found) == {"parakeet"})
    (unheard, *_) = [span for span in spans if span.name == "stt"]
    assert "parakeet" in {span.name for span in spans if span.parent == unheard.id}


async def test_nothing_is_traced_without_being_asked(server, says, collector, provider):
    before = len(collector.spans)
    async with conversing(server.grpc, replies=[says(REPLY)], greet=True, greeting="Hello.") as guest:
        await guest.events.until_frame(BotStoppedSpeakingFrame)
    await asyncio.to_thread(provider.force_flush)
    assert not [s for s in collector.spans[before:] if s.name in ("conversation", "turn", "tts")]
