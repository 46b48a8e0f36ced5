"""One utterance from request to last sample, as the engine sees it (nano-vllm's `Sequence`)."""

from __future__ import annotations

from torch import Tensor

from magpie_engine.chunking import ChunkSchedule
from magpie_engine.codec import LEFT_CONTEXT
from magpie_engine.events import Event, Failed, Finished, Sink
from magpie_engine.request import SpeechRequest


class Utterance:
    """State of one request inside the engine.

    Args:
        request: What to say and how.
        sink: Told of every chunk and of the end.
        schedule: When to send.
    """

    def __init__(self, request: SpeechRequest, sink: Sink, schedule: ChunkSchedule) -> None:
        self.request = request
        self.sink = sink
        self.schedule = schedule
        #: Set by any thread; the engine looks at it before each step.
        self.cancelled = False
        #: Slot while it speaks; slots of other utterances may change when one leaves.
        self.slot = -1
        #: Length of the text in tokens.
        self.text_length = 0
        #: Decoder positions filled.
        self.position = 0
        #: Decoder steps taken.
        self.steps = 0
        #: Codes so far, one tensor (codebooks, stacking or fewer) a step.
        self.codes: list[Tensor] = []
        self.frames = 0
        self._sent = 0

    @property
    def pending(self) -> int:
        """Frames decoded and not yet sent."""
        return self.frames - self._sent

    def end(self, event: Finished | Failed) -> None:
        """Tells the sink the last event and lets go of it: a sink often refers back to the utterance it belongs to."""
        sink, self.sink = self.sink, _ignore
        sink(event)

    def append(self, codes: Tensor) -> None:
        """Adds the codes of a step, (codebooks, frames)."""
        self.codes.append(codes)
        self.frames += codes.shape[1]

    def take_window(self) -> tuple[list[Tensor], int]:
        """Takes the pending frames for decoding, with the left context that they need.

        Returns:
            The steps' codes, and how many frames at their end are new.
        """
        fresh = self.pending
        needed, steps = fresh + LEFT_CONTEXT, len(self.codes)
        while steps > 0 and needed > 0:
            steps -= 1
            needed -= self.codes[steps].shape[1]
        self._sent = self.frames
        return self.codes[steps:], fresh


def _ignore(event: Event) -> None:
    """The sink of an utterance that is over."""
