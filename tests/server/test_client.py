"""The SDK's promises that are the same for every model: typed errors, early exits, readiness."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from support import pieces, speechlike
from triton_voice import InvalidInput, ModelNotReady, ServerGone, TritonVoice, wait_until_ready
from triton_voice.errors import TritonVoiceError
from triton_voice.server import ServerSettings, TritonServer, Weights


async def test_ready_tells_of_each_model(voice):
    state = await voice.ready()
    assert state.all_ready
    assert set(state.models) == {"parakeet", "nemotron", "magpie"}
    assert not (await voice.ready(("parakeet", "no-such-model"))).all_ready


async def test_waiting_for_a_server_that_never_comes_ends(unused_tcp_port):
    with pytest.raises(TritonVoiceError, match="the server"):
        await wait_until_ready(f"127.0.0.1:{unused_tcp_port}", timeout_s=0.3)


async def test_generate_streams_and_says_why_it_ended(voice):
    deltas = [delta async for delta in voice.generate("Hello", max_tokens=400, temperature=0.0, ignore_eos=True)]
    assert len(deltas) > 1  # tokens that are ready at once come together
    assert "".join(delta.text for delta in deltas)
    assert [delta.finish_reason for delta in deltas[-1:]] == ["length"]
    assert all(delta.finish_reason is None for delta in deltas[:-1])


async def test_speak_yields_only_audio(voice):
    chunks = [chunk async for chunk in voice.speak("Hello there.", seed=1)]
    assert len(chunks) > 1
    assert all(len(chunk.audio) for chunk in chunks)
    assert sum(chunk.duration_s for chunk in chunks) > 0.5


@pytest.mark.parametrize("text", ["", "   ", "🙂"])
async def test_nothing_to_say_is_no_error(voice, text):
    assert [chunk async for chunk in voice.speak(text)] == []


async def test_bad_requests_of_every_model_are_invalid_input(voice):
    with pytest.raises(InvalidInput, match="voice"):
        [chunk async for chunk in voice.speak("Hello.", voice="nobody")]
    with pytest.raises(InvalidInput, match="loudness"):
        [chunk async for chunk in voice.speak("Hello.", loudness=11)]
    with pytest.raises(InvalidInput, match="max_tokens"):
        [delta async for delta in voice.generate("Hello", max_tokens="many")]
    with pytest.raises(InvalidInput, match="latency_ms"):
        [t async for t in voice.transcribe(pieces(speechlike(0.2), 1600), latency_ms=1)]


async def test_leaving_speech_early_stops_it_on_the_server(voice, server):
    before = server.metric("magpie_cancelled_total")
    async with contextlib.aclosing(voice.speak("One two three four five six seven eight nine ten.")) as speech:
        async for _ in speech:
            break
    for _ in range(100):
        if server.metric("magpie_cancelled_total") > before and server.metric("magpie_active_streams") == 0:
            return
        await asyncio.sleep(0.05)
    pytest.fail("the utterance was not cancelled")


async def test_leaving_text_early_stops_it_on_the_server(voice, server):
    async with contextlib.aclosing(voice.generate("Hello", max_tokens=100_000_000, ignore_eos=True)) as text:
        with contextlib.suppress(InvalidInput):
            async for _ in text:
                break
    async with contextlib.aclosing(voice.generate("Hello", max_tokens=900, ignore_eos=True)) as text:
        async for _ in text:
            break
    for _ in range(100):
        if server.metric("triton_voice_llm_requests_running") == 0:
            return
        await asyncio.sleep(0.05)
    pytest.fail("the request still runs")


async def test_a_cancelled_task_cancels_its_call(voice, server):
    async def talk() -> None:
        async for _ in voice.speak("A task that is cancelled must not leave a voice speaking to nobody."):
            pass

    before = server.metric("magpie_cancelled_total")
    task = asyncio.create_task(talk())
    await asyncio.sleep(0.15)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for _ in range(100):
        if server.metric("magpie_cancelled_total") > before:
            return
        await asyncio.sleep(0.05)
    pytest.fail("the utterance was not cancelled")


def test_a_model_that_is_not_there_and_a_server_that_goes(tiny, tmp_path):
    """One server of its own: with one model only, then stopped under a client, with a stream still open."""
    settings = ServerSettings(
        grpc_port=0, http_port=0, metrics_port=0, device="cpu", only=("parakeet",), log_file=tmp_path / "log"
    )

    async def use(server: TritonServer) -> None:
        async with TritonVoice(server.grpc_url) as voice:
            with pytest.raises(ModelNotReady):
                [chunk async for chunk in voice.speak("Hello.")]
            with pytest.raises(ModelNotReady):
                [delta async for delta in voice.generate("Hello")]
            stream = voice.open_stream()
            await stream.send(speechlike(0.3))
            await asyncio.to_thread(server.stop)
            with pytest.raises(ServerGone):
                await stream.send(speechlike(0.3))
            assert not (await asyncio.wait_for(voice.ready(), 30)).live

    with TritonServer(settings, Weights(parakeet=str(tiny.parakeet))) as server:
        asyncio.run(use(server))
