"""The backend's inputs and outputs, and requests parsed from them.

Text generation follows Triton's stock vLLM backend name by name, so its clients work unchanged; `chat_request` and
`chat_chunk` are ours. This module imports neither Triton nor vLLM: Triton completes the configuration in a throw-away
process, which should not load a deep learning stack.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from vllm_chat.errors import InvalidRequest

#: name -> (Triton data type, dims). Every input is optional: a request carries text_input or chat_request.
INPUTS: dict[str, tuple[str, list[int]]] = {
    "text_input": ("TYPE_STRING", [1]),
    "image": ("TYPE_STRING", [-1]),
    "stream": ("TYPE_BOOL", [1]),
    "sampling_parameters": ("TYPE_STRING", [1]),
    "exclude_input_in_output": ("TYPE_BOOL", [1]),
    "return_finish_reason": ("TYPE_BOOL", [1]),
    "return_cumulative_logprob": ("TYPE_BOOL", [1]),
    "return_logprobs": ("TYPE_BOOL", [1]),
    "return_num_input_tokens": ("TYPE_BOOL", [1]),
    "return_num_output_tokens": ("TYPE_BOOL", [1]),
    "chat_request": ("TYPE_STRING", [1]),
}
OUTPUTS: dict[str, tuple[str, list[int]]] = {
    "text_output": ("TYPE_STRING", [-1]),
    "finish_reason": ("TYPE_STRING", [-1]),
    "cumulative_logprob": ("TYPE_FP32", [-1]),
    "logprobs": ("TYPE_STRING", [-1]),
    "num_input_tokens": ("TYPE_UINT32", [1]),
    "num_output_tokens": ("TYPE_UINT32", [-1]),
    "chat_chunk": ("TYPE_STRING", [1]),
}
#: Outputs that a text request gets only when it sets the input `return_<name>`.
EXTRA_OUTPUTS = ("finish_reason", "cumulative_logprob", "logprobs", "num_input_tokens", "num_output_tokens")


class Response(NamedTuple):
    """One response to a request.

    Attributes:
        outputs: Arrays by name.
        final: It is the last one.
        done: The engine has made all of the reply; what follows, if anything, follows at once.
    """

    outputs: Mapping[str, np.ndarray]
    final: bool
    done: bool


MAX_STRING_BYTES = 32 << 20
"""Of a string input. A long context has some megabytes; images in a chat's messages are in base64."""


@dataclass(frozen=True)
class TextRequest:
    """A rendered prompt to continue.

    Attributes:
        prompt: The text, tokenised as it is (no chat template).
        stream: One response per step with the new text, instead of one with all of it.
        prepend_prompt: Put the prompt in front of the reply; only without `stream`.
        sampling: Sampling parameters by name, not yet checked.
        extras: Which of `EXTRA_OUTPUTS` to return.
        images: Image files (PNG, JPEG and so on) that the prompt refers to, in its order.
    """

    prompt: str
    stream: bool
    prepend_prompt: bool
    sampling: Mapping[str, Any]
    extras: frozenset[str]
    images: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class ChatRequest:
    """A conversation to continue: an OpenAI chat.completions body, not yet checked."""

    body: Mapping[str, Any]


def complete(config: Any) -> Any:
    """Fill in what a `config.pbtxt` for this backend leaves out.

    Args:
        config: Triton's `ModelConfig` of `auto_complete_config`.

    Returns:
        The same object with the missing inputs and outputs, decoupled responses and no Triton-side batching.
    """
    given = config.as_dict()
    present = {io["name"] for io in [*given["input"], *given["output"]]}
    for name, (data_type, dims) in INPUTS.items():
        if name not in present:
            config.add_input({"name": name, "data_type": data_type, "dims": dims, "optional": True})
    for name, (data_type, dims) in OUTPUTS.items():
        if name not in present:
            config.add_output({"name": name, "data_type": data_type, "dims": dims})
    config.set_model_transaction_policy({"decoupled": True})
    config.set_max_batch_size(0)
    return config


