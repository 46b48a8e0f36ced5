"""`TritonSTTService` against a real server."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from pipecat.frames.frames import (
    EagerEndOfTurnCancelFrame,
    EagerTranscriptionFrame,
    InterimTranscriptionFrame,
    STTUpdateSettingsFrame,
    TranscriptionFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.utils.errors import ErrorCategory
from service_stage import microphone, staged

from pipecat_triton import TritonSTTService
from support import pieces, speechlike

RATE = 16000
PRE_ROLL = RATE // 2
START = RATE
"""Sample at which the VAD notices speech in the tests' audio."""


def started():
    return VADUserStartedSpeakingFrame(start_secs=0.2)


def stopped():
    return VADUserStoppedSpeakingFrame(stop_secs=0.2)


async def speak(stage, audio, rate=RATE):
    """A segment: the VAD notices it after a second and reports its end behind the last sample."""
    start = START * rate // RATE
    await stage.send(*microphone(audio[:start], rate), started())
    await stage.send(*microphone(audio[start:], rate), stopped())


async def sdk_hears(voice, audio, rate=RATE, **settings):
    """What the SDK makes of the segment, pre-roll included."""
    begin = (START - PRE_ROLL) * rate // RATE
    async for transcript in voice.transcribe(pieces(audio[begin:], 2560), sample_rate=rate, **settings):
        last = transcript
    return last


async def test_a_segment_is_what_the_sdk_hears_in_the_same_audio(server, voice):
    audio = speechlike(4, seed=1)
    wanted = await sdk_hears(voice, audio)
    async with staged(TritonSTTService(url=server.grpc)) as stage:
        await speak(stage, audio)
        final = await stage.until_down(TranscriptionFrame)
    assert final.text == wanted.text.strip() != ""
    assert final.finalized
    assert final.result.words == wanted.words != ()
    assert len([m for m in stage.metrics("TTFBMetricsData") if m.value]) == 1
    assert stage.metrics("STTUsageMetricsData")
    assert not stage.errors


async def test_interim_transcripts_come_while_the_user_speaks_and_before_the_final(server):
    audio = speechlike(4, seed=2)
    async with staged(TritonSTTService(url=server.grpc)) as stage:
        await stage.send(*microphone(audio[:START]), started(), *microphone(audio[START : 2 * RATE]))
        first = await stage.until_down(InterimTranscriptionFrame)
        await stage.send(*microphone(audio[2 * RATE :]))
        await stage.until(lambda: stage.of(InterimTranscriptionFrame)[-1].text != first.text)
        assert not stage.of(TranscriptionFrame)  # it is not a subclass
        await stage.send(stopped())
        final = await stage.until_down(TranscriptionFrame)
    assert stage.of(InterimTranscriptionFrame, TranscriptionFrame)[-1] is final
    texts = [interim.text for interim in stage.of(InterimTranscriptionFrame)]
    assert len(set(texts)) == len(texts)


async def test_two_segments_are_independent(server, voice):
    audio = [speechlike(3, seed=3), speechlike(3, seed=4)]
    wanted = [(await sdk_hears(voice, one)).text.strip() for one in audio]
    async with staged(TritonSTTService(url=server.grpc)) as stage:
        for number, one in enumerate(audio, 1):
            await speak(stage, one)
            await stage.until_down(TranscriptionFrame, number)
    assert [frame.text for frame in stage.of(TranscriptionFrame)] == wanted
    assert all(frame.finalized for frame in stage.of(TranscriptionFrame))
    assert wanted[0] != wanted[1]


async def test_a_final_that_comes_when_the_user_speaks_again_does_not_end_the_turn(server):
    audio = speechlike(3, seed=3)
    async with staged(TritonSTTService(url=server.grpc)) as stage:
        await speak(stage, audio)
        await stage.send(started(), *microphone(audio), stopped())
        await stage.until_down(TranscriptionFrame, 2)
    assert [frame.finalized for frame in stage.of(TranscriptionFrame)] == [False, True]


async def test_an_empty_segment_settles_without_a_transcript(server):
    service = TritonSTTService(url=server.grpc, pre_roll_ms=0)
    async with staged(service) as stage:
        await stage.send(started(), stopped())
        await stage.until(lambda: [m for m in stage.metrics("TTFBMetricsData") if m.value])
        await speak(stage, speechlike(3, seed=3))
        await stage.until_down(TranscriptionFrame)
    assert len(stage.of(TranscriptionFrame)) == 1
    assert not stage.errors


@pytest.mark.parametrize("rate", [8000, 48000])
async def test_other_rates_are_resampled(server, voice, rate):
    audio = np.repeat(speechlike(3, seed=5), 3) if rate == 48000 else speechlike(3, seed=5)[::2]
    wanted = await sdk_hears(voice, audio, rate)
    async with staged(TritonSTTService(url=server.grpc), audio_in_sample_rate=rate) as stage:
        await speak(stage, audio, rate)
        final = await stage.until_down(TranscriptionFrame)
    assert final.text == wanted.text.strip()


