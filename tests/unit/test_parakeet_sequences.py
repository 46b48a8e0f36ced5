"""When a stream is over: its caller gone, its START or END refused, its id begun again."""

from __future__ import annotations

import queue
import threading

import numpy as np
import pytest

from parakeet_engine import AudioRequest, Engine, EngineSettings, InvalidRequest, SequenceLost, Transcript, Unavailable
from support import speechlike

TIMEOUT_S = 60
MAX_STREAM_S, MAX_BACKLOG_S = 6.0, 5.0


@pytest.fixture(scope="module")
def engine(tiny):
    limits = {"max_stream_s": MAX_STREAM_S, "max_backlog_s": MAX_BACKLOG_S, "max_streams": 1}
    made = Engine(EngineSettings(checkpoint=str(tiny.parakeet), device="cpu", **limits))
    yield made
    made.close()


def submit(engine: Engine, key: str, audio: np.ndarray, **kwargs) -> tuple[AudioRequest, queue.Queue]:
    answer: queue.Queue = queue.Queue()
    request = AudioRequest(key, audio, answer.put, **kwargs)
    engine.submit(request)
    return request, answer


def ask(engine: Engine, key: str, seconds: float, **kwargs):
    return submit(engine, key, speechlike(seconds), **kwargs)[1].get(timeout=TIMEOUT_S)


def test_a_late_cancellation_leaves_the_stream_that_was_begun_since(engine):
    cancelled, answer = submit(engine, "again", speechlike(0.3), start=True)
    answer.get(timeout=TIMEOUT_S)
    begun, answer = submit(engine, "again", speechlike(0.3), start=True)
    answer.get(timeout=TIMEOUT_S)
    engine.abandon("again", cancelled.submitted)  # noticed only now
    assert isinstance(ask(engine, "again", 0.3), Transcript)
    engine.abandon("again", begun.submitted)  # its START is cancelled
    assert isinstance(ask(engine, "again", 0.3), SequenceLost)
    assert engine.active_streams == 0


@pytest.mark.parametrize("refused", [{"end": True}, {"start": True}, {"start": True, "end": True}])
def test_a_start_or_end_that_can_never_be_served_ends_the_stream(engine, refused):
    assert isinstance(ask(engine, "live", 0.3, start=True), Transcript)
    with pytest.raises(InvalidRequest):
        submit(engine, "live", speechlike(0.1), latency_ms=100, **refused)
    assert isinstance(ask(engine, "live", 0.3), SequenceLost)
    assert engine.active_streams == 0


def test_a_piece_that_can_never_be_served_leaves_the_stream(engine):
    assert isinstance(ask(engine, "live", 0.3, start=True), Transcript)
    with pytest.raises(InvalidRequest):
        submit(engine, "live", speechlike(0.1), latency_ms=160)
    assert ask(engine, "live", 0.3, end=True).is_final


@pytest.mark.parametrize("flag", ["start", "end"])
def test_a_start_or_end_with_too_much_audio_ends_the_stream(engine, flag):
    assert isinstance(ask(engine, "long", 4, start=True), Transcript)
    seconds = MAX_STREAM_S + 1 if flag == "start" else MAX_STREAM_S - 3
    assert isinstance(ask(engine, "long", seconds, **{flag: True}), InvalidRequest)
    assert isinstance(ask(engine, "long", 0.1), SequenceLost)
    assert engine.active_streams == 0
    assert ask(engine, "next", 0.3, start=True, end=True, timeout_s=0).is_final


def test_an_end_that_comes_too_fast_ends_the_stream_and_what_waits_is_told_first(engine, monkeypatch):
    step, gate, order = engine.runner.step, threading.Event(), queue.Queue()

    def gated(lookahead, chunks):
        gate.wait(TIMEOUT_S)
        return step(lookahead, chunks)

    monkeypatch.setattr(engine.runner, "step", gated)
    for piece, flags in (("first", {"start": True}), ("second", {}), ("end", {"end": True})):
        seconds = 4 if piece == "first" else 0.5 if piece == "second" else 1
        engine.submit(
            AudioRequest("fast", speechlike(seconds), lambda result, piece=piece: order.put((piece, result)), **flags)
        )
    gate.set()
    told = [order.get(timeout=TIMEOUT_S) for _ in range(3)]
    assert [(piece, type(result)) for piece, result in told] == [
        ("first", SequenceLost),
        ("second", SequenceLost),
        ("end", Unavailable),
    ]
    assert isinstance(ask(engine, "fast", 0.1), SequenceLost)
    assert engine.active_streams == 0
