"""Refusals of the language model's engine are counted, whatever the reason; so are steps without statistics."""

from types import SimpleNamespace

import pytest

from vllm_chat.contract import ChatRequest
from vllm_chat.engine import LlmEngine
from vllm_chat.errors import InvalidRequest, Unavailable
from vllm_chat.observer import Observer
from vllm_chat.statistics import count_steps


class Counting(Observer):
    """Counts what it hears."""

    def __init__(self):
        self.refusals = self.ticks = 0

    def refused(self):
        self.refusals += 1

    def ticked(self):
        self.ticks += 1


class Engine(LlmEngine):
    """An engine without vLLM, threads and a loop: nothing but the refusals."""

    def __init__(self, closing="", dead=False, loop_runs=True):
        self.told = []
        self._observer, self._closing, self._dead = Counting(), closing, dead
        self._courier = SimpleNamespace(fail=lambda parcel, error: self.told.append(error))
        self._loop_runs = loop_runs

    def _call(self, function, job):
        if self._loop_runs:
            function(job)
        return self._loop_runs


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"closing": "the server is stopping"}, "the server is stopping"),
        ({"dead": True}, "the model is not ready: its engine died"),
        ({"loop_runs": False}, "the model is being unloaded"),
    ],
)
def test_a_request_that_is_not_taken_counts_as_refused(state, words):
    engine = Engine(**state)
    engine.submit(ChatRequest({}), SimpleNamespace())
    (error,) = engine.told
    assert isinstance(error, Unavailable) and words in str(error)
    assert engine._observer.refusals == 1


def test_a_request_that_could_not_be_read_is_no_refusal():
    engine = Engine()
    engine.reject(InvalidRequest("no"), SimpleNamespace())
    assert len(engine.told) == 1 and engine._observer.refusals == 0


def test_steps_are_counted_without_statistics():
    updates, observer = [], Counting()
    llm = SimpleNamespace(output_processor=SimpleNamespace(update_scheduler_stats=updates.append))
    count_steps(llm, observer)
    for _ in range(3):
        llm.output_processor.update_scheduler_stats(None)
    assert observer.ticks == 3 and updates == [None] * 3
