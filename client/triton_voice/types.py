"""What the calls yield."""

from __future__ import annotations

from dataclasses import dataclass, field

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
