"""Chat: OpenAI chat.completions bodies in, chat.completion.chunk objects out, made by vLLM's own serving code.

vLLM's `OpenAIServingChat` applies the model's chat template, builds the sampling parameters and words the chunks; only
HTTP is left out. vLLM's tool-call and reasoning parsers, chosen by name, take the reply apart. What this module adds
are refusals that name the field.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import json
from collections.abc import AsyncGenerator, Mapping
from contextvars import ContextVar
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
from vllm.lora.request import LoRARequest
from vllm.parser.abstract_parser import Parser
from vllm.reasoning import ReasoningParserManager
from vllm.renderers.online_renderer import OnlineRenderer
from vllm.tool_parsers import ToolParserManager
from vllm.v1.engine.async_llm import AsyncLLM

from vllm_chat import parsing, rendering
from vllm_chat.contract import Response, json_object
from vllm_chat.errors import BackendError, EngineFailed, InvalidRequest, LoadFailed, Unavailable

ROLES = ("system", "developer", "user", "assistant", "tool")
#: OpenAI fields that mean nothing here and do no harm; OpenAI clients send them unasked.
IGNORED = {"metadata", "modalities", "prompt_cache_key", "safety_identifier", "service_tier", "store", "verbosity"}
#: Fields that would change the answer in ways that are not supported, with the reason.
REFUSED = {
    "functions": "it is OpenAI's old name; use tools",
    "function_call": "it is OpenAI's old name; use tool_choice",
    "use_beam_search": "beam search is not supported",
    "chat_template": "the template is the model's own; steer it with chat_template_kwargs",
}
#: The last chunk has no choices, only the usage. In a JSON string the quotes would be escaped, so no text can look so.
_USAGE_CHUNK = '"choices":[]'
#: What every chunk has but the one that ends the reply, and the usage.
_GOES_ON = '"finish_reason":null'
#: vLLM's name of the thoughts, and OpenAI-compatible servers' (and our) name. Keys look so, texts cannot.
_VLLM_REASONING, _REASONING = '"reasoning":', '"reasoning_content":'
#: The parser that was made for this task's request and has not been used for its reply.
_MADE: ContextVar[tuple[ChatCompletionRequest | None, Parser | None]] = ContextVar("made", default=(None, None))
_SSE_PREFIX = "data: "
_SSE_END = "[DONE]"
_ERROR = '{"error"'


class _Serving(OpenAIServingChat):
    """vLLM's chat, which makes one parser for a request instead of two.

    vLLM makes the first to ask whether the prompt has closed the thoughts, which changes nothing in it, and the second
    when the reply begins.
    """

    def _make_parser(self, request: ChatCompletionRequest, *args: Any, **kwargs: Any) -> Parser:
        whose, parser = _MADE.get()
        if whose is request and parser is not None:
            _MADE.set((None, None))
            return parser
        parser = super()._make_parser(request, *args, **kwargs)
        _MADE.set((request, parser))
        return parser


class Chat:
    """Answers chat requests on one engine.

    Args:
        llm: The engine.
        model_name: The name that chunks carry; a request's `model` may be this, the checkpoint's or a LoRA adapter's.
        chat_template_kwargs: Defaults of the template's switches.
        parsers: vLLM's parsers by name, see `settings.PARSER_ARGS`.
        loras: Adapters by name.

    Raises:
        LoadFailed: If there is no such parser, or it does not fit the model.
    """

    def __init__(
        self,
        llm: AsyncLLM,
        model_name: str,
        chat_template_kwargs: Mapping[str, Any],
        parsers: Mapping[str, str] | None = None,
        loras: Mapping[str, LoRARequest] | None = None,
    ):
        parsers = parsers or {}
        self._template_kwargs = dict(chat_template_kwargs)
        self._has_tools = "tool_call_parser" in parsers
        names = dict.fromkeys((model_name, llm.model_config.model))
        models = OpenAIServingModels(llm, [BaseModelPath(name, llm.model_config.model) for name in names])
        models.lora_requests.update(loras or {})
        common: dict[str, Any] = {
            "request_logger": None,
            "chat_template": None,
            "chat_template_content_format": "auto",
            "default_chat_template_kwargs": self._template_kwargs,
            "tool_parser": parsers.get("tool_call_parser"),
            "enable_auto_tools": self._has_tools,
            # A model that must not call tools does not read of them either, so it cannot call them all the same.
            "exclude_tools_when_tool_choice_none": True,
            "reasoning_parser": parsers.get("reasoning_parser", ""),
        }
        _check_parsers(parsers)
        parsing.keep_lexers()
        rendering.short_ones_at_once(llm.renderer)
        try:
            renderer = OnlineRenderer(llm.model_config, llm.renderer, **common)
            self._serving = _Serving(
                llm, models, "assistant", online_renderer=renderer, enable_prompt_tokens_details=True, **common
            )
            self._serving.parser_cls = parsing.counting_exactly(self._serving.parser_cls)
        except (TypeError, ValueError, RuntimeError) as error:
            raise LoadFailed(
                f"the parsers {', '.join(parsers.values())} do not fit this model ({error}); "
                "set tool_call_parser and reasoning_parser in model.json, or the word none"
            ) from error

    async def generate(self, body: Mapping[str, Any], request_id: str) -> AsyncGenerator[Response, None]:
        """Answer one chat request.

        Args:
            body: The OpenAI body; `stream` is of no matter, the answer is always chunks.
            request_id: Unique among the running requests; the chunks' `id` is made from it.

        Yields:
            `{"chat_chunk": [JSON]}`. The last chunk carries the usage and no choices.

        Raises:
            InvalidRequest: If the body is wrong.
            EngineFailed: If the engine broke while it answered.
        """
        if body.get("tools") and not self._has_tools:
            raise InvalidRequest("chat_request: tools cannot be used: this model has no tool_call_parser in model.json")
        request = _request(body, request_id, self._template_kwargs)
        try:
            answer = await self._serving.create_chat_completion(request)
        except (VLLMClientError, jinja2.TemplateError, ValueError, TypeError) as error:
            raise InvalidRequest(f"chat_request: {_words(error)}") from None
        if isinstance(answer, ErrorResponse):
            raise _failure(answer.model_dump())
        async with contextlib.aclosing(_role_with_text(answer)) as events:
            async for event in events:
                chunk = event.removeprefix(_SSE_PREFIX).strip()
                if chunk == _SSE_END:
                    return
                if chunk.startswith(_ERROR):
                    raise _failure(json_object(chunk, "chat_chunk"))
                yield _response(chunk)


async def _role_with_text(events: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    """Join vLLM's first event, which holds only the role, with the first piece of the reply.

    vLLM makes both from the first token, so nothing waits, and the first piece saves a trip through Triton. Where the
    first token gives no piece (half a letter, a mark that a parser keeps), the role goes alone.
    """
    async with contextlib.aclosing(events):
        role = await anext(events, _SSE_END)
        following = asyncio.ensure_future(anext(events, None))
        try:
            await asyncio.sleep(0)  # by now the next event is made, unless it has to wait for another token
            event = following.result() if following.done() else None
            if event is not None and _is_piece(role) and _is_piece(event):
                yield _joined(role, event)
            else:
                yield role
                event = await following
                if event is not None:
                    yield event
        finally:
            if not following.done():
                following.cancel()
                await asyncio.wait([following])
        async for event in events:
            yield event


def _response(chunk: str) -> Response:
    """A chunk as the response that carries it."""
    chunk = chunk.replace(_VLLM_REASONING, _REASONING)
    outputs = {"chat_chunk": np.array([chunk.encode()], dtype=np.object_)}
    return Response(outputs, final=_USAGE_CHUNK in chunk, done=_GOES_ON not in chunk)


def _is_piece(event: str) -> bool:
    """Tell a chunk of the reply from an error, the usage and the end."""
    chunk = event.removeprefix(_SSE_PREFIX)
    return chunk.startswith("{") and not chunk.startswith(_ERROR) and _USAGE_CHUNK not in chunk


def _joined(role: str, event: str) -> str:
    """One chunk of two, with the second's values where both have them."""
    first, second = (json.loads(text.removeprefix(_SSE_PREFIX)) for text in (role, event))
    delta = {**first["choices"][0]["delta"], **second["choices"][0]["delta"]}
    second["choices"][0]["delta"] = delta
    return _SSE_PREFIX + json.dumps({**first, **second}, ensure_ascii=False, separators=(",", ":"))


