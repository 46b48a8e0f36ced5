"""The server goes away and comes back on its port, while the services live on."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import numpy as np
import pytest
from pipecat.frames.frames import (
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMTextFrame,
    TranscriptionFrame,
    TTSAudioRawFrame,
    TTSTextFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.utils.errors import ErrorCategory
from service_stage import microphone, staged

from pipecat_triton import TritonSTTService, TritonTTSService
from support import pieces, speechlike
from triton_voice import TritonVoice
from triton_voice.server import ServerSettings, TritonServer

STARTED, STOPPED = VADUserStartedSpeakingFrame(start_secs=0.2), VADUserStoppedSpeakingFrame(stop_secs=0.2)
TRIED_S = 0.5
"""Enough for a request to a port where nobody listens to fail; if it were not, the test would be easier, not wrong."""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def running(tiny, port: int) -> TritonServer:
    only = ("parakeet", "magpie")
    ports = {"grpc_port": port, "http_port": 0, "metrics_port": 0}
    return TritonServer(ServerSettings(**ports, device="cpu", only=only), tiny.weights())


async def say(stage, text: str) -> None:
    await stage.send(LLMFullResponseStartFrame(), LLMTextFrame(text), LLMFullResponseEndFrame())


@pytest.mark.timeout(900)
async def test_services_survive_a_restart_of_the_server(tiny):
    port = free_port()
    audio = speechlike(3, seed=1)
    async with contextlib.AsyncExitStack() as stack:
        server = running(tiny, port)
        url = stack.enter_context(server).grpc_url
        ears = await stack.enter_async_context(staged(TritonSTTService(url=url, pre_roll_ms=0)))
        mouth = await stack.enter_async_context(staged(TritonTTSService(url=url)))
        await ears.send(STARTED, *microphone(audio), STOPPED)
        first = await ears.until_down(TranscriptionFrame)
        await say(mouth, "Hello.")
        await mouth.until_down(LLMFullResponseEndFrame)

        server.stop()
        await ears.send(STARTED, *microphone(audio), STOPPED)
        await say(mouth, "Goodbye.")
        await mouth.until_down(LLMFullResponseEndFrame, 2)
        lost = await ears.until_error(), await mouth.until_error()
        assert [error.category for error in lost] == [ErrorCategory.CONNECTIVITY] * 2

        await ears.send(STARTED, *microphone(audio))  # begins while the server is away, and ends when it is back
        await asyncio.sleep(TRIED_S)
        stack.enter_context(running(tiny, port))
        async with TritonVoice(url) as voice:
            async for transcript in voice.transcribe(pieces(audio, 2560)):
                wanted = transcript.text.strip()
        await ears.send(STOPPED)
        again = await ears.until_down(TranscriptionFrame, 2)
        await say(mouth, "Hello again.")
        await mouth.until_down(LLMFullResponseEndFrame, 3)
    assert first.text == again.text == wanted != ""
    assert len(ears.errors) == len(mouth.errors) == 1
    assert [frame.text for frame in mouth.of(TTSTextFrame)] == ["Hello.", "Hello", "again."]
    assert np.concatenate([np.frombuffer(frame.audio, np.int16) for frame in mouth.of(TTSAudioRawFrame)]).any()
