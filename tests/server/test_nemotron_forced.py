"""The language model told what to say: real engine, real parsers; also LoRA, the full queue, and the engine's death.

A server of its own, whose engine holds the logits processor of `llm_forcing` and a LoRA adapter.
"""

import asyncio
import json
import shutil
from pathlib import Path

import psutil
import pytest
import torch
import tritonclient.grpc.aio as triton
from safetensors.torch import save_file

import llm_forcing
from llm_client import (
    ENDLESS,
    GREEDY,
    HI,
    MODEL,
    OwnServer,
    calls,
    chat,
    finish,
    generate,
    joined,
    reply,
    tensors,
    until_engine_runs,
    until_metric,
    until_running,
)
from triton_voice import InvalidInput, ModelNotReady, ServerFault, ServerFull
from triton_voice.paths import project_root
from triton_voice.server import ServerSettings, TritonServer
from triton_voice.server.settings import Weights

QUEUE = 32
STEP_TOKENS = 1024
"""A longer prompt is read in several steps."""
PUBLISHED_S = 0.8
"""After this time the metrics page shows what happened before; they are published every quarter of a second."""
CALL = "<tool_call>\n<function={}>\n{}</function>\n</tool_call>"
PARAMETER = "<parameter={}>\n{}\n</parameter>\n"
THINKING = {"chat_template_kwargs": {"enable_thinking": True}}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                "required": ["city"],
            },
        },
    },
    {"type": "function", "function": {"name": "stop_timer", "parameters": {"type": "object", "properties": {}}}},
]


def lora(folder: Path, config: dict) -> None:
    """A LoRA adapter of random weights, loud enough to change every reply."""
    folder.mkdir()
    rank, hidden = 4, config["hidden_size"]
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for layer in range(config["num_hidden_layers"]):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        rows = config["num_attention_heads"] * config["head_dim"]
        weights[f"{name}.lora_A.weight"] = torch.randn(rank, hidden, generator=generator)
        weights[f"{name}.lora_B.weight"] = torch.randn(rows, rank, generator=generator)
    save_file(weights, str(folder / "adapter_model.safetensors"))
    described = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": ["q_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(described))


@pytest.fixture(scope="module")
def server(tiny, tmp_path_factory):
    repository = tmp_path_factory.mktemp("repository")
    shutil.copytree(project_root() / "model_repository" / MODEL, repository / MODEL)
    lora(repository / MODEL / "1" / "pirate", json.loads((tiny.llm / "config.json").read_text()))
    shutil.copy(llm_forcing.__file__, repository / MODEL / "1")  # the version folder is importable in the engine
    (repository / MODEL / "1" / "multi_lora.json").write_text('{"pirate": "pirate"}')
    arguments = {
        "logits_processors": [llm_forcing.ENGINE_ARGUMENT],
        "max_num_seqs": QUEUE,
        "max_num_queued_reqs": QUEUE,
        "max_num_batched_tokens": STEP_TOKENS,
        "kv_cache_memory_bytes": 128 << 20,
        "enable_lora": True,
        "max_lora_rank": 8,
    }
    settings = ServerSettings(
        grpc_port=0, http_port=0, metrics_port=0, device="cpu", only=(MODEL,), model_repository=repository
    )
    environment = {"NEMOTRON_ENGINE_ARGS": json.dumps(arguments)}
    with TritonServer(settings, Weights(llm=str(tiny.llm)), environment) as running:
        yield OwnServer(running)


@pytest.fixture
async def client(server):
    async with triton.InferenceServerClient(server.grpc) as client:
        yield client


@pytest.fixture(scope="module")
def says(tiny):
    """Makes the request field that forces a reply."""
    tokenizer = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(str(tiny.llm))

    def says(text, step_ms=0):
        return {"vllm_xargs": {"forced": tokenizer(text).input_ids, "step_ms": step_ms}, "max_tokens": 400}

    return says


