"""Sampling parameters: from JSON to vLLM's `SamplingParams`, each mistake named with what is allowed."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import typing
from collections.abc import Mapping
from typing import Any

import msgspec
from vllm.exceptions import VLLMClientError
from vllm.sampling_params import SamplingParams, StructuredOutputsParams

from vllm_chat.errors import InvalidRequest

#: Fields of `SamplingParams` that are not a client's to set: the backend decides them, or they are not JSON.
_INTERNAL = {"output_kind", "skip_clone", "output_text_buffer_length", "detokenize", "prompt_logprob_token_ids"}
#: How a type is called in an error message.
_NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "a string", dict: "an object"}


@functools.cache
def allowed() -> dict[str, Any]:
    """Sampling parameters that clients may set, with their Python types."""
    hints = typing.get_type_hints(SamplingParams)
    return {
        name: hints[name]
        for name in SamplingParams.__struct_fields__
        if not name.startswith("_") and name not in _INTERNAL
    }


def build(parameters: Mapping[str, Any], field: str = "sampling_parameters") -> SamplingParams:
    """Check sampling parameters and build vLLM's object from them.

    Args:
        parameters: Values by name. Numbers may be given as strings ("0.7"), as the stock backend's samples do; null
            means the default. `structured_outputs` may be an object or a string of JSON.
        field: What to call the whole in an error.

    Returns:
        vLLM's parameters with its defaults for the rest (16 tokens, temperature 1).

    Raises:
        InvalidRequest: If a name is unknown, or a value is of the wrong type or out of range.
    """
    values = {name: _convert(name, value, field) for name, value in parameters.items() if value is not None}
    try:
        return SamplingParams(**values)
    except (VLLMClientError, ValueError, TypeError) as error:
        raise InvalidRequest(f"{field}: {error.args[0] if error.args else error}") from None


def _convert(name: str, value: Any, field: str) -> Any:
    if name not in allowed():
        near = difflib.get_close_matches(name, allowed(), n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InvalidRequest(f"{field} has no {name}; {hint}Allowed are {', '.join(sorted(allowed()))}")
    wanted = allowed()[name]
    if name == "structured_outputs":
        return _structured_outputs(value, field)
    try:
        # Not strict: "0.7" becomes 0.7. A yes or no is not a number though, whatever Python thinks.
        if isinstance(value, bool) and bool not in _members(wanted):
            raise msgspec.ValidationError
        return msgspec.convert(value, wanted, strict=False)
    except msgspec.ValidationError:
        raise InvalidRequest(f"{field}: {name} must be {_describe(wanted)}, got {json.dumps(value)[:80]}") from None


def _structured_outputs(value: Any, field: str) -> StructuredOutputsParams:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise InvalidRequest(f"{field}: structured_outputs is not valid JSON: {error}") from None
    kinds = [field.name for field in dataclasses.fields(StructuredOutputsParams) if not field.name.startswith("_")]
    if not isinstance(value, dict):
        raise InvalidRequest(f"{field}: structured_outputs must be an object with one of {', '.join(kinds)}")
    for name in value:
        if name not in kinds:
            raise InvalidRequest(f"{field}: structured_outputs has no {name}; allowed are {', '.join(kinds)}")
    try:
        return StructuredOutputsParams(**value)
    except (VLLMClientError, ValueError, TypeError) as error:
        raise InvalidRequest(f"{field}: structured_outputs: {error}") from None


def _members(wanted: Any) -> tuple[Any, ...]:
    """The members of a union, or the type alone; without None."""
    return tuple(kind for kind in (typing.get_args(wanted) or (wanted,)) if kind is not type(None))


def _describe(wanted: Any) -> str:
    origin = typing.get_origin(wanted)
    if origin is list:
        return f"a list of {_describe(typing.get_args(wanted)[0]).split(' ', 1)[-1]}s"
    if origin is dict:
        return "an object"
    if origin is not None:
        return " or ".join(_describe(kind) for kind in _members(wanted))
    return _NAMES.get(wanted, "an object")
