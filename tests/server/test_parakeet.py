"""The recogniser over gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys

import grpc
import numpy as np
import pytest
import tritonclient.grpc.aio as grpc_aio
from tritonclient.grpc import InferInput, service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from support import pieces, speechlike
from triton_voice import InvalidInput, SequenceLost, ServerGone, Transcript, TritonVoice

CHUNK = 2560


def request(audio: np.ndarray, sequence: int | str, *, start: bool = False, end: bool = False, **parameters) -> dict:
    """A raw request, for what the SDK would not send."""
    tensor = InferInput("AUDIO", [1, len(audio)], "INT16")
    tensor.set_data_from_numpy(audio.reshape(1, -1))
    return {
        "model_name": "parakeet",
        "inputs": [tensor],
        "sequence_id": sequence,
        "sequence_start": start,
        "sequence_end": end,
        "parameters": parameters,
    }


async def transcribe(voice: TritonVoice, audio: np.ndarray, size: int = CHUNK, **options) -> list[Transcript]:
    return [t async for t in voice.transcribe(pieces(audio, size), **options)]


async def test_a_stream_gives_partials_and_a_final(voice):
    audio = speechlike(3, seed=1)
    answers = await transcribe(voice, audio)
    assert len(answers) == -(-len(audio) // CHUNK) + 1
    assert [a.is_final for a in answers] == [False] * (len(answers) - 1) + [True]
    assert answers[-1].text == " ".join(w.word for w in answers[-1].words)
    assert any(a.text for a in answers[:-1])
    assert answers[-1].audio_s == pytest.approx(3.0)


async def test_the_size_of_the_pieces_and_the_company_change_nothing(voice):
    audios = [speechlike(1 + seed / 4, seed) for seed in range(12)]
    latencies = [80, 160, 560, 1120]
    alone = [(await transcribe(voice, a, 10**9, latency_ms=latencies[i % 4]))[-1].text for i, a in enumerate(audios)]
    assert len(set(alone)) == len(audios)
    together = await asyncio.gather(
        *(transcribe(voice, a, 700 + 500 * i, latency_ms=latencies[i % 4]) for i, a in enumerate(audios))
    )
    assert [answers[-1].text for answers in together] == alone


async def test_sixty_four_callers_at_once(voice):
    audio = speechlike(1.5, seed=9)
    expected = (await transcribe(voice, audio))[-1].text
    results = await asyncio.gather(*(transcribe(voice, audio) for _ in range(64)))
    assert {answers[-1].text for answers in results} == {expected}


async def test_other_rates_are_resampled_by_the_client(voice):
    audio = np.repeat(speechlike(1, seed=2), 3)  # 48 kHz
    answers = await transcribe(voice, audio, 4800, sample_rate=48000)
    assert answers[-1].is_final
    assert answers[-1].audio_s == pytest.approx(1.0, abs=0.01)


async def test_finalize_goes_on_with_the_next_utterance(voice):
    first, second = speechlike(1.2, seed=3), speechlike(1.4, seed=4)
    async with voice.open_stream() as stream:
        one = await stream.send(first, finalize=True)
        two_partial = await stream.send(second)
        two = await stream.end()
    assert (one.is_final, two_partial.is_final, two.is_final) == (True, False, True)
    assert one.text == (await transcribe(voice, first))[-1].text
    assert two.text == (await transcribe(voice, second))[-1].text
    assert all(w.start >= 1.2 for w in two.words)


async def test_no_audio_at_all_gives_an_empty_final(voice):
    answers = await transcribe(voice, np.zeros(0, np.int16))
    assert [(a.text, a.is_final) for a in answers] == [("", True)]


@pytest.mark.parametrize("sequence", [7, 2**40, "caller-7", "a name longer than eight bytes"])
async def test_sequence_ids_are_numbers_or_strings(voice, sequence):
    result = await voice.client.infer(**request(speechlike(1), sequence, start=True, end=True))
    assert result.as_numpy("IS_FINAL").reshape(-1)[0]
    assert isinstance(json.loads(result.as_numpy("WORDS").reshape(-1)[0]), list)


async def test_a_dropped_stream_frees_its_slot_and_nobody_notices(voice):
    bystander = asyncio.create_task(transcribe(voice, speechlike(2, seed=5)))
    for _ in range(5):
        async for _transcript in voice.transcribe(pieces(speechlike(2, seed=6), CHUNK)):
            break
    assert (await bystander)[-1].is_final


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"latency_ms": 100}, ["latency_ms 100", "80, 160, 560, 1120"]),
        ({"language": "klingon"}, ["klingon", "en"]),
    ],
)
async def test_what_the_checkpoint_does_not_offer_is_refused_by_name(voice, options, words):
    with pytest.raises(InvalidInput) as error:
        await transcribe(voice, speechlike(0.5), **options)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"latencyms": 160}, ["'latencyms'", "latency_ms, language, finalize"]),
        ({"latency_ms": "160"}, ["'latency_ms'", "an integer"]),
        ({"finalize": 1}, ["'finalize'", "true or false"]),
    ],
)
async def test_bad_parameters_fail_that_request_alone(voice, parameters, words):
    good = asyncio.create_task(transcribe(voice, speechlike(1, seed=7)))
    with pytest.raises(InferenceServerException) as error:
        await voice.client.infer(**request(speechlike(0.5), "bad-parameters", start=True, end=True, **parameters))
    assert error.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert all(word in str(error.value) for word in words)
    assert (await good)[-1].is_final


async def test_names_that_begin_as_tritons_own_are_refused_by_triton(server):
    """So the model need not know which of them there are. In plain gRPC: the client would not send them."""
    asked = service_pb2.ModelInferRequest(model_name="parakeet", raw_input_contents=[bytes(6)])
    asked.inputs.add(name="AUDIO", datatype="INT16", shape=[1, 3])
    asked.parameters["sequence_id"].int64_param = 5
    asked.parameters["sequence_start"].bool_param = asked.parameters["sequence_end"].bool_param = True
    asked.parameters["triton_latency_ms"].int64_param = 160
    async with grpc.aio.insecure_channel(server.grpc) as channel:
        with pytest.raises(grpc.aio.AioRpcError, match="reserved for Triton"):
            await service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(asked)


async def test_a_start_on_a_live_sequence_begins_anew(voice):
    first, second = speechlike(1.2, seed=11), speechlike(1.3, seed=12)
    await voice.client.infer(**request(first, "again", start=True))
    result = await voice.client.infer(**request(second, "again", start=True, end=True))
    assert result.as_numpy("TRANSCRIPT").reshape(-1)[0].decode() == (await transcribe(voice, second))[-1].text


@pytest.mark.parametrize("parameters", [{"latencyms": 160}, {"latency_ms": 100}])
async def test_a_refused_start_on_a_live_sequence_ends_it(voice, parameters):
    """Triton takes what follows for the new sequence's: it must not join the old one."""
    await voice.client.infer(**request(speechlike(0.5), "refused", start=True))
    with pytest.raises(InferenceServerException):
        await voice.client.infer(**request(speechlike(0.5), "refused", start=True, **parameters))
    with pytest.raises(InferenceServerException) as error:
        await voice.client.infer(**request(speechlike(0.5), "refused"))
    assert error.value.status() == "StatusCode.NOT_FOUND"
    await voice.client.infer(**request(np.zeros(0, np.int16), "refused", start=True, end=True))


