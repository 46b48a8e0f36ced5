"""What Nemotron-tiny is trained on: nothing that is held out, exactly the prompts of the server, only its own words."""

from __future__ import annotations

import random
import re

import pytest

from triton_voice.evaluation.words import spoken_words
from triton_voice_training import chat_data, chat_evaluation, chat_tokens, world


@pytest.fixture(scope="module")
def tokenizer():
    return chat_tokens.train_tokenizer()


@pytest.fixture(scope="module")
def examples():
    rng = random.Random("test")
    return [chat_data.example(rng, rng.randint(1, 9)) for _ in range(400)]


def test_no_held_out_sentence_is_trained_on():
    """Neither as it is nor without its case and punctuation."""
    rng = random.Random("held out")
    dialogues = [chat_data.draw_dialogue(rng, 6) for _ in range(400)]
    trained = {text for turns in dialogues for turn in turns for text in (turn.user, turn.reply)}
    assert len(trained) > 1000
    assert not [text for text in trained if world.is_held_out(text)]
    held_out = {" ".join(spoken_words(text)) for text in world.requests("held_out", 500)}
    heard = {chat_data.heard(rng, turn.user) for turns in dialogues for turn in turns}
    assert not {" ".join(spoken_words(text)) for text in heard} & held_out
    assert heard - trained  # some are noisy


def test_the_tokens_are_those_of_the_servers_prompts(tokenizer, examples):
    """What is learned begins where the template's prompt for that turn ends, and ends with the turn."""
    seen = 0
    for example in examples:
        encoded = chat_tokens.encode(tokenizer, example)
        whole = chat_tokens.render(tokenizer, example.messages, example.tools, example.thinking, prompt=False)
        assert encoded.ids.tolist() == tokenizer.encode(whole, add_special_tokens=False)
        last = max(example.learn)
        prompt = chat_tokens.render(
            tokenizer,
            example.messages[:last],
            example.tools,
            "reasoning_content" in example.messages[last],
            prompt=True,
        )
        ids = tokenizer.encode(prompt, add_special_tokens=False)
        assert encoded.ids[: len(ids)].tolist() == ids
        assert encoded.learned[len(ids)] and not encoded.learned[len(ids) - 1]
        learned = tokenizer.decode(encoded.ids[encoded.learned])
        assert learned.count("<|im_end|>") == len(example.learn)
        assert learned.endswith("<|im_end|>")
        seen += example.thinking
    assert 50 < seen < 350


def test_nothing_of_an_interrupted_or_a_users_message_is_learned(examples):
    cut = 0
    for example in examples:
        for at, message in enumerate(example.messages):
            if message["role"] != "assistant":
                assert at not in example.learn
            elif at not in example.learn:
                cut += not re.search(r"[.?!]$", message["content"])
    assert cut > 10


def test_a_tool_is_called_if_and_only_if_it_is_offered(examples):
    called = refused = 0
    for example in examples:
        names = {tool["function"]["name"] for tool in example.tools}
        for message in example.messages:
            for call in message.get("tool_calls", []):
                called += 1
                assert call["function"]["name"] in names
            refused += message["content"] == world.NO_TOOLS
    assert called > 50
    assert refused > 50


def test_examples_and_tokenizer_are_the_same_every_time(tokenizer):
    first, again = (chat_data.example(random.Random(3), 6) for _ in range(2))
    assert first == again
    assert chat_tokens.train_tokenizer().get_vocab() == tokenizer.get_vocab()


def test_digits_are_tokens_and_markup_survives_decoding(tokenizer):
    ids = tokenizer.encode("12:45", add_special_tokens=False)
    assert [tokenizer.decode([each]) for each in ids] == ["1", "2", ":", "4", "5"]
    text = "<think>\nSo.\n</think>\n<tool_call>\n<function=get_time>\n</function>\n</tool_call> zoë 7"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False), skip_special_tokens=True) == text


def test_a_question_about_a_tool_is_a_call_and_then_a_reply():
    call = world.Call("get_time", {"city": "Oslo"}, {"city": "Oslo", "time": "7:05 PM"})
    turn = world.Turn("clock", "What time is it in Oslo?", "It is 7:05 PM in Oslo.", "I need the time.", call)
    first, second = chat_evaluation.questions([turn], chat_data.bot_tools(), thinking=False)
    assert first.call == ("get_time", {"city": "Oslo"})
    right = "\n<tool_call>\n<function=get_time>\n<parameter=city>\nOslo\n</parameter>\n</function>\n</tool_call>"
    assert chat_evaluation.is_right(first, right)
    assert not chat_evaluation.is_right(first, right.replace("Oslo", "Rome"))
    assert not chat_evaluation.is_right(first, "It is 7:05 PM in Oslo.")
    assert second.messages[-1]["role"] == "tool"
    assert chat_evaluation.is_right(second, "It is 7:05 PM in Oslo.")
    (refusal,) = chat_evaluation.questions([turn], [], thinking=True)
    assert not chat_evaluation.is_right(refusal, world.NO_TOOLS)  # it did not think
    assert chat_evaluation.is_right(refusal, f"No.\n</think>\n{world.NO_TOOLS}")
