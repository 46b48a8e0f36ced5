"""The asyncio client: hear, think and speak over one gRPC connection."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections.abc import AsyncGenerator, AsyncIterable, Mapping, Sequence
from types import EllipsisType
from typing import Any

import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as grpc_aio
from tritonclient.grpc import InferenceServerClientPlugin
from tritonclient.utils import InferenceServerException

from triton_voice import chat as chatting
from triton_voice.audio import Samples, resampled
from triton_voice.errors import ServerGone, TritonVoiceError
from triton_voice.recognition import ANSWER_TIMEOUT_S, START_TIMEOUT_S, RecognitionStream
from triton_voice.recognition import MODEL as ASR_MODEL
from triton_voice.stream import stream_infer
from triton_voice.tls import SCHEME, Tls
from triton_voice.types import ASR_SAMPLE_RATE, ChatDelta, Readiness, SpeechChunk, TextDelta, Transcript, Word

DEFAULT_URL = "127.0.0.1:8001"
TTS_MODEL = "magpie"
KEEPALIVE_MS, KEEPALIVE_TIMEOUT_MS = 60_000, 20_000
"""A vanished server is noticed in a minute; Triton answers pings no oftener than that without data."""
MAX_RECONNECT_BACKOFF_MS = 1000
"""Between two attempts to connect. gRPC's own two minutes would leave a client dead long after the server is back."""
CONVERSATION_HEADER = "triton_voice_conversation"
"""gRPC metadata with the conversation's id; `triton-voice serve` has Triton hand it on to the models' logs."""
READY_TIMEOUT_S = 10.0
"""A server that has not told by then whether it is ready is not: its process is stopped, or its network is gone."""
REPLY_TIMEOUT_S = 60.0
"""How long replies and speech may keep a caller waiting for their next piece. The first piece comes after the server's
queue and the whole prompt: seconds on a busy machine, with a long conversation perhaps twenty."""
MAX_CONVERSATION = 64
_CONVERSATION = re.compile(rf"[\w.-]{{1,{MAX_CONVERSATION}}}", re.ASCII)


def _channel_args() -> list[tuple[str, Any]]:
    """Options of the connection: tritonclient's own, our keepalive, and a quick return to a server that was away."""
    return [
        ("grpc.max_send_message_length", triton_grpc.MAX_GRPC_MESSAGE_SIZE),
        ("grpc.max_receive_message_length", triton_grpc.MAX_GRPC_MESSAGE_SIZE),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.max_reconnect_backoff_ms", MAX_RECONNECT_BACKOFF_MS),
        # gRPC would share one TCP connection between all clients of a process, and a balancer spreads connections.
        ("grpc.use_local_subchannel_pool", 1),
    ]


def _bytes_input(name: str, value: str) -> triton_grpc.InferInput:
    tensor = triton_grpc.InferInput(name, [1], "BYTES")
    tensor.set_data_from_numpy(np.array([value.encode()], dtype=object))
    return tensor


def _bool_input(name: str, value: bool) -> triton_grpc.InferInput:
    tensor = triton_grpc.InferInput(name, [1], "BOOL")
    tensor.set_data_from_numpy(np.array([value]))
    return tensor


def _text(result: Any, name: str) -> str:
    return result.as_numpy(name).reshape(-1)[0].decode()


def _is_last(result: Any) -> bool:
    return bool(result.get_response().parameters["triton_final_response"].bool_param)


class _Conversation(InferenceServerClientPlugin):
    """Adds the conversation's id to the metadata of every call."""

    def __init__(self, conversation: str):
        self._conversation = conversation

    def __call__(self, request: Any) -> None:
        request.headers = {**(request.headers or {}), CONVERSATION_HEADER: self._conversation}


