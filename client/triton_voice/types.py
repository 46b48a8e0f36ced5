"""What the calls yield."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

ASR_SAMPLE_RATE = 16000
"""What the server hears, samples per second."""
TTS_SAMPLE_RATE = 22050
"""What the server speaks, samples per second."""


@dataclass(frozen=True, slots=True)
class Word:
    """A word with its place in time.

    Attributes:
        word: Its text.
        start: Seconds from the start of the stream or utterance.
        end: Seconds; None where only the start is known.
        confidence: 0 to 1; None for spoken words.
    """

    word: str
    start: float
    end: float | None = None
    confidence: float | None = None


@dataclass(frozen=True, slots=True)
class Transcript:
    """The utterance so far, after one piece of audio.

    Attributes:
        text: Its text.
        words: Its words with times from the stream's start.
        is_final: Whether the utterance is closed.
        audio_s: Audio sent when this answer was asked for, seconds.
        latency_s: From sending the piece to its answer, seconds.
    """

    text: str
    words: tuple[Word, ...]
    is_final: bool
    audio_s: float
    latency_s: float


@dataclass(frozen=True, slots=True)
class SpeechChunk:
    """A piece of speech.

    Attributes:
        audio: int16, shape (samples,), mono.
        sample_rate: Samples per second.
        words: Words whose audio begins in this piece.
    """

    audio: npt.NDArray[np.int16]
    sample_rate: int = TTS_SAMPLE_RATE
    words: tuple[Word, ...] = ()

    @property
    def duration_s(self) -> float:
        """Its length in seconds."""
        return len(self.audio) / self.sample_rate


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of generated text.

    Attributes:
        text: What is new.
        finish_reason: Why generation ended, on the last one: `stop` or `length`.
    """

    text: str
    finish_reason: str | None = None


@dataclass(frozen=True, slots=True)
class ReplyDelta:
    """A piece of what a chat's reply says.

    Attributes:
        text: What is new.
    """

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """A piece of what the model thinks before it replies.

    Attributes:
        text: What is new.
    """

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of a tool call; `ChatFinish` has the whole calls.

    Attributes:
        index: Which of the reply's calls.
        id: The call's id.
        name: The function's name, as far as it is known.
        arguments: What is new of its arguments, JSON text.
    """

    index: int
    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model asks for.

    Attributes:
        id: Goes into the `tool_call_id` of the message with the result.
        name: The function's name.
        arguments: Its arguments, JSON text.
    """

    id: str
    name: str
    arguments: str

    def parsed(self) -> dict[str, Any]:
        """Returns the arguments as an object.

        Raises:
            ValueError: The reply was cut off (`finish_reason` is `length`) before they were complete.
        """
        return dict(json.loads(self.arguments or "{}"))


@dataclass(frozen=True, slots=True)
class ChatFinish:
    """The end of a reply.

    Attributes:
        reason: `stop`, `length` or `tool_calls`.
        tool_calls: The calls that the model asks for.
    """

    reason: str
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """What a reply cost; comes last.

    Attributes:
        prompt_tokens: Length of the rendered conversation.
        completion_tokens: Length of the reply with its thoughts.
        cached_tokens: How much of the prompt the server still knew from before.
        reasoning_tokens: How much of the reply was thoughts.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0


ChatDelta = ReplyDelta | ReasoningDelta | ToolCallDelta | ChatFinish | Usage
"""What `TritonVoice.chat` yields."""


@dataclass(frozen=True, slots=True)
class Readiness:
    """What a server can do now.

    Attributes:
        live: Whether it answers at all.
        models: Whether each model is ready.
    """

    live: bool
    models: dict[str, bool] = field(default_factory=dict)

    @property
    def all_ready(self) -> bool:
        """Whether the server and every model are ready."""
        return self.live and bool(self.models) and all(self.models.values())
