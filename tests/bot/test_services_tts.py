"""`TritonTTSService` against a real server."""

from __future__ import annotations

import asyncio
import contextlib

import numpy as np
import pytest
import soxr
from pipecat.frames.frames import (
    AggregatedTextFrame,
    ErrorFrame,
    InterruptionFrame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMTextFrame,
    TextType,
    TTSAudioRawFrame,
    TTSSpeakFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
    TTSTextFrame,
    TTSUpdateSettingsFrame,
)
from pipecat.utils.errors import ErrorCategory
from service_stage import staged

from pipecat_triton import TritonTTSService
from triton_voice import TritonVoice

RATE = 22050
FIRST, SECOND = "Please turn on the lights in the kitchen.", "Then play some music."
LONG = "This goes on and on and nobody knows when it will be over. " * 40
NS = 1e9


def service(server, **settings):
    return TritonTTSService(url=server.grpc, settings=TritonTTSService.Settings(seed=1, **settings))


async def reply(stage, *sentences):
    """What the language model pushes for a reply, whole sentences at a time."""
    await stage.send(LLMFullResponseStartFrame())
    for sentence in sentences:
        await stage.send(sentence if not isinstance(sentence, str) else LLMTextFrame(sentence + " "))
    await stage.send(LLMFullResponseEndFrame())


async def sdk_speaks(client, *sentences, utterance=None, **parameters):
    """Audio and word times of sentences as pieces of one utterance."""
    audio, words = [], []
    for sentence in sentences:
        async for chunk in client.speak(sentence, utterance=utterance, seed=1, **parameters):
            audio.append(chunk.audio)
            words += [(word.word, word.start) for word in chunk.words]
    return np.concatenate(audio), words


def heard(stage, since=0):
    """All audio that came out, int16."""
    frames = [frame for frame in stage.down[since:] if isinstance(frame, TTSAudioRawFrame)]
    return np.frombuffer(b"".join(frame.audio for frame in frames), np.int16)


def assert_same(audio, wanted):
    """The same audio. The server cuts its chunks by the clock, which may round a sample differently."""
    assert audio.shape == wanted.shape
    assert np.abs(audio.astype(int) - wanted).max() <= 2


def words_of(stage):
    return [frame.text for frame in stage.of(TTSTextFrame)]


async def until_still(server):
    """Waits until the server speaks nothing and nothing waits to be spoken; the test's own timeout is the limit."""
    names = "magpie_active_streams", "magpie_queued_requests"
    while any([await asyncio.to_thread(server.metric, name) for name in names]):
        await asyncio.sleep(0.05)


async def test_a_reply_is_one_utterance_in_order(server, voice):
    audio, words = await sdk_speaks(voice, FIRST, SECOND, utterance="a reply")
    async with staged(service(server), audio_out_sample_rate=RATE) as stage:
        await reply(stage, FIRST, SECOND)
        await stage.until_down(LLMFullResponseEndFrame)
    assert_same(heard(stage), audio)
    assert words_of(stage) == [word for word, _ in words] == f"{FIRST} {SECOND}".split()
    began = stage.of(TTSTextFrame)[0].pts - words[0][1] * NS
    assert [round((frame.pts - began) / NS, 3) for frame in stage.of(TTSTextFrame)] == [at for _, at in words]
    names = [name for name in stage.names(ErrorFrame) if "Aggregated" not in name]
    assert names[:3] == ["LLMFullResponseStartFrame", "TTSStartedFrame", "TTSAudioRawFrame"]
    assert names[-2:] == ["TTSStoppedFrame", "LLMFullResponseEndFrame"]
    assert names.count("TTSStartedFrame") == names.count("TTSStoppedFrame") == 1
    assert len({frame.context_id for frame in stage.of(TTSAudioRawFrame)}) == 1
    assert len([m for m in stage.metrics("TTFBMetricsData") if m.value]) == 1
    assert sum(m.value for m in stage.metrics("TTSUsageMetricsData")) >= len(FIRST + SECOND)
    assert not stage.errors


