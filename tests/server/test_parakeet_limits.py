"""Admission and eviction through a server with room for two callers; and settings that cannot be."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from test_parakeet import request
from tritonclient.utils import InferenceServerException

from support import speechlike
from triton_voice import InvalidInput, SequenceLost, ServerFull, TritonVoice
from triton_voice.server import ServerError, ServerSettings, TritonServer, Weights

IDLE_S = 3.0
MAX_STREAM_S = 30


def settings(tmp_path_factory) -> ServerSettings:
    log = tmp_path_factory.mktemp("limits") / "log"
    return ServerSettings(
        grpc_port=0, http_port=0, metrics_port=0, device="cpu", only=("parakeet",), log_file=log, verbose=False
    )


@pytest.fixture(scope="module")
def small(tiny, tmp_path_factory):
    limits = {"PARAKEET_MAX_STREAMS": "2", "PARAKEET_IDLE_S": str(IDLE_S), "PARAKEET_MAX_STREAM_S": str(MAX_STREAM_S)}
    weights = Weights(parakeet=str(tiny.parakeet))
    with TritonServer(settings(tmp_path_factory), weights, environment=limits) as server:
        yield server


async def test_a_third_caller_is_refused_in_time_and_let_in_when_one_leaves(small):
    async with TritonVoice(small.grpc_url) as voice, voice.open_stream() as first, voice.open_stream() as second:
        await first.send(speechlike(0.3))
        await second.send(speechlike(0.3))
        with pytest.raises(ServerFull, match="all 2 streams"):
            async with voice.open_stream(start_timeout_s=0.3) as third:
                await third.send(speechlike(0.3))
        async with voice.open_stream(start_timeout_s=20) as fourth:
            waiting = asyncio.create_task(fourth.send(speechlike(0.3)))
            await asyncio.sleep(0.2)
            assert not waiting.done()
            await first.end()
            await waiting
            await fourth.end()
        await second.end()


async def test_a_stream_that_never_ends_is_stopped_and_what_it_said_can_still_be_had(small):
    async with TritonVoice(small.grpc_url) as voice, voice.open_stream() as stream:
        await stream.send(speechlike(0.9 * MAX_STREAM_S))
        with pytest.raises(InvalidInput, match=r"at most 0.5 minutes of audio; end this one and begin another"):
            await stream.send(speechlike(0.2 * MAX_STREAM_S))
        assert (await stream.end()).is_final


async def test_an_end_that_is_refused_gives_its_slot_back(small):
    """Triton has ended the sequence: nobody can send another END."""
    async with TritonVoice(small.grpc_url) as voice:
        for sequence, audio, parameters in (
            ("parameters", speechlike(0.3), {"latencyms": 160}),
            ("latency", speechlike(0.3), {"latency_ms": 160}),
            ("audio", speechlike(1.1 * MAX_STREAM_S), {}),
        ):
            await voice.client.infer(**request(speechlike(0.3), sequence, start=True))
            with pytest.raises(InferenceServerException) as error:
                await voice.client.infer(**request(audio, sequence, end=True, **parameters))
            assert error.value.status() == "StatusCode.INVALID_ARGUMENT"
        async with voice.open_stream(start_timeout_s=0.1) as first, voice.open_stream(start_timeout_s=0.1) as second:
            assert (await first.end(speechlike(0.3))).is_final
            assert (await second.end(speechlike(0.3))).is_final


async def test_lost_callers_never_exhaust_the_slots(small):
    async with TritonVoice(small.grpc_url) as voice:
        silent = [voice.open_stream() for _ in range(2)]
        for stream in silent:
            await stream.send(speechlike(0.3))
        async with voice.open_stream(start_timeout_s=IDLE_S + 20) as newcomer:
            await newcomer.send(speechlike(0.3))
            assert (await newcomer.end()).is_final
        with pytest.raises(SequenceLost):
            await silent[0].send(np.zeros(160, np.int16))


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("PARAKEET_MAX_STREAMS", "many", ["PARAKEET_MAX_STREAMS", "'many'"]),
        ("PARAKEET_PRECISION", "fp16", ["PARAKEET_PRECISION is 'fp16'", "float32, bfloat16"]),
        ("PARAKEET_START_TIMEOUT_S", "soon", ["PARAKEET_START_TIMEOUT_S is 'soon'", "a number"]),
        ("PARAKEET_CHECKPOINT", "/nowhere/model.nemo", ["/nowhere/model.nemo"]),
    ],
)
def test_a_wrong_setting_fails_the_load_by_name(tiny, tmp_path_factory, variable, value, words):
    server = TritonServer(settings(tmp_path_factory), Weights(), environment={variable: value})
    with pytest.raises(ServerError) as error, server:
        pass
    assert all(word in str(error.value) for word in words)
