"""Chat bodies: what is refused, and that the prompt is the one that transformers renders."""

import asyncio
import json

import pytest

from triton_voice.checkpoints import llm
from vllm_chat import chat, settings
from vllm_chat.errors import InvalidRequest, LoadFailed

USER = [{"role": "user", "content": "Hello"}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Tells the weather.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
CALL = {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'}}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "messages must be a list"),
        ({"messages": []}, "messages must be a list"),
        ({"messages": ["hi"]}, r"messages\[0\] must be an object"),
        ({"messages": [{"role": "robot", "content": "x"}]}, r"messages\[0\].role must be one of system, .*'robot'"),
        ({"messages": [*USER, {"role": "user"}]}, r"messages\[1\].content is missing"),
        ({"messages": [{"role": "user", "content": 5}]}, r"messages\[0\].content must be a string or a list"),
        ({"messages": USER, "max_token": 5}, "no field max_token; did you mean max_tokens"),
        ({"messages": USER, "temperature": "hot"}, "temperature: .*number"),
        ({"messages": USER, "tools": [{"type": "function"}]}, "tools.0.function: Field required"),
        ({"messages": USER, "tools": "weather"}, "tools: .*list"),
        ({"messages": USER, "tools": TOOLS, "tool_choice": "perhaps"}, "tool_choice"),
        ({"messages": USER, "tool_choice": "required"}, "tools. must be set"),
        ({"messages": USER, "functions": [{}]}, "functions cannot be used: .*use tools"),
        ({"messages": USER, "chat_template_kwargs": "thinking"}, "chat_template_kwargs: .*dictionary"),
        ({"messages": USER, "response_format": {"type": "poem"}}, "response_format"),
        ({"messages": USER, "n": 2}, "n must be 1, got 2"),
        ({"messages": USER, "chat_template": "{{ 1 }}"}, "chat_template cannot be used"),
        ({"messages": USER, "top_logprobs": 2}, "when using `top_logprobs`, `logprobs` must be set"),
    ],
)
def test_a_bad_body_is_refused_by_field(body, message):
    with pytest.raises(InvalidRequest, match=f"chat_request.*{message}"):
        chat._request(body, "id")


def test_a_body_of_an_openai_client_passes():
    body = {
        "model": "nemotron",
        "messages": [*USER, {"role": "assistant", "content": "Hi"}, *USER],
        "stream": False,
        "temperature": 0.5,
        "max_completion_tokens": 9,
        "stop": ["\n"],
        "seed": 1,
        "tools": None,
        "tool_choice": "auto",
        "service_tier": "auto",
        "chat_template_kwargs": {"enable_thinking": True},
    }
    request = chat._request(body, "id")
    assert (request.stream, request.temperature, request.max_completion_tokens) == (True, 0.5, 9)
    assert request.stream_options.include_usage
    assert request.chat_template_kwargs == {"enable_thinking": True}


@pytest.fixture(scope="module")
def renderer(tmp_path_factory):
    """vLLM's renderer on the tiny model, without an engine."""
    folder = llm.make(tmp_path_factory.mktemp("llm"), "tiny")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.environment_defaults(settings.Settings({}, {}, {}), on_cpu=True).items():
            patch.setenv(name, value)
        yield from _renderer(folder)


def _renderer(folder):
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.renderers import renderer_from_config
    from vllm.renderers.online_renderer import OnlineRenderer

    config = AsyncEngineArgs(model=str(folder), max_model_len=2048, enforce_eager=True).create_engine_config()
    base = renderer_from_config(config)
    yield OnlineRenderer(
        config.model_config,
        base,
        request_logger=None,
        chat_template=None,
        chat_template_content_format="auto",
        default_chat_template_kwargs={"enable_thinking": False},
        tool_parser="qwen3_coder",
        enable_auto_tools=True,
    )
    base.shutdown()


@pytest.mark.parametrize("kwargs", [{}, {"enable_thinking": True}, {"enable_thinking": False}])
@pytest.mark.parametrize(
    "messages",
    [
        USER,
        [{"role": "system", "content": "Be brief."}, *USER],
        [*USER, {"role": "assistant", "content": "Grüße!"}, {"role": "user", "content": "Und jetzt?"}],
        [{"role": "user", "content": [{"type": "text", "text": "Part one."}]}],
    ],
)
async def test_the_prompt_is_what_transformers_renders(renderer, messages, kwargs):
    body = {"messages": messages, "chat_template_kwargs": kwargs}
    _, (prompt,) = await renderer.render_chat(chat._request(body, "id"))
    tokenizer = renderer.renderer.get_tokenizer()
    expected = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, **{"enable_thinking": False, **kwargs}
    )
    assert tokenizer.decode(prompt["prompt_token_ids"]) == expected
    assert prompt["prompt_token_ids"] == tokenizer(expected, add_special_tokens=False).input_ids


