"""One stream of speech to the recogniser."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from typing import Any

import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as grpc_aio
from tritonclient.utils import InferenceServerException

from triton_voice.audio import Samples
from triton_voice.errors import ServerSilent, TritonVoiceError, from_triton
from triton_voice.tracing import CallSpan
from triton_voice.types import ASR_SAMPLE_RATE, Transcript, Word

MODEL = "parakeet"
START_TIMEOUT_S = 2.0
"""How long a stream waits for room on the server."""
ANSWER_TIMEOUT_S = 30.0
"""How long one piece of audio may take, on top of a thirtieth of its own length."""
RELEASE_TIMEOUT_S = 2.0
DEADLINE_EXCEEDED = "StatusCode.DEADLINE_EXCEEDED"
_NO_AUDIO = np.zeros(0, np.int16)


class RecognitionStream:
    """A Triton sequence of the recogniser, one request per piece of audio.

    Each piece is a unary call: unlike a message of a gRPC stream it has a status code, a deadline and a cancellation of
    its own, and it costs the same. Use it as an async context manager: leaving it before `end` frees the server's slot.

    Args:
        client: The connection.
        parameters: Request parameters of the start.
        start_timeout_s: How long the first piece may wait for room.
        answer_timeout_s: How long the answer to a piece may take, on top of a thirtieth of the piece's length.
        model: The recogniser's name on the server.
    """

    def __init__(
        self,
        client: grpc_aio.InferenceServerClient,
        parameters: dict[str, Any],
        start_timeout_s: float,
        answer_timeout_s: float = ANSWER_TIMEOUT_S,
        model: str = MODEL,
    ):
        self._client = client
        self._model = model
        self._answer_timeout_s = answer_timeout_s
        self._parameters = parameters
        self._start_timeout_s = start_timeout_s
        self._sequence = uuid.uuid4().hex
        self._started = False
        self._ended = False
        self._audio_s = 0.0
        self._span: CallSpan | None = None

    async def __aenter__(self) -> RecognitionStream:
        """Sends nothing yet: the first piece begins the sequence."""
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Frees the slot if the stream was not ended."""
        if self._started and not self._ended:
            self._ended = True
            await asyncio.shield(self._release())
        if self._span is not None:  # it was left early
            self._span.tell(cancelled=True)
            self._span.end()

    async def send(self, audio: Samples, finalize: bool = False) -> Transcript:
        """Sends a piece of audio.

        Args:
            audio: int16, shape (samples,), 16 kHz mono; may be empty.
            finalize: Closes the utterance; the stream goes on with the next one.

        Returns:
            The utterance so far.

        Raises:
            InvalidInput: Wrong audio or parameters.
            ServerFull: No room in time; only the first piece.
            SequenceLost: The server no longer holds the stream.
            ServerSilent: The answer took longer than `answer_timeout_s`: the stream is over.
            ServerGone: The server cannot be reached.
        """
        return await self._request(audio, {"finalize": True} if finalize else {}, end=False)

    async def end(self, audio: Samples = _NO_AUDIO) -> Transcript:
        """Closes the utterance and the stream.

        Args:
            audio: The last piece, if there is one: sent together with the end it saves a round trip.

        Returns:
            The final transcript. Raises as `send`.
        """
        transcript = await self._request(audio, {}, end=True)
        self._ended = True
        return transcript

    async def _request(self, audio: Samples, parameters: dict[str, Any], end: bool) -> Transcript:
        start = not self._started
        self._started = True
        if start:
            self._span = CallSpan(self._model)
        try:
            transcript = await self._answered(audio, parameters, start, end)
        except TritonVoiceError as error:
            self._end_span(error)
            raise
        if end:
            self._end_span()
        return transcript

    def _end_span(self, error: TritonVoiceError | None = None) -> None:
        span, self._span = self._span, None
        if span is not None:
            span.tell(audio_s=round(self._audio_s, 3))
            span.end(error)

    async def _answered(self, audio: Samples, parameters: dict[str, Any], start: bool, end: bool) -> Transcript:
        self._audio_s += len(audio) / ASR_SAMPLE_RATE
        sent_at = time.monotonic()
        deadline_s = (
            self._answer_timeout_s + len(audio) / ASR_SAMPLE_RATE / 30 + (self._start_timeout_s if start else 0.0)
        )
        try:
            result = await self._client.infer(
                **self._arguments(audio, start, end, {**(self._parameters if start else {}), **parameters}),
                client_timeout=deadline_s,
                headers=self._headers(start or end or bool(parameters)),
            )
        except InferenceServerException as error:
            if error.status() == DEADLINE_EXCEEDED:
                raise ServerSilent.after(self._model, deadline_s) from error
            raise from_triton(error) from error
        words = json.loads(result.as_numpy("WORDS").reshape(-1)[0])
        if words and self._span is not None:
            self._span.mark("first words")
        return Transcript(
            text=result.as_numpy("TRANSCRIPT").reshape(-1)[0].decode(),
            words=tuple(Word(**word) for word in words),
            is_final=bool(result.as_numpy("IS_FINAL").reshape(-1)[0]),
            audio_s=self._audio_s,
            latency_s=time.monotonic() - sent_at,
        )

    def _headers(self, traced: bool) -> dict[str, str]:
        """Has the server trace what a user waits for, the start and each end; pieces in between are many and alike."""
        return self._span.headers() if traced and self._span is not None else {}

    async def _release(self) -> None:
        """Ends a stream that is left early or was refused; Triton counts a refused start as a live sequence too.

        START begins it anew and END closes it at once, so this holds whether or not the server still knows it.
        """
        with contextlib.suppress(InferenceServerException):
            arguments = self._arguments(_NO_AUDIO, start=True, end=True, parameters={})
            await self._client.infer(**arguments, client_timeout=RELEASE_TIMEOUT_S)

    def _arguments(self, audio: Samples, start: bool, end: bool, parameters: dict[str, Any]) -> dict[str, Any]:
        tensor = triton_grpc.InferInput("AUDIO", [1, len(audio)], "INT16")
        tensor.set_data_from_numpy(audio.reshape(1, -1))
        arguments = {
            "model_name": self._model,
            "inputs": [tensor],
            "sequence_id": self._sequence,
            "sequence_start": start,
            "sequence_end": end,
            "parameters": parameters,
        }
        if start:  # without a timeout Triton lets a start wait silently for as long as it takes
            arguments["timeout"] = int(self._start_timeout_s * 1e6)
        return arguments
