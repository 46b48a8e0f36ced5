"""What tests of several parts share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import numpy as np

SAMPLE_RATE = 16000


def speechlike(seconds: float, seed: int = 0) -> np.ndarray:
    """Audio that changes as speech does: a gliding tone of changing loudness over noise. int16, (samples,), 16 kHz."""
    rng = np.random.RandomState(seed)
    n = int(seconds * SAMPLE_RATE)
    if n == 0:
        return np.zeros(0, np.int16)
    t = np.arange(n) / SAMPLE_RATE
    pitch = np.interp(t, np.linspace(0, seconds, int(seconds * 6) + 2), rng.uniform(80, 1500, int(seconds * 6) + 2))
    loud = np.interp(t, np.linspace(0, seconds, int(seconds * 5) + 2), rng.uniform(0, 1, int(seconds * 5) + 2))
    audio = loud * np.sin(2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE) * 0.4 + 0.02 * rng.randn(n)
    return (np.clip(audio, -1, 1) * 32767).astype(np.int16)


async def pieces(audio: np.ndarray, size: int) -> AsyncIterator[np.ndarray]:
    """The audio in pieces of `size` samples."""
    for start in range(0, len(audio), size):
        yield audio[start : start + size]
