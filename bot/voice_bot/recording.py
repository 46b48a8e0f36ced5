"""Keeps both sides of a conversation as a WAV file."""

from __future__ import annotations

import datetime
import wave
from pathlib import Path
from typing import Any

from pipecat.processors.audio.audio_buffer_processor import AudioBufferProcessor

FLUSH_S = 2
"""Audio kept in memory before it goes to the file."""


class Recorder(AudioBufferProcessor):
    """Writes what passes to a stereo file while it passes: the user on the left, the bot on the right.

    Args:
        folder: Where the file goes; made if need be.
        name: Of the conversation; part of the file's name.
    """

    def __init__(self, folder: Path, name: str):
        super().__init__(num_channels=2, buffer_size=0, auto_start_recording=True)
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        self.path = folder / f"{stamp}-{name}.wav"
        self._file: wave.Wave_write | None = None

        @self.event_handler("on_audio_data")
        async def on_audio(processor: Any, audio: bytes, sample_rate: int, channels: int) -> None:
            self._write(audio, sample_rate, channels)

    async def setup(self, setup: Any) -> None:
        """Sizes the buffer for the pipeline's rate."""
        await super().setup(setup)
        self._buffer_size = FLUSH_S * self._audio_buffer_size_1s

    async def cleanup(self) -> None:
        """Completes the file."""
        await super().cleanup()
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _write(self, audio: bytes, sample_rate: int, channels: int) -> None:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = wave.open(str(self.path), "wb")  # noqa: SIM115 - closed by cleanup
            self._file.setnchannels(channels)
            self._file.setsampwidth(2)
            self._file.setframerate(sample_rate)
        self._file.writeframes(audio)
