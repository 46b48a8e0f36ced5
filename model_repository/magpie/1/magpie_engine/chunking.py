"""When to send: a small first chunk for a quick first sound, then larger ones while the listener has enough to hear."""

from __future__ import annotations

from dataclasses import dataclass

#: Weight of the newest observation in the running mean of the time that a frame takes.
PACE_WEIGHT = 0.2


@dataclass(frozen=True)
class ChunkPolicy:
    """How chunks grow.

    Attributes:
        first: Codec frames in the first chunk, and in the smallest later one.
        maximum: Largest chunk in codec frames.
        margin_s: Seconds of audio that the client's playout buffer shall never fall below.
        frame_s: Duration of a codec frame, seconds.
    """

    first: int
    maximum: int
    margin_s: float
    frame_s: float

    @property
    def sizes(self) -> list[int]:
        """Frames of the chunks that are sent most often: from the first to the largest, doubling."""
        found = [min(self.first, self.maximum)]
        while found[-1] < self.maximum:
            found.append(min(2 * found[-1], self.maximum))
        return found


class PlayoutSchedule:
    """Decides after each decoded frame whether a chunk is due, by a model of the client's playout buffer.

    The client is taken to play from the moment of the first chunk on, in real time: its buffer holds the audio sent
    minus the time since then. Larger chunks cost less per frame; a chunk of n frames keeps the client waiting while n
    frames are decoded. So chunks double while the buffer outlasts the next, and shrink when it would not.

    Args:
        policy: The numbers.
    """

    def __init__(self, policy: ChunkPolicy) -> None:
        self._policy = policy
        self._target = min(policy.first, policy.maximum)
        self._sent = 0
        self._started = 0.0
        self._pace: float | None = None  # seconds that a frame takes to decode
        self._before: tuple[float, int] | None = None

    def due(self, pending: int, now: float, *, must: bool = False) -> bool:
        """Tells whether frames that are decoded and not yet sent are to be sent now.

        Args:
            pending: How many there are.
            now: Time in seconds, by any monotonic clock.
            must: They are, because nothing follows.
        """
        self._observe(self._sent + pending, now)
        if not must:
            if pending < min(self._policy.first, self._policy.maximum):
                return False
            if self._sent and pending < self._target and self.buffered(now) > self._policy.margin_s:
                return False
        if not self._sent:
            self._started = now
        self._sent += pending
        self._adapt(now)
        return True

    def buffered(self, now: float) -> float:
        """Seconds of audio that the client has not played yet; negative if it has run dry."""
        return self._sent * self._policy.frame_s - (now - self._started)

    def _observe(self, decoded: int, now: float) -> None:
        if self._before is not None and decoded > self._before[1]:
            took = (now - self._before[0]) / (decoded - self._before[1])
            self._pace = took if self._pace is None else self._pace + PACE_WEIGHT * (took - self._pace)
        self._before = now, decoded

    def _adapt(self, now: float) -> None:
        safe_s = self.buffered(now) - self._policy.margin_s
        pace = self._policy.frame_s if self._pace is None else self._pace
        if 2 * self._target * pace <= safe_s:
            self._target = min(2 * self._target, self._policy.maximum)
        elif self._target * pace > safe_s:
            self._target = max(self._policy.first, self._target // 2)
