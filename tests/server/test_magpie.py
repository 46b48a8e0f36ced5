"""The `magpie` model over gRPC: what a client of a real server sees."""

import asyncio
import json
import time
import urllib.request

import numpy as np
import pytest
import tritonclient.grpc.aio as triton_grpc
from tritonclient.grpc import InferInput
from tritonclient.utils import InferenceServerException

SAMPLE_RATE = 22050
TEXT = "please turn on the lights in the kitchen and play some music"
#: Enough for a cancelled client to be noticed on a busy machine.
PATIENCE_S = 20


def text_input(text):
    tensor = InferInput("TEXT", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([text.encode()], dtype=object))
    return tensor


def speak(client, text=TEXT, **parameters):
    """Starts one request; returns an iterator of (result, error) that can be cancelled."""

    async def requests():
        yield {"model_name": "magpie", "inputs": [text_input(text)], "parameters": parameters}

    return client.stream_infer(requests())


async def collect(client, text=TEXT, **parameters):
    """Takes one request to its end; returns the chunks, the last of which is the empty final one."""
    return (await collect_all(client, text, **parameters))[0]


async def collect_all(client, text=TEXT, **parameters):
    """Takes one request to its end; returns the chunks and the words.

    The stream is read until the server closes it: a client that hangs up between the final response and that leaves
    Triton 2.51 with a request that it takes for unfinished, and then slow to stop.

    Raises:
        InferenceServerException: The server refused the request.
    """
    chunks, words, final, failure = [], [], False, None
    async for result, error in speak(client, text, **parameters):
        assert not final and failure is None
        if error is not None:
            failure = error
            continue
        words.extend(json.loads(result.as_numpy("WORDS")[0]))
        final = result.get_response().parameters["triton_final_response"].bool_param
        chunks.append(result.as_numpy("AUDIO"))
    if failure is not None:
        raise failure
    assert final
    return chunks, words


def metrics(server):
    """The model's metrics by name."""
    page = urllib.request.urlopen(server.metrics, timeout=10).read().decode()
    lines = [line for line in page.splitlines() if line.startswith("magpie_")]
    return {line.split("{")[0]: float(line.rsplit(" ", 1)[1]) for line in lines}


def over(counts):
    """How many requests have ended, one way or another."""
    return sum(counts[f"magpie_{how}_total"] for how in ("finished", "cancelled", "failed"))


