"""Chat bodies: what is refused, and that the prompt is the one that transformers renders."""

import pytest

from triton_voice.checkpoints import llm
from vllm_chat import chat, settings
from vllm_chat.errors import InvalidRequest

USER = [{"role": "user", "content": "Hello"}]


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
        ({"messages": USER, "tools": [{"type": "function"}]}, "tools cannot be used: tool calls are not supported"),
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
