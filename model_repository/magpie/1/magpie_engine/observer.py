"""What the engine tells of its speed, to whoever wants to know."""

from __future__ import annotations


class Observer:
    """Hears nothing; to be derived from. Methods are called on the engine's thread and must return at once."""

    def stepped(self, streams: int, seconds: float) -> None:
        """A step of the model has been taken, chunks of audio included, with so many utterances in it."""

    def first_audio(self, seconds: float) -> None:
        """A request has got its first audio, so long after it was submitted."""

    def finished(self, audio_s: float, seconds: float) -> None:
        """A request has been spoken to its end: so much audio, so long after it was submitted."""