async def test_wrong_dtype_is_refused(voice):
    tensor = InferInput("AUDIO", [1, 10], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 10), np.float32))
    with pytest.raises(InferenceServerException, match="INT16"):
        await voice.client.infer("parakeet", [tensor], sequence_id=3, sequence_start=True, sequence_end=True)


async def test_a_request_without_start_says_so(voice):
    with pytest.raises(InferenceServerException, match="START"):
        await voice.client.infer(**request(speechlike(0.1), "nobody-started-this"))
    stream = voice.open_stream()
    stream._started = True  # as after an idle timeout: the client thinks that it goes on
    with pytest.raises(SequenceLost):
        await stream.send(speechlike(0.1))


async def test_bad_audio_never_leaves_the_client(voice):
    for audio in (np.zeros(10, np.float32), b"odd"):

        async def one(audio=audio):
            yield audio

        with pytest.raises(InvalidInput):
            [t async for t in voice.transcribe(one())]


async def test_a_stream_over_grpc_streaming_works_too(server):
    """perf_analyzer and Triton's own samples use one gRPC stream per sequence."""
    audio = speechlike(2, seed=8)
    async with grpc_aio.InferenceServerClient(server.grpc) as client:

        async def requests():
            cuts = list(range(0, len(audio), CHUNK))
            for i in cuts:
                piece = audio[i : i + CHUNK]
                yield request(piece, 99, start=i == 0, end=i == cuts[-1])

        finals = [
            bool(result.as_numpy("IS_FINAL").reshape(-1)[0])
            async for result, error in client.stream_infer(requests())
            if error is None
        ]
    assert finals == [False] * (len(finals) - 1) + [True]
    assert len(finals) == -(-len(audio) // CHUNK)


async def test_a_caller_that_vanishes_gives_its_slot_back(voice, server):
    """The client is killed, not closed: only the cancelled request tells of it."""
    code = f"""
import asyncio, numpy as np
from triton_voice import TritonVoice
async def main():
    async with TritonVoice({server.grpc!r}) as voice:
        stream = voice.open_stream()
        await stream.send(np.zeros(1600, np.int16))
        print("sending", flush=True)
        await stream.send(np.zeros(16000 * 600, np.int16))
asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    assert await process.stdout.readline() == b"sending\n"
    await asyncio.sleep(1.5)  # metrics come twice a second: what is counted from here on is this request's
    steps = server.metric("parakeet_step_seconds_count")
    while server.metric("parakeet_step_seconds_count") < steps + 5:  # the long request is being worked on
        await asyncio.sleep(0.1)
    process.kill()
    await process.wait()
    for _ in range(600):
        if server.metric("parakeet_evictions_total") >= 1 and server.metric("parakeet_active_streams") == 0:
            break
        await asyncio.sleep(0.1)
    assert server.metric("parakeet_active_streams") == 0
    assert server.metric("parakeet_evictions_total") >= 1
    assert server.metric("parakeet_step_seconds_count") < steps + 3750  # ten minutes are 3750 steps: they were not done


async def test_metrics_tell_of_the_work(voice, server):
    before = {
        name: server.metric(name)
        for name in (
            "parakeet_audio_seconds_total",
            "parakeet_step_seconds_count",
            "parakeet_finalization_seconds_count",
        )
    }
    await asyncio.gather(*(transcribe(voice, speechlike(2, seed=i)) for i in range(4)))
    await asyncio.sleep(1.2)
    assert server.metric("parakeet_audio_seconds_total") - before["parakeet_audio_seconds_total"] == pytest.approx(8)
    assert server.metric("parakeet_step_seconds_count") - before["parakeet_step_seconds_count"] >= 13
    assert server.metric("parakeet_step_seconds_bucket", le="+Inf") == server.metric("parakeet_step_seconds_count")
    finals = server.metric("parakeet_finalization_seconds_count") - before["parakeet_finalization_seconds_count"]
    assert finals == 4


@pytest.mark.parametrize("seed", range(3))
async def test_garbage_is_answered_and_harms_nobody(voice, seed):
    """Noise, clipping, constant and one-sample pieces, huge and empty requests, in any order and under any flags."""
    rng = np.random.RandomState(seed)
    audio = speechlike(1.5, seed=20)
    expected = (await transcribe(voice, audio))[-1].text

    async def garbage(i: int) -> None:
        sounds = [
            rng.randint(-32768, 32767, rng.randint(0, 40000)).astype(np.int16),
            np.full(rng.randint(0, 5000), 32767, np.int16),
            np.zeros(rng.randint(0, 3), np.int16),
        ]
        for _ in range(6):
            flags = {"start": bool(rng.randint(2)), "end": bool(rng.randint(2)), "finalize": bool(rng.randint(2))}
            with contextlib.suppress(InferenceServerException):
                await voice.client.infer(**request(sounds[rng.randint(3)], f"garbage-{seed}-{i}", **flags))
        await voice.client.infer(**request(np.zeros(0, np.int16), f"garbage-{seed}-{i}", start=True, end=True))

    answers, *_ = await asyncio.gather(transcribe(voice, audio, 700), *(garbage(i) for i in range(8)))
    assert answers[-1].text == expected


async def test_a_server_that_is_not_there(unused_tcp_port):
    async with TritonVoice(f"127.0.0.1:{unused_tcp_port}") as voice:
        assert not (await voice.ready()).live
        with pytest.raises(ServerGone):
            await transcribe(voice, speechlike(0.2))