@pytest.mark.parametrize(
    ("said", "kwargs", "reasoning", "content"),
    [
        ("Let me see.\n</think>\nHello there!", THINKING, "Let me see.", "\nHello there!"),
        ("Hello there!", {}, "", "Hello there!"),
        ("Hello there!", {"chat_template_kwargs": {"enable_thinking": False}}, "", "Hello there!"),
        ("Grüße, 東京 🙂!", {}, "", "Grüße, 東京 🙂!"),
        ("Still thinking of a number", THINKING, "Still thinking of a number", ""),
        ("</think>At once.", THINKING, "", "At once."),
    ],
)
async def test_thoughts_and_reply_are_told_apart(client, says, said, kwargs, reasoning, content):
    """Thinking on, off by the request, off by the server's default: content goes to content."""
    chunks = await chat(client, **says(said), **kwargs)
    assert joined(chunks, "reasoning_content") == reasoning
    assert joined(chunks) == content
    assert finish(chunks) == "stop"
    thought = chunks[-1]["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert (thought > 0) == bool(reasoning)


async def test_a_tool_call_arrives_in_pieces_with_typed_arguments(client, says):
    call = CALL.format("get_weather", PARAMETER.format("city", 'São "Paulo"') + PARAMETER.format("days", 7))
    chunks = await chat(client, **says("I look.\n" + call, step_ms=5), tools=TOOLS)
    assert calls(chunks) == [("get_weather", {"city": 'São "Paulo"', "days": 7})]
    assert joined(chunks).strip() == "I look."
    assert finish(chunks) == "tool_calls"
    pieces = [c["delta"]["tool_calls"] for k in chunks for c in k["choices"] if c["delta"].get("tool_calls")]
    assert len(pieces) > 3


async def test_several_calls_after_a_thought(client, says):
    said = "Two things.</think>\n" + "\n".join(
        (CALL.format("get_weather", PARAMETER.format("city", "Rome")), CALL.format("stop_timer", ""))
    )
    chunks = await chat(client, **says(said), **THINKING, tools=TOOLS)
    assert joined(chunks, "reasoning_content") == "Two things."
    assert calls(chunks) == [("get_weather", {"city": "Rome"}), ("stop_timer", {})]


async def test_with_tool_choice_none_the_model_does_not_read_of_tools(client, says):
    without = await chat(client, **says("Fine."))
    none = await chat(client, **says("Fine."), tools=TOOLS, tool_choice="none")
    told = await chat(client, **says("Fine."), tools=TOOLS)
    prompt_tokens = [chunks[-1]["usage"]["prompt_tokens"] for chunks in (without, none, told)]
    assert prompt_tokens[0] == prompt_tokens[1] < prompt_tokens[2]


async def test_a_conversation_with_calls_thoughts_and_results_goes_on(client, says):
    call = {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'}}
    messages = [
        *HI,
        {"role": "assistant", "content": None, "reasoning_content": "Rome it is.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "sunny"},
    ]
    forgotten = [messages[0], {**messages[1], "reasoning_content": ""}, messages[2]]
    with_thought, without = [
        await chat(client, **says("Sunny."), messages=m, tools=TOOLS) for m in (messages, forgotten)
    ]
    assert joined(with_thought) == "Sunny."
    assert with_thought[-1]["usage"]["prompt_tokens"] > without[-1]["usage"]["prompt_tokens"]


async def test_a_growing_conversation_reads_only_its_last_turn(server, client, says):
    messages = [{"role": "system", "content": "Be kind and brief. " * 80}, *HI]
    first = (await chat(client, **says("Hello."), messages=messages))[-1]["usage"]
    messages += [{"role": "assistant", "content": "Hello."}, {"role": "user", "content": "And you?"}]
    found = server.metric("vllm:prefix_cache_hits_total")
    second = (await chat(client, **says("Well."), messages=messages))[-1]["usage"]
    block = 128  # tokens, vLLM's on a CPU
    assert second["prompt_tokens_details"]["cached_tokens"] >= first["prompt_tokens"] // block * block > 0
    await until_metric(server, "vllm:prefix_cache_hits_total", lambda value: value > found)
    assert 0 < server.metric("triton_voice_llm_prefix_cache_hit_rate") <= 1


async def test_vllms_statistics_are_on_tritons_metrics_page(server, client, says):
    names = (
        "vllm:time_to_first_token_seconds",
        "vllm:time_per_output_token_seconds",
        "vllm:e2e_request_latency_seconds",
    )
    await asyncio.sleep(PUBLISHED_S)  # what went before
    before = [server.metric(f"{name}_count") for name in names]
    tokens = server.metric("vllm:generation_tokens_total")
    chunks = await chat(client, **says("One two three."))
    count = chunks[-1]["usage"]["completion_tokens"]
    await asyncio.sleep(PUBLISHED_S)
    assert server.metric("vllm:generation_tokens_total") == tokens + count
    after = [server.metric(f"{name}_count") for name in names]
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, count - 1, 1]
    for name in names:
        assert server.metric(f"{name}_bucket", le="+Inf") == server.metric(f"{name}_count")
    assert server.metric("triton_voice_llm_engine_up") == 1


async def test_thirty_two_chats_at_once_and_one_too_many(server, client, says):
    async def one(number):
        return joined(await chat(client, **says(f"I am number {number}, and this is mine.", step_ms=2)))

    together = asyncio.gather(*(one(number) for number in range(QUEUE)))
    await until_running(server, QUEUE)
    with pytest.raises(ServerFull, match="busy"):
        await chat(client, **says("No room."))
    assert await together == [f"I am number {number}, and this is mine." for number in range(QUEUE)]
    await until_running(server, 0)


async def test_a_dropped_preemptive_turn_costs_at_most_one_step_more(server, client, says):
    """Begun on a partial transcript, then dropped: the engine stops, and what it has read serves the whole one.

    Its steps take longer than the courier takes to notice; shorter ones go on for those 20 ms.
    """
    system = {"role": "system", "content": "Be kind and brief. " * 80}
    partial = [system, {"role": "user", "content": "What is the wea"}]
    body = {**says("word " * 300, step_ms=150), "messages": partial}
    heard = asyncio.Event()

    async def requests():
        yield {"model_name": MODEL, "inputs": tensors(chat_request=json.dumps(body))}
        await asyncio.Event().wait()

    stream = client.stream_infer(requests())
    deltas = 0

    async def read():
        nonlocal deltas
        async for _ in stream:
            deltas += 1
            if deltas == 3:
                heard.set()

    await asyncio.sleep(PUBLISHED_S)
    steps = server.metric("triton_voice_llm_steps_total")
    reader = asyncio.create_task(read())
    await heard.wait()
    stream.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    await until_running(server, 0)
    await until_engine_runs(server, 0)
    await asyncio.sleep(PUBLISHED_S)  # longer than the steps that could still come, too
    taken = server.metric("triton_voice_llm_steps_total") - steps
    assert taken <= deltas + 2  # the one that was running, and an empty one that says that nothing is left
    whole = [system, {"role": "user", "content": "What is the weather like?"}]
    kept = (await chat(client, **says("Fine."), messages=whole))[-1]["usage"]
    assert kept["prompt_tokens_details"]["cached_tokens"] > 0


async def test_a_request_cancelled_in_prefill_leaves_nothing_in_the_engine(server, client, says):
    """A prompt of many steps, dropped before its first token: not read to its end, nothing said, nothing held."""
    await until_engine_runs(server, 0)
    await asyncio.sleep(PUBLISHED_S)
    names = ("triton_voice_llm_steps_total", "vllm:prompt_tokens_total", "vllm:generation_tokens_total")
    steps, prompts, generated = [server.metric(name) for name in names]
    whole = 12  # steps, at least
    messages = [{"role": "user", "content": "".join(f" {n % 10}" for n in range(whole * STEP_TOKENS))}]
    body = {**says("Too late.", step_ms=200), "messages": messages}

    async def requests():
        yield {"model_name": MODEL, "inputs": tensors(chat_request=json.dumps(body))}
        await asyncio.Event().wait()

    stream = client.stream_infer(requests())
    got = []

    async def read():
        async for result, error in stream:
            got.append((result, error))

    reader = asyncio.create_task(read())
    while await asyncio.to_thread(server.metric, "vllm:gpu_cache_usage_perc") == 0:  # not being read yet
        assert not got
        await asyncio.sleep(0.02)
    stream.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert not got
    await until_running(server, 0)
    await until_engine_runs(server, 0)
    await until_metric(server, "vllm:gpu_cache_usage_perc", lambda value: value == 0)
    await asyncio.sleep(PUBLISHED_S)
    assert server.metric("triton_voice_llm_steps_total") - steps < whole
    assert [server.metric(name) for name in names[1:]] == [prompts, generated]
    assert joined(await chat(client, **says("Here I am."))) == "Here I am."


async def test_a_lora_adapter_is_chosen_by_name(client):
    plain = await reply(client)
    pirate = await reply(client, sampling={**GREEDY, "lora_name": "pirate"})
    assert pirate != plain
    assert await reply(client) == plain
    said = {"temperature": 0, "max_tokens": 16, "ignore_eos": True}
    plain_chat, pirate_chat = [await chat(client, **said, model=name) for name in (MODEL, "pirate")]
    assert joined(plain_chat) != joined(pirate_chat)
    with pytest.raises(InvalidInput, match="lora_name must be one of pirate, got parrot"):
        await reply(client, sampling={"lora_name": "parrot"})


async def test_when_the_engine_dies_nobody_hangs_and_the_model_is_not_ready(server, client, says):
    """The last test of this server, which must still stop in order afterwards."""
    hurt = [asyncio.create_task(chat(client, ignore_eos=True, max_tokens=30000)) for _ in range(4)]
    hurt += [asyncio.create_task(generate(client, sampling=ENDLESS)) for _ in range(2)]
    await until_running(server, len(hurt))
    family = psutil.Process(server.server.pid).children(recursive=True)
    (engine,) = [process for process in family if "EngineCore" in " ".join([process.name(), *process.cmdline()])]
    engine.kill()
    for error in await asyncio.gather(*hurt, return_exceptions=True):
        assert isinstance(error, ServerFault)
        assert "the engine died" in str(error)
    while await client.is_model_ready(MODEL):
        await asyncio.sleep(0.05)
    assert await client.is_server_live()
    with pytest.raises(ModelNotReady):
        await chat(client, **says("Anyone there?"))
