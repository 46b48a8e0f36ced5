"""One request from its text to its last sample, as the engine sees it (nano-vllm's `Sequence`)."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from magpie_engine.chunking import PlayoutSchedule
from magpie_engine.events import Event, Failed, Finished, FinishReason, Sink, Word
from magpie_engine.request import SpeechRequest

if TYPE_CHECKING:
    from magpie_engine.history import TextHistory
    from magpie_engine.text import Script, Segment


class Utterance:
    """State of one request inside the engine.

    Args:
        request: What to say and how.
        sink: Told of every chunk and of the end.
        schedule: When to send.
        submitted: When it was submitted, in seconds.
    """

    def __init__(self, request: SpeechRequest, sink: Sink, schedule: PlayoutSchedule, submitted: float = 0.0) -> None:
        self.request = request
        self.sink = sink
        self.schedule = schedule
        self.submitted = submitted
        #: Set by any thread; the engine looks at it before each step.
        self.cancelled = False
        #: Its text, once the text thread is through with it.
        self.script: Future[Script]
        #: The segment to be spoken after this one, if anything is left to say; None if this is known to be the last.
        self.next_segment: Future[Segment | None] | None = None
        #: Why its newest segment is over, once it is.
        self.page_over: FinishReason | None = None
        #: What broke its audio: it fails as soon as no step is under way.
        self.error: Exception | None = None
        #: Its sink has been told the end.
        self.is_over = False
        #: Slot while it speaks; slots of other utterances may change when one leaves.
        self.slot = -1
        #: Row of the codec's memory while it speaks.
        self.row = -1
        #: What the decoder saw of the segment before this one.
        self.history: TextHistory | None = None
        #: Draws the sampling noise of its segments.
        self.noise = torch.Generator()
        #: Frames of earlier pieces of the same utterance.
        self.first_frame = 0

        # The segment that is being spoken.
        #: Tokens that the decoder sees.
        self.tokens: tuple[int, ...] = ()
        #: Their encoding, (tokens, width).
        self.memory: Tensor | None = None
        #: Text position that the newest frame attends to.
        self.attended = 0
        #: Decoder positions filled.
        self.position = 0
        #: Decoder steps taken.
        self.steps = 0

        #: Frames decoded.
        self.frames = 0
        self._pending: list[Tensor] = []
        self._sent = 0
        self._ahead: deque[tuple[str, int]] = deque()
        self._begun: deque[tuple[str, int]] = deque()

    @property
    def pending(self) -> int:
        """Frames decoded and not yet sent."""
        return self.frames - self._sent

    @property
    def is_full(self) -> bool:
        """Whether it has come to the length that its client has set."""
        limit = self.request.max_frames
        return limit is not None and self.frames >= limit

    def end(self, event: Finished | Failed) -> None:
        """Tells the sink the last event and lets go of it: a sink often refers back to the utterance it belongs to."""
        sink, self.sink, self.is_over = self.sink, _ignore, True
        sink(event)

    def append(self, codes: Tensor) -> None:
        """Adds the codes of a step, (codebooks, frames)."""
        self._pending.append(codes)
        self.frames += codes.shape[1]

    def take_codes(self) -> Tensor:
        """Takes the pending codes for decoding, (codebooks, frames)."""
        codes = torch.cat(self._pending, dim=1)
        self._pending.clear()
        self._sent = self.frames
        return codes

    # Words -----------------------------------------------------------------------------------------------------------

    def expect_words(self, words: tuple[tuple[str, int], ...]) -> None:
        """Adds the words of a new segment, each with the text position at which it begins."""
        self._ahead.extend(words)

    def begin_words(self, attended: int, frame: int) -> None:
        """Books the words that have begun, now that `frame` attends to a text position."""
        while self._ahead and self._ahead[0][1] <= attended:
            self._begun.append((self._ahead.popleft()[0], frame))

    def begin_all_words(self) -> None:
        """Books the words that the model passed over by the end of its segment, at its last frame if that is unsent."""
        frame = self.frames - 1 if self.pending else self.frames
        while self._ahead:
            self._begun.append((self._ahead.popleft()[0], frame))

    def take_words(self, frames_per_second: float, *, rest: bool = False) -> tuple[Word, ...]:
        """Takes the words that begin in what has been sent so far; with `rest`, all that have begun."""
        words = []
        while self._begun and (rest or self._begun[0][1] < self._sent):
            word, frame = self._begun.popleft()
            words.append(Word(word, round((self.first_frame + frame) / frames_per_second, 3)))
        return tuple(words)


def _ignore(event: Event) -> None:
    """The sink of an utterance that is over."""