async def test_a_conversation_with_tools_and_thoughts_is_rendered_as_transformers_does(renderer):
    messages = [
        *USER,
        {"role": "assistant", "content": "", "reasoning_content": "Rome.", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "1", "content": "sunny"},
    ]
    _, (prompt,) = await renderer.render_chat(chat._request({"messages": messages, "tools": TOOLS}, "id"))
    tokenizer = renderer.renderer.get_tokenizer()
    parsed = {**CALL, "function": {"name": "get_weather", "arguments": {"city": "Rome"}}}
    expected = tokenizer.apply_chat_template(
        [messages[0], {**messages[1], "tool_calls": [parsed]}, messages[2]],
        tools=TOOLS,
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
    )
    assert tokenizer.decode(prompt["prompt_token_ids"]) == expected
    assert "<think>\nRome.\n</think>" in expected
    assert "<parameter=city>\nRome\n</parameter>" in expected


def test_the_servers_template_switches_become_the_requests_own():
    """vLLM's parsers look for `enable_thinking` in the request."""
    defaults = {"enable_thinking": False, "other": 1}
    assert chat._request({"messages": USER}, "id", defaults).chat_template_kwargs == defaults
    asked = chat._request({"messages": USER, "chat_template_kwargs": {"enable_thinking": True}}, "id", defaults)
    assert asked.chat_template_kwargs == {"enable_thinking": True, "other": 1}


@pytest.mark.parametrize("kind", ["tool_call_parser", "reasoning_parser"])
def test_a_parser_that_vllm_lacks_is_named_with_those_that_it_has(kind):
    with pytest.raises(LoadFailed, match=f"vLLM has no {kind} nano_v9; there are .*qwen3"):
        chat._check_parsers({kind: "nano_v9"})


def test_a_parser_comes_from_a_plugin_file(tmp_path):
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from vllm.reasoning import ReasoningParserManager\n"
        "from vllm.reasoning.deepseek_r1_reasoning_parser import DeepSeekR1ReasoningParser\n"
        "@ReasoningParserManager.register_module('of_the_test')\n"
        "class OfTheTest(DeepSeekR1ReasoningParser):\n"
        "    pass\n"
    )
    chat._check_parsers({"reasoning_parser": "of_the_test", "reasoning_parser_plugin": str(plugin)})


def chunk(delta, **rest):
    body = {"id": "1", "choices": [{"index": 0, "delta": delta, "finish_reason": None}], **rest}
    return "data: " + json.dumps(body) + "\n\n"


ROLE = chunk({"role": "assistant", "content": ""}, prompt_token_ids=[1, 2])
USAGE = 'data: {"choices":[],"usage":{}}\n\n'


def test_a_reply_is_done_with_its_last_piece_and_its_response_final_with_the_usage():
    def place(text, reason):
        choice = {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": reason}
        response = chat._response(json.dumps({"id": "1", "choices": [choice]}, separators=(",", ":")))
        assert json.loads(response.outputs["chat_chunk"][0])["choices"] == [choice]
        return response.done, response.final

    assert place("Hello", None) == (False, False)
    assert place('"finish_reason":null', "length") == (True, False)  # said by the model: its quotes are escaped
    assert place('"choices":[]', None) == (False, False)
    usage = chat._response(USAGE.removeprefix("data: ").strip())
    assert (usage.done, usage.final) == (True, True)


async def made_at_once(*events):
    for event in events:
        yield event


async def test_the_role_rides_with_the_first_piece():
    whole = [event async for event in chat._role_with_text(made_at_once(ROLE, chunk({"content": "Hé"}), USAGE, "end"))]
    first = json.loads(whole[0].removeprefix("data: "))
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": "Hé"}
    assert first["prompt_token_ids"] == [1, 2]
    assert whole[1:] == [USAGE, "end"]


@pytest.mark.parametrize("events", [(), ("data: [DONE]",), ('data: {"error": {}}', "data: [DONE]"), (ROLE, USAGE)])
async def test_what_is_no_piece_stays_as_it_is(events):
    assert [event async for event in chat._role_with_text(made_at_once(*events))] in ([*events], ["[DONE]"])


async def test_the_role_does_not_wait_for_the_next_token_and_nothing_runs_on_when_it_is_dropped():
    closed = asyncio.Event()

    async def slow():
        try:
            yield ROLE
            await asyncio.Event().wait()
        finally:
            closed.set()

    events = chat._role_with_text(slow())
    assert await anext(events) == ROLE
    await events.aclose()
    assert closed.is_set()
