"""Text generation on the real server: the stock vLLM backend's contract, refusals and cancellation."""

import asyncio
import base64
import json
import re

import pytest
import tritonclient.grpc.aio as triton

from llm_client import (
    ENDLESS,
    GREEDY,
    MODEL,
    PROMPT,
    generate,
    reply,
    responses,
    tensors,
    until_engine_runs,
    until_running,
)
from triton_voice import InvalidInput, TritonVoiceError


@pytest.fixture
async def client(server):
    async with triton.InferenceServerClient(server.grpc) as client:
        yield client


async def test_a_stream_says_what_a_single_answer_says(client):
    (whole,) = await generate(client, exclude_input_in_output=True)
    deltas = await generate(client, stream=True)
    assert len(deltas) > 1
    assert "".join(delta["text_output"][0] for delta in deltas) == whole["text_output"][0] != ""


async def test_the_prompt_is_repeated_unless_excluded(client):
    said = await reply(client)
    (default,) = await generate(client)
    (asked,) = await generate(client, exclude_input_in_output=False)
    assert default["text_output"] == asked["text_output"] == [PROMPT + said]
    assert set(default) == {"text_output"}


async def test_return_flags_of_a_single_answer(client):
    (got,) = await generate(
        client,
        sampling={**GREEDY, "logprobs": 2},
        return_finish_reason=True,
        return_cumulative_logprob=True,
        return_logprobs=True,
        return_num_input_tokens=True,
        return_num_output_tokens=True,
    )
    assert got["finish_reason"] == ["length"]
    assert got["num_output_tokens"] == [24]
    assert got["num_input_tokens"][0] > 1
    steps = json.loads(got["logprobs"][0])
    assert len(steps) == 24
    best = [max(candidate["logprob"] for candidate in step.values()) for step in steps]
    assert got["cumulative_logprob"][0] == pytest.approx(sum(best), rel=1e-3)
    assert {"logprob", "rank", "decoded_token"} == set(next(iter(steps[0].values())))


async def test_return_flags_of_a_stream_count_what_is_new(client):
    got = await generate(
        client,
        sampling={**GREEDY, "logprobs": 1},
        stream=True,
        return_finish_reason=True,
        return_logprobs=True,
        return_num_output_tokens=True,
    )
    assert sum(response["num_output_tokens"][0] for response in got) == 24
    assert sum(len(json.loads(response["logprobs"][0])) for response in got) == 24
    assert [response["finish_reason"][0] for response in got] == ["None"] * (len(got) - 1) + ["length"]


async def test_logprobs_are_null_when_none_were_asked_for(client):
    (got,) = await generate(client, return_logprobs=True)
    assert got["logprobs"] == ["null"]


