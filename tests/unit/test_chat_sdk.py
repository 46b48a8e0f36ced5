"""What the SDK makes of a chat: the body that it sends, and tool calls put together from pieces."""

import pytest

from triton_voice import ToolCall
from triton_voice.chat import ToolCalls, body

TOOLS = [{"type": "function", "function": {"name": "f"}}]


def test_a_string_is_a_users_message_and_what_is_not_set_is_left_out():
    assert body("Hi", None, None, {"max_tokens": None}) == {"messages": [{"role": "user", "content": "Hi"}]}


def test_tools_thinking_and_sampling_go_into_the_body():
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    sampling = {"max_tokens": 5, "chat_template_kwargs": {"other": 1}}
    assert body(messages, TOOLS, True, sampling) == {
        "messages": messages,
        "tools": TOOLS,
        "max_tokens": 5,
        "chat_template_kwargs": {"other": 1, "enable_thinking": True},
    }


def test_pieces_of_several_calls_become_whole_calls():
    calls = ToolCalls()
    calls.add({"index": 0, "id": "a", "function": {"name": "f"}})
    calls.add({"index": 0, "function": {"arguments": '{"x": '}})
    delta = calls.add({"index": 0, "function": {"arguments": "1}"}})
    calls.add({"index": 1, "id": "b", "function": {"name": "g", "arguments": ""}})
    assert (delta.index, delta.id, delta.name, delta.arguments) == (0, "a", "f", "1}")
    assert calls.whole() == (ToolCall("a", "f", '{"x": 1}'), ToolCall("b", "g", ""))
    assert [call.parsed() for call in calls.whole()] == [{"x": 1}, {}]


def test_arguments_that_were_cut_off_are_an_error():
    with pytest.raises(ValueError, match="Expecting"):
        ToolCall("a", "f", '{"x": ').parsed()