async def test_the_next_sentence_is_with_the_server_before_the_one_before_is_over(server, monkeypatch):
    events, speak = [], TritonVoice.speak

    async def watched(self, text, **parameters):
        events.append(f"sent {text}")
        async with contextlib.aclosing(speak(self, text, **parameters)) as chunks:
            async for chunk in chunks:
                yield chunk
        events.append(f"over {text}")

    monkeypatch.setattr(TritonVoice, "speak", watched)
    async with staged(service(server)) as stage:
        await reply(stage, FIRST, SECOND)
        await stage.until_down(TTSStoppedFrame)
    assert events == [f"sent {FIRST}", f"sent {SECOND}", f"over {FIRST}", f"over {SECOND}"]


async def test_audio_is_resampled_to_the_pipelines_rate_without_seams(server, voice):
    audio, _ = await sdk_speaks(voice, FIRST, SECOND, utterance="resampled")
    async with staged(service(server), audio_out_sample_rate=2 * RATE) as stage:
        await reply(stage, FIRST, SECOND)
        await stage.until_down(TTSStoppedFrame)
    wanted = soxr.resample(audio, RATE, 2 * RATE)
    assert abs(len(heard(stage)) - len(wanted)) <= 2
    assert all(frame.sample_rate == 2 * RATE for frame in stage.of(TTSAudioRawFrame))
    length = min(len(wanted), len(heard(stage)))
    assert np.abs(heard(stage)[:length].astype(int) - wanted[:length]).max() <= 8  # rounding


async def test_an_interruption_stops_the_server_and_no_more_is_heard(server):
    cancelled = server.metric("magpie_cancelled_total")
    async with staged(service(server)) as stage:
        await stage.send(TTSSpeakFrame(LONG))
        await stage.until_down(TTSAudioRawFrame, 3)
        await stage.send(InterruptionFrame())
        await stage.until_down(InterruptionFrame)
        so_far = len(stage.down)
        await until_still(server)
        assert heard(stage, so_far).size == 0
        await stage.send(TTSSpeakFrame(SECOND))
        await stage.until_down(TTSStoppedFrame)
    while server.metric("magpie_cancelled_total") == cancelled:
        await asyncio.sleep(0.05)
    old, new = dict.fromkeys(frame.context_id for frame in stage.of(TTSAudioRawFrame))
    assert {frame.context_id for frame in stage.down[so_far:] if isinstance(frame, TTSAudioRawFrame)} == {new}
    assert old != new
    assert not stage.errors


async def test_after_two_quick_interruptions_only_the_newest_is_heard(server, voice):
    wanted, _ = await sdk_speaks(voice, SECOND)
    async with staged(service(server), audio_out_sample_rate=RATE) as stage:
        await stage.send(TTSSpeakFrame(LONG))
        await stage.until_down(TTSAudioRawFrame)
        await stage.send(InterruptionFrame())
        await stage.until_down(InterruptionFrame)
        await stage.send(TTSSpeakFrame(LONG))
        await stage.until_down(TTSStartedFrame, 2)
        await stage.send(InterruptionFrame())
        await stage.until_down(InterruptionFrame, 2)
        so_far = len(stage.down)
        await stage.send(TTSSpeakFrame(SECOND))
        await stage.until_down(TTSStoppedFrame)
        await until_still(server)
    assert_same(heard(stage, so_far), wanted)
    assert not stage.errors


async def test_an_interruption_between_sentences_takes_back_the_one_that_waits(server):
    async with staged(service(server)) as stage:
        await stage.send(LLMFullResponseStartFrame(), LLMTextFrame(LONG))
        await stage.until_down(TTSAudioRawFrame)
        await stage.send(InterruptionFrame())
        await until_still(server)
        await reply(stage, SECOND)
        await stage.until_down(LLMFullResponseEndFrame)
    assert words_of(stage)[-len(SECOND.split()) :] == SECOND.split()


