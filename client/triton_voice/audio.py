"""Audio in and out: any file becomes what the recogniser hears; resampling by soxr, files by libsndfile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator
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
