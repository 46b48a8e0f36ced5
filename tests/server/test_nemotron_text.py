"""The language model on the real server: the stock vLLM backend's contract, chat, refusals and cancellation."""

import asyncio
import json
import re
import urllib.request

import numpy as np
import pytest
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException

MODEL = "nemotron"
PROMPT = "The quick brown fox"
GREEDY = {"temperature": 0, "max_tokens": 24, "ignore_eos": True}
#: Long enough that it is certainly running when it is cancelled: many seconds of tokens on any machine.
ENDLESS = {**GREEDY, "max_tokens": 30000}


def tensor(name, value):
    if isinstance(value, bool):
        it = triton.InferInput(name, [1], "BOOL")
        it.set_data_from_numpy(np.array([value]))
    else:
        it = triton.InferInput(name, [1], "BYTES")
        it.set_data_from_numpy(np.array([value.encode()], dtype=np.object_))
    return it


def decoded(result):
    """A response's outputs by name: lists of strings or numbers."""
    names = [output.name for output in result.get_response().outputs]
    outputs = {}
    for name in names:
        values = result.as_numpy(name).reshape(-1).tolist()
        outputs[name] = [v.decode() if isinstance(v, bytes) else v for v in values]
    return outputs


@pytest.fixture
async def client(server):
    async with triton.InferenceServerClient(server.grpc) as client:
        yield client


async def responses(client, **inputs):
    """All responses of one request as dictionaries; checks that the last carries the final flag."""

    async def requests():
        yield {"model_name": MODEL, "inputs": [tensor(name, value) for name, value in inputs.items()]}

    got, finals, failure = [], [], None
    # Read to the end of the stream, not only to the last response: a client that closes its channel in between makes
    # Triton 2.51 hold on to the model, and a later shutdown waits for its whole exit timeout.
    async for result, error in client.stream_infer(requests()):
        failure = failure or error
        if result is not None:
            got.append(decoded(result))
            finals.append(result.get_response().parameters["triton_final_response"].bool_param)
    if failure:
        raise failure
    assert finals == [False] * (len(got) - 1) + [True]
    return got


async def generate(client, prompt=PROMPT, sampling=GREEDY, **inputs):
    return await responses(client, text_input=prompt, sampling_parameters=json.dumps(sampling), **inputs)


async def reply(client, prompt=PROMPT, sampling=GREEDY):
    (only,) = await generate(client, prompt, sampling, exclude_input_in_output=True)
    return only["text_output"][0]


async def chat(client, **body):
    got = await responses(client, chat_request=json.dumps({"messages": [{"role": "user", "content": "Hi"}], **body}))
    return [json.loads(response["chat_chunk"][0]) for response in got]


def content(chunks):
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


async def running(server):
    """How many requests the engine holds, from the server's metrics."""

    def read():
        with urllib.request.urlopen(server.metrics, timeout=10) as page:
            return page.read().decode()

    found = re.search(r"^triton_voice_llm_requests_running\{.*\} (\S+)$", await asyncio.to_thread(read), re.MULTILINE)
    return float(found[1])


async def until_running(server, count):
    while await running(server) != count:
        await asyncio.sleep(0.02)


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
        ({"chat_request": '{"messages": [{"role": "user", "content": "a"}], "tools": [{}]}'}, "tools cannot be used"),
        ({"chat_request": '{"messages": [{"role": "user", "content": "a"}], "model": "gpt-9"}'}, "gpt-9"),
    ],
)
async def test_bad_input_is_refused_by_field_and_costs_nobody_else(client, inputs, message):
    expected = await reply(client)
    inputs = inputs or {"sampling_parameters": "{}"}
    good, bad = await asyncio.gather(reply(client), responses(client, **inputs), return_exceptions=True)
    assert good == expected
    assert isinstance(bad, InferenceServerException)
    assert re.search(message, bad.message())


async def test_a_cancelled_stream_frees_the_engine(server, client):
    await until_running(server, 0)
    started = asyncio.Event()

    async def requests():
        values = {"text_input": PROMPT, "stream": True, "sampling_parameters": json.dumps(ENDLESS)}
        yield {"model_name": MODEL, "inputs": [tensor(name, value) for name, value in values.items()]}
        await asyncio.Event().wait()

    stream = client.stream_infer(requests())

    async def read():
        async for _, error in stream:
            assert error is None
            started.set()

    reader = asyncio.create_task(read())
    await started.wait()
    assert await running(server) == 1
    stream.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    await until_running(server, 0)
    assert await reply(client) != ""


async def test_a_vanished_client_frees_the_engine_though_nothing_is_sent_to_it(server, client):
    await until_running(server, 0)
    other = triton.InferenceServerClient(server.grpc)
    task = asyncio.create_task(generate(other, sampling=ENDLESS))  # not streaming: no response before the end
    await until_running(server, 1)
    task.cancel()
    await other.close()
    with pytest.raises((asyncio.CancelledError, InferenceServerException)):
        await task
    await until_running(server, 0)
    assert await reply(client) != ""


async def test_chat_streams_openai_chunks_and_ends_with_the_usage(client):
    chunks = await chat(client, temperature=0, max_tokens=12)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert {chunk["model"] for chunk in chunks} == {MODEL}
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert content(chunks)
    reasons = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]]
    assert reasons == ["length"]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 12
    assert sum("usage" in chunk for chunk in chunks) == 1


async def test_chat_is_the_models_template_and_plain_generation(client):
    """The template's text sent as a prompt gives the same reply."""
    body = {"temperature": 0, "max_tokens": 12, "chat_template_kwargs": {"enable_thinking": False}}
    prompt = "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think></think>"
    assert content(await chat(client, **body)) == await reply(client, prompt, {"temperature": 0, "max_tokens": 12})


async def test_chat_does_not_think_unless_asked(client):
    quiet, default, thinking = [
        content(await chat(client, temperature=0, max_tokens=12, **extra))
        for extra in (
            {"chat_template_kwargs": {"enable_thinking": False}},
            {},
            {"chat_template_kwargs": {"enable_thinking": True}},
        )
    ]
    assert quiet == default != thinking


async def test_a_cancelled_chat_frees_the_engine(server, client):
    await until_running(server, 0)
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 30000, "ignore_eos": True}

    async def requests():
        yield {"model_name": MODEL, "inputs": [tensor("chat_request", json.dumps(body))]}
        await asyncio.Event().wait()

    stream = client.stream_infer(requests())
    reader = asyncio.create_task(_drain(stream))
    await until_running(server, 1)
    stream.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    await until_running(server, 0)


async def _drain(stream):
    async for _ in stream:
        pass
