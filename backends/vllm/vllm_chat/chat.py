"""Chat: OpenAI chat.completions bodies in, chat.completion.chunk objects out, made by vLLM's own serving code.

vLLM's `OpenAIServingChat` applies the model's chat template, builds the sampling parameters and words the chunks; only
HTTP is left out. What this module adds are refusals that name the field.
"""

from __future__ import annotations

import difflib
from collections.abc import AsyncIterator, Mapping
from typing import Any

import jinja2
import numpy as np
from pydantic import ValidationError
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.openai.models.protocol import BaseModelPath
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.exceptions import VLLMClientError
from vllm.renderers.online_renderer import OnlineRenderer
from vllm.v1.engine.async_llm import AsyncLLM

from vllm_chat.contract import json_object
from vllm_chat.errors import BackendError, EngineFailed, InvalidRequest, Unavailable

ROLES = ("system", "developer", "user", "assistant", "tool")
#: OpenAI fields that mean nothing here and do no harm; OpenAI clients send them unasked.
IGNORED = {"metadata", "modalities", "prompt_cache_key", "safety_identifier", "service_tier", "store", "verbosity"}
#: Fields that would change the answer in ways that are not supported, with the reason.
REFUSED = {
    "tools": "tool calls are not supported yet",
    "functions": "tool calls are not supported yet",
    "function_call": "tool calls are not supported yet",
    "use_beam_search": "beam search is not supported",
    "chat_template": "the template is the model's own; steer it with chat_template_kwargs",
}
#: The last chunk has no choices, only the usage. In a JSON string the quotes would be escaped, so no text can look so.
_USAGE_CHUNK = '"choices":[]'
_SSE_PREFIX = "data: "
_SSE_END = "[DONE]"


class Chat:
    """Answers chat requests on one engine.

    Args:
        llm: The engine.
        model_name: The name that chunks carry; a request's `model` may be this or the checkpoint's.
        chat_template_kwargs: Defaults of the template's switches.
    """

    def __init__(self, llm: AsyncLLM, model_name: str, chat_template_kwargs: Mapping[str, Any]):
        names = dict.fromkeys((model_name, llm.model_config.model))
        models = OpenAIServingModels(llm, [BaseModelPath(name, llm.model_config.model) for name in names])
        common: dict[str, Any] = {
            "request_logger": None,
            "chat_template": None,
            "chat_template_content_format": "auto",
            "default_chat_template_kwargs": dict(chat_template_kwargs),
        }
        renderer = OnlineRenderer(llm.model_config, llm.renderer, **common)
        self._serving = OpenAIServingChat(llm, models, "assistant", online_renderer=renderer, **common)

    async def generate(
        self, body: Mapping[str, Any], request_id: str
    ) -> AsyncIterator[tuple[dict[str, np.ndarray], bool]]:
        """Answer one chat request.

        Args:
            body: The OpenAI body; `stream` is of no matter, the answer is always chunks.
            request_id: Unique among the running requests; the chunks' `id` is made from it.

        Yields:
            `{"chat_chunk": [JSON]}` and whether it is the last. The last chunk carries the usage and no choices.

        Raises:
            InvalidRequest: If the body is wrong.
            EngineFailed: If the engine broke while it answered.
        """
        request = _request(body, request_id)
        try:
            answer = await self._serving.create_chat_completion(request)
        except (VLLMClientError, jinja2.TemplateError, ValueError, TypeError) as error:
            raise InvalidRequest(f"chat_request: {_words(error)}") from None
        if isinstance(answer, ErrorResponse):
            raise _failure(answer.model_dump())
        async for event in answer:
            chunk = event.removeprefix(_SSE_PREFIX).strip()
            if chunk == _SSE_END:
                return
            if chunk.startswith('{"error"'):
                raise _failure(json_object(chunk, "chat_chunk"))
            yield {"chat_chunk": np.array([chunk.encode()], dtype=np.object_)}, _USAGE_CHUNK in chunk


def _request(body: Mapping[str, Any], request_id: str) -> ChatCompletionRequest:
    """Check a body and turn it into vLLM's request.

    Raises:
        InvalidRequest: Naming the field and what it allows.
    """
    _check_messages(body.get("messages"))
    known = ChatCompletionRequest.model_fields
    for name, value in body.items():
        if name in REFUSED and value:
            raise InvalidRequest(f"chat_request: {name} cannot be used: {REFUSED[name]}")
        if name not in known and name not in IGNORED and name not in REFUSED:
            near = difflib.get_close_matches(name, known, n=1)
            raise InvalidRequest(
                f"chat_request has no field {name}"
                + (f"; did you mean {near[0]}?" if near else "; the fields are those of OpenAI's chat.completions")
            )
    if body.get("tool_choice") not in (None, "none", "auto"):
        raise InvalidRequest("chat_request: tool_choice cannot be used: tool calls are not supported yet")
    if body.get("n") not in (None, 1):
        raise InvalidRequest(f"chat_request: n must be 1, got {body['n']}")
    values = {name: value for name, value in body.items() if name in known and name not in (*REFUSED, "tool_choice")}
    values |= {"stream": True, "stream_options": {"include_usage": True}, "request_id": request_id}
    try:
        return ChatCompletionRequest.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if not str(part).startswith("ChatCompletion"))
        raise InvalidRequest(f"chat_request: {place + ': ' if place else ''}{first['msg']}") from None
    except (VLLMClientError, ValueError, TypeError) as error:
        raise InvalidRequest(f"chat_request: {_words(error)}") from None


def _check_messages(messages: Any) -> None:
    """Refuse what pydantic would answer with a page about every kind of message."""
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest('chat_request: messages must be a list such as [{"role": "user", "content": "Hello"}]')
    for index, message in enumerate(messages):
        where = f"chat_request: messages[{index}]"
        if not isinstance(message, dict):
            raise InvalidRequest(f"{where} must be an object with a role and a content")
        if message.get("role") not in ROLES:
            raise InvalidRequest(f"{where}.role must be one of {', '.join(ROLES)}, got {message.get('role')!r}")
        content = message.get("content")
        if content is None and message["role"] != "assistant":
            raise InvalidRequest(f"{where}.content is missing")
        if not isinstance(content, str | list | None):
            raise InvalidRequest(f"{where}.content must be a string or a list of parts")


def _words(error: Exception) -> str:
    return str(error.args[0]) if error.args else type(error).__name__


def _failure(response: Mapping[str, Any]) -> BackendError:
    """The error in vLLM's words, by its HTTP code."""
    detail = response["error"]
    code, message = int(detail.get("code") or 500), str(detail.get("message"))
    if 400 <= code < 500:
        return InvalidRequest(f"chat_request: {message}")
    return Unavailable(message) if code == 503 else EngineFailed(message)
