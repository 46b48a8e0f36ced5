"""One spoken turn: a question goes in, its transcript, a reply and the reply's speech come out, each timed."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field

import numpy as np

from triton_voice.audio import Samples, in_chunks
from triton_voice.client import TritonVoice
from triton_voice.types import ASR_SAMPLE_RATE, TTS_SAMPLE_RATE, ReplyDelta

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
SYSTEM = "You are a voice assistant. Reply in one short sentence."


@dataclass
class TurnResult:
    """What happened.

    Attributes:
        transcript: The final transcript.
        partials: The partial transcripts, each once, in order.
        reply: The reply's text.
        audio: The reply's speech, int16, shape (samples,).
        sample_rate: Of the speech.
        latency_ms: `first_partial` counts from the first sample of the question; `final_transcript`, `first_token`,
            `first_audio` and `total` (the last sample of the reply is here) from its last.
    """

    transcript: str = ""
    partials: list[str] = field(default_factory=list)
    reply: str = ""
    audio: Samples = field(default_factory=lambda: np.zeros(0, np.int16))
    sample_rate: int = TTS_SAMPLE_RATE
    latency_ms: dict[str, float] = field(default_factory=dict)

    @property
    def audio_seconds(self) -> float:
        """Length of the speech."""
        return len(self.audio) / self.sample_rate


async def run_turn(
    voice: TritonVoice,
    question: Samples,
    *,
    latency_ms: int | None = None,
    realtime: bool = True,
    max_tokens: int = 64,
    seed: int | None = None,
    on_change: Callable[[TurnResult], None] = lambda result: None,
) -> TurnResult:
    """Speaks a question to the server and collects the answer. The speech of a sentence starts when its text is there.

    Args:
        voice: The connection.
        question: int16, shape (samples,), 16 kHz mono.
        latency_ms: The recogniser's lookahead, which is also the size of the pieces sent.
        realtime: Sends the question at the speed of speech.
        max_tokens: Longest reply.
        seed: Of the reply and its speech.
        on_change: Called with the result so far whenever it grew.

    Returns:
        The whole turn.
    """
    result = TurnResult()
    began = time.monotonic()
    spoken_at = began + (len(question) / ASR_SAMPLE_RATE if realtime else 0.0)

    def mark(name: str, since: float) -> None:
        result.latency_ms.setdefault(name, round((time.monotonic() - since) * 1000, 1))

    chunk_s = (latency_ms or 160) / 1000
    async for transcript in voice.transcribe(in_chunks(question, chunk_s, realtime), latency_ms=latency_ms):
        result.transcript = transcript.text
        if transcript.is_final:
            mark("final_transcript", spoken_at)
        elif transcript.text and (not result.partials or result.partials[-1] != transcript.text):
            mark("first_partial", began)
            result.partials.append(transcript.text)
        on_change(result)

    async def reply() -> AsyncGenerator[str, None]:
        """Yields the reply's sentences as they are complete."""
        rest = ""
        messages = [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": result.transcript or "(silence)"},
        ]
        deltas = voice.chat(messages, max_tokens=max_tokens, temperature=0.7, seed=seed)
        async with contextlib.aclosing(deltas):
            async for delta in deltas:
                if not isinstance(delta, ReplyDelta):
                    continue
                mark("first_token", spoken_at)
                result.reply += delta.text
                on_change(result)
                *sentences, rest = _SENTENCE_END.split(rest + delta.text)
                for sentence in sentences:
                    yield sentence
        if rest.strip():
            yield rest

    sentences: asyncio.Queue[str | None] = asyncio.Queue()

    async def think() -> None:
        try:
            async for sentence in reply():
                sentences.put_nowait(sentence)
        finally:
            sentences.put_nowait(None)

    thinking = asyncio.create_task(think())
    pieces: list[Samples] = []
    utterance = uuid.uuid4().hex  # sentences are pieces of one utterance: the voice goes on
    try:
        while (sentence := await sentences.get()) is not None:
            async with contextlib.aclosing(voice.speak(sentence, seed=seed, utterance=utterance)) as speech:
                async for chunk in speech:
                    mark("first_audio", spoken_at)
                    pieces.append(chunk.audio)
                    result.audio = np.concatenate(pieces)
                    on_change(result)
        await thinking
    finally:
        thinking.cancel()
    mark("total", spoken_at)
    return result
