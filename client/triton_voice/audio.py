"""Audio in and out: any file becomes what the recogniser hears; resampling by soxr, files by libsndfile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from triton_voice.errors import InvalidInput
from triton_voice.types import ASR_SAMPLE_RATE

Samples = npt.NDArray[np.int16]


def read_audio(path: str | Path, sample_rate: int = ASR_SAMPLE_RATE) -> Samples:
    """Reads a WAV, FLAC, Ogg or MP3 file as mono.

    Args:
        path: The file.
        sample_rate: Rate to resample to.

    Returns:
        int16, shape (samples,); channels are averaged.

    Raises:
        InvalidInput: There is no such file, or it holds no audio that libsndfile can read.
    """
    if not Path(path).is_file():
        raise InvalidInput(f"there is no file {path}")
    try:
        audio, rate = soundfile.read(str(path), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise InvalidInput(f"{path} is not an audio file that can be read: {error.error_string}") from error
    mono = audio.mean(axis=1)
    if rate != sample_rate:
        mono = soxr.resample(mono, rate, sample_rate)
    return to_int16(mono)


def read_raw(data: bytes, sample_rate: int, channels: int = 1) -> Samples:
    """Reads headerless little-endian int16 samples, interleaved by channel.

    Args:
        data: The samples.
        sample_rate: Their rate; they are resampled to 16 kHz.
        channels: How many are interleaved; they are averaged.

    Returns:
        int16, shape (samples,).

    Raises:
        InvalidInput: The data is not a whole number of samples of every channel.
    """
    if len(data) % (2 * channels):
        raise InvalidInput(f"{len(data)} bytes are not a whole number of int16 samples of {channels} channels")
    mono = np.frombuffer(data, "<i2").reshape(-1, channels).astype(np.float32).mean(axis=1) / 32768.0
    return to_int16(soxr.resample(mono, sample_rate, ASR_SAMPLE_RATE) if sample_rate != ASR_SAMPLE_RATE else mono)


def to_int16(audio: npt.NDArray[np.float32]) -> Samples:
    """Converts floats of -1 to 1 to int16, clipping what is louder."""
    return np.round(np.clip(audio * 32768.0, -32768, 32767)).astype(np.int16)


async def in_chunks(audio: Samples, chunk_s: float, realtime: bool = False) -> AsyncIterator[Samples]:
    """Yields audio piece by piece, as a microphone would.

    Args:
        audio: int16, 16 kHz mono.
        chunk_s: Length of a piece, seconds.
        realtime: Yields each piece when its last sample would have been spoken, by a clock that does not drift.
    """
    size = max(1, round(chunk_s * ASR_SAMPLE_RATE))
    start = time.monotonic()
    for position in range(0, len(audio), size):
        piece = audio[position : position + size]
        if realtime:
            due = start + (position + len(piece)) / ASR_SAMPLE_RATE
            await asyncio.sleep(max(0.0, due - time.monotonic()))
        yield piece


async def microphone(chunk_s: float) -> AsyncGenerator[Samples, None]:
    """Yields what the default microphone hears, 16 kHz mono, until the iteration is left.

    Args:
        chunk_s: Length of a piece, seconds.

    Raises:
        InvalidInput: There is no microphone, or the `microphone` extra or libportaudio is not installed.
    """
    try:
        import sounddevice
    except (ImportError, OSError) as error:
        raise InvalidInput(
            "the microphone needs `pip install -e '.[microphone]'` in the checkout and the system's libportaudio2 "
            f"(apt-get install libportaudio2): {error}"
        ) from error
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[Samples] = asyncio.Queue()

    def heard(data: npt.NDArray[np.int16], frames: int, timing: object, status: object) -> None:
        loop.call_soon_threadsafe(pieces.put_nowait, data[:, 0].copy())

    try:
        stream = sounddevice.InputStream(
            ASR_SAMPLE_RATE, round(chunk_s * ASR_SAMPLE_RATE), channels=1, dtype="int16", callback=heard
        )
    except sounddevice.PortAudioError as error:
        raise InvalidInput(f"no microphone can be used: {error}") from error
    with stream:
        while True:
            yield await pieces.get()


async def resampled(audio: AsyncIterable[Samples | bytes], sample_rate: int) -> AsyncIterator[Samples]:
    """Brings a stream of mono PCM to 16 kHz int16.

    Args:
        audio: int16 arrays of shape (samples,), or bytes of little-endian int16.
        sample_rate: Its rate.

    Raises:
        InvalidInput: A piece is not mono int16.
    """
    resampler = None
    if sample_rate != ASR_SAMPLE_RATE:
        resampler = soxr.ResampleStream(sample_rate, ASR_SAMPLE_RATE, 1, "int16")
    async for piece in audio:
        if isinstance(piece, bytes | bytearray | memoryview):
            if len(piece) % 2:
                raise InvalidInput("PCM bytes must be whole int16 samples; got an odd number of bytes")
            samples = np.frombuffer(piece, dtype="<i2")
        else:
            samples = np.asarray(piece)
        if samples.dtype != np.int16 or samples.ndim != 1:
            raise InvalidInput(f"audio must be int16 of shape (samples,); it is {samples.dtype} {samples.shape}")
        yield samples if resampler is None else resampler.resample_chunk(samples)
    if resampler is not None:
        yield resampler.resample_chunk(np.zeros(0, np.int16), last=True)
