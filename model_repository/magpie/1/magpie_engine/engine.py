"""The loop: admit waiting requests into free slots, step all live ones, stream what is due."""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from magpie_engine.catalog import Catalog
from magpie_engine.checkpoint import read_catalog
from magpie_engine.chunking import ChunkPolicy, PlayoutSchedule
from magpie_engine.codec import PendingAudio, StreamingCodec
from magpie_engine.errors import EngineBrokenError, EngineStoppedError, MagpieError, QueueFullError
from magpie_engine.events import AudioChunk, Failed, Finished, FinishReason, Sink, Word
from magpie_engine.history import Continuation, UtteranceMemory
from magpie_engine.normalization import make_normalizer
from magpie_engine.observer import Observer
from magpie_engine.request import MAX_SEED, SpeechRequest
from magpie_engine.runner import ModelRunner
from magpie_engine.settings import EngineSettings
from magpie_engine.text import Segment, TextFrontEnd
from magpie_engine.utterance import Utterance

if TYPE_CHECKING:
    from nemo.collections.tts.models.magpietts import MagpieTTSModel

#: Requests that begin between two steps, at most, by device. They share a prefill, for which those who speak have to
#: wait: on a GPU it takes about as long for many as for one.
ADMISSIONS = {"cpu": 4, "cuda": 32}


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
    the one that made the engine, which thereby owns every NeMo object but the tokenizer, which is the text thread's.

    Args:
        model: The restored model, in evaluation mode.
        settings: Slots, queue and chunk sizes.
        text_thread: Where text is normalised and tokenized; None does it within `submit` and `step`.
        observer: Told what is worth measuring.
        clock: Tells the time in seconds.
    """

    def __init__(
        self,
        model: MagpieTTSModel,
        settings: EngineSettings,
        text_thread: Executor | None = None,
        observer: Observer | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        #: What clients may ask for.
        self.catalog: Catalog = read_catalog(model, settings)
        self._settings = settings
        normalizer = make_normalizer(settings.normalizer, settings.normalizer_cache, self.catalog.languages)
        self._text = TextFrontEnd(model, self.catalog.max_text_tokens, normalizer)
        self._text_thread = text_thread or _SameThread()
        self._runner = ModelRunner(model, self.catalog, settings)
        self._codec = StreamingCodec(model, settings.max_streams, tf32=bool(settings.tf32))
        self._admissions = ADMISSIONS[model.device.type]
        self._policy = ChunkPolicy(
            settings.first_chunk_frames,
            settings.max_chunk_frames,
            settings.playout_margin_ms / 1000,
            1 / self.catalog.frames_per_second,
        )
        self._observer = observer or Observer()
        self._clock = clock
        #: Audio that is being decoded, the oldest first: utterances, their words, whether it is their first.
        self._sounding: deque[tuple[list[Utterance], list[tuple[Word, ...]], list[bool], PendingAudio]] = deque()
        self._memory = UtteranceMemory(settings.utterance_idle_seconds, clock)
        self._waiting: deque[Utterance] = deque()
        #: Utterances whose clients have not been told the end.
        self._owed: set[Utterance] = set()
        #: Utterances between two segments, the next of which is not ready. They have left their slots, so that the
        #: others go on, and slots are kept free for them.
        self._parked: list[Utterance] = []
        self._changed = threading.Condition()
        #: Why no more requests are taken; None while they are.
        self._closed: MagpieError | None = None
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
            EngineBrokenError: An error has stopped it.
        """
        utterance = Utterance(request, sink, PlayoutSchedule(self._policy), self._clock())
        with self._changed:
            if self._closed:
                raise self._closed.with_traceback(None)
            if request.pronounceable:
                # Requests that a free slot will take at the next step do not count as waiting.
                if len(self._waiting) >= self._settings.max_queue + self._free:
                    self._refused += 1
                    raise QueueFullError(
                        f"all {self._settings.max_streams} voices speak and {self._settings.max_queue} requests wait; "
                        "try again later"
                    )
                if request.utterance is not None:
                    utterance.request = self._memory.begin(request)
                utterance.script = self._text_thread.submit(self._text.begin, utterance.request)
                self._waiting.append(utterance)
                self._owed.add(utterance)
            else:
                self._finished += 1
        if not request.pronounceable:
            utterance.end(Finished(FinishReason.EMPTY))
        else:
            utterance.script.add_done_callback(self._wake)
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
                active=len(self._runner.live) + len(self._parked),
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
            self._changed.wait_for(
                lambda: (
                    self._closed
                    or self._runner.live
                    or any(waiting.cancelled or waiting.script.done() for waiting in self._waiting)
                    or any(parked.cancelled or _is_ready(parked) for parked in self._parked)
                )
            )
            return not self._closed

    def shut(self, reason: MagpieError | None = None) -> MagpieError:
        """Refuses requests from now on and ends `wait_for_work`; returns what they are refused with."""
        with self._changed:
            self._closed = self._closed or reason or EngineStoppedError("the speech engine is shutting down")
            self._changed.notify_all()
            return self._closed

    @property
    def _free(self) -> int:
        """Slots that waiting requests may take."""
        return self._runner.free - len(self._parked)

    def _wake(self, future: Future[Any]) -> None:
        with self._changed:
            self._changed.notify()

    # The engine's thread ---------------------------------------------------------------------------------------------

    def warm_up(self) -> None:
        """Prepares what the first callers would otherwise wait for: CUDA graphs."""
        if self._runner.wants_graphs:
            self._runner.capture()
            self._codec.capture(self._policy.sizes)

    def step(self) -> None:
        """Lets go of cancelled utterances, admits waiting ones, decodes one step, sends what is due.

        Errors of one utterance go to its sink; an error of the step goes to all live ones. What is raised nevertheless
        means that the engine cannot go on: the device does not even let go of an utterance, for example.
        """
        self._drop_cancelled()
        self._resume()
        self._admit()
        if not self._runner.live:
            return
        began = self._clock()
        before = sum(utterance.frames for utterance in self._runner.live)
        try:
            results = self._runner.step(meanwhile=self._deliver_ready)
            self._frames += sum(result.utterance.frames for result in results) - before
            for result in results:
                result.utterance.page_over = result.over
                if result.over and not result.utterance.is_full:
                    result.utterance.begin_all_words()
            self._send_due([result.utterance for result in results])
        except Exception as error:  # whatever the device or NeMo raises, clients are told and the engine goes on
            self._fail(list(self._runner.live), error)
            return
        self._observer.stepped(len(results), self._clock() - began)
        for result in results:
            if result.utterance.error is not None:
                self._fail([result.utterance], result.utterance.error)
            elif result.over is not None:
                self._turn_page(result.utterance)

    def close(self, error: Exception | None = None) -> None:
        """Refuses new requests and fails those that wait or speak. It leaves the device alone, which may be broken.

        Args:
            error: Why the engine cannot go on; None if it could.
        """
        broken = EngineBrokenError(f"the speech engine has stopped: {type(error).__name__}: {error}") if error else None
        refusal = self.shut(broken)
        with self._changed:
            owed = list(self._owed)
            self._waiting.clear()
            self._parked.clear()
            self._runner.live.clear()
        with contextlib.suppress(Exception):
            self._deliver()
        for utterance in owed:
            self._tell_failure(utterance, refusal)

    def _drop_cancelled(self) -> None:
        with self._changed:
            waiting = [utterance for utterance in self._waiting if utterance.cancelled]
            for utterance in waiting:
                self._waiting.remove(utterance)
        for utterance in [*waiting, *(own for own in (*self._runner.live, *self._parked) if own.cancelled)]:
            self._finish(utterance, FinishReason.CANCELLED)

    def _resume(self) -> None:
        """Goes on with the parked utterances whose next segment is ready."""
        for utterance in [parked for parked in self._parked if _is_ready(parked)]:
            self._turn_page(utterance)

    def _admit(self) -> None:
        """Begins waiting utterances, as many together as may: they share a prefill."""
        beginning: list[tuple[Utterance, Segment]] = []
        while len(beginning) < self._admissions:
            utterance = self._next_waiting([own for own, _ in beginning])
            if utterance is None:
                break
            try:
                segment = utterance.script.result().first
                if segment is None:
                    self._finish(utterance, FinishReason.EMPTY)
                    continue
                self._begin(utterance)
                beginning.append((utterance, segment))
            except Exception as error:  # a text that breaks a tokenizer is that client's problem only
                self._fail([utterance], error)
        if not beginning:
            return
        try:
            self._runner.admit(beginning)
        except Exception as error:
            self._fail([utterance for utterance, _ in beginning], error)
            return
        for utterance, segment in beginning:
            self._prepare_next(utterance, segment)

    def _next_waiting(self, beginning: Sequence[Utterance]) -> Utterance | None:
        """Takes the next request that can begin: its text is ready, and the piece before it has been spoken.

        Args:
            beginning: Utterances that take free slots at the same time.
        """
        with self._changed:
            busy = {own.request.utterance for own in (*self._runner.live, *self._parked, *beginning)}
            ready = []
            for utterance in self._waiting:
                piece_of = utterance.request.utterance
                if utterance.script.done() and (piece_of is None or piece_of not in busy):
                    ready.append(utterance)
                busy.add(piece_of)
            # Somebody is listening to an utterance that has begun: its next piece goes first.
            ready.sort(key=lambda utterance: self._memory.recall(utterance.request) is None)
            for utterance in ready:
                failed = utterance.script.exception() is not None
                if self._free > len(beginning) or failed or utterance.script.result().first is None:
                    self._waiting.remove(utterance)
                    return utterance
        return None

    def _begin(self, utterance: Utterance) -> None:
        """Lets an utterance go on from the piece before it, if it is not the first."""
        request = utterance.request
        before = self._memory.recall(request)
        if before is not None:
            utterance.history, utterance.first_frame, utterance.noise = before.text, before.frames, before.noise
        if before is None or "seed" in request.given:
            seed = request.seed if request.seed is not None else secrets.randbelow(MAX_SEED)
            utterance.noise.manual_seed(seed)
        utterance.row = self._codec.open(None if before is None else before.codec)

    def _prepare_next(self, utterance: Utterance, segment: Segment) -> None:
        """Has the text thread prepare what follows a segment that has just begun."""
        utterance.next_segment = None
        if not segment.is_last:
            script = utterance.script.result()
            utterance.next_segment = self._text_thread.submit(self._text.advance, script, utterance.request)
            utterance.next_segment.add_done_callback(self._wake)

    def _turn_page(self, utterance: Utterance) -> None:
        """Goes on with the next segment of an utterance whose segment is over, parks it, or ends it."""
        reason = utterance.page_over
        assert reason is not None
        if utterance.is_full or utterance.next_segment is None:
            self._finish(utterance, reason)
        elif not _is_ready(utterance):
            self._park(utterance)
        else:
            try:
                segment = utterance.next_segment.result()
                if segment is not None:
                    self._proceed(utterance, segment)
            except Exception as error:
                self._fail([utterance], error)
                return
            if segment is None:
                self._finish(utterance, reason)

    def _park(self, utterance: Utterance) -> None:
        """Takes an utterance out of its slot until its next segment is ready: nobody else waits for a long text."""
        utterance.history = self._runner.history(utterance)
        self._parked.append(utterance)
        self._runner.release(utterance)

    def _proceed(self, utterance: Utterance, segment: Segment) -> None:
        self._prepare_next(utterance, segment)
        if utterance.slot >= 0:
            self._runner.proceed(utterance, segment)
        else:
            self._runner.admit([(utterance, segment)])
            self._parked.remove(utterance)

    def _send_due(self, utterances: Sequence[Utterance]) -> None:
        """Decodes and sends the pending frames of utterances whose chunk is due or whose segment ends."""
        now = self._clock()
        sound = [u for u in utterances if u.pending and u.error is None]
        due = [u for u in sound if u.schedule.due(u.pending, now, must=u.page_over is not None)]
        if not due:
            return
        is_first = [utterance.frames == utterance.pending for utterance in due]
        audio = self._codec.start([u.row for u in due], [u.take_codes() for u in due])
        words = [utterance.take_words(self.catalog.frames_per_second) for utterance in due]
        self._sounding.append((due, words, is_first, audio))
        if any(is_first):
            self._deliver()
        else:
            self._deliver_ready()

    def _deliver_ready(self) -> None:
        """Sends the audio that is decoded; the rest can wait for a step, as the listeners still have some to play."""
        while self._sounding and self._sounding[0][-1].is_ready():
            self._deliver_next()

    def _deliver(self) -> None:
        """Sends all audio, waiting for what is still being decoded."""
        while self._sounding:
            self._deliver_next()

    def _deliver_next(self) -> None:
        utterances, words, is_first, pending = self._sounding.popleft()
        try:
            audio = pending.wait()
        except Exception as error:
            for utterance in utterances:  # no one may leave now: a step may be under way
                utterance.error = error
            return
        for utterance, own, own_words, first in zip(utterances, audio, words, is_first, strict=True):
            utterance.sink(AudioChunk(own, own_words))
            if first:
                self._observer.first_audio(self._clock() - utterance.submitted)

    def _finish(self, utterance: Utterance, reason: FinishReason) -> None:
        self._deliver()  # what it has said comes before its end, and its row must not be given away before
        if utterance.error is not None:
            self._fail([utterance], utterance.error)
            return
        cancelled = reason is FinishReason.CANCELLED
        self._leave(utterance, broken=cancelled)
        with self._changed:
            self._owed.discard(utterance)
            if cancelled:
                self._cancelled += 1
            else:
                self._finished += 1
        if utterance.frames and not cancelled:
            audio_s = utterance.frames / self.catalog.frames_per_second
            self._observer.finished(audio_s, self._clock() - utterance.submitted)
        utterance.end(Finished(reason, utterance.take_words(self.catalog.frames_per_second, rest=True)))

    def _fail(self, utterances: Sequence[Utterance], error: Exception) -> None:
        """Ends utterances with an error: all are told before any leaves, for which the device may be too broken."""
        self._deliver()
        ending = [utterance for utterance in utterances if not utterance.is_over]
        for utterance in ending:
            self._tell_failure(utterance, error)
        for utterance in ending:
            self._leave(utterance, broken=True)

    def _tell_failure(self, utterance: Utterance, error: Exception) -> None:
        with self._changed:
            self._owed.discard(utterance)
            self._failed += 1
        if not isinstance(error, MagpieError):
            error = MagpieError(f"speech failed: {type(error).__name__}: {error}")
        utterance.end(Failed(error))

    def _leave(self, utterance: Utterance, *, broken: bool) -> None:
        continuation = None
        if utterance.slot >= 0:
            utterance.history = self._runner.history(utterance)
            self._runner.release(utterance)
        elif utterance in self._parked:
            self._parked.remove(utterance)
        if utterance.row >= 0:
            codec, utterance.row = self._codec.close(utterance.row), -1
            if utterance.history is not None:
                frames = utterance.first_frame + utterance.frames
                continuation = Continuation(utterance.history, codec, frames, utterance.noise)
        if utterance.request.utterance is not None:
            with self._changed:
                self._memory.end(utterance.request, continuation, broken=broken)


def _is_ready(utterance: Utterance) -> bool:
    """Whether it is known what follows an utterance's segment."""
    return utterance.next_segment is None or utterance.next_segment.done()


class _SameThread(Executor):
    """Runs what it is given at once."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        """See `Executor`."""
        future: Future[Any] = Future()
        try:
            future.set_result(function(*arguments, **named))
        except Exception as error:
            future.set_exception(error)
        return future
