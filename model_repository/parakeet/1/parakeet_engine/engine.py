"""Schedules every caller's audio into batched steps on one thread."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from parakeet_engine.checkpoint import Checkpoint, Lookahead
from parakeet_engine.delivery import Delivery
from parakeet_engine.errors import AsrError, InvalidRequest, SequenceLost, Unavailable
from parakeet_engine.observer import Observer
from parakeet_engine.requests import SAMPLE_RATE, AudioRequest
from parakeet_engine.runner import Chunk, StepRunner
from parakeet_engine.settings import EngineSettings
from parakeet_engine.stream import Stream

_log = logging.getLogger(__name__)

IDLE_CHECK_S = 1.0
"""How often the engine looks for streams that went silent."""
CANCEL_CHECK_S = 1.0
"""How often a request that takes long is asked whether it was cancelled: a question costs a round trip in Triton."""


@dataclass(frozen=True, slots=True)
class _Leave:
    """A stream that is over without an END: its caller is gone, or (`refused`) its START or END was refused.

    `submitted` is when the request came that tells so: a stream that was begun since is another one.
    """

    stream: Hashable
    submitted: float
    refused: bool


class Engine:
    """Recognises many streams at once.

    Thread safe: `submit` may be called from anywhere. The model is touched by the engine's own thread alone. A stream
    takes part in a step whenever a chunk of its audio is complete; at most one chunk of a stream is in a step, so one
    that sends a minute at once takes turns with the others.

    What is left of an utterance at END or `finalize` is at most a full chunk and a ragged one. They are two steps, the
    second of which follows at once, whatever else is ready; the answer goes out before the next batch. One wider step
    for both would save one step of few rows (1.3 ms at one stream in bfloat16 on an H200) and cost every mode and batch
    size a second CUDA graph (twice the warm-up and the graphs' memory), rings longer by a chunk, and attention with
    another mask for each query, as no frame of the first chunk may see the second.

    Args:
        settings: Limits and choices.
        observer: Told what happens.

    Raises:
        CheckpointError: The checkpoint cannot be used.
    """

    def __init__(self, settings: EngineSettings, observer: Observer | None = None):
        self.settings = settings
        device = settings.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        self.checkpoint = Checkpoint.load(settings.checkpoint, self.device, settings.language)
        self.default_lookahead = self.checkpoint.default_lookahead(settings.default_latency_ms)
        self.runner = StepRunner(
            self.checkpoint,
            settings.max_streams,
            getattr(torch, settings.precision),
            self.device,
            settings.max_batch,
            settings.cuda_graphs,
        )
        tokenizer = self.checkpoint.model.tokenizer
        pieces = tokenizer.ids_to_tokens(list(range(tokenizer.vocab_size)))
        self._observer = observer or Observer()
        self._delivery = Delivery(pieces, tokenizer.ids_to_text, self._observer)
        self._free = list(range(settings.max_streams - 1, -1, -1))
        self._streams: dict[Hashable, Stream] = {}
        self._waiting: deque[Stream] = deque()
        self._busy: dict[Hashable, Stream] = {}  # streams with pending requests and a slot, oldest first
        self._inbox: queue.SimpleQueue[AudioRequest | _Leave | None] = queue.SimpleQueue()
        self._closed = False
        self.runner.warm_up()
        self._thread = threading.Thread(target=self._run, name="parakeet-engine", daemon=True)
        self._thread.start()

    @property
    def active_streams(self) -> int:
        """Streams that hold a slot."""
        return self.settings.max_streams - len(self._free)

    def submit(self, request: AudioRequest) -> None:
        """Hands in a request; `request.respond` is called once, later, from another thread.

        Raises:
            InvalidRequest: The request can never be served; `respond` is not called. A START or END that is refused
                ends the stream of its id, as it does for Triton.
            Unavailable: The engine is closed; `respond` is not called.
        """
        if self._closed:
            raise Unavailable("the server is shutting down")
        try:
            self._validate(request)
        except InvalidRequest:
            if request.start or request.end:
                self.refuse(request.stream, request.submitted)
            raise
        self._inbox.put(request)

    def abandon(self, stream: Hashable, submitted: float) -> None:
        """Drops a stream whose caller went away; an unknown one is no error.

        Args:
            stream: Its id.
            submitted: When the request came that the caller cancelled; a stream that was begun later stays.
        """
        self._inbox.put(_Leave(stream, submitted, refused=False))

    def refuse(self, stream: Hashable, submitted: float) -> None:
        """Drops the stream of an id whose START or END was refused; an unknown one is no error.

        Args:
            stream: Its id.
            submitted: When that request came; a stream that was begun later stays.
        """
        self._inbox.put(_Leave(stream, submitted, refused=True))

    def close(self) -> None:
        """Answers what is complete, fails the rest, and stops the threads."""
        self._closed = True
        self._inbox.put(None)
        self._thread.join()
        self._delivery.close()

    def _validate(self, request: AudioRequest) -> None:
        audio = request.audio
        if audio.dtype != np.int16 or audio.ndim != 1:
            raise InvalidRequest(
                f"audio must be int16 of one dimension, {SAMPLE_RATE} Hz mono; it is {audio.dtype} {audio.shape}"
            )
        if len(audio) > self.settings.max_request_s * SAMPLE_RATE:
            raise InvalidRequest(
                f"one request may carry at most {self.settings.max_request_s:g} s of audio; this one carries "
                f"{len(audio) / SAMPLE_RATE:.1f} s"
            )
        if not request.start and (request.latency_ms is not None or request.language is not None):
            raise InvalidRequest("latency_ms and language are set by the request that starts the sequence")
        if request.latency_ms is not None and request.latency_ms not in self.checkpoint.lookaheads:
            offered = ", ".join(str(ms) for ms in self.checkpoint.lookaheads)
            raise InvalidRequest(f"latency_ms {request.latency_ms} is not offered; this checkpoint has {offered}")
        if request.language is not None and request.language not in self.checkpoint.languages:
            offered = ", ".join(self.checkpoint.languages)
            raise InvalidRequest(f"language {request.language!r} is not offered; this checkpoint has {offered}")

    # Everything below runs on the engine thread.

    def _run(self) -> None:
        open_ = True
        while open_:
            try:
                open_ = self._read_inbox()
                self._expire()
                self._drop_one_cancelled()
                for lookahead, chunks in self._collect().items():
                    for i in range(0, len(chunks), self.settings.max_batch):
                        batch = chunks[i : i + self.settings.max_batch]
                        self._step(lookahead, batch)
                        self._end(lookahead, [stream for stream, _ in batch])
            except Exception as error:  # nobody may wait for ever because of a fault here
                _log.exception("the engine failed; its streams are dropped")
                for stream in list(self._streams.values()):
                    self._drop(stream, AsrError(f"recognition failed inside the server: {error}"))
        closing = Unavailable("the server is shutting down")
        for stream in list(self._streams.values()):
            self._drop(stream, closing)

    def _read_inbox(self) -> bool:
        """Takes in what has come, waiting only when there is nothing else to do. False when the engine closes."""
        try:
            item = self._inbox.get(block=not self._busy, timeout=self._patience())
            while True:
                if item is None:
                    return False
                if isinstance(item, AudioRequest):
                    self._admit(item)
                elif (stream := self._streams.get(item.stream)) is not None and stream.started <= item.submitted:
                    if item.refused:
                        self._drop(stream, self._refused(stream))
                    else:
                        self._abandon(stream)
                item = self._inbox.get_nowait()
        except queue.Empty:
            return True

    def _patience(self) -> float:
        """Seconds until the engine must look at its clock again."""
        now = time.monotonic()
        return max(0.0, min([IDLE_CHECK_S, *(stream.deadline - now for stream in self._waiting)]))

    def _admit(self, request: AudioRequest) -> None:
        key = request.stream
        if request.start:
            if (old := self._streams.get(key)) is not None:
                self._drop(old, SequenceLost(f"sequence {key} was begun again before this request was answered"))
            if request.end and not len(request.audio):  # an empty utterance needs no slot
                request.taken = request.submitted
                self._delivery.answer(key, request)
                return
            lookahead = self.default_lookahead
            if request.latency_ms is not None:
                lookahead = self.checkpoint.lookaheads[request.latency_ms]
            prompt = self.checkpoint.prompts.get(request.language or self.checkpoint.default_language, 0)
            stream = self._streams[key] = Stream(key, lookahead, self.runner, prompt, request.submitted)
            stream.conversation = request.conversation
            if self._free:
                stream.slot = self._free.pop()
                self._tell_active()
            else:
                stream.deadline = request.submitted + request.timeout_s
                self._waiting.append(stream)
        elif (found := self._streams.get(key)) is not None:
            stream = found
        else:
            self._delivery.fail(request, SequenceLost(f"sequence {key} is not live; begin again with START"))
            return
        stream.last_request = request.submitted
        if (refusal := self._too_much(stream, request)) is not None:
            if request.start or request.end:
                self._drop(stream, self._refused(stream))
            self._delivery.fail(request, refusal)
            return
        stream.pending.append(request)
        stream.queued_samples += len(request.audio)
        stream.samples += len(request.audio)
        if stream.slot is not None:
            self._busy[key] = stream

    def _too_much(self, stream: Stream, request: AudioRequest) -> AsrError | None:
        """Says why a stream cannot take a request's audio, if so. It stays until its END: its text can still be had."""
        if stream.samples + len(request.audio) > self.settings.max_stream_s * SAMPLE_RATE:
            limit = f"a sequence may carry at most {self.settings.max_stream_s / 60:g} minutes of audio"
            return InvalidRequest(f"{limit}; end this one and begin another")
        if stream.queued_samples + len(request.audio) > self.settings.max_backlog_s * SAMPLE_RATE:
            behind = stream.queued_samples / SAMPLE_RATE
            self._delivery.run(self._observer.refused)
            return Unavailable(f"sequence {stream.key} is {behind:.0f} s of audio behind; send slower")
        return None

    def _expire(self) -> None:
        """Fails starts that waited too long, and drops streams that went silent: Triton never tells of those."""
        now = time.monotonic()
        for stream in [s for s in self._waiting if s.deadline <= now]:
            self._delivery.run(self._observer.refused)
            self._drop(
                stream, Unavailable(f"all {self.settings.max_streams} streams are in use; try again when one has ended")
            )
        for stream in [
            s for s in self._streams.values() if not s.pending and now - s.last_request > self.settings.idle_s
        ]:
            _log.info("sequence %s was silent for %.0f s and is dropped", stream.key, self.settings.idle_s)
            self._tell_evicted(stream)
            self._drop(stream, SequenceLost(f"sequence {stream.key} was silent for too long"))

    def _drop_one_cancelled(self) -> None:
        """Drops a stream whose caller cancelled a long request; asks one at most: a step waits for one answer."""
        now = time.monotonic()
        for stream in self._busy.values():
            if stream.pending and now - max(stream.pending[0].submitted, stream.asked) > CANCEL_CHECK_S:
                stream.asked = now
                if stream.pending[0].is_cancelled():
                    self._abandon(stream)
                return

    def _abandon(self, stream: Stream) -> None:
        self._tell_evicted(stream)
        self._drop(stream, SequenceLost(f"sequence {stream.key} was abandoned by its caller"))

    @staticmethod
    def _refused(stream: Stream) -> SequenceLost:
        return SequenceLost(f"sequence {stream.key} is over: its START or END was refused")

    def _collect(self) -> dict[Lookahead, list[tuple[Stream, Chunk]]]:
        """Answers every request that is done and returns the next chunk of each stream that has one, by mode."""
        ready: dict[Lookahead, list[tuple[Stream, Chunk]]] = {}
        for stream in list(self._busy.values()):
            chunk = self._advance(stream)
            if chunk is not None:
                ready.setdefault(stream.lookahead, []).append((stream, chunk))
        return ready

    def _advance(self, stream: Stream) -> Chunk | None:
        while stream.pending:
            request = stream.take_request()
            chunk = stream.next_chunk()
            if chunk is not None:
                return chunk
            self._answer(stream, request)
        self._busy.pop(stream.key, None)
        return None

    def _answer(self, stream: Stream, request: AudioRequest) -> None:
        """Answers a stream's oldest request, of whose audio nothing is left that can be recognised now."""
        stream.finish_request()
        self._delivery.answer(stream.key, request, stream.utterance_start_s)
        if request.end:
            self._drop(stream, SequenceLost(f"sequence {stream.key} has ended"))

    def _end(self, lookahead: Lookahead, streams: Sequence[Stream]) -> None:
        """Recognises what is left of utterances that end, before any other batch, and answers their callers."""
        live = [stream for stream in streams if stream.pending]
        ending = [
            (stream, stream.next_chunk()) for stream in live if 0 < (stream.outputs_left or 0) <= lookahead.frames
        ]
        rest = [(stream, chunk) for stream, chunk in ending if chunk is not None]
        if rest:
            self._step(lookahead, rest)
        for stream in live:
            if stream.pending and stream.outputs_left == 0:
                self._answer(stream, stream.pending[0])

    def _tell_evicted(self, stream: Stream) -> None:
        conversation = stream.conversation
        self._delivery.run(lambda: self._observer.evicted(conversation))

    def _tell_active(self) -> None:
        active = self.active_streams
        self._delivery.run(lambda: self._observer.active_streams(active))

    def _step(self, lookahead: Lookahead, batch: list[tuple[Stream, Chunk]]) -> None:
        began = time.monotonic()
        try:
            emitted = self.runner.step(lookahead, [chunk for _, chunk in batch])
        except Exception as error:
            _log.exception("a step of %d streams failed", len(batch))
            for stream, _ in batch:
                self._drop(stream, AsrError(f"recognition failed inside the server: {error}"))
            return
        for (stream, _), tokens in zip(batch, emitted, strict=True):
            self._delivery.tokens(stream.key, tokens)
        seconds = time.monotonic() - began
        self._delivery.run(lambda: self._observer.stepped(len(batch), seconds))

    def _drop(self, stream: Stream, reason: AsrError) -> None:
        """Forgets a stream: fails what it still waits for, and gives its slot to the first that waits for one."""
        for request in stream.pending:
            self._delivery.fail(request, reason)
        stream.pending.clear()
        self._busy.pop(stream.key, None)
        if self._streams.get(stream.key) is stream:
            del self._streams[stream.key]
            self._delivery.forget(stream.key)
        if stream.slot is None:
            if stream in self._waiting:
                self._waiting.remove(stream)
            return
        slot, stream.slot = stream.slot, None
        if self._waiting:
            successor = self._waiting.popleft()
            successor.slot = slot
            self._busy[successor.key] = successor
        else:
            self._free.append(slot)
            self._tell_active()
