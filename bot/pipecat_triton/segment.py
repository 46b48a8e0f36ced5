"""Audio of one segment of speech on its way from the pipeline to the recogniser."""

from __future__ import annotations

import asyncio
import time
from collections import deque

import numpy as np
import soxr

from pipecat_triton.tracing import ReservedSpan
from triton_voice.types import ASR_SAMPLE_RATE

CHUNK_MS = 160
"""Audio in one request to the server; more only if the server is behind."""
BYTES_PER_SAMPLE = 2
KEPT_S = 60
"""How much of a segment is kept in case that its stream is lost; only noise goes on for longer."""


class Segment:
    """Audio of one segment of speech, filled by the pipeline and emptied by the worker.

    Args:
        sample_rate: Of the audio that is added.
        latency_ms: The setting when the segment began.
        language: The setting when the segment began.
        model: The setting when the segment began.
        user_id: Who speaks.
    """

    def __init__(
        self, sample_rate: int, latency_ms: int | None, language: str | None, model: str, user_id: str
    ) -> None:
        self.latency_ms = latency_ms
        self.language = language
        self.model = model
        self.user_id = user_id
        #: When it began, seconds since the epoch.
        self.began_s = time.time()
        #: Its span, where the conversation is traced.
        self.span: ReservedSpan | None = None
        #: What has been recognised so far.
        self.text = ""
        self._resampler = None
        if sample_rate != ASR_SAMPLE_RATE:
            self._resampler = soxr.ResampleStream(sample_rate, ASR_SAMPLE_RATE, 1, "int16")
        self._chunk_bytes = sample_rate * CHUNK_MS // 1000 * BYTES_PER_SAMPLE
        self._incoming = bytearray()
        self._kept: deque[np.ndarray] = deque()
        self._kept_samples = 0
        self._rewound = False
        self._ended = asyncio.Event()
        self._wake = asyncio.Event()

    def add(self, pcm: bytes | bytearray) -> None:
        """Adds 16-bit mono PCM."""
        self._incoming += pcm
        if len(self._incoming) >= self._chunk_bytes:
            self._wake.set()

    def end(self) -> None:
        """Tells that no more comes."""
        self._ended.set()
        self._wake.set()

    async def ended(self) -> None:
        """Waits until no more comes."""
        await self._ended.wait()

    def rewind(self) -> None:
        """Has the next `take` return everything since the beginning, or the last minute of it."""
        self._rewound = True

    async def take(self) -> tuple[np.ndarray, bool]:
        """Waits for the next chunk.

        Returns:
            int16, shape (samples,), 16 kHz: all that is there and not yet taken. And whether it is the last.
        """
        if not self._rewound:
            await self._wake.wait()
        self._wake.clear()
        last = self._ended.is_set()
        samples = np.frombuffer(bytes(self._incoming), "<i2")
        self._incoming.clear()
        if self._resampler is not None:
            samples = self._resampler.resample_chunk(samples, last=last)
            self._resampler = None if last else self._resampler
        self._keep(samples)
        if self._rewound:
            self._rewound = False
            samples = np.concatenate(self._kept)
        return samples, last

    def _keep(self, samples: np.ndarray) -> None:
        self._kept.append(samples)
        self._kept_samples += len(samples)
        while self._kept_samples - len(self._kept[0]) > KEPT_S * ASR_SAMPLE_RATE:
            self._kept_samples -= len(self._kept.popleft())
