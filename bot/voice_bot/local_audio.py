"""This machine's microphone and loudspeaker as a Pipecat transport, by PortAudio."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pipecat.frames.frames import CancelFrame, EndFrame, InputAudioRawFrame, OutputAudioRawFrame, StartFrame
from pipecat.transports.base_input import BaseInputTransport
from pipecat.transports.base_output import BaseOutputTransport
from pipecat.transports.base_transport import BaseTransport, TransportParams

from triton_voice.errors import InvalidInput

FRAME_S = 0.02
"""Length of what the microphone gives at a time."""
INSTALL = (
    "the microphone and the loudspeaker need `pip install -e '.[microphone]'` in the checkout and the system's "
    "libportaudio2 (apt-get install libportaudio2)"
)


def sounddevice() -> Any:
    """Returns the package.

    Raises:
        InvalidInput: It, or PortAudio, is not installed.
    """
    try:
        import sounddevice
    except (ImportError, OSError) as error:
        raise InvalidInput(f"{INSTALL}: {error}") from error
    return sounddevice


def check_devices() -> None:
    """Makes sure that there is something to hear and to speak with.

    Raises:
        InvalidInput: There is not; the sentence says what is missing.
    """
    devices = sounddevice()
    for kind, name in (("input", "microphone"), ("output", "loudspeaker")):
        try:
            devices.query_devices(kind=kind)
        except (devices.PortAudioError, ValueError) as error:
            raise InvalidInput(
                f"this machine has no {name} that can be used ({error}); `triton-voice bot` takes those of your browser"
            ) from error


class LocalAudioTransport(BaseTransport):
    """The default microphone and loudspeaker."""

    def __init__(self) -> None:
        super().__init__()
        params = TransportParams(audio_in_enabled=True, audio_out_enabled=True)
        self._input = _Microphone(params)
        self._output = _Loudspeaker(params)

    def input(self) -> BaseInputTransport:
        """Returns the microphone."""
        return self._input

    def output(self) -> BaseOutputTransport:
        """Returns the loudspeaker."""
        return self._output


class _Microphone(BaseInputTransport):
    def __init__(self, params: TransportParams):
        super().__init__(params)
        self._stream: Any = None
        self._heard: asyncio.Queue[bytes] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def start(self, frame: StartFrame) -> None:
        await super().start(frame)
        loop = asyncio.get_running_loop()

        def heard(data: Any, frames: int, timing: object, status: object) -> None:
            loop.call_soon_threadsafe(self._heard.put_nowait, bytes(data))

        self._stream = sounddevice().RawInputStream(
            self.sample_rate, round(FRAME_S * self.sample_rate), channels=1, dtype="int16", callback=heard
        )
        self._task = self.create_task(self._listen())
        await self.set_transport_ready(frame)
        self._stream.start()

    async def stop(self, frame: EndFrame) -> None:
        await super().stop(frame)
        await self._close()

    async def cancel(self, frame: CancelFrame) -> None:
        await super().cancel(frame)
        await self._close()

    async def cleanup(self) -> None:
        await super().cleanup()
        await self._close()

    async def _listen(self) -> None:
        while True:
            await self.push_audio_frame(InputAudioRawFrame(await self._heard.get(), self.sample_rate, 1))

    async def _close(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()
        task, self._task = self._task, None
        if task is not None:
            await self.cancel_task(task)


class _Loudspeaker(BaseOutputTransport):
    def __init__(self, params: TransportParams):
        super().__init__(params)
        self._stream: Any = None
        self._thread = ThreadPoolExecutor(1, "loudspeaker")

    async def start(self, frame: StartFrame) -> None:
        await super().start(frame)
        self._stream = sounddevice().RawOutputStream(self.sample_rate, channels=1, dtype="int16", latency="low")
        self._stream.start()
        await self.set_transport_ready(frame)

    async def cleanup(self) -> None:
        await super().cleanup()
        self._thread.shutdown()  # the device must not be closed under a write
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    async def write_audio_frame(self, frame: OutputAudioRawFrame) -> bool:
        if self._stream is None:
            return False
        await asyncio.get_running_loop().run_in_executor(self._thread, self._stream.write, frame.audio)
        return True
