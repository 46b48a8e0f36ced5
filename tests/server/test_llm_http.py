"""The language model over HTTP: Triton's `generate` and `generate_stream`, as users of its vLLM backend call them."""

import asyncio
import json
import urllib.error
import urllib.request

import pytest
import tritonclient.grpc.aio as triton

from llm_client import GREEDY, HI, MODEL, PROMPT, chat, finish, joined, reply, until_engine_runs, until_running

TIMEOUT_S = 60


@pytest.fixture
def post(server):
    """Posts JSON to one of the model's endpoints; returns the status and the body."""

    def send(endpoint, body):
        url = f"http://127.0.0.1:{server.server.http_port}/v2/models/{MODEL}/{endpoint}"
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(urllib.request.Request(url, data), timeout=TIMEOUT_S) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    return lambda endpoint, body: asyncio.to_thread(send, endpoint, body)


@pytest.fixture
async def client(server):
    async with triton.InferenceServerClient(server.grpc) as client:
        yield client


def events(page):
    """The JSON of each server-sent event."""
    lines = page.replace("\r\n", "\n").split("\n\n")
    assert lines.pop() == ""
    assert all(line.startswith("data: ") for line in lines)
    return [json.loads(line.removeprefix("data: ")) for line in lines]


async def test_the_sample_of_the_stock_backend_works(post, client):
    """`curl -X POST localhost:8000/v2/models/<model>/generate -d ...`, word for word."""
    prompt = "What is Triton Inference Server?"
    status, page = await post("generate", {"text_input": prompt, "parameters": {"stream": False, "temperature": 0}})
    assert status == 200
    assert json.loads(page)["text_output"] == prompt + await reply(client, prompt, {"temperature": 0})


async def test_generate_answers_as_grpc_does(post, client):
    said = await reply(client)
    status, page = await post("generate", {"text_input": PROMPT, "parameters": GREEDY})
    assert status == 200 and json.loads(page)["text_output"] == PROMPT + said
    inputs = {"text_input": PROMPT, "exclude_input_in_output": True, "return_num_output_tokens": True}
    status, page = await post("generate", {**inputs, "sampling_parameters": json.dumps(GREEDY)})
    answer = json.loads(page)
    assert status == 200 and (answer["text_output"], answer["num_output_tokens"]) == (said, GREEDY["max_tokens"])


async def test_parameters_of_all_kinds_arrive(post):
    parameters = {"temperature": 0.9, "top_p": "0.95", "max_tokens": 5, "seed": 1, "ignore_eos": True}
    bodies = [
        {"text_input": PROMPT, "parameters": parameters},
        {"text_input": PROMPT, "sampling_parameters": json.dumps(parameters)},
    ]
    (_, first), (_, second) = [await post("generate", body) for body in bodies]
    assert json.loads(first)["text_output"] == json.loads(second)["text_output"] != PROMPT


async def test_a_stream_of_events_says_what_one_answer_says(post, client):
    status, page = await post("generate_stream", {"text_input": PROMPT, "parameters": {"stream": True, **GREEDY}})
    pieces = [event["text_output"] for event in events(page)]
    assert status == 200 and len(pieces) > 1
    assert "".join(pieces) == await reply(client)


async def test_a_chat_comes_as_events(post, client):
    body = {"messages": HI, "temperature": 0, "max_tokens": 12, "ignore_eos": True}
    status, page = await post("generate_stream", {"chat_request": json.dumps(body)})
    chunks = [json.loads(event["chat_chunk"]) for event in events(page)]
    assert status == 200
    assert joined(chunks) == joined(await chat(client, temperature=0, max_tokens=12, ignore_eos=True)) != ""
    assert finish(chunks) == "length"
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] == 12


@pytest.mark.parametrize(
    ("endpoint", "body", "words"),
    [
        ("generate", b"{", "JSON"),
        ("generate", {"text_input": 7}, "JSON non-string"),
        ("generate", {"parameters": {"temperature": 0}}, "needs the input text_input"),
        ("generate", {"text_input": "a", "parameters": {"temprature": 1}}, "did you mean temperature"),
        ("generate", {"text_input": "a", "parameters": {"top_p": 7}}, "top_p must be in"),
        ("generate", {"text_input": "a", "parameters": {"stop": ["b"]}}, "stop"),
        ("generate", {"text_input": "a", "parameters": {"stream": True, **GREEDY}}, "use generate stream"),
        ("generate", {"chat_request": json.dumps({"messages": HI, "max_tokens": 4})}, "use generate stream"),
        ("generate_stream", {"chat_request": "{}"}, "messages must be a list"),
        ("generate_stream", {"chat_request": {"messages": HI}}, "JSON non-string"),  # Triton's own words
    ],
)
async def test_a_malformed_request_is_told_why_and_the_server_goes_on(post, server, endpoint, body, words):
    status, page = await post(endpoint, body)
    said = events(page)[-1]["error"] if page.startswith("data: ") else json.loads(page)["error"]
    assert words in said
    await until_running(server, 0)
    status, page = await post("generate", {"text_input": PROMPT, "parameters": GREEDY})
    assert status == 200 and json.loads(page)["text_output"].startswith(PROMPT)


async def test_a_client_that_leaves_a_stream_frees_the_engine(server):
    reader, writer = await asyncio.open_connection("127.0.0.1", server.server.http_port)
    endless = {"stream": True, **GREEDY, "max_tokens": 30000}
    body = json.dumps({"text_input": PROMPT, "parameters": endless}).encode()
    head = f"POST /v2/models/{MODEL}/generate_stream HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    assert await reader.readuntil(b"data: ")
    await until_running(server, 1)
    await until_engine_runs(server, 1)
    writer.close()
    await until_running(server, 0)
    await until_engine_runs(server, 0)
