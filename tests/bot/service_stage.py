"""A pipeline with one processor in it: tests send frames in and see what comes out on both sides, while it runs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, TypeVar

import numpy as np
from pipecat.frames.frames import (
    EndFrame,
    ErrorFrame,
    Frame,
    InputAudioRawFrame,
    MetricsFrame,
    ServiceMetadataFrame,
    StartFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.workers.runner import WorkerRunner

PATIENCE_S = 30
FRAME_SAMPLES = 320
F = TypeVar("F", bound=Frame)


class _Ear(FrameProcessor):
    """Notes the frames that pass in one direction."""

    def __init__(self, listens: FrameDirection, heard: list[Frame]):
        super().__init__(enable_direct_mode=True)
        self._listens, self._heard = listens, heard

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if direction == self._listens and not isinstance(frame, StartFrame | InputAudioRawFrame | ServiceMetadataFrame):
            self._heard.append(frame)
        await self.push_frame(frame, direction)


class Stage:
    """The running pipeline.

    Attributes:
        down: Frames that came out downstream, in order.
        up: Frames that came out upstream, in order.
    """

    def __init__(self, *processors: FrameProcessor, **params: Any):
        self.down: list[Frame] = []
        self.up: list[Frame] = []
        before, behind = _Ear(FrameDirection.UPSTREAM, self.up), _Ear(FrameDirection.DOWNSTREAM, self.down)
        self.worker = PipelineWorker(
            Pipeline([before, *processors, behind]),
            cancel_on_idle_timeout=False,
            enable_rtvi=False,
            params=PipelineParams(
                **{"enable_metrics": True, "enable_usage_metrics": True, "audio_out_sample_rate": 24000} | params
            ),
        )

    async def send(self, *frames: Frame, upstream: bool = False) -> None:
        """Puts frames in at the pipeline's beginning, or at its end."""
        for frame in frames:
            direction = FrameDirection.UPSTREAM if upstream else FrameDirection.DOWNSTREAM
            await self.worker.queue_frame(frame, direction)

    async def until(self, done: Callable[[], Any]) -> None:
        """Waits until something is true."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not done():
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(f"it never came; there were {self.names()} and {self.errors}") from None

    async def until_down(self, kind: type[F], count: int = 1) -> F:
        """Waits for the n-th frame of a kind."""
        await self.until(lambda: len(self.of(kind)) >= count)
        return self.of(kind)[count - 1]

    async def until_error(self, count: int = 1) -> ErrorFrame:
        """Waits for the n-th error."""
        await self.until(lambda: len(self.errors) >= count)
        return self.errors[count - 1]

    def of(self, *kinds: type[F]) -> list[F]:
        """The frames of some kinds that came out downstream."""
        return [frame for frame in self.down if isinstance(frame, kinds)]

    @property
    def errors(self) -> list[ErrorFrame]:
        """The errors that were pushed."""
        return [frame for frame in self.up if isinstance(frame, ErrorFrame)]

    def names(self, *without: type[Frame]) -> list[str]:
        """Names of the frames that came out downstream, but for metrics, the end and some kinds."""
        return [
            type(frame).__name__ for frame in self.down if not isinstance(frame, (MetricsFrame, EndFrame, *without))
        ]

    def metrics(self, name: str) -> list[Any]:
        """The measurements of a kind, by the name of their class."""
        return [d for frame in self.of(MetricsFrame) for d in frame.data if type(d).__name__ == name]


@contextlib.asynccontextmanager
async def staged(*processors: FrameProcessor, **params: Any) -> AsyncIterator[Stage]:
    """Runs processors in a pipeline; on the way out the pipeline ends in order."""
    stage = Stage(*processors, **params)
    started = asyncio.Event()
    stage.worker.add_event_handler("on_pipeline_started", lambda *_: started.set())
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(stage.worker)
    running = asyncio.create_task(runner.run())
    try:
        await asyncio.wait_for(started.wait(), PATIENCE_S)
        yield stage
        await stage.send(EndFrame())
        await asyncio.wait_for(asyncio.shield(running), PATIENCE_S)
    finally:
        if not running.done():
            await runner.cancel()
            await running


def microphone(audio: np.ndarray, sample_rate: int = 16000) -> Iterable[InputAudioRawFrame]:
    """The audio as the transport would push it, 20 ms a frame at 16 kHz."""
    for start in range(0, len(audio), FRAME_SAMPLES):
        yield InputAudioRawFrame(audio[start : start + FRAME_SAMPLES].tobytes(), sample_rate, 1)