async def wait_for_ends(server, before, requests):
    """Waits until so many more requests have ended and nothing is spoken or queued; returns the metrics."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        now = await asyncio.to_thread(metrics, server)  # off the loop, which has streams to read
        if over(now) - over(before) >= requests and now["magpie_active_streams"] == now["magpie_queued_requests"] == 0:
            return now
        await asyncio.sleep(0.05)
    raise AssertionError(f"the engine did not come to rest: {before} became {now}")


async def at_rest(server):
    """Metrics after one short request of our own: whatever the tests before left behind is booked by then."""
    async with triton_grpc.InferenceServerClient(server.grpc) as connected:
        before = metrics(server)
        await collect(connected, max_seconds=0.1)
        return await wait_for_ends(server, before, 1)


@pytest.fixture
async def client(server):
    async with triton_grpc.InferenceServerClient(server.grpc) as connected:
        yield connected


async def test_audio_comes_in_chunks_and_the_last_is_empty_and_final(client):
    chunks = await collect(client, voice="leo", seed=1)
    assert len(chunks) > 3
    assert all(chunk.dtype == np.int16 and chunk.size for chunk in chunks[:-1])
    assert chunks[-1].shape == (0,)
    audio = np.concatenate(chunks)
    assert 1.0 < audio.size / SAMPLE_RATE < 3.5
    assert 500 < audio.std() < 20000  # audible, and not clipped to a square


async def test_a_seed_gives_the_same_audio_in_company(client):
    alone = np.concatenate(await collect(client, voice="sofia", seed=5))
    together = await asyncio.gather(
        collect(client, voice="sofia", seed=5),
        collect(client, voice="john", seed=5),
        collect(client, "thank you very much", voice="aria", seed=6),
        collect(client, "bonjour", voice="jason", language="fr", temperature=0.0, cfg_scale=2, top_k=10),
    )
    audio = [np.concatenate(chunks) for chunks in together]
    assert all(samples.size and samples.any() for samples in audio)
    # Float rounding may differ with the size of the batch; the codes, and so the audio, do not.
    assert np.abs(audio[0].astype(int) - alone).max() <= 2
    assert not np.array_equal(audio[0], audio[1])


async def test_max_seconds_cuts_the_audio(client):
    audio = np.concatenate(await collect(client, max_seconds=0.5))
    assert 0.4 < audio.size / SAMPLE_RATE <= 0.5


async def test_cancelling_stops_the_decoding(client, server):
    before = await at_rest(server)
    streams = [speak(client, seed=number) for number in range(6)]
    for stream in streams:
        await anext(stream)
    for stream in streams:
        stream.cancel()
    after = await wait_for_ends(server, before, 6)
    cancelled = after["magpie_cancelled_total"] - before["magpie_cancelled_total"]
    finished = after["magpie_finished_total"] - before["magpie_finished_total"]
    assert (cancelled + finished, cancelled > 0) == (6, True)
    # What six whole utterances would have cost; the cancelled ones were cut short.
    whole = sum(len(chunk) for chunk in await collect(client)) / 1024
    assert after["magpie_frames_total"] - before["magpie_frames_total"] < 6 * whole


async def test_a_client_that_goes_away_frees_its_slots(server):
    before = await at_rest(server)
    gone = triton_grpc.InferenceServerClient(server.grpc)
    streams = [speak(gone, seed=number) for number in range(6)]
    for stream in streams:
        await anext(stream)
    await gone.close()
    after = await wait_for_ends(server, before, 6)
    assert after["magpie_cancelled_total"] > before["magpie_cancelled_total"]
    async with triton_grpc.InferenceServerClient(server.grpc) as client:
        assert len(await collect(client)) > 3


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"pitch": 2}, "unknown parameter 'pitch'; allowed are voice, language, temperature"),
        ({"voice": "nobody"}, "voice 'nobody' is not offered by this checkpoint; allowed are john, sofia, aria"),
        ({"language": "tlh"}, "language 'tlh' is not offered"),
        ({"temperature": 9.0}, "temperature is 9.0; it must be a number from 0 to 2"),
        ({"seed": "one"}, "seed is 'one'; it must be a whole number"),
        ({"max_seconds": 0}, "max_seconds is 0; it must be a number above 0"),
    ],
    ids=str,
)
async def test_bad_parameters_are_refused_by_name_and_cost_nobody_else(client, parameters, said):
    async def refused():
        with pytest.raises(InferenceServerException) as caught:
            await collect(client, **parameters)
        return caught.value

    error, good = await asyncio.gather(refused(), collect(client, seed=1))
    assert said in error.message()
    assert sum(chunk.size for chunk in good) > SAMPLE_RATE


@pytest.mark.parametrize("text", ["", "   ", "…", "\U0001f642"])
async def test_nothing_to_say_is_an_empty_immediate_end(client, text):
    chunks = await collect(client, text)
    assert [chunk.shape for chunk in chunks] == [(0,)]


async def test_a_long_text_is_spoken_to_its_end_with_every_word(client):
    text = "Please turn on the lights, and play some music. What time is it in New York? " * 4
    chunks, words = await collect_all(client, text, seed=1)
    assert sum(chunk.size for chunk in chunks) / SAMPLE_RATE > 10  # a segment of this checkpoint has three seconds
    assert [word["word"] for word in words] == text.split()
    assert [word["start"] for word in words] == sorted(word["start"] for word in words)


async def test_pieces_of_an_utterance_are_spoken_in_order(client):
    pieces = ["Hello world.", "What time is it?", "Thank you."]

    async def piece(text):
        chunks, words = await collect_all(client, text, utterance="turn", voice="leo", seed=4)
        return time.monotonic(), np.concatenate(chunks), words

    first = asyncio.create_task(piece(pieces[0]))
    await asyncio.sleep(0.05)
    second = asyncio.create_task(piece(pieces[1]))
    await asyncio.sleep(0.05)
    results = await asyncio.gather(first, second, piece(pieces[2]))
    assert [result[0] for result in results] == sorted(result[0] for result in results)
    assert all(result[1].size for result in results)
    starts = [word["start"] for *_, words in results for word in words]
    assert starts == sorted(starts) and len(starts) == 8
    assert starts[-1] > (results[0][1].size + results[1][1].size) / SAMPLE_RATE - 0.1


async def test_numbers_are_spoken(client):
    _, words = await collect_all(client, "It costs $42.50 \U0001f642 **today**.")
    assert [word["word"] for word in words] == ["It", "costs", "$42.50", "today."]


async def test_thirty_two_clients_at_once_are_all_served(client):
    texts = [f"number {number} please" for number in range(32)]
    results = await asyncio.gather(*(collect_all(client, text, seed=number) for number, text in enumerate(texts)))
    for text, (chunks, words) in zip(texts, results, strict=True):
        assert sum(chunk.size for chunk in chunks) > SAMPLE_RATE
        assert [word["word"] for word in words] == text.split()


async def test_the_speed_is_on_the_metrics_page(client, server):
    await collect(client)
    await asyncio.sleep(1.2)
    assert server.metric("magpie_first_audio_seconds_count") > 0
    assert server.metric("magpie_rtfx_count") > 0
    assert server.metric("magpie_step_seconds_bucket", le="+Inf") == server.metric("magpie_step_seconds_count") > 0


async def test_any_text_is_spoken(client):
    chunks = await collect(client, "Zxqwv's <b>naïve</b> café \U0001f642 & 42% \x07")
    assert sum(chunk.size for chunk in chunks) > SAMPLE_RATE


async def test_more_requests_than_slots_and_queue_are_refused_at_once_and_the_rest_are_spoken(client, server):
    before = await at_rest(server)
    requests = [collect(client, max_seconds=1.5, seed=number) for number in range(60)]
    results = await asyncio.gather(*requests, return_exceptions=True)
    refused = [result for result in results if isinstance(result, InferenceServerException)]
    spoken = [result for result in results if isinstance(result, list)]
    assert len(refused) + len(spoken) == 60
    assert refused and all("8 voices speak and 32 requests wait; try again" in str(error) for error in refused)
    assert all(sum(chunk.size for chunk in chunks) > SAMPLE_RATE for chunks in spoken)
    after = await wait_for_ends(server, before, len(spoken))
    assert after["magpie_refused_total"] - before["magpie_refused_total"] == len(refused)
