"""Whether a client that plays at once what it gets would have run dry."""

from __future__ import annotations

import time
from collections.abc import Callable


class Playout:
    """A model of one client's loudspeaker: it plays from the first piece of audio on, and waits when it has none.

    Args:
        clock: Seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._dry_at: float | None = None

    def sent(self, audio_s: float) -> bool:
        """Notes a piece of audio that is sent now; returns whether the loudspeaker had fallen silent before it."""
        now = self._clock()
        dry_at, self._dry_at = self._dry_at, max(now, self._dry_at or now) + audio_s
        return dry_at is not None and now > dry_at