def parse(inputs: Mapping[str, np.ndarray], parameters: Mapping[str, Any]) -> TextRequest | ChatRequest:
    """Read one request.

    Args:
        inputs: Tensors by input name; strings are arrays of `bytes`, flags arrays of `bool`.
        parameters: Triton request parameters. Without the input `sampling_parameters` they are the sampling
            parameters, as in the stock backend.

    Returns:
        A text or a chat request; sampling parameters and chat bodies are checked later, by `sampling` and `chat`.

    Raises:
        InvalidRequest: If an input is missing, malformed or contradicts another.
    """
    # Triton's own switches travel among the parameters.
    parameters = {name: value for name, value in parameters.items() if not name.startswith(("triton_", "binary_data"))}
    if "chat_request" in inputs:
        others = sorted({*inputs} - {"chat_request"})
        if others:
            raise InvalidRequest(
                f"chat_request carries everything in its JSON; leave out the input {', '.join(others)}"
            )
        if parameters:
            raise InvalidRequest(
                f"chat_request takes no request parameters; put {', '.join(sorted(parameters))} into its JSON"
            )
        return ChatRequest(json_object(_string(inputs, "chat_request"), "chat_request"))
    if "text_input" not in inputs:
        raise InvalidRequest("a request needs the input text_input (a rendered prompt) or chat_request (messages)")

    stream = _flag(inputs, "stream", default=False)
    # The stock backend's default is to repeat the prompt, except in a stream, where it cannot.
    exclude = _flag(inputs, "exclude_input_in_output", default=stream)
    if stream and not exclude:
        raise InvalidRequest("exclude_input_in_output must be true when stream is true (or left out)")
    sampling: Mapping[str, Any] = parameters
    if "sampling_parameters" in inputs:
        sampling = json_object(_string(inputs, "sampling_parameters"), "sampling_parameters")
    extras = frozenset(name for name in EXTRA_OUTPUTS if _flag(inputs, f"return_{name}", default=False))
    prompt = _string(inputs, "text_input")
    if not prompt:
        raise InvalidRequest("text_input must not be empty")
    return TextRequest(prompt, stream, not exclude, sampling, extras, _images(inputs))


def json_object(text: str, field: str) -> dict[str, Any]:
    """Parse a JSON object; `field` names it in the error.

    Raises:
        InvalidRequest: If `text` is not JSON or not an object.
    """
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InvalidRequest(f"{field} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidRequest(f'{field} must be a JSON object such as {{"max_tokens": 64}}, got {_kind(value)}')
    return value


def _kind(value: Any) -> str:
    return {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}.get(type(value), "a number")


def _only(inputs: Mapping[str, np.ndarray], name: str) -> Any:
    """The single element of an input."""
    array = np.asarray(inputs[name]).reshape(-1)
    if array.size != 1:
        raise InvalidRequest(f"{name} must hold exactly one element, got {array.size}")
    return array[0]


def _string(inputs: Mapping[str, np.ndarray], name: str) -> str:
    value = _only(inputs, name)
    if len(value) > MAX_STRING_BYTES:  # before it is parsed, rendered or tokenised
        raise InvalidRequest(f"{name} has {len(value)} bytes; at most {MAX_STRING_BYTES} are taken")
    if isinstance(value, str):
        return value
    try:
        return bytes(value).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{name} must be UTF-8 text: {error}") from None


def _images(inputs: Mapping[str, np.ndarray]) -> tuple[bytes, ...]:
    """The images, each given as base64."""
    images = []
    for index, value in enumerate(np.asarray(inputs.get("image", ())).reshape(-1)):
        try:
            images.append(base64.b64decode(value, validate=True))
        except (binascii.Error, ValueError) as error:
            raise InvalidRequest(f"image[{index}] must be an image file in base64: {error}") from None
    return tuple(images)


def _flag(inputs: Mapping[str, np.ndarray], name: str, default: bool) -> bool:
    return bool(_only(inputs, name)) if name in inputs else default