async def test_a_changed_voice_applies_to_the_next_sentence(server, voice):
    first, _ = await sdk_speaks(voice, FIRST, voice="aria")
    second, _ = await sdk_speaks(voice, SECOND, voice="leo")
    update = TTSUpdateSettingsFrame(delta=TritonTTSService.Settings(voice="leo"))
    async with staged(service(server, voice="aria"), audio_out_sample_rate=RATE) as stage:
        await stage.send(LLMFullResponseStartFrame(), LLMTextFrame(FIRST + " "), LLMTextFrame("Then "))
        await stage.send(update, LLMTextFrame("play some music."), LLMFullResponseEndFrame())
        await stage.until_down(LLMFullResponseEndFrame)
    assert_same(heard(stage), np.concatenate([first, second]))
    times = [frame.pts for frame in stage.of(TTSTextFrame)]
    assert times == sorted(times)
    assert times[len(FIRST.split())] - times[0] > (len(first) / RATE - 0.5) * NS


async def test_a_wrong_voice_is_told_and_mended_by_another(server):
    tts = service(server, voice="nobody")
    async with staged(tts) as stage:
        await reply(stage, FIRST)
        error = await stage.until_error()
        assert error.category is ErrorCategory.INVALID_REQUEST
        assert "nobody" in error.error and "aria" in error.error
        assert not tts.is_usable
        await stage.send(TTSUpdateSettingsFrame(delta=TritonTTSService.Settings(voice="aria")))
        await reply(stage, SECOND)
        await stage.until_down(TTSAudioRawFrame)
        await stage.until_down(LLMFullResponseEndFrame, 2)
    assert words_of(stage) == SECOND.split()


async def test_one_odd_sentence_costs_only_itself(server):
    """Refused by the server, it is not heard, and so it is not among the words; the others are."""
    tts = service(server)
    async with staged(tts) as stage:
        await reply(stage, FIRST)
        await stage.until_down(TTSStoppedFrame)
        odd = AggregatedTextFrame("a" * 200_001, TextType.SENTENCE)
        await reply(stage, FIRST + " And", odd, SECOND)
        error = await stage.until_error()
        await stage.until_down(LLMFullResponseEndFrame, 2)
    assert error.category is ErrorCategory.APPLICATION
    assert tts.is_usable
    assert words_of(stage) == [*FIRST.split(), *FIRST.split(), "And", *SECOND.split()]


async def test_no_server_is_a_lost_connection_and_nothing_counts_as_said():
    tts = TritonTTSService(url="127.0.0.1:9")
    async with staged(tts) as stage:
        for number in range(1, 5):
            await reply(stage, FIRST)
            await stage.until_down(LLMFullResponseEndFrame, number)
    told = [error for error in stage.errors if error.exception]
    assert [error.category for error in told] == [ErrorCategory.CONNECTIVITY] * 4
    assert tts.is_usable
    assert words_of(stage) == []
    assert len(stage.of(TTSStartedFrame)) == len(stage.of(TTSStoppedFrame))


async def test_a_reply_with_nothing_to_say_is_no_error(server):
    async with staged(service(server)) as stage:
        await reply(stage, "🙂")
        await stage.until_down(LLMFullResponseEndFrame)
        await reply(stage, FIRST)
        await stage.until_down(LLMFullResponseEndFrame, 2)
    assert len(stage.of(TTSStartedFrame)) == len(stage.of(TTSStoppedFrame)) == 2
    assert words_of(stage) == ["🙂", *FIRST.split()]
    assert not stage.errors


@pytest.mark.parametrize("text", ["**Please** turn *on* the `lights`", "It costs $5 today."])
async def test_what_is_written_is_what_the_context_gets(server, text):
    """The server speaks marks and numbers its own way; the context keeps the text as it was written."""
    async with staged(service(server)) as stage:
        await reply(stage, FIRST, text)
        await stage.until_down(LLMFullResponseEndFrame)
    raw = " ".join(
        (frame.raw_text or frame.text).strip() for frame in stage.of(TTSTextFrame) if frame.append_to_context
    )
    assert raw.replace(" ", "") == (FIRST + text).replace(" ", "")
