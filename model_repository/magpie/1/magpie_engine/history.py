"""What carries over: from one segment of a text to the next, and from one piece of an utterance to the next.

The first is upstream's `ChunkState`: the last tokens of the text before are encoded and attended again. The second lets
a client send an utterance in pieces, as a language model writes it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from magpie_engine.alignment import SegmentPlace
from magpie_engine.request import SpeechRequest

#: Most tokens of earlier text that the decoder sees again (upstream's `history_len_heuristic`).
HISTORY_TOKENS = 20
#: Utterances in pieces that are remembered at the same time; beyond, those idle for longest are forgotten.
MAX_REMEMBERED = 256


@dataclass(frozen=True)
class TextHistory:
    """What a segment leaves to the next.

    Attributes:
        tokens: What the decoder saw: history, then the segment's own.
        memory: Their encoding as the decoder saw it, (tokens, width).
        attended: Where in it the speech ended.
    """

    tokens: tuple[int, ...]
    memory: Tensor
    attended: int

    def extend(self, tokens: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
        """Returns what the decoder sees of a next segment, and where the segment's own tokens begin in it."""
        everything = self.tokens + tokens
        seen = everything[-(len(tokens) + min(len(tokens), HISTORY_TOKENS)) :]
        return seen, len(seen) - len(tokens)

    def place(self, seen: tuple[int, ...], begin: int, is_last: bool) -> SegmentPlace:
        """Returns where a next segment is; `seen` and `begin` are what `extend` returned."""
        dropped = len(self.tokens) - begin
        return SegmentPlace(len(seen), begin, self.attended - dropped, is_first=False, is_last=is_last)


@dataclass(frozen=True)
class Continuation:
    """What a piece of an utterance leaves to the next piece.

    Attributes:
        text: Of its last segment.
        codec: State of the codec, (state,).
        frames: Spoken since the beginning of the utterance.
        noise: The generator of the sampling noise.
    """

    text: TextHistory
    codec: Tensor
    frames: int
    noise: torch.Generator


@dataclass
class _Entry:
    request: SpeechRequest
    pieces: int = 0
    continuation: Continuation | None = None
    used: float = 0.0


class UtteranceMemory:
    """Utterances in pieces, by their ids. Not thread safe.

    Args:
        idle_s: Seconds after which an utterance without a piece is forgotten.
        clock: Tells the time in seconds.
    """

    def __init__(self, idle_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._idle_s = idle_s
        self._clock = clock
        self._entries: dict[str, _Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def begin(self, request: SpeechRequest) -> SpeechRequest:
        """Books a piece; returns its request, with the utterance's values for what it does not say itself."""
        self._expire()
        assert request.utterance is not None
        entry = self._entries.setdefault(request.utterance, _Entry(request))
        entry.pieces += 1
        entry.used = self._clock()
        inherited = {name: getattr(entry.request, name) for name in SpeechRequest.CARRIED - request.given}
        return replace(request, **inherited)

    def recall(self, request: SpeechRequest) -> Continuation | None:
        """Returns what the piece before has left; None for a first piece."""
        entry = self._entries.get(request.utterance or "")
        return entry.continuation if entry is not None else None

    def end(self, request: SpeechRequest, continuation: Continuation | None, *, broken: bool = False) -> None:
        """Books the end of a piece.

        Args:
            request: The piece's.
            continuation: What it leaves; None if it spoke nothing.
            broken: It was cancelled or failed: the next piece begins anew.
        """
        entry = self._entries.get(request.utterance or "")
        if entry is None:
            return
        entry.pieces -= 1
        entry.used = self._clock()
        if broken:
            entry.continuation = None
        elif continuation is not None:
            entry.continuation = continuation

    def _expire(self) -> None:
        now = self._clock()
        idle = [name for name, entry in self._entries.items() if entry.pieces <= 0]
        idle.sort(key=lambda name: self._entries[name].used)
        excess = len(self._entries) - MAX_REMEMBERED
        for place, name in enumerate(idle):
            if place < excess or now - self._entries[name].used > self._idle_s:
                del self._entries[name]
