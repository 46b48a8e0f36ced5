"""The random-weight chat model: deterministic, loadable, readable, and with Nemotron-3-Nano's chat dialect."""

import hashlib
import json

import pytest

from triton_voice.checkpoints import llm

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "enum": [1, 7]}},
            "required": ["city"],
        },
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return llm.make(tmp_path_factory.mktemp("llm"), "tiny", seed=3)


@pytest.fixture(scope="module")
def tokenizer(folder):
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(str(folder))


@pytest.fixture(scope="module")
def model(folder):
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(str(folder))


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_the_same_seed_gives_the_same_bytes(folder, tmp_path):
    assert digests(llm.make(tmp_path / "again", "tiny", seed=3)) == digests(folder)
    other = digests(llm.make(tmp_path / "other", "tiny", seed=4))
    different = {name for name, digest in digests(folder).items() if other[name] != digest}
    assert different == {name for name in other if name.endswith(".safetensors")}


def test_an_unknown_size_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"allowed are tiny, 0\.2B, full"):
        llm.make(tmp_path, "huge")


def test_any_text_survives_the_tokenizer(tokenizer):
    said = "Grüße, 東京 🙂! <think>\nhm</think> <tool_call>x</tool_call>"
    assert tokenizer.decode(tokenizer(said).input_ids, skip_special_tokens=True) == said


def test_replies_are_readable_and_depend_on_the_whole_prompt(tokenizer, model):
    def reply(prompt):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        out = model.generate(ids, max_new_tokens=40, do_sample=False)[0, ids.shape[1] :]
        return tokenizer.decode(out)

    sunny, rainy = reply("The sun is out today"), reply("No rain falls today")
    assert sunny.isascii()
    assert sunny != rainy


def test_thinking_is_opened_or_closed_by_the_generation_prompt(tokenizer):
    messages = [{"role": "user", "content": "Hi"}]
    render = {"tokenize": False, "add_generation_prompt": True}
    assert tokenizer.apply_chat_template(messages, **render).endswith("<|im_start|>assistant\n<think>\n")
    quiet = tokenizer.apply_chat_template(messages, **render, enable_thinking=False)
    assert quiet == (
        "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think></think>"
    )


def test_old_thoughts_are_dropped_and_those_of_the_running_turn_kept(tokenizer):
    call = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Rome", "days": 7}}}
    messages = [
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": "<think>\nold idea\n</think>\nTwo"},
        {"role": "user", "content": "Three"},
        {"role": "assistant", "content": "", "reasoning_content": "new idea", "tool_calls": [call]},
        {"role": "tool", "content": "sunny"},
    ]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False)
    assert "old idea" not in rendered
    assert "<|im_start|>assistant\n<think></think>Two<|im_end|>" in rendered
    assert "<think>\nnew idea\n</think>\n" in rendered
    assert (
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nRome\n</parameter>\n<parameter=days>\n7\n</parameter>\n"
        "</function>\n</tool_call><|im_end|>\n<|im_start|>user\n<tool_response>\nsunny\n</tool_response>\n<|im_end|>\n"
    ) in rendered


def test_tools_are_listed_in_the_system_turn(tokenizer):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    system = tokenizer.apply_chat_template(messages, tools=[WEATHER], tokenize=False).split("<|im_end|>")[0]
    assert system.startswith("<|im_start|>system\nBe brief.\n\n# Tools")
    assert "<name>get_weather</name>\n<description>Tells the weather.</description>" in system
    assert "<name>days</name>\n<type>integer</type>\n<enum>[1, 7]</enum>" in system
    assert '<required>["city"]</required>' in system


def test_the_full_shape_is_what_it_says():
    shape = llm.SHAPES["full"]
    sizes = (sum(t.numel() for t in s.values()) for s in llm._weights(llm.SHAPES["tiny"], 100, [0], 0))
    assert sum(sizes) == parameters(llm.SHAPES["tiny"], 100)
    assert 1.4e9 < parameters(shape, shape.vocabulary) < 1.6e9


def parameters(shape, rows):
    attention = shape.hidden * shape.head_dim * (2 * shape.heads + 2 * shape.kv_heads)
    layer = attention + 3 * shape.hidden * shape.intermediate + 2 * shape.hidden
    return 2 * rows * shape.hidden + shape.layers * layer + shape.hidden


def test_the_index_names_every_file(folder):
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {path.name for path in folder.glob("*.safetensors")}
