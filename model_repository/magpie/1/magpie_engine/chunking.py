"""When to send: a small first chunk for a quick first sound, then larger ones that cost less per frame."""

from __future__ import annotations


class ChunkSchedule:
    """Decides after each decoded frame whether a chunk is due.

    Each chunk is twice as long as the one before, up to a limit. While one chunk plays, the next, twice as long, must
    be
    decoded: that holds when decoding runs at least twice as fast as real time.

    Args:
        first: Codec frames in the first chunk.
        maximum: Largest chunk in codec frames.
    """

    def __init__(self, first: int, maximum: int) -> None:
        self._next = min(first, maximum)
        self._maximum = maximum

    def due(self, pending: int) -> bool:
        """Tells whether `pending` frames, decoded and not yet sent, are to be sent now; if so, the next chunk grows."""
        if pending < self._next:
            return False
        self._next = min(self._next * 2, self._maximum)
        return True
