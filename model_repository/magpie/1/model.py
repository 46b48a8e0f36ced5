"""Triton glue of `magpie`: parse a request, hand it to the engine, send what the engine makes.

Three threads meet here. Triton's calls `execute`, which only checks and queues. The engine's (`EngineThread`) puts
events into the outbox and never waits for Triton. The sender's takes them out, sends them, and asks Triton whether
clients are still there, also while no audio is due, so that a vanished client stops being spoken to.
"""

import locale

# The embedded Python opens text files as ASCII otherwise, and NeMo opens many.
locale.setlocale(locale.LC_ALL, "C.UTF-8")

import json
import os
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from incidents import Incidents, conversation_of
from magpie_engine.errors import EngineStoppedError, InvalidRequestError, MagpieError, QueueFullError
from magpie_engine.events import AudioChunk, Event, Failed, Word
from magpie_engine.request import SpeechRequest
from magpie_engine.settings import EngineSettings
from magpie_engine.utterance import Utterance
from magpie_engine.worker import EngineThread
from metrics import Metrics
from playout import Playout

#: Seconds between two looks at whether clients are still there.
POLL_S = 0.02
#: Parameters that Triton and its clients add for themselves.
TRITON_PREFIX = "triton_"

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


@dataclass
class Job:
    """A request whose responses are not over yet."""

    sender: Any
    conversation: str = ""
    utterance: Utterance | None = None
    playout: Playout = field(default_factory=Playout)


class TritonPythonModel:
    """The decoupled `magpie` model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Restores and warms up the engine; a checkpoint that cannot be served fails the load with a plain sentence."""
        parameters = json.loads(args["model_config"]).get("parameters", {})
        configured = {name: entry["string_value"] for name, entry in parameters.items()}
        self._incidents = Incidents(args["model_name"], pb_utils.Logger.log_warn)
        try:
            settings = EngineSettings.from_sources(configured, os.environ)
            self._metrics = Metrics(settings.max_streams, settings.max_queue)
            self._engine = EngineThread(settings, self._metrics)
        except MagpieError as error:
            raise pb_utils.TritonModelException(f"magpie cannot start: {error}") from error
        self._outbox: queue.SimpleQueue[tuple[Job, Event] | None] = queue.SimpleQueue()
        self._open: dict[int, Job] = {}
        self._lock = threading.Lock()
        self._metrics.watch(self._engine.stats)
        self._thread = threading.Thread(target=self._send_forever, name="magpie-sender", daemon=True)
        self._thread.start()
        catalog = self._engine.catalog
        pb_utils.Logger.log_info(
            f"magpie: voices {', '.join(catalog.voices)}; languages {', '.join(catalog.languages)}; "
            f"longest sentence {catalog.max_frames / catalog.frames_per_second:.1f} s"
        )

    def execute(self, requests: list[Any]) -> None:
        """Queues each request; each refused one gets its own error."""
        for request in requests:
            job = Job(request.get_response_sender())
            try:
                self._accept(request, job)
            except Exception as error:  # the other requests of the batch must not pay for this one
                self._refuse(job, error)

    def finalize(self) -> None:
        """Ends both threads. Triton calls this when no response is outstanding any more."""
        self._metrics.close()
        self._engine.stop()
        self._outbox.put(None)
        self._thread.join()

    def _accept(self, request: Any, job: Job) -> None:
        parameters = json.loads(request.parameters() or "{}")
        job.conversation = conversation_of(parameters)
        text = parse_text(pb_utils.get_input_tensor_by_name(request, "TEXT"))
        own = {name: value for name, value in parameters.items() if not name.startswith(TRITON_PREFIX)}
        speech = SpeechRequest.from_parameters(text, own, self._engine.catalog)
        with self._lock:
            self._open[id(job)] = job
        try:
            job.utterance = self._engine.submit(speech, lambda event: self._outbox.put((job, event)))
        except BaseException:
            self._forget(job)
            raise

    def _refuse(self, job: Job, error: Exception) -> None:
        name, kind, code = "INTERNAL", "failed", pb_utils.TritonError.INTERNAL
        if isinstance(error, InvalidRequestError):
            name, kind, code = "INVALID_ARGUMENT", "invalid", pb_utils.TritonError.INVALID_ARG
        elif isinstance(error, QueueFullError | EngineStoppedError):
            name, kind, code = "UNAVAILABLE", "refused", pb_utils.TritonError.UNAVAILABLE
        self._incidents.note(kind, job.conversation, str(error))
        # An error on a gRPC stream has no status code, so the sentence begins with its name.
        response = pb_utils.InferenceResponse(error=pb_utils.TritonError(f"{name}: {error}", code))
        job.sender.send(response, flags=FINAL)

    def _forget(self, job: Job) -> None:
        with self._lock:
            self._open.pop(id(job), None)

    # The sender's thread ---------------------------------------------------------------------------------------------

    def _send_forever(self) -> None:
        next_poll = 0.0
        while True:
            try:
                item = self._outbox.get(timeout=POLL_S)
            except queue.Empty:
                pass
            else:
                if item is None:
                    return
                try:
                    self._deliver(*item)
                except Exception as error:  # one client's broken connection must not silence the others
                    pb_utils.Logger.log_warn(f"magpie: a response could not be sent: {error}")
                del item  # Triton's sender is to be freed now, not when the next event comes
            if time.monotonic() >= next_poll:
                self._cancel_vanished()
                next_poll = time.monotonic() + POLL_S

    def _deliver(self, job: Job, event: Event) -> None:
        if isinstance(event, AudioChunk):
            if job.sender.is_cancelled():
                self._cancel(job)
            else:
                job.sender.send(respond(event.samples, event.words))
                audio_s = len(event.samples) / self._engine.catalog.sample_rate
                self._metrics.sent(audio_s, job.playout.sent(audio_s))
            return
        self._forget(job)
        if isinstance(event, Failed):
            self._refuse(job, event.error)
        else:
            job.sender.send(respond(np.zeros(0, dtype=np.int16), event.words), flags=FINAL)

    def _cancel_vanished(self) -> None:
        with self._lock:
            jobs = list(self._open.values())
        for job in jobs:
            try:
                if job.sender.is_cancelled():
                    self._cancel(job)
            except Exception as error:  # the thread must not end with one client's broken connection
                pb_utils.Logger.log_warn(f"magpie: a client could not be asked whether it is there: {error}")
                self._forget(job)

    def _cancel(self, job: Job) -> None:
        if (utterance := job.utterance) is not None:
            self._engine.cancel(utterance)


def parse_text(tensor: Any) -> str:
    """Reads the TEXT input.

    Raises:
        InvalidRequestError: It is not one string of UTF-8.
    """
    values = tensor.as_numpy().reshape(-1)
    if values.size != 1:
        raise InvalidRequestError(f"TEXT has {values.size} elements; it must have one")
    try:
        return values[0].decode("utf-8") if isinstance(values[0], bytes) else str(values[0])
    except UnicodeDecodeError:
        raise InvalidRequestError("TEXT is not valid UTF-8") from None


def respond(samples: np.ndarray, words: Sequence[Word]) -> Any:
    """Makes a response of samples and the words that begin in them."""
    said = json.dumps([asdict(word) for word in words]).encode()
    return pb_utils.InferenceResponse(
        [pb_utils.Tensor("AUDIO", samples), pb_utils.Tensor("WORDS", np.array([said], dtype=object))]
    )
