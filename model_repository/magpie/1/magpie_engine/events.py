"""What the engine tells a request's sink: chunks of audio, then exactly one `Finished` or `Failed`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from magpie_engine.errors import MagpieError


@dataclass(frozen=True)
class Word:
    """A word of the text and when its audio begins, in seconds since the utterance's start, all pieces together."""

    word: str
    start: float


@dataclass(frozen=True)
class AudioChunk:
    """Consecutive samples of one utterance.

    Attributes:
        samples: int16, mono, at the codec's sample rate.
        words: Words whose audio begins in this chunk, in order.
    """

    samples: np.ndarray
    words: tuple[Word, ...] = field(default=())


class FinishReason(Enum):
    """Why an utterance ended."""

    END = "end"  #: the model said that the text is over
    LENGTH = "length"  #: cut at the length limit
    CANCELLED = "cancelled"
    EMPTY = "empty"  #: nothing to say


@dataclass(frozen=True)
class Finished:
    """The utterance is over.

    Attributes:
        reason: Why.
        words: Words that the model passed over so quickly that no chunk was left to carry them.
    """

    reason: FinishReason
    words: tuple[Word, ...] = field(default=())


@dataclass(frozen=True)
class Failed:
    """The utterance cannot be spoken, or not further."""

    error: MagpieError


Event = AudioChunk | Finished | Failed
#: Called on the engine's thread; must return at once.
Sink = Callable[[Event], None]
