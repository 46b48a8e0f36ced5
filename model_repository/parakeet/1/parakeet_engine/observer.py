"""What the engine tells whoever watches it."""

from __future__ import annotations


class Observer:
    """Receives the engine's events, all on the delivery thread, so that watching costs no step anything.

    The methods do nothing here; a subclass turns them into metrics.
    """

    def active_streams(self, count: int) -> None:
        """The number of streams that hold a slot changed."""

    def stepped(self, streams: int, seconds: float) -> None:
        """A step of `streams` chunks took `seconds`."""

    def answered(self, audio_s: float, queued_s: float, total_s: float, is_final: bool) -> None:
        """A request with `audio_s` of audio was answered, `total_s` after it came, of which it waited `queued_s`."""

    def refused(self) -> None:
        """A request was refused for want of room."""

    def evicted(self, conversation: str) -> None:
        """A stream of this conversation was dropped because it went silent or its caller went away."""
