"""What the synthesiser says: texts spoken by the server and heard by its recogniser; words, lengths, runaways."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import soxr

from triton_voice.audio import Samples
from triton_voice.client import TritonVoice
from triton_voice.evaluation.hearing import OnDone, at_once, silence, transcribe
from triton_voice.evaluation.sets import Line
from triton_voice.evaluation.words import WordErrors, compare, spoken_words
from triton_voice.types import ASR_SAMPLE_RATE, TTS_SAMPLE_RATE

#: Silence around what is read back, seconds: nobody is recorded without it.
LEAD_S, TAIL_S = 0.3, 0.8
#: Speech that goes on for longer than this has run away: far slower than anybody reads.
RUNAWAY_S, RUNAWAY_S_PER_WORD = 2.0, 0.9
#: Speech shorter than this for each word was broken off: faster than anybody reads.
TRUNCATED_S_PER_WORD = 0.1


@dataclass(frozen=True)
class Said:
    """One text, spoken and heard.

    Attributes:
        line: The text.
        voice: Who spoke.
        heard: What the recogniser made of it.
        seconds: Length of the speech.
    """

    line: Line
    voice: str
    heard: str
    seconds: float

    @property
    def words(self) -> list[str]:
        """The words that were to be said."""
        return spoken_words(self.line.spoken)

    @property
    def errors(self) -> WordErrors:
        """Word errors of the read-back."""
        return compare(self.words, spoken_words(self.heard))

    @property
    def ran_away(self) -> bool:
        """Whether it went on far beyond the text's end."""
        return self.seconds > RUNAWAY_S + RUNAWAY_S_PER_WORD * len(self.words)

    @property
    def truncated(self) -> bool:
        """Whether it ended before the text did: too short for its words, or heard without its last one."""
        if self.seconds < TRUNCATED_S_PER_WORD * len(self.words):
            return True
        heard = spoken_words(self.heard)
        return len(heard) < len(self.words) and bool(self.words) and self.words[-1] not in heard[-2:]


@dataclass(frozen=True)
class SpeakingResult:
    """Read-back of many texts.

    Attributes:
        voice: Who spoke; empty for the server's default.
        said: Every text.
    """

    voice: str
    said: list[Said]

    @property
    def errors(self) -> WordErrors:
        """Of all texts."""
        return sum((each.errors for each in self.said), WordErrors())

    def row(self) -> dict[str, Any]:
        """The figures as JSON, with what was misheard."""
        errors, words = self.errors, sum(len(each.words) for each in self.said)
        seconds = sum(each.seconds for each in self.said)
        return {
            "voice": self.voice,
            "texts": len(self.said),
            "seconds": round(seconds, 2),
            "words": errors.words,
            "substitutions": errors.substitutions,
            "insertions": errors.insertions,
            "deletions": errors.deletions,
            "wer": round(errors.rate, 5),
            "runaway": sum(each.ran_away for each in self.said),
            "truncated": sum(each.truncated for each in self.said),
            "seconds_per_word": round(seconds / words, 3) if words else 0.0,
            "misheard": [
                {"said": each.line.spoken, "heard": each.heard, "seconds": round(each.seconds, 2)}
                for each in self.said
                if each.errors.errors or each.ran_away or each.truncated
            ],
        }


async def speak(voice: TritonVoice, text: str, name: str | None, seed: int, max_seconds: float | None) -> Samples:
    """Returns a text's whole speech: int16, shape (samples,), 22.05 kHz."""
    speech = voice.speak(text, voice=name, seed=seed, max_seconds=max_seconds)
    async with contextlib.aclosing(speech) as chunks:
        pieces = [chunk.audio async for chunk in chunks]
    return np.concatenate([np.zeros(0, np.int16), *pieces])


async def read_back(
    voice: TritonVoice,
    lines: Sequence[Line],
    name: str | None,
    latency_ms: int | None,
    jobs: int,
    seed: int = 0,
    max_seconds: float | None = None,
    on_done: OnDone = lambda: None,
) -> SpeakingResult:
    """Speaks texts and hears them.

    Args:
        voice: The connection.
        lines: What to say.
        name: The synthesiser's voice; None takes the server's default.
        latency_ms: The recogniser's lookahead.
        jobs: Texts at once.
        seed: The same seed gives the same speech.
        max_seconds: Cuts each speech here; None leaves it to the server.
        on_done: Called after each.

    Raises:
        TritonVoiceError: As `TritonVoice.speak` and `TritonVoice.transcribe`.
    """

    async def one(line: Line) -> Said:
        audio = await speak(voice, line.text, name, seed, max_seconds)
        wide = soxr.resample(audio.astype(np.float32), TTS_SAMPLE_RATE, ASR_SAMPLE_RATE) if len(audio) else audio
        clear = np.clip(np.round(wide), -32768, 32767).astype(np.int16)
        around = [silence(LEAD_S, ASR_SAMPLE_RATE), clear, silence(TAIL_S, ASR_SAMPLE_RATE)]
        heard = await transcribe(voice, np.concatenate(around), latency_ms)
        on_done()
        return Said(line, name or "", heard, len(audio) / TTS_SAMPLE_RATE)

    return SpeakingResult(name or "", await at_once(lines, one, jobs))