def _check_parsers(parsers: Mapping[str, str]) -> None:
    """Load the plugins, and name the parsers that there are if one is not among them."""
    managers = {"tool_call_parser": ToolParserManager, "reasoning_parser": ReasoningParserManager}
    if path := parsers.get("tool_parser_plugin"):
        ToolParserManager.import_tool_parser(path)
    if path := parsers.get("reasoning_parser_plugin"):
        ReasoningParserManager.import_reasoning_parser(path)
    for kind, manager in managers.items():
        known = manager.list_registered()
        if kind in parsers and parsers[kind] not in known:
            raise LoadFailed(f"vLLM has no {kind} {parsers[kind]}; there are {', '.join(known)}, or a plugin's")


def _request(
    body: Mapping[str, Any], request_id: str, template_kwargs: Mapping[str, Any] | None = None
) -> ChatCompletionRequest:
    """Check a body and turn it into vLLM's request.

    Args:
        body: The OpenAI body.
        request_id: See `Chat.generate`.
        template_kwargs: Defaults of the template's switches. They become the request's own, because the parsers look
            for `enable_thinking` there.

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
    if body.get("n") not in (None, 1):
        raise InvalidRequest(f"chat_request: n must be 1, got {body['n']}")
    values = {name: value for name, value in body.items() if name in known and name not in REFUSED}
    if not body.get("tools") and body.get("tool_choice") in (None, "none", "auto"):
        values.pop("tool_choice", None)  # vLLM refuses it without tools; OpenAI clients send it
        values.pop("tools", None)
    if isinstance(body.get("chat_template_kwargs") or {}, dict):
        values["chat_template_kwargs"] = {**(template_kwargs or {}), **(body.get("chat_template_kwargs") or {})}
    values["messages"] = [_with_thoughts(message) for message in body["messages"]]
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


def _with_thoughts(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message of the history with its thoughts where vLLM looks for them."""
    if "reasoning_content" in message and "reasoning" not in message:
        return {**message, "reasoning": message["reasoning_content"]}
    return dict(message)


def _words(error: Exception) -> str:
    return str(error.args[0]) if error.args else type(error).__name__


def _failure(response: Mapping[str, Any]) -> BackendError:
    """The error in vLLM's words, by its HTTP code."""
    detail = response["error"]
    code, message = int(detail.get("code") or 500), str(detail.get("message"))
    if 400 <= code < 500:
        return InvalidRequest(f"chat_request: {message}")
    return Unavailable(message) if code == 503 else EngineFailed(message)