async def test_stop_ends_the_reply_and_the_last_response_says_so(client):
    said = await reply(client)
    stop = said[len(said) // 2 :][:3]
    got = await generate(client, sampling={**GREEDY, "stop": stop}, stream=True, return_finish_reason=True)
    assert "".join(response["text_output"][0] for response in got) == said[: said.index(stop)]
    assert got[-1]["finish_reason"] == ["stop"]


async def test_samples_of_the_stock_backend_work(client):
    """Numbers as strings, several completions of one prompt."""
    sampling = {"temperature": "0.9", "top_p": "0.95", "max_tokens": "5", "n": 3, "seed": "1"}
    (got,) = await generate(client, sampling=sampling, return_num_output_tokens=True)
    assert len(got["text_output"]) == 3
    assert got["num_output_tokens"] == [5, 5, 5]
    deltas = await generate(client, sampling=sampling, stream=True)
    joined = ["".join(delta["text_output"][i] for delta in deltas) for i in range(3)]
    assert [PROMPT + text for text in joined] == got["text_output"]


async def test_a_seed_repeats_a_reply(client):
    sampling = {"temperature": 1.0, "max_tokens": 16, "ignore_eos": True}
    first, again = [await reply(client, sampling={**sampling, "seed": 7}) for _ in range(2)]
    other = await reply(client, sampling={**sampling, "seed": 8})
    assert first == again != other


async def test_neighbours_do_not_change_a_reply(client):
    prompts = ["One", "Two two", "Three three three", "What is the weather like in Paris today?"]
    alone = [await reply(client, prompt) for prompt in prompts]
    together = await asyncio.gather(*(reply(client, prompt) for prompt in prompts))
    assert together == alone
    assert len(set(alone)) == len(prompts)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "needs the input text_input"),
        ({"text_input": "a", "sampling_parameters": "{temperature: 1}"}, "sampling_parameters is not valid JSON"),
        ({"text_input": "a", "sampling_parameters": '{"temprature": 1}'}, "did you mean temperature"),
        ({"text_input": "a", "sampling_parameters": '{"top_p": "much"}'}, 'top_p must be a number, got "much"'),
        ({"text_input": "a", "sampling_parameters": '{"top_p": 7}'}, "top_p must be in"),
        ({"text_input": "a", "stream": True, "exclude_input_in_output": False}, "exclude_input_in_output must be true"),
        ({"text_input": "word " * 40000}, "text_input: .*32768"),
        ({"text_input": ""}, "text_input must not be empty"),
        ({"chat_request": "{}"}, "messages must be a list"),
        ({"chat_request": '{"messages": [{"role": "user", "content": "a"}], "tools": [{}]}'}, "tools.0"),
        ({"chat_request": "[]"}, "chat_request must be a JSON object"),
        ({"chat_request": "{}", "text_input": "a"}, "leave out the input text_input"),
        ({"text_input": "a", "sampling_parameters": '{"lora_name": "pirate"}'}, "loaded without LoRA"),
        ({"text_input": "a", "sampling_parameters": '{"stop_token_ids": [99999999]}'}, "99999999|vocab"),
        ({"text_input": "a", "sampling_parameters": '{"structured_outputs": {"regex": "("}}'}, "regex|grammar"),
        ({"text_input": "a", "image": "no base64!"}, r"image\[0\] must be an image file in base64"),
        ({"text_input": "a", "image": base64.b64encode(b"x").decode()}, "this model reads text only"),
        ({"chat_request": '{"messages": [{"role": "user", "content": "a"}], "model": "gpt-9"}'}, "gpt-9"),
    ],
)
async def test_bad_input_is_refused_by_field_and_costs_nobody_else(client, inputs, message):
    expected = await reply(client)
    inputs = inputs or {"sampling_parameters": "{}"}
    good, bad = await asyncio.gather(reply(client), responses(client, **inputs), return_exceptions=True)
    assert good == expected
    assert isinstance(bad, InvalidInput)
    assert re.search(message, str(bad))


async def test_a_cancelled_stream_frees_the_engine(server, client):
    await until_running(server, 0)
    started = asyncio.Event()

    async def requests():
        values = {"text_input": PROMPT, "stream": True, "sampling_parameters": json.dumps(ENDLESS)}
        yield {"model_name": MODEL, "inputs": tensors(**values)}
        await asyncio.Event().wait()

    stream = client.stream_infer(requests())

    async def read():
        async for _, error in stream:
            assert error is None
            started.set()

    reader = asyncio.create_task(read())
    await started.wait()
    await until_running(server, 1)
    await until_engine_runs(server, 1)
    stream.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    await until_running(server, 0)
    await until_engine_runs(server, 0)
    assert await reply(client) != ""


async def test_a_vanished_client_frees_the_engine_though_nothing_is_sent_to_it(server, client):
    await until_running(server, 0)
    other = triton.InferenceServerClient(server.grpc)
    task = asyncio.create_task(generate(other, sampling=ENDLESS))  # not streaming: no response before the end
    await until_running(server, 1)
    await until_engine_runs(server, 1)
    task.cancel()
    await other.close()
    with pytest.raises((asyncio.CancelledError, TritonVoiceError)):
        await task
    await until_running(server, 0)
    await until_engine_runs(server, 0)
    assert await reply(client) != ""


async def test_the_reply_keeps_to_a_grammar(client):
    """`structured_outputs` as the stock backend wants it (a string in the JSON) and as an object."""
    for spec in ({"regex": "(ab){3}[0-9]"}, json.dumps({"regex": "(ab){3}[0-9]"})):
        said = await reply(client, sampling={"temperature": 1, "max_tokens": 40, "structured_outputs": spec})
        assert re.fullmatch("(ab){3}[0-9]", said)


async def test_request_parameters_are_sampling_parameters_too(client):
    """As in the stock backend, when the input `sampling_parameters` is not there."""
    (got,) = await responses(
        client,
        {"temperature": 0, "max_tokens": 3, "ignore_eos": True},
        text_input=PROMPT,
        return_num_output_tokens=True,
    )
    assert got["num_output_tokens"] == [3]
