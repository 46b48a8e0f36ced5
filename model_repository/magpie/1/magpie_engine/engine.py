"""The loop: admit waiting requests into free slots, step all live ones, stream what is due."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from magpie_engine.catalog import Catalog
from magpie_engine.checkpoint import read_catalog
from magpie_engine.chunking import ChunkSchedule
from magpie_engine.codec import StreamingCodec, to_int16
from magpie_engine.errors import EngineStoppedError, MagpieError, QueueFullError
from magpie_engine.events import AudioChunk, Failed, Finished, FinishReason, Sink
from magpie_engine.request import SpeechRequest
from magpie_engine.runner import ModelRunner
from magpie_engine.settings import EngineSettings
from magpie_engine.text import TextEncoder
from magpie_engine.utterance import Utterance

if TYPE_CHECKING:
    from nemo.collections.tts.models.magpietts import MagpieTTSModel


@dataclass(frozen=True)
class EngineStats:
    """Counts since the start, and what is going on now.

    Attributes:
        active: Utterances speaking.
        queued: Requests waiting for a slot.
        finished: Utterances that ended by themselves or at their length limit.
        cancelled: Requests cancelled while waiting or speaking.
        failed: Requests that met an error.
        refused: Requests refused because the queue was full.
        frames: Codec frames decoded, all utterances together.
    """

    active: int = 0
    queued: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    refused: int = 0
    frames: int = 0


class SpeechEngine:
    """Continuous batching of utterances.

    `submit`, `cancel`, `stats`, `shut` and `wait_for_work` may be called from any thread; `step` and `close` only from
    the one that made the engine, which thereby owns every NeMo object.

    Args:
        model: The restored model, in evaluation mode.
        settings: Slots, queue and chunk sizes.
    """

    def __init__(self, model: MagpieTTSModel, settings: EngineSettings) -> None:
        #: What clients may ask for.
        self.catalog: Catalog = read_catalog(model, settings)
        self._settings = settings
        self._text = TextEncoder(model, self.catalog.max_text_tokens)
        self._runner = ModelRunner(model, self.catalog, settings.max_streams)
        self._codec = StreamingCodec(model)
        self._waiting: deque[Utterance] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._finished = self._cancelled = self._failed = self._refused = self._frames = 0

    # Any thread ------------------------------------------------------------------------------------------------------

    def submit(self, request: SpeechRequest, sink: Sink) -> Utterance:
        """Queues a request.

        Args:
            request: What to say.
            sink: Gets the audio chunks and then exactly one `Finished` or `Failed`; called on the engine's thread, or
                on the caller's, before this returns, if there is nothing to say.

        Returns:
            The handle for `cancel`.

        Raises:
            QueueFullError: All slots are taken and the queue is full.
            EngineStoppedError: The engine is closed.
        """
        schedule = ChunkSchedule(self._settings.first_chunk_frames, self._settings.max_chunk_frames)
        utterance = Utterance(request, sink, schedule)
        with self._changed:
            if self._closed:
                raise EngineStoppedError("the speech engine is shutting down")
            if request.pronounceable:
                # Requests that a free slot will take at the next step do not count as waiting.
                if len(self._waiting) >= self._settings.max_queue + self._runner.free:
                    self._refused += 1
                    raise QueueFullError(
                        f"all {self._settings.max_streams} voices speak and {self._settings.max_queue} requests wait; "
                        "try again later"
                    )
                self._waiting.append(utterance)
                self._changed.notify()
                return utterance
            self._finished += 1
        utterance.end(Finished(FinishReason.EMPTY))
        return utterance

    def cancel(self, utterance: Utterance) -> None:
        """Ends an utterance before the next step; without effect if it is over."""
        with self._changed:
            utterance.cancelled = True
            self._changed.notify()

    def stats(self) -> EngineStats:
        """Counts so far."""
        with self._changed:
            return EngineStats(
                active=len(self._runner.live),
                queued=len(self._waiting),
                finished=self._finished,
                cancelled=self._cancelled,
                failed=self._failed,
                refused=self._refused,
                frames=self._frames,
            )

    def wait_for_work(self) -> bool:
        """Waits until there is something to step; tells False once the engine takes no more requests."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting or self._runner.live)
            return not self._closed

    def shut(self) -> None:
        """Refuses requests from now on and ends `wait_for_work`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    # The engine's thread ---------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Lets go of cancelled utterances, admits waiting ones, decodes one step, sends what is due.

        Errors of one utterance go to its sink; an error of the step goes to all live ones. Nothing is raised.
        """
        self._drop_cancelled()
        self._admit()
        if not self._runner.live:
            return
        try:
            results = self._runner.step()
            self._frames += sum(result.utterance.codes[-1].shape[1] for result in results)
            self._send_due([result.utterance for result in results], {r.utterance for r in results if r.reason})
        except Exception as error:  # whatever the device or NeMo raises, clients are told and the engine goes on
            for utterance in list(self._runner.live):
                self._fail(utterance, error)
            return
        for result in results:
            if result.reason is not None:
                self._finish(result.utterance, result.reason)

    def close(self) -> None:
        """Refuses new requests and fails those that wait or speak."""
        self.shut()
        with self._changed:
            waiting = list(self._waiting)
            self._waiting.clear()
        for utterance in [*waiting, *self._runner.live]:
            self._fail(utterance, EngineStoppedError("the speech engine is shutting down"))

    def _drop_cancelled(self) -> None:
        with self._changed:
            waiting = [utterance for utterance in self._waiting if utterance.cancelled]
            for utterance in waiting:
                self._waiting.remove(utterance)
        for utterance in [*waiting, *(live for live in self._runner.live if live.cancelled)]:
            self._finish(utterance, FinishReason.CANCELLED)

    def _admit(self) -> None:
        while self._runner.free:
            with self._changed:
                if not self._waiting:
                    return
                utterance = self._waiting.popleft()
            try:
                tokens = self._text.encode(utterance.request.text, utterance.request.tokenizer)
                if tokens:
                    self._runner.admit(utterance, tokens)
                else:
                    self._finish(utterance, FinishReason.EMPTY)
            except Exception as error:  # a text that breaks a tokenizer is that client's problem only
                self._fail(utterance, error)

    def _send_due(self, utterances: Sequence[Utterance], ending: set[Utterance]) -> None:
        """Decodes and sends the pending frames of utterances whose chunk is due or that end."""
        due = [u for u in utterances if u.pending and (u in ending or u.schedule.due(u.pending))]
        if not due:
            return
        windows, fresh = zip(*(utterance.take_window() for utterance in due), strict=True)
        with torch.inference_mode():
            audio = self._codec.decode([torch.cat(window, dim=1) for window in windows], fresh)
        for utterance, samples in zip(due, audio, strict=True):
            utterance.sink(AudioChunk(to_int16(samples)))

    def _finish(self, utterance: Utterance, reason: FinishReason) -> None:
        self._leave(utterance)
        with self._changed:
            if reason is FinishReason.CANCELLED:
                self._cancelled += 1
            else:
                self._finished += 1
        utterance.end(Finished(reason))

    def _fail(self, utterance: Utterance, error: Exception) -> None:
        self._leave(utterance)
        with self._changed:
            self._failed += 1
        if not isinstance(error, MagpieError):
            error = MagpieError(f"speech failed: {type(error).__name__}: {error}")
        utterance.end(Failed(error))

    def _leave(self, utterance: Utterance) -> None:
        if utterance.slot >= 0:
            self._runner.release(utterance)