async def test_a_changed_latency_applies_to_the_next_segment(server, voice):
    audio = speechlike(4, seed=6)
    wanted = [(await sdk_hears(voice, audio, latency_ms=latency)).text.strip() for latency in (80, 1120)]
    service = TritonSTTService(url=server.grpc, settings=TritonSTTService.Settings(latency_ms=80))
    async with staged(service) as stage:
        await speak(stage, audio)
        await stage.send(STTUpdateSettingsFrame(delta=TritonSTTService.Settings(latency_ms=1120)))
        await stage.until_down(TranscriptionFrame)
        await speak(stage, audio)
        await stage.until_down(TranscriptionFrame, 2)
    assert [frame.text for frame in stage.of(TranscriptionFrame)] == wanted
    assert wanted[0] != wanted[1]


async def test_wrong_settings_are_told_once_and_mended_by_new_ones(server):
    audio = speechlike(3, seed=3)
    service = TritonSTTService(url=server.grpc, settings=TritonSTTService.Settings(latency_ms=77))
    async with staged(service) as stage:
        await speak(stage, audio)
        error = await stage.until_error()
        assert error.category is ErrorCategory.INVALID_REQUEST
        assert "77" in error.error and "160" in error.error  # what was asked for, and what is on offer
        assert not service.is_usable
        await speak(stage, audio)
        await stage.send(STTUpdateSettingsFrame(delta=TritonSTTService.Settings(latency_ms=160)))
        await stage.until(lambda: service.is_usable or stage.of(TranscriptionFrame))
        await speak(stage, audio)
        await stage.until_down(TranscriptionFrame)
    assert len(stage.errors) == 1


async def test_an_unknown_model_is_a_wrong_setting(server):
    service = TritonSTTService(url=server.grpc, settings=TritonSTTService.Settings(model="parrot"))
    async with staged(service) as stage:
        await speak(stage, speechlike(2))
        error = await stage.until_error()
    assert error.category is ErrorCategory.INVALID_REQUEST
    assert "parrot" in error.error


async def test_no_server_is_a_lost_connection_and_the_service_stays_usable():
    service = TritonSTTService(url="127.0.0.1:9")
    async with staged(service) as stage:
        for number in (1, 2):
            await speak(stage, speechlike(2))
            error = await stage.until_error(number)
            assert error.category is ErrorCategory.CONNECTIVITY
    assert service.is_usable


async def test_an_eager_transcript_goes_ahead_of_the_final_and_is_withdrawn_when_the_user_goes_on(server):
    audio = speechlike(4, seed=2)
    service = TritonSTTService(url=server.grpc, eager_transcripts=True)
    async with staged(service) as stage:
        await stage.send(*microphone(audio[:START]), started(), *microphone(audio[START:]))
        interim = await stage.until_down(InterimTranscriptionFrame)
        await stage.send(stopped())
        await stage.until_down(TranscriptionFrame)
        eager, final = stage.of(EagerTranscriptionFrame, TranscriptionFrame)
        assert isinstance(eager, EagerTranscriptionFrame) and isinstance(final, TranscriptionFrame)
        assert eager.text == stage.of(InterimTranscriptionFrame)[-1].text or eager.text == interim.text
        await stage.send(*microphone(audio[:START]), started(), *microphone(audio[START:]))
        await stage.until(lambda: len(stage.of(InterimTranscriptionFrame)) > 1)
        await stage.send(stopped(), started(), *microphone(audio), stopped())
        await stage.until_down(EagerEndOfTurnCancelFrame)
        await stage.until_down(TranscriptionFrame, 3)


async def test_without_the_flag_nothing_eager_is_pushed(server):
    audio = speechlike(4, seed=2)
    async with staged(TritonSTTService(url=server.grpc)) as stage:
        await stage.send(*microphone(audio[:START]), started(), *microphone(audio[START:]))
        await stage.until_down(InterimTranscriptionFrame)
        await stage.send(stopped())
        await stage.until_down(TranscriptionFrame)
    assert not stage.of(EagerTranscriptionFrame)


async def test_the_pipelines_end_finishes_what_is_being_said(server, voice):
    audio = speechlike(3, seed=7)
    wanted = await sdk_hears(voice, audio)
    async with staged(TritonSTTService(url=server.grpc)) as stage:
        await stage.send(*microphone(audio[:START]), started(), *microphone(audio[START:]))
    (final,) = stage.of(TranscriptionFrame)
    assert final.text == wanted.text.strip()


async def test_a_cancelled_pipeline_frees_the_servers_stream(server):
    audio = speechlike(3, seed=7)
    with pytest.raises(RuntimeError, match="hung up"):
        async with staged(TritonSTTService(url=server.grpc)) as stage:
            await stage.send(*microphone(audio[:START]), started(), *microphone(audio[START:]))
            await stage.until_down(InterimTranscriptionFrame)
            raise RuntimeError("the user hung up")
    while await asyncio.to_thread(server.metric, "parakeet_active_streams"):
        await asyncio.sleep(0.05)
