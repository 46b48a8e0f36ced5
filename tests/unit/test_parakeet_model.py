"""The recogniser's Triton glue, with a stand-in for Triton: one request's fault is that request's alone."""

from __future__ import annotations

import importlib.util
import json
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from incidents import Incidents
from parakeet_engine import InvalidRequest, Transcript
from triton_voice.paths import project_root

START, END, FINAL = 1, 2, 1


class TritonError(Exception):
    """As in Triton: a message and a code."""

    INVALID_ARG, NOT_FOUND, UNAVAILABLE, INTERNAL = "INVALID_ARG", "NOT_FOUND", "UNAVAILABLE", "INTERNAL"

    def __init__(self, message: str, code: str):
        super().__init__(message)
        self.code = code


class Response:
    """As in Triton: tensors or an error."""

    def __init__(self, tensors=(), error=None):
        self.tensors, self.error = dict(tensors), error


class Request:
    """A request and its sender; keeps what is sent."""

    def __init__(self, parameters: str = "{}", flags: int = 0, stream: str = "a", cancelled: bool = False):
        self.parameters, self.flags, self.correlation_id = lambda: parameters, lambda: flags, lambda: stream
        self.timeout = lambda: 0
        self.is_cancelled = lambda: cancelled
        self.sent: list[Response] = []

    def get_response_sender(self):
        return self

    def send(self, response: Response, flags: int) -> None:
        assert flags == FINAL
        self.sent.append(response)


class FakeEngine:
    """Notes what it is told."""

    def __init__(self):
        self.submitted, self.refused, self.abandoned = [], [], []
        self.submit = self.submitted.append

    def refuse(self, stream, submitted):
        self.refused.append((stream, submitted))

    def abandon(self, stream, submitted):
        self.abandoned.append((stream, submitted))


@pytest.fixture
def triton():
    stub = ModuleType("triton_python_backend_utils")
    stub.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START, stub.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END = START, END
    stub.TRITONSERVER_RESPONSE_COMPLETE_FINAL = FINAL
    stub.TritonError, stub.InferenceResponse = TritonError, Response
    stub.Tensor = lambda name, values: (name, values)
    audio = SimpleNamespace(as_numpy=lambda: np.zeros((1, 160), np.int16))
    stub.get_input_tensor_by_name = lambda request, name: audio
    return stub


@pytest.fixture
def glue(triton, monkeypatch):
    """The module of `model.py`."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", triton)
    monkeypatch.setitem(sys.modules, "metrics", SimpleNamespace(Metrics=None))
    path = project_root() / "model_repository/parakeet/1/model.py"
    spec = importlib.util.spec_from_file_location("parakeet_model", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def model(glue):
    made = glue.TritonPythonModel()
    made._engine, made._start_timeout_s, made.log = FakeEngine(), 2.0, []
    made._incidents = Incidents("parakeet", made.log.append)
    return made


def codes(request: Request) -> list[str | None]:
    return [response.error and response.error.code for response in request.sent]


@pytest.mark.parametrize("flags", [0, START, END])
def test_a_request_that_cannot_be_read_is_answered_once_and_the_others_are_served(model, flags):
    before, broken, after = Request(stream="before"), Request("{not json", flags, "broken"), Request(stream="after")
    assert model.execute([before, broken, after]) == [None] * 3
    assert [request.stream for request in model._engine.submitted] == ["before", "after"]
    assert (codes(before), codes(broken), codes(after)) == ([], ["INTERNAL"], [])
    assert [stream for stream, _ in model._engine.refused] == (["broken"] if flags else [])
    assert "failed" in model.log[0]


@pytest.mark.parametrize("flags", [0, START, END, START | END])
def test_a_start_or_end_with_wrong_parameters_ends_the_live_stream(model, flags):
    broken = Request('{"latencyms": 160}', flags)
    model.execute([Request(flags=START), broken, Request(flags=START)])
    assert codes(broken) == ["INVALID_ARG"]
    before, after = (request.submitted for request in model._engine.submitted)
    assert [stream for stream, _ in model._engine.refused] == (["a"] if flags else [])
    assert all(before < submitted < after for _, submitted in model._engine.refused)


def test_a_fault_of_the_engine_is_that_requests_alone(model):
    def submit(request):
        raise InvalidRequest("no") if request.stream == "a" else RuntimeError("broken")

    model._engine.submit = submit
    requests = [Request(stream=name) for name in "ab"]
    model.execute(requests)
    assert [codes(request) for request in requests] == [["INVALID_ARG"], ["INTERNAL"]]
    assert "broken" in str(requests[1].sent[0].error)


def test_an_answer_has_the_words_as_the_engine_made_them(model):
    request = Request()
    model.execute([request])
    words = json.dumps([{"word": "é", "start": 0.0, "end": 0.08, "confidence": 1.0}], ensure_ascii=False)
    model._engine.submitted[0].respond(Transcript("é", words, True))
    [answer] = request.sent
    assert answer.tensors["TRANSCRIPT"].tolist() == [["é".encode()]]
    assert answer.tensors["WORDS"].tolist() == [[words.encode()]]
    assert answer.tensors["IS_FINAL"].tolist() == [[True]]


def test_an_answer_that_cannot_be_built_is_an_error(model, triton):
    request = Request()
    model.execute([request])
    triton.Tensor = lambda name, values: 1 / 0
    model._engine.submitted[0].respond(Transcript("a", "[]", False))
    assert codes(request) == ["INTERNAL"]
    assert "failed" in model.log[0]


def test_a_cancellation_is_told_with_the_time_at_which_its_request_came(model, glue, monkeypatch):
    monkeypatch.setattr(glue, "CANCEL_CHECK_S", -1)
    gone, there = Request(cancelled=True), Request(stream="b")
    model.execute([gone, there])
    for submitted in model._engine.submitted:
        submitted.respond(Transcript("", "[]", False))
    assert model._engine.abandoned == [("a", model._engine.submitted[0].submitted)]
    assert codes(gone) == codes(there) == [None]
