"""Where a chat is rendered: short ones at once, long ones and those with images in vLLM's thread, with one result."""

import asyncio
import threading

import pytest

from triton_voice.checkpoints import llm
from vllm_chat import rendering


def say(text, role="user"):
    return {"role": role, "content": text}


@pytest.mark.parametrize(
    ("messages", "short"),
    [
        ([say("x" * rendering.SHORT_CHARACTERS)], True),
        ([say("x" * rendering.SHORT_CHARACTERS), say("x")], False),
        ([say("x")] * rendering.SHORT_MESSAGES, True),
        ([say("x")] * (rendering.SHORT_MESSAGES + 1), False),
        ([say(None, "assistant")], True),
        ([{**say("", "assistant"), "tool_calls": [{"arguments": "x" * rendering.SHORT_CHARACTERS}]}], False),
        ([{**say("", "assistant"), "reasoning": "x" * (rendering.SHORT_CHARACTERS + 1)}], False),
        ([say([{"type": "image_url", "image_url": {"url": "http://x/y.png"}}])], False),
    ],
)
def test_a_short_chat_is_little_text(messages, short):
    assert rendering.is_short(messages, {"enable_thinking": False}) is short


def test_tools_count_as_text():
    tool = {"type": "function", "function": {"name": "time", "description": "x" * 1000}}
    assert rendering.is_short([say("Hi")], {"tools": [tool] * 3})
    assert not rendering.is_short([say("Hi")], {"tools": [tool] * 4})
    assert not rendering.is_short([say("Hi")], {"tools": [{}] * (rendering.SHORT_MESSAGES + 1)})


@pytest.fixture(scope="module")
def renderer(tmp_path_factory):
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.renderers import renderer_from_config

    folder = llm.make(tmp_path_factory.mktemp("llm"), "tiny")
    config = AsyncEngineArgs(model=str(folder), enforce_eager=True, max_model_len=4096).create_engine_config()
    renderer = renderer_from_config(config)
    rendering.short_ones_at_once(renderer)
    yield renderer
    renderer.shutdown()


@pytest.mark.parametrize(("length", "at_once"), [(10, True), (rendering.SHORT_CHARACTERS + 1, False)])
async def test_both_ways_give_the_same_prompt(renderer, monkeypatch, length, at_once):
    from vllm.renderers import ChatParams

    threads = set()
    template = renderer.tokenizer.apply_chat_template

    def watched(*args, **kwargs):
        threads.add(threading.get_ident())
        return template(*args, **kwargs)

    monkeypatch.setattr(renderer.tokenizer, "apply_chat_template", watched)
    params = ChatParams(chat_template_kwargs={"add_generation_prompt": True, "tokenize": False})
    messages = [say(("tea " * length)[:length])]
    _, (prompt,) = await renderer.render_chat_async([messages], params)
    assert (threads == {threading.get_ident()}) is at_once
    _, (same,) = await asyncio.to_thread(renderer.render_chat, [messages], params)
    assert prompt["prompt_token_ids"] == same["prompt_token_ids"] != []
