"""The Triton glue of `magpie` without Triton: what goes wrong with one request costs nobody else anything."""

import importlib.util
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from magpie_engine.catalog import Catalog
from magpie_engine.errors import EngineBrokenError, EngineStoppedError, QueueFullError
from magpie_engine.events import Finished, FinishReason

PARENT = Path(__file__).parents[2] / "model_repository" / "magpie" / "1"


class TritonError(Exception):
    """What Triton's Python backend offers by this name."""

    INTERNAL, INVALID_ARG, UNAVAILABLE = "internal", "invalid argument", "unavailable"

    def __init__(self, message, code):
        super().__init__(message)
        self.code = code


class Sender:
    """Takes responses; broken, it cannot be asked anything."""

    def __init__(self, broken=False):
        self.sent, self.broken, self.asked = [], broken, 0

    def send(self, response, flags=0):
        self.sent.append(response)

    def is_cancelled(self):
        self.asked += 1
        if self.broken:
            raise RuntimeError("the connection is broken")
        return False


class Engine:
    """Takes every request and ends it when it is told to."""

    catalog = Catalog(
        voices={"aria": 0}, languages={"en": "letters"}, sample_rate=22050, samples_per_frame=1024,
        max_text_tokens=100, max_frames=100, temperature=0.7, top_k=80, cfg_scale=2.5,
    )  # fmt: skip
    error = None

    def __init__(self):
        self.sinks = []

    def submit(self, request, sink):
        if self.error is not None:
            raise self.error
        self.sinks.append(sink)
        return object()

    def stop(self):
        pass


def request_of(text="hello", parameters="{}", broken=False):
    sender = Sender(broken)
    return SimpleNamespace(text=text, sender=sender, parameters=lambda: parameters, get_response_sender=lambda: sender)


@pytest.fixture
def glue(monkeypatch):
    """The module and a model of it whose engine is made up."""
    utils = SimpleNamespace(
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=1,
        TritonError=TritonError,
        InferenceResponse=lambda tensors=(), error=None: SimpleNamespace(tensors=tensors, error=error),
        Tensor=lambda name, values: (name, values),
        Logger=SimpleNamespace(log_warn=lambda line: None, log_info=lambda line: None),
        get_input_tensor_by_name=lambda request, name: SimpleNamespace(
            as_numpy=lambda: np.array([request.text.encode()], dtype=object)
        ),
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utils)
    monkeypatch.syspath_prepend(str(PARENT))
    for name in ("incidents", "metrics", "playout"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    spec = importlib.util.spec_from_file_location("magpie_glue", PARENT / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    engine = Engine()
    nothing = SimpleNamespace(watch=lambda stats: None, close=lambda: None, sent=lambda *_: None)
    engine.stats = None
    monkeypatch.setattr(module, "Metrics", lambda *_: nothing)
    monkeypatch.setattr(module, "EngineThread", lambda *_: engine)
    model = module.TritonPythonModel()
    model.initialize({"model_config": "{}", "model_name": "magpie"})
    yield model, engine
    model.finalize()
    for name in ("incidents", "metrics", "playout"):
        sys.modules.pop(name, None)


def wait_until(condition):
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come to that")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (QueueFullError("full"), TritonError.UNAVAILABLE, "UNAVAILABLE: full"),
        (EngineStoppedError("gone"), TritonError.UNAVAILABLE, "UNAVAILABLE: gone"),
        # not UNAVAILABLE, which says "later": `serve` takes a model that answers so for one that is busy
        (EngineBrokenError("lost"), TritonError.INTERNAL, "INTERNAL: lost"),
        (RuntimeError("no thread"), TritonError.INTERNAL, "INTERNAL: no thread"),
    ],
)
def test_a_request_that_is_not_taken_is_answered_and_forgotten(glue, error, code, said):
    model, engine = glue
    engine.error = error
    request = request_of()
    model.execute([request])
    (response,) = request.sender.sent
    assert (response.error.code, str(response.error)) == (code, said)
    assert not model._open


def test_unreadable_parameters_cost_their_own_request_only(glue):
    model, engine = glue
    bad, unknown, good = request_of(parameters="{"), request_of(parameters=json.dumps({"pitch": 1})), request_of()
    model.execute([bad, unknown, good])
    assert str(bad.sender.sent[0].error).startswith("INTERNAL: ")
    assert str(unknown.sender.sent[0].error).startswith("INVALID_ARGUMENT: unknown parameter 'pitch'")
    assert len(engine.sinks) == 1 and not good.sender.sent


def test_a_client_that_cannot_be_asked_does_not_silence_the_others(glue):
    model, engine = glue
    broken, good = request_of(broken=True), request_of()
    model.execute([broken, good])
    wait_until(lambda: broken.sender.asked and good.sender.asked > 2)
    engine.sinks[1](Finished(FinishReason.END))
    wait_until(lambda: good.sender.sent)
    assert good.sender.sent[0].error is None and model._thread.is_alive()
