"""The thread that restores the checkpoint, owns every NeMo object, and runs the engine."""

from __future__ import annotations

import logging
import queue
import threading
from concurrent.futures import ThreadPoolExecutor

from magpie_engine.catalog import Catalog
from magpie_engine.checkpoint import restore
from magpie_engine.engine import EngineStats, SpeechEngine
from magpie_engine.errors import EngineStoppedError
from magpie_engine.events import AudioChunk, Event, Failed, Sink
from magpie_engine.observer import Observer
from magpie_engine.request import SpeechRequest
from magpie_engine.settings import EngineSettings
from magpie_engine.utterance import Utterance

_log = logging.getLogger(__name__)

WARM_UP_TEXT = "Hello."
WARM_UP_SECONDS = 2.0


class EngineThread:
    """A running engine; made, it is warmed up and ready.

    Args:
        settings: What to serve and how.
        observer: Told what is worth measuring, from the end of the warm-up on.

    Raises:
        CheckpointError: The checkpoint or its codec cannot be served.
    """

    def __init__(self, settings: EngineSettings, observer: Observer | None = None) -> None:
        self._settings = settings
        self._observer = _Late(observer or Observer())
        self._text_thread = ThreadPoolExecutor(1, thread_name_prefix="magpie-text")
        self._engine: SpeechEngine | None = None
        self._load_error: BaseException | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="magpie-engine", daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._load_error is not None:
            self._thread.join()
            self._text_thread.shutdown()
            raise self._load_error
        self._warm_up()
        self._observer.awake = True

    @property
    def catalog(self) -> Catalog:
        """What clients may ask for."""
        return self._running.catalog

    @property
    def _running(self) -> SpeechEngine:
        if self._engine is None:
            raise EngineStoppedError("the speech engine is not running")
        return self._engine

    def submit(self, request: SpeechRequest, sink: Sink) -> Utterance:
        """Queues a request; see `SpeechEngine.submit`."""
        return self._running.submit(request, sink)

    def cancel(self, utterance: Utterance) -> None:
        """Ends an utterance before the next step."""
        if self._engine is not None:
            self._engine.cancel(utterance)

    def stats(self) -> EngineStats:
        """Counts so far."""
        return self._engine.stats() if self._engine is not None else EngineStats()

    def stop(self) -> None:
        """Fails what still speaks and ends the thread; may be called twice."""
        if self._engine is not None:
            self._engine.shut()
        self._thread.join()
        self._text_thread.shutdown(cancel_futures=True)

    def _run(self) -> None:
        try:
            engine = SpeechEngine(restore(self._settings), self._settings, self._text_thread, self._observer)
            engine.warm_up()
        except BaseException as error:  # handed to the thread that waits for readiness
            self._load_error = error
            self._ready.set()
            return
        self._engine = engine
        self._ready.set()
        broken = None
        try:
            while engine.wait_for_work():
                engine.step()
        except Exception as error:  # clients are told now and later ones at once, instead of waiting for ever
            _log.exception("the speech engine cannot go on")
            broken = error
        finally:
            engine.close(broken)

    def _warm_up(self) -> None:
        """Speaks once in each language: tokenizers, kernels and allocators are then ready."""
        engine = self._running
        for language in engine.catalog.languages:
            parameters = {
                "voice": next(iter(engine.catalog.voices)),
                "language": language,
                "max_seconds": WARM_UP_SECONDS,
            }
            events: queue.SimpleQueue[Event] = queue.SimpleQueue()
            self.submit(SpeechRequest.from_parameters(WARM_UP_TEXT, parameters, engine.catalog), events.put)
            while isinstance(event := events.get(), AudioChunk):
                pass
            if isinstance(event, Failed):
                self.stop()
                raise event.error


class _Late(Observer):
    """Passes on what it hears once it is awake: warm-up is nobody's speech.

    Args:
        observer: To whom.
    """

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self.awake = False

    def stepped(self, streams: int, seconds: float) -> None:
        """See `Observer`."""
        if self.awake:
            self._observer.stepped(streams, seconds)

    def first_audio(self, seconds: float) -> None:
        """See `Observer`."""
        if self.awake:
            self._observer.first_audio(seconds)

    def finished(self, audio_s: float, seconds: float) -> None:
        """See `Observer`."""
        if self.awake:
            self._observer.finished(audio_s, seconds)
