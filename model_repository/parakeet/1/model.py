"""Triton glue of the streaming recogniser: requests in, answers out. The work is done by `parakeet_engine`."""

import locale

locale.setlocale(locale.LC_ALL, "C.UTF-8")  # the embedded Python opens text files as ASCII otherwise

import gc
import json
import os
import time
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from incidents import Incidents, conversation_of
from metrics import Metrics
from parakeet_engine import (
    AsrError,
    AudioRequest,
    Engine,
    EngineSettings,
    InvalidRequest,
    SequenceLost,
    Transcript,
    Unavailable,
)

START = pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START
END = pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END
CANCEL_CHECK_S = 0.05
"""Requests answered sooner are not asked whether they were cancelled: each such question costs a round trip."""
FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
PARAMETERS: dict[str, tuple[type, str]] = {
    "latency_ms": (int, "an integer"),
    "language": (str, "a string"),
    "finalize": (bool, "true or false"),
}


def _settings(config: dict[str, Any]) -> EngineSettings:
    """Reads config.pbtxt's `parameters`, or where they are set the environment variables of the same names."""
    configured = config["parameters"].items()
    return EngineSettings.from_texts(
        {name: os.environ.get(name) or entry["string_value"] for name, entry in configured}
    )


def _error(error: AsrError) -> Any:
    codes = pb_utils.TritonError  # not there yet when this file is imported
    status = {InvalidRequest: codes.INVALID_ARG, SequenceLost: codes.NOT_FOUND, Unavailable: codes.UNAVAILABLE}.get(
        type(error), codes.INTERNAL
    )
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), status))


def _answer(transcript: Transcript) -> Any:
    return pb_utils.InferenceResponse(
        [
            pb_utils.Tensor("TRANSCRIPT", np.array([[transcript.text.encode()]], dtype=object)),
            pb_utils.Tensor("IS_FINAL", np.array([[transcript.is_final]])),
            pb_utils.Tensor("WORDS", np.array([[transcript.words_json.encode()]], dtype=object)),
        ]
    )


class TritonPythonModel:
    """One instance: one engine, one model, one device."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the checkpoint and warms it up; Triton reports the model ready when this returns."""
        config = json.loads(args["model_config"])
        self._incidents = Incidents(args["model_name"], pb_utils.Logger.log_warn)
        try:
            settings = _settings(config)
            self._start_timeout_s = settings.start_timeout_s
            self._metrics = Metrics(args["model_name"], settings.max_streams, self._incidents)
            self._engine = Engine(settings, self._metrics)
        except AsrError as error:
            raise pb_utils.TritonModelException(str(error)) from error

    def execute(self, requests: list[Any]) -> list[None]:
        """Hands every request to the engine; each is answered through its own sender when its audio is done."""
        for request in requests:
            came, sender, conversation = time.monotonic(), request.get_response_sender(), ""
            try:
                parameters = json.loads(request.parameters() or "{}")
                conversation = conversation_of(parameters)
                self._engine.submit(self._parse(request, came, sender, parameters, conversation))
            except Exception as error:  # the other requests of the batch must not pay for this one
                self._refuse(request, came, sender, conversation, error)
        return [None] * len(requests)

    def finalize(self) -> None:
        """Stops the engine, and lets go of Triton's objects: the stub crashes on those that outlive the model."""
        self._engine.close()
        self._metrics.close()
        del self._engine, self._metrics
        gc.collect()

    def _refuse(self, request: Any, came: float, sender: Any, conversation: str, error: Exception) -> None:
        if request.flags() & (START | END):  # Triton has begun or ended the sequence all the same
            self._engine.refuse(request.correlation_id(), came)
        refusal = error if isinstance(error, AsrError) else AsrError(f"the request cannot be read: {error!r}")
        self._note(refusal, conversation)
        sender.send(_error(refusal), flags=FINAL)

    def _note(self, error: AsrError, conversation: str) -> None:
        kinds = {InvalidRequest: "invalid", SequenceLost: "lost", Unavailable: "refused"}
        self._incidents.note(kinds.get(type(error), "failed"), conversation, str(error))

    def _parse(self, request: Any, came: float, sender: Any, given: dict[str, Any], conversation: str) -> AudioRequest:
        stream = request.correlation_id()

        def respond(result: Transcript | AsrError) -> None:
            try:
                # A cancelled request is the only sign of a caller that went away: Triton does not end its sequence.
                if time.monotonic() - came > CANCEL_CHECK_S and sender.is_cancelled():
                    self._engine.abandon(stream, came)
                answer = _error(result) if isinstance(result, AsrError) else _answer(result)
            except Exception as error:  # its caller waits for an answer
                result = AsrError(f"the answer could not be made: {error!r}")
                answer = _error(result)
            if isinstance(result, AsrError):
                self._note(result, conversation)
            sender.send(answer, flags=FINAL)

        parameters = {name: value for name, value in given.items() if not name.startswith("triton_")}
        for name, value in parameters.items():
            if name not in PARAMETERS:
                raise InvalidRequest(f"unknown request parameter {name!r}; there are {', '.join(PARAMETERS)}")
            kind, words = PARAMETERS[name]
            if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
                raise InvalidRequest(f"request parameter {name!r} must be {words}; it is {value!r}")
        flags = request.flags()
        timeout_s = request.timeout() / 1e6 or self._start_timeout_s
        audio = pb_utils.get_input_tensor_by_name(request, "AUDIO").as_numpy()
        return AudioRequest(
            stream=stream,
            audio=np.array(audio.reshape(-1)),  # the tensor's memory dies with the request
            respond=respond,
            start=bool(flags & START),
            end=bool(flags & END),
            timeout_s=timeout_s,
            is_cancelled=sender.is_cancelled,
            conversation=conversation,
            submitted=came,
            **parameters,
        )
