"""A microphone and a loudspeaker made of memory, in real time: for tests and benchmarks of the whole bot."""

from __future__ import annotations

import asyncio
import time
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pipecat.frames.frames import (
    CancelFrame,
    Frame,
    InputAudioRawFrame,
    InterruptionFrame,
    OutputAudioRawFrame,
    StartFrame,
)
from pipecat.processors.frame_processor import FrameDirection
from pipecat.transports.base_input import BaseInputTransport
from pipecat.transports.base_output import BaseOutputTransport
from pipecat.transports.base_transport import BaseTransport, TransportParams

FRAME_S = 0.02
"""Length of what a microphone gives at a time, as WebRTC's."""


@dataclass(frozen=True)
class Played:
    """A piece of audio that the loudspeaker played.

    Attributes:
        at: When its first sample sounded, by `time.monotonic`.
        audio: int16, shape (samples,).
        sample_rate: Samples per second.
    """

    at: float
    audio: npt.NDArray[np.int16]
    sample_rate: int


class LoopbackTransport(BaseTransport):
    """A room with one person in it: `say` speaks into the microphone, `played` is what the loudspeaker played.

    The microphone never stops: between the speech it hears silence, as a real one does.

    Attributes:
        played: Everything that the bot played, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        params = TransportParams(audio_in_enabled=True, audio_out_enabled=True)
        self.played: list[Played] = []
        self._speech = bytearray()
        self._said = asyncio.Event()
        self._input = _Microphone(self, params)
        self._output = _Loudspeaker(self, params)

    def input(self) -> BaseInputTransport:
        """Returns the microphone."""
        return self._input

    def output(self) -> BaseOutputTransport:
        """Returns the loudspeaker."""
        return self._output

    async def say(self, audio: npt.NDArray[np.int16]) -> float:
        """Speaks.

        Args:
            audio: int16, shape (samples,), at the rate of the pipeline's input.

        Returns:
            When the last sample was spoken, by `time.monotonic`.
        """
        self._said.clear()
        self._speech += audio.tobytes()
        await self._said.wait()
        return time.monotonic()

    def heard(self, size: int) -> bytes:
        """Returns the microphone's next bytes."""
        piece = bytes(self._speech[:size])
        del self._speech[:size]
        if piece and not self._speech:
            self._said.set()
        return piece.ljust(size, b"\0")

    def save(self, path: Path) -> None:
        """Writes what was played to a WAV file, each piece at its moment."""
        if not self.played:
            return
        rate, began = self.played[0].sample_rate, self.played[0].at
        out = bytearray()
        for piece in self.played:
            out.extend(bytes(max(0, 2 * round((piece.at - began) * rate) - len(out))))
            out.extend(piece.audio.tobytes())
        with wave.open(str(path), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(rate)
            file.writeframes(bytes(out))


class _Microphone(BaseInputTransport):
    def __init__(self, room: LoopbackTransport, params: TransportParams):
        super().__init__(params)
        self._room = room
        self._task: asyncio.Task[None] | None = None

    async def start(self, frame: StartFrame) -> None:
        await super().start(frame)
        await self.set_transport_ready(frame)
        if self._task is None:
            self._task = self.create_task(self._listen())

    async def cancel(self, frame: CancelFrame) -> None:
        await super().cancel(frame)
        await self._stop()

    async def cleanup(self) -> None:
        await super().cleanup()
        await self._stop()

    async def _stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            await self.cancel_task(task)

    async def _listen(self) -> None:
        size = 2 * round(FRAME_S * self.sample_rate)
        due = time.monotonic()
        while True:
            await self.push_audio_frame(InputAudioRawFrame(self._room.heard(size), self.sample_rate, 1))
            due += FRAME_S
            await asyncio.sleep(max(0.0, due - time.monotonic()))


class _Loudspeaker(BaseOutputTransport):
    def __init__(self, room: LoopbackTransport, params: TransportParams):
        super().__init__(params)
        self._room = room
        self._free_at = 0.0

    async def start(self, frame: StartFrame) -> None:
        await super().start(frame)
        await self.set_transport_ready(frame)

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        if isinstance(frame, InterruptionFrame):
            self._free_at = 0.0
        await super().process_frame(frame, direction)

    async def write_audio_frame(self, frame: OutputAudioRawFrame) -> bool:
        now = time.monotonic()
        begins = max(self._free_at, now)
        self._room.played.append(Played(begins, np.frombuffer(frame.audio, np.int16), frame.sample_rate))
        self._free_at = begins + len(frame.audio) / 2 / frame.sample_rate
        await asyncio.sleep(self._free_at - now)
        return True

    async def send_message(self, frame: Any) -> None:
        """Messages for a page have nobody to read them here."""
