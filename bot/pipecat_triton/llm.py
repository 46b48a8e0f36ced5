"""The language model: Pipecat's OpenAI service with the server's chat stream in the place of HTTP."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from openai import NotGiven as OpenAINotGiven
from openai import Omit
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pipecat.adapters.llm.services.open_ai_adapter import OpenAILLMInvocationParams
from pipecat.frames.frames import (
    LLMThoughtEndFrame,
    LLMThoughtStartFrame,
    LLMThoughtTextFrame,
)
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.services.openai.base_llm import BaseOpenAILLMService, OpenAILLMSettings
from pipecat.utils.types import NOT_GIVEN, NotGiven

from pipecat_triton.service import TritonService
from triton_voice import DEFAULT_URL, ServerSilent

Chunks = AsyncGenerator[ChatCompletionChunk, None]

CLIENT_ONLY = ("stream", "stream_options", "service_tier")
"""Parameters of OpenAI's client that mean nothing to the server, which always streams and always tells the usage."""


@dataclass
class TritonLLMSettings(OpenAILLMSettings):
    """Settings of `TritonLLMService`; a change applies from the next reply.

    Parameters:
        model: Name of the language model on the server. Put the name of a LoRA adapter into `extra={"model": ...}`.
        reasoning: Whether the model thinks before it replies. None leaves it to the server, which does not by default.
    """

    reasoning: bool | NotGiven | None = field(default_factory=lambda: NOT_GIVEN)


class TritonLLMService(TritonService, BaseOpenAILLMService):
    """The `nemotron` model (any LLM on vLLM) of a triton-voice server.

    Everything that Pipecat's OpenAI service does is done by it: streaming, tool calls, usage and latency metrics,
    speculative answers, summaries. The chat template, the tool-call parser and the reasoning parser are the server's,
    so nothing here knows the model.

    Thoughts become `LLMThoughtStartFrame`, `LLMThoughtTextFrame` and `LLMThoughtEndFrame`, which are never spoken. An
    interruption cancels the request, and the server stops generating at the next token.
    """

    Settings = TritonLLMSettings
    _settings: TritonLLMSettings

    supports_developer_role = False
    """Chat templates know system, user, assistant and tool."""

    def __init__(
        self,
        *,
        url: str = DEFAULT_URL,
        conversation: str | None = None,
        answer_timeout_s: float | None = 30.0,
        settings: TritonLLMSettings | None = None,
        **kwargs: Any,
    ) -> None:
        """Initialize the service.

        Args:
            url: `host:port` of the server's gRPC endpoint.
            conversation: An id for the server's log lines about this conversation's requests.
            answer_timeout_s: How long a reply may take to begin, and to go on, before it counts as failed; None waits
                for ever.
            settings: Runtime-updatable settings.
            **kwargs: Passed to `BaseOpenAILLMService`.
        """
        default_settings = self.Settings(model="nemotron", reasoning=None)
        if settings is not None:
            default_settings.apply_update(settings)
        super().__init__(url=url, conversation=conversation, settings=default_settings, **kwargs)
        self._answer_timeout_s = answer_timeout_s

    def create_client(self, **kwargs: Any) -> Any:  # type: ignore[override]
        """Create what stands in for the OpenAI client.

        Args:
            **kwargs: Not used: there is no HTTP.

        Returns:
            An object with `chat.completions.create`.
        """
        return SimpleNamespace(chat=SimpleNamespace(completions=SimpleNamespace(create=self._complete)))

    # Requests --------------------------------------------------------------------------------------------------------

    def build_chat_completion_params(self, params_from_context: OpenAILLMInvocationParams) -> dict[str, Any]:
        """Build the parameters of a request.

        Args:
            params_from_context: Messages, tools and tool choice.

        Returns:
            OpenAI's parameters and vLLM's.
        """
        params = super().build_chat_completion_params(params_from_context)
        settings = self._settings
        if settings.top_k is not None:
            params.setdefault("top_k", settings.top_k)
        if settings.reasoning is not None:
            template = params.get("chat_template_kwargs") or {}
            params["chat_template_kwargs"] = {"enable_thinking": settings.reasoning, **template}
        return params

    async def get_chat_completions(self, context: LLMContext) -> Chunks:  # type: ignore[override]
        """Get the chunks of a reply.

        Args:
            context: The conversation and its tools.

        Returns:
            OpenAI chunks; thoughts are left out, they are pushed as frames.
        """
        return self._without_thoughts(await super().get_chat_completions(context))

    async def _complete(self, **params: Any) -> Chunks | ChatCompletion:
        """Does what the OpenAI client's `chat.completions.create` does."""
        chunks = self._chunks(_body(params, str(self._settings.model)))
        try:
            first = await anext(chunks)
        except ServerSilent:
            await self._call_event_handler("on_completion_timeout")
            raise
        self._settings_worked = True
        answer = _resumed(first, chunks)
        return answer if params.get("stream") else await _whole(answer)

    async def _chunks(self, body: dict[str, Any]) -> Chunks:
        answer = self._voice.chat_chunks(body, model=str(self._settings.model), answer_timeout_s=self._answer_timeout_s)
        async with contextlib.aclosing(answer) as chunks:
            async for chunk in chunks:
                for part in _one_call_each(chunk):
                    yield ChatCompletionChunk.model_validate(part)

    async def _without_thoughts(self, chunks: AsyncIterator[ChatCompletionChunk]) -> Chunks:
        thinks = False
        async with contextlib.aclosing(chunks) as answer:  # type: ignore[type-var]
            async for chunk in answer:
                delta = chunk.choices[0].delta if chunk.choices else None
                if thought := getattr(delta, "reasoning_content", None):
                    if not thinks:
                        await self.push_frame(LLMThoughtStartFrame())
                    await self.push_frame(LLMThoughtTextFrame(text=thought))
                    thinks = True
                # A busy server joins tokens: the last of the thought and the first of the reply may come in one chunk.
                if thinks and (not thought or (delta is not None and (delta.content or delta.tool_calls))):
                    await self.push_frame(LLMThoughtEndFrame())
                    thinks = False
                yield chunk
            if thinks:
                await self.push_frame(LLMThoughtEndFrame())