class TritonVoice:
    """A connection to one server.

    Use it as an async context manager, or call `close`. Its streaming methods are async generators: leaving one early
    (`break`, an exception, a cancelled task) cancels the request on the server. Use `contextlib.aclosing` where that
    must happen at once.

    Args:
        url: `host:port` of the gRPC endpoint. `grpcs://host:port` connects by TLS with what the environment names, see
            `Tls.from_environment`.
        tls: Connects by TLS with these files.
        conversation: An id for logs: the server's lines about this client's requests carry it. Letters, digits, `_`,
            `.` and `-`, at most 64; it is no secret and proves nothing.
        answer_timeout_s: How long `chat`, `generate` and `speak` wait for the first piece of their answer and for each
            one after it; None waits for ever. Calls can have one of their own. The recogniser's is in `open_stream`.

    Raises:
        ValueError: The id has other characters or is too long.

    Example:
        ```python
        async with TritonVoice() as voice:
            async for chunk in voice.speak("Hello."):
                play(chunk.audio)
        ```
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        tls: Tls | None = None,
        conversation: str | None = None,
        answer_timeout_s: float | None = REPLY_TIMEOUT_S,
    ):
        if conversation is not None and not _CONVERSATION.fullmatch(conversation):
            raise ValueError(
                f"a conversation's id has 1 to {MAX_CONVERSATION} letters, digits, '_', '.' or '-': {conversation!r}"
            )
        self.url = url
        self.answer_timeout_s = answer_timeout_s
        self._tls = tls or (Tls.from_environment() if url.startswith(SCHEME) else None)
        self._conversation = conversation
        self._client: grpc_aio.InferenceServerClient | None = None

    async def __aenter__(self) -> TritonVoice:
        """Connects lazily: the first call does."""
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Closes the connection."""
        await self.close()

    async def close(self) -> None:
        """Closes the connection; calls in flight fail."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    @property
    def client(self) -> grpc_aio.InferenceServerClient:
        """Tritonclient's own client, for what this one does not cover."""
        if self._client is None:
            tls = self._tls
            self._client = grpc_aio.InferenceServerClient(
                self.url.removeprefix(SCHEME),
                channel_args=[*_channel_args(), *(tls.channel_args() if tls else ())],
                **(tls.arguments() if tls else {}),
            )
            if self._conversation is not None:
                self._client.register_plugin(_Conversation(self._conversation))
        return self._client

    async def ready(self, models: tuple[str, ...] = ("parakeet", "nemotron", "magpie")) -> Readiness:
        """Asks whether the server and its models are ready. Does not raise for a server that is not there or hangs."""
        limit: dict[str, Any] = {"client_timeout": READY_TIMEOUT_S}
        try:
            if not await self.client.is_server_live(**limit):
                return Readiness(False)
            states = await asyncio.gather(*(self.client.is_model_ready(model, **limit) for model in models))
        except InferenceServerException:
            return Readiness(False)
        return Readiness(True, dict(zip(models, states, strict=True)))

    async def transcribe(
        self,
        audio: AsyncIterable[Samples | bytes],
        *,
        sample_rate: int = ASR_SAMPLE_RATE,
        latency_ms: int | None = None,
        language: str | None = None,
        start_timeout_s: float = START_TIMEOUT_S,
    ) -> AsyncGenerator[Transcript, None]:
        """Recognises speech while it comes in.

        Args:
            audio: Pieces of mono int16 audio, arrays of shape (samples,) or little-endian bytes, of any length.
            sample_rate: Their rate; other than 16 kHz is resampled here.
            latency_ms: The checkpoint's lookahead to use; None takes the server's default.
            language: Language, for checkpoints that know several.
            start_timeout_s: How long to wait for room on the server.

        Yields:
            One transcript per piece, the utterance so far; the last one is final.

        Raises:
            InvalidInput: Wrong audio, latency or language.
            ServerFull: No room within `start_timeout_s`.
            SequenceLost: The server dropped the stream.
            ServerGone: The server cannot be reached.
        """
        stream = self.open_stream(latency_ms=latency_ms, language=language, start_timeout_s=start_timeout_s)
        async with stream:
            async for piece in resampled(audio, sample_rate):
                yield await stream.send(piece)
            yield await stream.end()

    def open_stream(
        self,
        *,
        latency_ms: int | None = None,
        language: str | None = None,
        start_timeout_s: float = START_TIMEOUT_S,
        answer_timeout_s: float = ANSWER_TIMEOUT_S,
        model: str = ASR_MODEL,
    ) -> RecognitionStream:
        """Returns a stream to the recogniser that the caller drives piece by piece.

        Args:
            latency_ms: As in `transcribe`.
            language: As in `transcribe`.
            start_timeout_s: As in `transcribe`.
            answer_timeout_s: How long the answer to a piece may take, on top of a thirtieth of the piece's length.
            model: The recogniser's name on the server.
        """
        chosen = {"latency_ms": latency_ms, "language": language}
        parameters = {name: value for name, value in chosen.items() if value is not None}
        return RecognitionStream(self.client, parameters, start_timeout_s, answer_timeout_s, model)

    async def speak(
        self,
        text: str,
        *,
        voice: str | None = None,
        language: str | None = None,
        seed: int | None = None,
        model: str = TTS_MODEL,
        answer_timeout_s: float | EllipsisType | None = ...,
        **parameters: Any,
    ) -> AsyncGenerator[SpeechChunk, None]:
        """Speaks a text.

        Args:
            text: What to say.
            voice: One of the checkpoint's voices; None takes the server's default.
            language: Language of the text.
            seed: The same seed gives the same speech.
            model: The synthesiser's name on the server.
            answer_timeout_s: How long each chunk may take; `...` takes the client's, None waits for ever. A piece of an
                utterance waits for the pieces before it.
            **parameters: Further request parameters, e.g. `temperature`, `top_k`, `cfg_scale`, `max_seconds`, or
                `utterance`, an id: texts with the same id are pieces of one utterance, spoken in the order in which
                they are sent, each iteration yielding its own piece.

        Yields:
            Chunks of audio as they are made, each with the words that begin in it; none of them empty, but for a last
            one that may have words alone.

        Raises:
            InvalidInput: An unknown voice, language or parameter.
            ServerFull: The server's queue is full.
            ServerSilent: A chunk took longer than `answer_timeout_s`.
            ServerGone: The server cannot be reached.
        """
        chosen = {"voice": voice, "language": language, "seed": seed, **parameters}
        request = {
            "model_name": model,
            "inputs": [_bytes_input("TEXT", text)],
            "parameters": {name: value for name, value in chosen.items() if value is not None},
        }
        last = False
        stream = stream_infer(self.client, request, self._patience(answer_timeout_s))
        async with contextlib.aclosing(stream) as results:
            async for result in results:
                audio = result.as_numpy("AUDIO").reshape(-1)
                words = tuple(Word(**word) for word in json.loads(_text(result, "WORDS")))
                if len(audio) or words:
                    yield SpeechChunk(audio, words=words)
                last = _is_last(result)
        if not last:
            raise ServerGone("the server ended the stream before the last of the speech")

    async def chat(
        self,
        messages: Sequence[Mapping[str, Any]] | str,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        reasoning: bool | None = None,
        answer_timeout_s: float | EllipsisType | None = ...,
        **sampling: Any,
    ) -> AsyncGenerator[ChatDelta, None]:
        """Continues a conversation: the model's own chat template, tool calls and thoughts.

        Args:
            messages: OpenAI messages (`role`, `content`, ...), or one user message's text.
            tools: OpenAI tools.
            reasoning: Whether the model thinks first; None leaves it to the server, which does not by default.
            answer_timeout_s: How long each piece may take, the first one with the queue and the prompt; `...` takes the
                client's, None waits for ever.
            **sampling: Further fields of OpenAI's chat.completions body, e.g. `max_tokens`, `temperature`, `seed`,
                `stop`, `tool_choice`, `response_format`.

        Yields:
            `ReplyDelta`, `ReasoningDelta` and `ToolCallDelta` as they come, `ChatFinish` with the whole tool calls, and
            `Usage` last.

        Raises:
            InvalidInput: A message, tool or parameter is wrong; the sentence names it.
            ServerFull: The server's queue is full.
            ModelNotReady: The model is not loaded, or its engine died.
            ServerSilent: A piece took longer than `answer_timeout_s`.
            ServerGone: The server cannot be reached.
        """
        request = chatting.body(messages, tools, reasoning, sampling)
        async with contextlib.aclosing(chatting.chat(self.client, request, self._patience(answer_timeout_s))) as deltas:
            async for delta in deltas:
                yield delta

    async def chat_chunks(
        self,
        request: Mapping[str, Any],
        *,
        model: str = chatting.MODEL,
        answer_timeout_s: float | EllipsisType | None = ...,
    ) -> AsyncGenerator[dict[str, Any], None]:
        """As `chat`, for callers that speak OpenAI's own words.

        Args:
            request: An OpenAI chat.completions body; its `model` and `stream` may be left out.
            model: The language model's name on the server.
            answer_timeout_s: As in `chat`.

        Yields:
            OpenAI chat.completion.chunk objects; thoughts are in `delta.reasoning_content`, the last one has the usage.

        Raises:
            TritonVoiceError: As `chat`.
        """
        limit = self._patience(answer_timeout_s)
        async with contextlib.aclosing(chatting.chunks(self.client, request, limit, model)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def generate(
        self, prompt: str, *, answer_timeout_s: float | EllipsisType | None = ..., **sampling: Any
    ) -> AsyncGenerator[TextDelta, None]:
        """Continues a prompt, as Triton's stock vLLM backend does: no chat template is applied.

        Args:
            prompt: The text.
            answer_timeout_s: As in `chat`.
            **sampling: vLLM sampling parameters, e.g. `max_tokens`, `temperature`, `seed`, `stop`.

        Yields:
            Pieces of new text; the last one has the reason why it ended.

        Raises:
            InvalidInput: An unknown or wrong sampling parameter, or a prompt that is too long.
            ServerFull: The server's queue is full.
            ServerSilent: A piece took longer than `answer_timeout_s`.
            ServerGone: The server cannot be reached.
        """
        request = {
            "model_name": "nemotron",
            "inputs": [
                _bytes_input("text_input", prompt),
                _bool_input("stream", True),
                _bool_input("exclude_input_in_output", True),
                _bool_input("return_finish_reason", True),
                _bytes_input("sampling_parameters", json.dumps(sampling)),
            ],
        }
        last = False
        stream = stream_infer(self.client, request, self._patience(answer_timeout_s))
        async with contextlib.aclosing(stream) as results:
            async for result in results:
                reason = _text(result, "finish_reason") if result.as_numpy("finish_reason") is not None else ""
                yield TextDelta(_text(result, "text_output"), reason if reason not in ("", "None") else None)
                last = _is_last(result)
        if not last:
            raise ServerGone("the server ended the stream before the last piece of text")

    def _patience(self, answer_timeout_s: float | EllipsisType | None) -> float | None:
        """What a call's `answer_timeout_s` means."""
        return self.answer_timeout_s if isinstance(answer_timeout_s, EllipsisType) else answer_timeout_s


async def wait_until_ready(url: str = DEFAULT_URL, timeout_s: float = 60.0, poll_s: float = 0.2) -> None:
    """Waits until the server and its three models are ready.

    Raises:
        TritonVoiceError: They were not ready in time; the message says which.
    """
    deadline = time.monotonic() + timeout_s
    async with TritonVoice(url) as voice:
        while not (state := await voice.ready()).all_ready:
            if time.monotonic() > deadline:
                missing = ", ".join(name for name, up in state.models.items() if not up) or "the server"
                raise TritonVoiceError(f"not ready after {timeout_s:.0f} s: {missing} at {url}")
            await asyncio.sleep(poll_s)
