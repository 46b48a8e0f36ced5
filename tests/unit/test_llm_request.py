"""What the `vllm` backend makes of inputs and sampling parameters, and what it says about bad ones."""

import base64
import json

import numpy as np
import pytest

from vllm_chat import contract, lora, sampling
from vllm_chat.errors import InvalidRequest


def text(value):
    return np.array([value.encode() if isinstance(value, str) else value], dtype=np.object_)


def flag(value):
    return np.array([value])


def test_stock_defaults():
    request = contract.parse({"text_input": text("Hello")}, {})
    assert request == contract.TextRequest("Hello", False, True, {}, frozenset())


def test_a_stream_leaves_the_prompt_out_unless_told_otherwise():
    assert not contract.parse({"text_input": text("a"), "stream": flag(True)}, {}).prepend_prompt
    with pytest.raises(InvalidRequest, match="exclude_input_in_output must be true when stream is true"):
        contract.parse({"text_input": text("a"), "stream": flag(True), "exclude_input_in_output": flag(False)}, {})


def test_images_are_decoded():
    files = [base64.b64encode(data) for data in (b"one", b"two")]
    inputs = {"text_input": text("a"), "image": np.array(files, dtype=np.object_)}
    assert contract.parse(inputs, {}).images == (b"one", b"two")


@pytest.mark.parametrize(
    ("known", "name", "message"),
    [
        ({}, "pirate", "loaded without LoRA"),
        ({"pirate": "/p", "poet": "/q"}, "parrot", "lora_name must be one of pirate, poet, got parrot"),
        ({"pirate": "/p"}, ["pirate"], "lora_name must be one of pirate"),
    ],
)
def test_a_lora_adapter_that_is_not_there_is_refused(known, name, message):
    with pytest.raises(InvalidRequest, match=message):
        lora.choose(lora.requests(known), name, "sampling_parameters")


def test_lora_adapters_are_found_by_name():
    known = lora.requests({"pirate": "/p", "poet": "/q"})
    assert lora.choose(known, "poet", "sampling_parameters").lora_path == "/q"
    assert lora.choose(known, None, "sampling_parameters") is None


def test_every_return_flag_names_its_output():
    flags = {f"return_{name}": flag(True) for name in contract.EXTRA_OUTPUTS}
    assert contract.parse({"text_input": text("a"), **flags}, {}).extras == set(contract.EXTRA_OUTPUTS)


def test_request_parameters_serve_when_no_sampling_parameters_are_given():
    parameters = {"max_tokens": 3, "triton_enable_empty_final_response": True}
    assert contract.parse({"text_input": text("a")}, parameters).sampling == {"max_tokens": 3}
    given = {"text_input": text("a"), "sampling_parameters": text('{"top_k": 5}')}
    assert contract.parse(given, parameters).sampling == {"top_k": 5}


@pytest.mark.parametrize(
    ("inputs", "parameters", "message"),
    [
        ({}, {}, "needs the input text_input .* or chat_request"),
        ({"text_input": text(b"\xff")}, {}, "text_input must be UTF-8"),
        ({"text_input": np.array([b"a", b"b"], dtype=object)}, {}, "text_input must hold exactly one element, got 2"),
        ({"text_input": text("a"), "sampling_parameters": text("{")}, {}, "sampling_parameters is not valid JSON"),
        ({"text_input": text("a"), "sampling_parameters": text("[1]")}, {}, "sampling_parameters must be a JSON obj"),
        ({"chat_request": text("nope")}, {}, "chat_request is not valid JSON"),
        ({"chat_request": text("{}"), "stream": flag(True)}, {}, "leave out the input stream"),
        ({"text_input": text("a"), "image": text("%%%")}, {}, r"image\[0\] must be an image file in base64"),
        ({"chat_request": text("{}")}, {"top_k": 1}, "put top_k into its JSON"),
    ],
)
def test_a_bad_request_is_refused_by_field(inputs, parameters, message):
    with pytest.raises(InvalidRequest, match=message):
        contract.parse(inputs, parameters)


def test_numbers_written_as_strings_work_like_in_the_stock_samples():
    params = sampling.build({"temperature": "0.1", "top_p": "0.95", "max_tokens": "7", "seed": None})
    assert (params.temperature, params.top_p, params.max_tokens, params.seed) == (0.1, 0.95, 7, None)


def test_lists_and_objects_arrive_whole():
    values = {"stop": ["\n", "END"], "logit_bias": {"5": 2}, "ignore_eos": "true", "stop_token_ids": [3]}
    params = sampling.build(values)
    assert params.stop == ["\n", "END"]
    assert params.logit_bias == {5: 2.0}
    assert params.ignore_eos is True
    assert params.stop_token_ids == [3]


@pytest.mark.parametrize("spec", [{"regex": "[0-9]+"}, '{"regex": "[0-9]+"}'])
def test_structured_outputs_as_object_or_as_the_stock_backends_string(spec):
    assert sampling.build({"structured_outputs": spec}).structured_outputs.regex == "[0-9]+"


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"temprature": 1}, "has no temprature; did you mean temperature.*Allowed are .*top_k"),
        ({"output_kind": 1}, "has no output_kind"),
        ({"temperature": "hot"}, 'temperature must be a number, got "hot"'),
        ({"temperature": True}, "temperature must be a number, got true"),
        ({"max_tokens": 1.5}, "max_tokens must be an integer, got 1.5"),
        ({"stop": 5}, "stop must be a string or a list of strings, got 5"),
        ({"logit_bias": [1]}, "logit_bias must be an object"),
        ({"top_p": 7}, r"top_p must be in \(0, 1\]"),
        ({"temperature": float("nan")}, "temperature must be a finite number"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"structured_outputs": {"grammer": ""}}, "structured_outputs has no grammer; allowed are .*regex"),
        ({"structured_outputs": {}}, "structured_outputs: .*one kind"),
        ({"structured_outputs": "{"}, "structured_outputs is not valid JSON"),
    ],
)
def test_a_bad_sampling_parameter_is_named_with_what_it_allows(parameters, message):
    with pytest.raises(InvalidRequest, match=message):
        sampling.build(json.loads(json.dumps(parameters)))


class Config:
    """What Triton hands to auto_complete_config."""

    def __init__(self, **given):
        self.given = {"input": [], "output": [], **given}

    def as_dict(self):
        return self.given

    def add_input(self, value):
        self.given["input"].append(value)

    def add_output(self, value):
        self.given["output"].append(value)

    def set_max_batch_size(self, value):
        self.given["max_batch_size"] = value

    def set_model_transaction_policy(self, value):
        self.given["model_transaction_policy"] = value


def test_auto_complete_keeps_what_is_written_and_adds_the_rest():
    mine = {"name": "text_input", "data_type": "TYPE_STRING", "dims": [1], "optional": False}
    config = contract.complete(Config(input=[mine])).as_dict()
    assert [io for io in config["input"] if io["name"] == "text_input"] == [mine]
    assert {io["name"] for io in config["input"]} == set(contract.INPUTS)
    assert {io["name"] for io in config["output"]} == set(contract.OUTPUTS)
    assert config["max_batch_size"] == 0
    assert config["model_transaction_policy"] == {"decoupled": True}


def test_a_string_beyond_reason_is_refused_before_it_is_parsed():
    for name in ("text_input", "chat_request"):
        huge = np.array([b"[" * (contract.MAX_STRING_BYTES + 1)], dtype=np.object_)
        with pytest.raises(InvalidRequest, match=f"{name} has {contract.MAX_STRING_BYTES + 1} bytes; at most"):
            contract.parse({name: huge}, {})
