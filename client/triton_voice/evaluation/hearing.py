"""What the recogniser hears: every recording streamed through the server, word errors against what was said."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from triton_voice.audio import Samples, in_chunks, read_audio
from triton_voice.client import TritonVoice
from triton_voice.errors import InvalidInput
from triton_voice.evaluation.sets import Recording
from triton_voice.evaluation.words import WordErrors, compare, spoken_words, word_errors
from triton_voice.types import ASR_SAMPLE_RATE

#: Lookaheads of the checkpoints that are known, ms.
LOOKAHEADS_MS = (80, 160, 320, 560, 1120)
#: How long a stream waits for room, seconds: the number of files at once may be more than the server takes.
START_TIMEOUT_S = 60.0

OnDone = Callable[[], None]
Item = TypeVar("Item")
Done = TypeVar("Done")


@dataclass(frozen=True)
class Heard:
    """One recording and its transcript.

    Attributes:
        recording: What was said.
        text: The final transcript.
        seconds: Length of the audio.
    """

    recording: Recording
    text: str
    seconds: float


@dataclass(frozen=True)
class HearingResult:
    """Word errors at one lookahead.

    Attributes:
        latency_ms: The lookahead.
        heard: Every recording.
        offline: NeMo's transcript of each whole file with the same checkpoint, if it was asked for.
    """

    latency_ms: int
    heard: list[Heard]
    offline: list[str] | None = None

    @property
    def errors(self) -> WordErrors:
        """Of all recordings with speech in them."""
        return word_errors((each.recording.text, each.text) for each in self._spoken())

    @property
    def wrong_silences(self) -> int:
        """Recordings without speech in which words were heard."""
        return sum(bool(spoken_words(each.text)) for each in self.heard if not spoken_words(each.recording.text))

    @property
    def silences(self) -> int:
        """Recordings without speech."""
        return len(self.heard) - len(self._spoken())

    @property
    def against_offline(self) -> WordErrors | None:
        """Word errors with NeMo's offline transcripts as the reference: none, if streaming equals offline."""
        if self.offline is None:
            return None
        return word_errors((whole, each.text) for whole, each in zip(self.offline, self.heard, strict=True))

    def groups(self) -> dict[str, WordErrors]:
        """Word errors by the recordings' group, where they have one."""
        found: dict[str, WordErrors] = {}
        for each in self._spoken():
            if each.recording.group:
                errors = compare(spoken_words(each.recording.text), spoken_words(each.text))
                found[each.recording.group] = found.get(each.recording.group, WordErrors()) + errors
        return dict(sorted(found.items()))

    def row(self) -> dict[str, Any]:
        """The figures as JSON, with what was misheard."""
        errors, offline = self.errors, self.against_offline
        row: dict[str, Any] = {
            "latency_ms": self.latency_ms,
            "files": len(self.heard),
            "seconds": round(sum(each.seconds for each in self.heard), 2),
            "words": errors.words,
            "substitutions": errors.substitutions,
            "insertions": errors.insertions,
            "deletions": errors.deletions,
            "wer": round(errors.rate, 5),
            "silences": self.silences,
            "wrong_silences": self.wrong_silences,
            "groups": {name: round(each.rate, 5) for name, each in self.groups().items()},
            "misheard": [
                {"file": str(each.recording.path), "said": each.recording.text, "heard": each.text}
                for each in self.heard
                if spoken_words(each.recording.text) != spoken_words(each.text)
            ],
        }
        if offline is not None and self.offline is not None:
            row["offline_wer"] = round(offline.rate, 5)
            row["offline_differs"] = [
                {"file": str(each.recording.path), "streaming": each.text, "offline": whole}
                for whole, each in zip(self.offline, self.heard, strict=True)
                if spoken_words(whole) != spoken_words(each.text)
            ]
        return row

    def _spoken(self) -> list[Heard]:
        return [each for each in self.heard if spoken_words(each.recording.text)]


async def offered_lookaheads(voice: TritonVoice) -> list[int]:
    """Asks which lookaheads the server's checkpoint offers, ms."""
    offered = []
    for latency_ms in LOOKAHEADS_MS:
        with contextlib.suppress(InvalidInput):
            async with voice.open_stream(latency_ms=latency_ms, start_timeout_s=START_TIMEOUT_S) as stream:
                await stream.end()
            offered.append(latency_ms)
    return offered


async def transcribe(voice: TritonVoice, audio: Samples, latency_ms: int | None) -> str:
    """Streams audio in pieces of the lookahead's length, as fast as the server answers.

    Args:
        voice: The connection.
        audio: int16, shape (samples,), 16 kHz mono.
        latency_ms: The lookahead; None takes the server's default.

    Returns:
        The final transcript.
    """
    text = ""
    pieces = in_chunks(audio, (latency_ms or LOOKAHEADS_MS[1]) / 1000)
    speech = voice.transcribe(pieces, latency_ms=latency_ms, start_timeout_s=START_TIMEOUT_S)
    async with contextlib.aclosing(speech) as transcripts:
        async for transcript in transcripts:
            text = transcript.text
    return text


async def hear(
    voice: TritonVoice, recordings: Sequence[Recording], latency_ms: int, jobs: int, on_done: OnDone = lambda: None
) -> HearingResult:
    """Streams every recording through the server.

    Args:
        voice: The connection.
        recordings: What was said.
        latency_ms: The lookahead.
        jobs: Recordings at once.
        on_done: Called after each.

    Raises:
        InvalidInput: The checkpoint does not offer the lookahead, or a file cannot be read.
        TritonVoiceError: As `TritonVoice.transcribe`.
    """

    async def one(recording: Recording) -> Heard:
        audio = await asyncio.to_thread(read_audio, recording.path)
        text = await transcribe(voice, audio, latency_ms)
        on_done()
        return Heard(recording, text, len(audio) / ASR_SAMPLE_RATE)

    return HearingResult(latency_ms, await at_once(recordings, one, jobs))


async def at_once(items: Iterable[Item], work: Callable[[Item], Awaitable[Done]], jobs: int) -> list[Done]:
    """Works on so many items at once; the first failure stops the others and is raised."""
    room = asyncio.Semaphore(jobs)

    async def one(item: Item) -> Done:
        async with room:
            return await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(item)) for item in items]
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]


def silence(seconds: float, sample_rate: int) -> Samples:
    """Returns silence to put around speech."""
    return np.zeros(round(seconds * sample_rate), np.int16)
