"""Chat with the language model: an OpenAI body out, its chunks back as typed deltas."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as grpc_aio

from triton_voice.errors import ServerGone
from triton_voice.stream import stream_infer
from triton_voice.types import ChatDelta, ChatFinish, ReasoningDelta, ReplyDelta, ToolCall, ToolCallDelta, Usage

MODEL = "nemotron"


def body(
    messages: Sequence[Mapping[str, Any]] | str,
    tools: Sequence[Mapping[str, Any]] | None,
    reasoning: bool | None,
    sampling: Mapping[str, Any],
) -> dict[str, Any]:
    """Makes the OpenAI chat.completions body.

    Args:
        messages: OpenAI messages, or one user message's text.
        tools: OpenAI tools.
        reasoning: Whether the model thinks first; None leaves it to the server.
        sampling: Further fields of the body, e.g. `max_tokens`; those that are None are left out.
    """
    whole: dict[str, Any] = {name: value for name, value in sampling.items() if value is not None}
    whole["messages"] = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
    if tools:
        whole["tools"] = list(tools)
    if reasoning is not None:
        whole["chat_template_kwargs"] = {**whole.get("chat_template_kwargs", {}), "enable_thinking": reasoning}
    return whole


async def chat(
    client: grpc_aio.InferenceServerClient, request: Mapping[str, Any], answer_timeout_s: float | None
) -> AsyncGenerator[ChatDelta, None]:
    """Runs one chat request; see `TritonVoice.chat`.

    Args:
        client: The connection.
        request: The OpenAI body.
        answer_timeout_s: How long each piece of the reply may take; None waits for ever.

    Yields:
        What the reply is made of, in the order in which it comes.

    Raises:
        TritonVoiceError: As `TritonVoice.chat`.
    """
    calls = ToolCalls()
    async with contextlib.aclosing(chunks(client, request, answer_timeout_s)) as answer:
        async for chunk in answer:
            for choice in chunk["choices"]:
                for delta in _deltas(choice, calls):
                    yield delta
            if chunk.get("usage"):
                yield _usage(chunk["usage"])


async def chunks(
    client: grpc_aio.InferenceServerClient,
    request: Mapping[str, Any],
    answer_timeout_s: float | None,
    model: str = MODEL,
) -> AsyncGenerator[dict[str, Any], None]:
    """Runs one chat request; see `TritonVoice.chat_chunks`.

    Args:
        client: The connection.
        request: The OpenAI body.
        answer_timeout_s: As in `chat`.
        model: The language model's name on the server.

    Yields:
        OpenAI chat.completion.chunk objects, the usage last.

    Raises:
        TritonVoiceError: As `TritonVoice.chat`.
    """
    tensor = triton_grpc.InferInput("chat_request", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([json.dumps(request).encode()], dtype=object))
    ended = False
    # Read to the end of the stream, not only to the last chunk: see `stream_infer`.
    asked = {"model_name": model, "inputs": [tensor]}
    async with contextlib.aclosing(stream_infer(client, asked, answer_timeout_s)) as results:
        async for result in results:
            chunk = json.loads(result.as_numpy("chat_chunk").reshape(-1)[0])
            ended = ended or bool(chunk.get("usage"))
            yield chunk
    if not ended:
        raise ServerGone("the server ended the stream before the end of the reply")


class ToolCalls:
    """Puts tool calls together from their pieces."""

    def __init__(self) -> None:
        self._pieces: dict[int, dict[str, str]] = {}

    def add(self, piece: Mapping[str, Any]) -> ToolCallDelta:
        """Takes a piece as OpenAI words it and returns it as a delta."""
        function = piece.get("function") or {}
        call = self._pieces.setdefault(piece["index"], {"id": "", "name": "", "arguments": ""})
        call["id"] += piece.get("id") or ""
        call["name"] += function.get("name") or ""
        call["arguments"] += function.get("arguments") or ""
        return ToolCallDelta(piece["index"], call["id"], call["name"], function.get("arguments") or "")

    def whole(self) -> tuple[ToolCall, ...]:
        """Returns the calls in the order in which the model made them."""
        return tuple(ToolCall(**call) for _, call in sorted(self._pieces.items()))


def _deltas(choice: Mapping[str, Any], calls: ToolCalls) -> Iterator[ChatDelta]:
    delta = choice.get("delta") or {}
    if thought := delta.get("reasoning_content"):
        yield ReasoningDelta(thought)
    if text := delta.get("content"):
        yield ReplyDelta(text)
    for piece in delta.get("tool_calls") or ():
        yield calls.add(piece)
    if reason := choice.get("finish_reason"):
        yield ChatFinish(reason, calls.whole())


def _usage(usage: Mapping[str, Any]) -> Usage:
    return Usage(
        prompt_tokens=usage["prompt_tokens"],
        completion_tokens=usage.get("completion_tokens", 0),
        cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
        reasoning_tokens=(usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0,
    )
