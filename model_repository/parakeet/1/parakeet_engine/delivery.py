"""Turns tokens into transcripts and hands them out, off the engine thread."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Hashable, Sequence

from parakeet_engine.errors import AsrError
from parakeet_engine.observer import Observer
from parakeet_engine.requests import SAMPLE_RATE, AudioRequest, Transcript
from parakeet_engine.runner import ChunkTokens
from parakeet_engine.words import WordAssembler

_log = logging.getLogger(__name__)


class Delivery:
    """A thread that owns every stream's text and calls every request's `respond`, in the order of the engine's calls.

    Args:
        pieces: Piece of each token id.
        decode: Text of a list of token ids.
        observer: Told of every answer.
    """

    def __init__(self, pieces: Sequence[str], decode: Callable[[list[int]], str], observer: Observer):
        self._observer = observer
        self._pieces = pieces
        self._decode = decode
        self._assemblers: dict[Hashable, WordAssembler] = {}
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="parakeet-delivery", daemon=True)
        self._thread.start()

    def tokens(self, key: Hashable, emitted: ChunkTokens) -> None:
        """Adds a stream's tokens."""
        if emitted.tokens:
            self._queue.put(lambda: self._assembler(key).add(emitted))

    def answer(self, key: Hashable, request: AudioRequest, next_utterance_s: float = 0.0) -> None:
        """Answers a request with the stream's words.

        Args:
            key: The stream.
            request: The request.
            next_utterance_s: Where the next utterance begins, if this request closes one.
        """
        self._queue.put(lambda: self._answer(key, request, next_utterance_s))

    def fail(self, request: AudioRequest, error: AsrError) -> None:
        """Answers a request with an error."""
        self._queue.put(lambda: request.respond(error))

    def forget(self, key: Hashable) -> None:
        """Drops a stream's words."""
        self._queue.put(lambda: self._forget(key))

    def run(self, action: Callable[[], None]) -> None:
        """Runs an action in order with the rest, e.g. telling the observer."""
        self._queue.put(action)

    def close(self) -> None:
        """Delivers what is queued and stops."""
        self._queue.put(None)
        self._thread.join()

    def _assembler(self, key: Hashable) -> WordAssembler:
        if key not in self._assemblers:
            self._assemblers[key] = WordAssembler(self._pieces, self._decode)
        return self._assemblers[key]

    def _forget(self, key: Hashable) -> None:
        self._assemblers.pop(key, None)

    def _answer(self, key: Hashable, request: AudioRequest, next_utterance_s: float) -> None:
        assembler = self._assembler(key)
        result: Transcript | AsrError
        try:
            result = Transcript(assembler.text(), assembler.words_json(), request.closes_utterance)
        except Exception as error:  # its caller waits for an answer
            _log.exception("an answer could not be made")
            result = AsrError(f"the answer could not be made inside the server: {error!r}")
        if request.closes_utterance:
            assembler.begin(next_utterance_s)
        if request.end:
            self._forget(key)
        request.respond(result)
        self._observer.answered(
            audio_s=len(request.audio) / SAMPLE_RATE,
            queued_s=request.taken - request.submitted,
            total_s=time.monotonic() - request.submitted,
            is_final=request.closes_utterance,
        )

    def _run(self) -> None:
        while (action := self._queue.get()) is not None:
            try:
                action()
            except Exception:
                _log.exception("an answer could not be delivered")
            del action  # with it goes the request, and Triton's sender in it
