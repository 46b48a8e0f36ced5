"""Chat on the real server: OpenAI chunks, the model's own template, constrained replies, cancellation."""

import asyncio
import json

import pytest
import tritonclient.grpc.aio as triton

from llm_client import HI, MODEL, calls, chat, finish, joined, reply, tensors, until_engine_runs, until_running
from triton_voice import InvalidInput

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"unit": {"enum": ["celsius", "kelvin"]}},
            "required": ["unit"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture
async def client(server):
    async with triton.InferenceServerClient(server.grpc) as client:
        yield client


async def test_chat_streams_openai_chunks_and_ends_with_the_usage(client):
    chunks = await chat(client, temperature=0, max_tokens=12)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert {chunk["model"] for chunk in chunks} == {MODEL}
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert joined(chunks)
    reasons = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]]
    assert reasons == ["length"]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 12
    assert sum("usage" in chunk for chunk in chunks) == 1


async def test_chat_is_the_models_template_and_plain_generation(client):
    """The template's text sent as a prompt gives the same reply."""
    body = {"temperature": 0, "max_tokens": 12, "chat_template_kwargs": {"enable_thinking": False}}
    prompt = "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think></think>"
    assert joined(await chat(client, **body)) == await reply(client, prompt, {"temperature": 0, "max_tokens": 12})


async def test_chat_does_not_think_unless_asked(client):
    quiet, default, thinking = [
        await chat(client, temperature=0, max_tokens=12, **extra)
        for extra in (
            {"chat_template_kwargs": {"enable_thinking": False}},
            {},
            {"chat_template_kwargs": {"enable_thinking": True}},
        )
    ]
    assert joined(quiet) == joined(default) != ""
    assert joined(quiet, "reasoning_content") == joined(default, "reasoning_content") == ""
    assert joined(thinking, "reasoning_content") != ""
    assert joined(thinking) == ""  # the thoughts were cut off by max_tokens


async def test_a_cancelled_chat_frees_the_engine(server, client):
    await until_running(server, 0)
    body = {"messages": HI, "max_tokens": 30000, "ignore_eos": True}

    async def requests():
        yield {"model_name": MODEL, "inputs": tensors(chat_request=json.dumps(body))}
        await asyncio.Event().wait()

    stream = client.stream_infer(requests())
    reader = asyncio.create_task(_drain(stream))
    await until_running(server, 1)
    await until_engine_runs(server, 1)
    stream.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    await until_running(server, 0)
    await until_engine_runs(server, 0)


async def _drain(stream):
    async for _ in stream:
        pass


async def test_sampling_fields_of_openai_work(client):
    whole = joined(await chat(client, temperature=0, max_tokens=20))
    stop = whole[len(whole) // 2 :][:3]
    chunks = await chat(client, temperature=0, max_tokens=20, stop=[stop])
    assert joined(chunks) == whole[: whole.index(stop)]
    assert finish(chunks) == "stop"
    seeded = {"temperature": 1.0, "max_tokens": 12, "ignore_eos": True}
    first, again, other = [joined(await chat(client, **seeded, seed=seed)) for seed in (7, 7, 8)]
    assert first == again != other


async def test_logprobs_come_with_every_token(client):
    chunks = await chat(client, temperature=0, max_tokens=6, logprobs=True, top_logprobs=2)
    tokens = [t for chunk in chunks for c in chunk["choices"] if c.get("logprobs") for t in c["logprobs"]["content"]]
    assert len(tokens) == 6
    assert all(len(token["top_logprobs"]) == 2 and token["logprob"] <= 0 for token in tokens)


async def test_the_reply_keeps_to_a_json_schema(client):
    schema = {
        "type": "object",
        "properties": {"sky": {"enum": ["clear", "grey"]}},
        "required": ["sky"],
        "additionalProperties": False,
    }
    spec = {"type": "json_schema", "json_schema": {"name": "weather", "schema": schema}}
    for field in ({"response_format": spec}, {"structured_outputs": {"choice": ['{"sky": "clear"}']}}):
        chunks = await chat(client, temperature=0, max_tokens=400, **field)
        if finish(chunks) == "stop":
            assert json.loads(joined(chunks))["sky"] in ("clear", "grey")
        else:  # a model of random weights may fill the line with the white space that JSON allows
            assert joined(chunks).startswith("{")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
async def test_a_tool_call_that_is_asked_for_is_made(client, choice):
    """vLLM holds the model to the tool's grammar, so that even random weights call it."""
    chunks = await chat(client, temperature=0, max_tokens=300, tools=[WEATHER], tool_choice=choice)
    assert [name for name, _ in calls(chunks)][:1] == ["get_weather"]


async def test_a_tool_choice_without_tools_is_refused_and_auto_ignored(client):
    assert joined(await chat(client, max_tokens=4, ignore_eos=True, tool_choice="auto")) != ""
    with pytest.raises(InvalidInput, match=r"tools. must be set"):
        await chat(client, tool_choice="required")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"max_tokens": -1}, "max_tokens"),
        ({"temperature": -3}, "temperature"),
        ({"model": "gpt-9"}, "gpt-9. does not exist"),
        ({"logit_bias": {"99999999": 1}}, "99999999|vocab"),
        ({"messages": [{"role": "user", "content": "word " * 40000}]}, "context|length|tokens"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "image|modal",
        ),
        ({"structured_outputs": {"regex": "("}}, "regex|grammar|structured"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "nope"}}}, "tool|nope"),
    ],
)
async def test_what_only_the_engine_can_refuse_is_refused_as_invalid(client, body, message):
    with pytest.raises(InvalidInput, match=message):
        await chat(client, **body)


async def test_chat_is_the_same_alone_and_among_others(client):
    async def one(question):
        body = {"messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 16}
        return joined(await chat(client, **body))

    questions = ["One", "Two two", "Three three three", "What is the weather like?"]
    alone = [await one(question) for question in questions]
    assert await asyncio.gather(*(one(question) for question in questions)) == alone
