"""What goes into the engine and what comes out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from parakeet_engine.errors import AsrError

SAMPLE_RATE = 16000
"""Samples per second that every published streaming checkpoint takes; resampling is the client's work."""


@dataclass(frozen=True, slots=True)
class Word:
    """One recognised word.

    Attributes:
        word: Its text.
        start: Seconds from the sequence's start to the encoder frame of its first token.
        end: Seconds to the end of the encoder frame of its last token.
        confidence: Mean probability of its tokens, 0 to 1.
    """

    word: str
    start: float
    end: float
    confidence: float


@dataclass(frozen=True, slots=True)
class Transcript:
    """The utterance so far.

    Attributes:
        text: Its words, joined as the checkpoint's tokenizer joins them.
        words_json: Its words as a JSON list, as clients get them: they are not written anew for every answer.
        is_final: Whether the utterance is closed; the next answer begins another one.
    """

    text: str
    words_json: str
    is_final: bool

    @property
    def words(self) -> tuple[Word, ...]:
        """Its words, read from the JSON."""
        return tuple(Word(**word) for word in json.loads(self.words_json))


@dataclass(slots=True)
class AudioRequest:
    """A piece of one stream's audio, and what to do with it.

    Attributes:
        stream: Id of the stream, unique among live ones.
        audio: Samples, int16, shape (samples,), 16 kHz mono; may be empty.
        respond: Called exactly once, from the delivery thread, with the transcript after this audio or an error.
        start: Begins the stream; a live one of the same id is dropped.
        end: Closes the utterance and the stream.
        finalize: Closes the utterance; the stream goes on with the next one.
        latency_ms: Lookahead of the stream; only on `start`; None takes the default.
        language: Language of the stream; only on `start`; None takes the default.
        timeout_s: How long `start` may wait for a free slot, seconds.
        is_cancelled: Whether its caller is gone; asked now and then, on the engine's thread, while it is worked off.
        conversation: Whose it is, for whoever reads the logs; only on `start`.
        submitted: When it came, on the engine's clock (`time.monotonic`).
        taken: Set by the engine: when its audio was first looked at.
    """

    stream: Hashable
    audio: npt.NDArray[np.int16]
    respond: Callable[[Transcript | AsrError], None]
    start: bool = False
    end: bool = False
    finalize: bool = False
    latency_ms: int | None = None
    language: str | None = None
    timeout_s: float = 0.0
    is_cancelled: Callable[[], bool] = field(default=lambda: False, compare=False)
    conversation: str = ""
    submitted: float = field(default_factory=time.monotonic, compare=False)
    taken: float = field(default=0.0, compare=False)

    @property
    def closes_utterance(self) -> bool:
        """Whether the answer is final."""
        return self.end or self.finalize