def _body(params: dict[str, Any], model: str) -> dict[str, Any]:
    """Makes the server's request of the OpenAI client's arguments."""
    body = {name: value for name, value in params.items() if _is_given(value) and name not in CLIENT_ONLY}
    body |= body.pop("extra_body", {})
    if body.get("model") == model:
        del body["model"]  # the name of the model on the server, which its own names need not contain
    return body


def _is_given(value: Any) -> bool:
    """Whether a parameter has a value; OpenAI's client and Pipecat each have their own mark for those without."""
    return value is not None and not isinstance(value, NotGiven | OpenAINotGiven | Omit)


def _one_call_each(chunk: dict[str, Any]) -> list[dict[str, Any]]:
    """Splits a chunk with pieces of several tool calls: Pipecat reads only the first of each chunk."""
    choices = chunk.get("choices") or []
    calls = (choices[0].get("delta") or {}).get("tool_calls") or [] if choices else []
    if len(calls) < 2:
        return [chunk]
    choice = choices[0]
    parts = [{**choice, "finish_reason": None, "delta": {"tool_calls": [call]}} for call in calls]
    parts[0]["delta"] = {**choice["delta"], "tool_calls": calls[:1]}
    parts[-1]["finish_reason"] = choice.get("finish_reason")
    return [{**chunk, "choices": [part]} for part in parts]


async def _resumed(first: ChatCompletionChunk, rest: Chunks) -> Chunks:
    async with contextlib.aclosing(rest):
        yield first
        async for chunk in rest:
            yield chunk


async def _whole(chunks: Chunks) -> ChatCompletion:
    """Puts the text of an answer together."""
    text, reason, usage, last = "", "stop", None, None
    async with contextlib.aclosing(chunks):
        async for chunk in chunks:
            last = chunk
            usage = chunk.usage or usage
            for choice in chunk.choices:
                text += choice.delta.content or ""
                reason = choice.finish_reason or reason
    message = {"role": "assistant", "content": text}
    return ChatCompletion.model_validate(
        {
            "id": last.id if last else "",
            "created": last.created if last else int(time.time()),
            "model": last.model if last else "",
            "object": "chat.completion",
            "choices": [{"index": 0, "finish_reason": reason, "message": message, "logprobs": None}],
            "usage": usage.model_dump() if usage else None,
        }
    )
