"""Slots, queue, cancelling and errors of the engine, stepped by hand so that every test is exact."""

import queue
from concurrent.futures import Executor, Future, wait
from types import SimpleNamespace

import numpy as np
import pytest
from support_magpie import fresh_model, recorded

from magpie_engine.checkpoint import restore
from magpie_engine.engine import SpeechEngine
from magpie_engine.errors import CheckpointError, EngineBrokenError, EngineStoppedError, QueueFullError
from magpie_engine.events import AudioChunk, Failed, Finished, FinishReason
from magpie_engine.request import SpeechRequest
from magpie_engine.settings import EngineSettings
from magpie_engine.worker import EngineThread

TEXT = "please turn on the lights in the kitchen"


@pytest.fixture(scope="module")
def settings(tiny):
    return EngineSettings(
        checkpoint=str(tiny.magpie),
        codec=str(tiny.codec),
        device="cpu",
        max_streams=2,
        max_queue=1,
        first_chunk_frames=2,
        normalizer="light",
    )


@pytest.fixture(scope="module")
def model(settings):
    return fresh_model(settings)


@pytest.fixture
def engine(model, settings):
    now = [0.0]

    def clock():  # a fast machine: chunks grow as they may
        now[0] += 0.0001
        return now[0]

    return SpeechEngine(model, settings, clock=clock)


def say(engine, text=TEXT, **parameters):
    """Submits a request; returns its handle and the list that its events go to."""
    events = []
    request = SpeechRequest.from_parameters(text, {"max_seconds": 0.5} | parameters, engine.catalog)
    utterance = engine.submit(request, events.append)
    if request.pronounceable and not isinstance(engine._text_thread, HeldText):
        wait([utterance.script])  # how fast the text thread is does not matter here
    return utterance, events


def run(engine, steps=500):
    for _ in range(steps):
        if not (engine.stats().active or engine.stats().queued):
            return
        engine.step()
    raise AssertionError("the engine did not come to rest")


def samples(events):
    return sum(len(event.samples) for event in events if isinstance(event, AudioChunk))


def test_audio_streams_in_growing_chunks_and_ends_once(engine):
    _, events = say(engine, max_seconds=1.0)
    run(engine)
    assert [len(event.samples) // 1024 for event in events[:-1]] == [2, 4, 8, 7]
    assert events[-1].reason is FinishReason.LENGTH
    assert all(event.samples.any() for event in events[:-1])


def test_the_first_chunk_comes_while_the_rest_is_not_decoded(engine):
    _, events = say(engine)
    engine.step()
    engine.step()
    assert samples(events) == 2 * 1024
    assert engine.stats().frames == 2


def test_cancel_frees_the_slot_within_one_step(engine):
    first, events = say(engine)
    say(engine)
    _, waiting = say(engine)
    for _ in range(3):
        engine.step()
    assert (engine.stats().active, engine.stats().queued) == (2, 1)
    engine.cancel(first)
    engine.step()
    assert events[-1] == Finished(FinishReason.CANCELLED)
    assert (engine.stats().active, engine.stats().queued) == (2, 0)  # the waiting one has the slot
    decoded = first.frames
    run(engine)
    assert first.frames == decoded
    assert waiting[-1].reason is FinishReason.LENGTH
    assert engine.stats().cancelled == 1


def test_a_waiting_request_can_be_cancelled(engine):
    say(engine)
    say(engine)
    third, events = say(engine)
    engine.cancel(third)
    engine.step()
    assert events == [Finished(FinishReason.CANCELLED)]
    run(engine)
    assert third.frames == 0


def test_cancel_after_the_end_does_nothing(engine):
    handle, events = say(engine)
    run(engine)
    engine.cancel(handle)
    engine.step()
    assert sum(isinstance(event, Finished) for event in events) == 1
    assert engine.stats().cancelled == 0


def test_a_full_queue_refuses_at_once_and_recovers(engine):
    for _ in range(3):  # two slots and one place in the queue
        say(engine)
    with pytest.raises(QueueFullError, match="2 voices speak and 1 requests wait"):
        say(engine)
    assert engine.stats().refused == 1
    run(engine)
    _, events = say(engine)
    run(engine)
    assert events[-1].reason is FinishReason.LENGTH


@pytest.mark.parametrize("text", ["", "   ", "…!?", "\U0001f642\U0001f680", "\u4f60\u597d"])
def test_nothing_to_say_ends_at_once(engine, text):
    _, events = say(engine, text)
    engine.step()
    assert events == [Finished(FinishReason.EMPTY)]


@pytest.mark.parametrize("text", ["Hello \U0001f642 world", "<b>zxqwv</b> 42%", "naïve café", "a\x00b\tc\nd", "I'd've"])
def test_any_text_can_be_spoken(engine, text):
    _, events = say(engine, text)
    run(engine)
    assert samples(events) > 0
    assert isinstance(events[-1], Finished)


def test_a_text_without_a_sentence_end_is_spoken_to_its_end(engine):
    text = "word " * 100
    _, events = say(engine, text, max_seconds=30)
    run(engine, steps=1000)
    assert [word.word for event in events for word in event.words] == text.split()
    assert samples(events) / 22050 > 5  # three segments


def test_a_text_that_breaks_the_tokenizer_fails_alone(engine, monkeypatch):
    encode = engine._text._tokenizer.encode

    def brittle(text, tokenizer_name):
        return encode(text=text, tokenizer_name=tokenizer_name) if "crash" not in text.casefold() else 1 / 0

    monkeypatch.setattr(engine._text._tokenizer, "encode", brittle)
    _, good = say(engine)
    _, bad = say(engine, "crash")
    later = "Hello world, yes. " * 16 + "crash. " + "Hello."
    _, broken = say(engine, later, max_seconds=100)
    run(engine, steps=3000)
    assert isinstance(bad[-1], Failed) and isinstance(broken[-1], Failed)
    assert good[-1].reason is FinishReason.LENGTH
    assert engine._codec.free == 2 and engine._runner.free == 2


class HeldText(Executor):
    """A text thread that works when it is told to."""

    def __init__(self):
        self.held = []

    def submit(self, function, /, *arguments):
        future = Future()
        self.held.append((future, function, arguments))
        return future

    def work(self):
        while self.held:
            future, function, arguments = self.held.pop(0)
            future.set_result(function(*arguments))


LONG = "Hello world, yes. " * 16 + "Thank you."


def test_nobody_waits_for_the_text_of_another(model, settings):
    """An utterance whose next sentence is not ready leaves its slot, keeps one free, and speaks on as it would."""
    alone = SpeechEngine(model, settings)
    uninterrupted = recorded(say(alone, LONG, max_seconds=8, seed=1)[0])
    run(alone)
    text = HeldText()
    engine = SpeechEngine(model, settings, text_thread=text)
    long, events = say(engine, LONG, max_seconds=8, seed=1, utterance="a")
    codes = recorded(long)
    _, next_piece = say(engine, utterance="a")
    text.work()
    engine.step()  # what follows the first sentence is being prepared, and takes its time
    for _ in range(200):
        engine.step()
    assert long.slot == -1 and samples(events) == 1024 * long.frames > 0
    assert engine.stats().active == 1 and not engine._runner.live
    _, companion = say(engine)
    with pytest.raises(QueueFullError):
        say(engine)  # one slot is the parked one's
    held = text.held.pop(0)
    text.work()
    for _ in range(100):
        engine.step()
    assert companion[-1].reason is FinishReason.LENGTH
    assert not next_piece  # its turn has not come
    text.held.append(held)
    while not isinstance(events[-1], Finished):
        text.work()
        engine.step()
    assert np.array_equal(np.concatenate([c.numpy() for c in codes], 1),
                          np.concatenate([c.numpy() for c in uninterrupted], 1))  # fmt: skip
    run(engine)
    assert next_piece[-1].reason is FinishReason.LENGTH
    assert (engine._runner.free, engine._codec.free, engine._free) == (2, 2, 2)


@pytest.mark.parametrize("how", ["cancel", "broken text", "nothing left", "close"])
def test_a_parked_utterance_ends_like_any_other(model, settings, how):
    text = HeldText()
    engine = SpeechEngine(model, settings, text_thread=text)
    parked, events = say(engine, LONG, max_seconds=100)
    text.work()
    for _ in range(200):
        engine.step()
    assert parked.slot == -1 and not any(isinstance(event, Finished) for event in events)
    if how == "cancel":
        engine.cancel(parked)
    elif how == "close":
        engine.close()
    else:
        future = text.held.pop()[0]
        future.set_result(None) if how == "nothing left" else future.set_exception(ValueError("no text"))
    if how != "close":
        assert engine.wait_for_work()
        engine.step()
        assert (engine._runner.free, engine._codec.free, engine._free) == (2, 2, 2)
    assert engine.stats().active == 0
    assert sum(not isinstance(event, AudioChunk) for event in events) == 1
    if how in ("cancel", "nothing left"):
        assert (events[-1].reason is FinishReason.CANCELLED) is (how == "cancel")
    else:
        assert isinstance(events[-1], Failed)


def test_french_is_spoken_with_its_own_tokenizer(engine):
    _, french = say(engine, "bonjour madame", language="fr", seed=1)
    _, english = say(engine, "bonjour madame", language="en", seed=1)
    run(engine)
    assert samples(french) == samples(english) > 0
    assert french[0].samples.tolist() != english[0].samples.tolist()


def test_an_error_of_a_step_reaches_every_client_once_and_the_engine_goes_on(engine, monkeypatch):
    _, first = say(engine)
    _, second = say(engine)
    engine.step()
    with monkeypatch.context() as broken:
        broken.setattr(engine._runner._sampler, "draw", lambda *_: 1 / 0)
        engine.step()
    assert [type(events[-1]) for events in (first, second)] == [Failed, Failed]
    _, third = say(engine)
    run(engine)
    assert third[-1].reason is FinishReason.LENGTH
    assert sum(isinstance(event, Failed) for event in first) == 1


def test_audio_that_breaks_while_a_step_is_under_way_fails_its_listener_only(engine, monkeypatch):
    _, good = say(engine)
    bad, events = say(engine, utterance="a")
    engine.step()

    def crash():
        raise RuntimeError("no audio")

    engine._sounding.append(([bad], [()], [False], SimpleNamespace(is_ready=lambda: True, wait=crash)))
    engine.step()
    assert isinstance(events[-1], Failed) and "no audio" in str(events[-1].error)
    assert engine.stats().active == 1
    run(engine)
    assert good[-1].reason is FinishReason.LENGTH
    assert sum(isinstance(event, Failed) for event in events) == engine.stats().failed == 1
    assert [entry.pieces for entry in engine._memory._entries.values()] == [0]


def test_an_utterance_whose_last_audio_breaks_has_failed_and_not_finished(engine):
    bad, events = say(engine, max_seconds=0.2)
    while bad.frames < 3:
        engine.step()

    def crash():
        raise RuntimeError("no audio")

    engine._sounding.append(([bad], [()], [False], SimpleNamespace(is_ready=lambda: False, wait=crash)))
    run(engine)
    assert [type(event) for event in events if not isinstance(event, AudioChunk)] == [Failed]
    assert (engine.stats().failed, engine.stats().finished) == (1, 0)
    assert (engine._runner.free, engine._codec.free) == (2, 2)


@pytest.mark.parametrize("where", ["step", "admit"])
def test_a_device_that_does_nothing_any_more_stops_the_engine_and_everybody_is_told(settings, monkeypatch, where):
    thread = EngineThread(settings)
    engine = thread._engine

    def crash(*_, **__):
        raise RuntimeError("device-side assert")

    monkeypatch.setattr(engine._runner, where, crash)
    monkeypatch.setattr(engine._runner, "release", crash)
    monkeypatch.setattr(engine._codec, "close", crash)
    request = SpeechRequest.from_parameters("hello world", {}, thread.catalog)
    events = [queue.SimpleQueue() for _ in range(3)]
    with engine._changed:  # so that all three are there before the first step
        for own in events:
            thread.submit(request, own.put)
    for own in events:
        told = own.get(timeout=30)
        assert isinstance(told, Failed) and "device-side assert" in str(told.error)
    thread._thread.join(timeout=30)
    assert not thread._thread.is_alive()
    with pytest.raises(EngineBrokenError, match="has stopped: RuntimeError: device-side assert"):
        thread.submit(request, events[0].put)
    assert (thread.stats().active, thread.stats().queued, thread.stats().failed) == (0, 0, 3)
    thread.stop()
    assert all(own.empty() for own in events)


def test_a_running_engine_speaks_and_stops(settings):
    thread = EngineThread(settings)
    try:
        events = queue.SimpleQueue()
        request = SpeechRequest.from_parameters("hello world", {}, thread.catalog)
        thread.submit(request, events.put)
        received = [events.get(timeout=30)]
        while isinstance(received[-1], AudioChunk):
            received.append(events.get(timeout=30))
        assert received[-1].reason is FinishReason.LENGTH
        assert 1.0 < samples(received) / thread.catalog.sample_rate < 3.0
        for _ in range(3):
            thread.submit(request, events.put)
    finally:
        thread.stop()
    told = [events.get() for _ in range(events.qsize())]
    assert sum(not isinstance(event, AudioChunk) for event in told) == 3  # each client, whether heard out or cut off
    with pytest.raises(EngineStoppedError):
        thread.submit(request, events.put)


def test_a_missing_checkpoint_is_named(tiny, tmp_path):
    gone = str(tmp_path / "gone.nemo")
    with pytest.raises(CheckpointError, match=r"MAGPIE_CHECKPOINT names .*gone.nemo.*no such file"):
        EngineThread(EngineSettings(checkpoint=gone, codec=str(tiny.codec), device="cpu"))
    with pytest.raises(CheckpointError, match=r"MAGPIE_CODEC names .*gone.nemo.*no such file"):
        EngineThread(EngineSettings(checkpoint=str(tiny.magpie), codec=gone, device="cpu"))


def test_a_broken_checkpoint_is_named(tiny, tmp_path):
    broken = tmp_path / "broken.nemo"
    broken.write_bytes(b"not an archive")
    with pytest.raises(CheckpointError, match=r"cannot restore the file .*broken.nemo.* of MAGPIE_CHECKPOINT"):
        restore(EngineSettings(checkpoint=str(broken), codec=str(tiny.codec), device="cpu"))


def test_the_codec_as_checkpoint_is_refused(tiny):
    with pytest.raises(CheckpointError, match=r"MAGPIE_CHECKPOINT names .* AudioCodecModel, not Magpie"):
        restore(EngineSettings(checkpoint=str(tiny.codec), codec=str(tiny.codec), device="cpu"))


def test_voices_must_fit_the_checkpoint(model, settings):
    with pytest.raises(CheckpointError, match=r"MAGPIE_VOICES .* 5 different names"):
        SpeechEngine(model, EngineSettings(checkpoint=settings.checkpoint, voices="Ann, Bob"))
    named = SpeechEngine(model, EngineSettings(checkpoint=settings.checkpoint, voices="a,b,c,d,E"))
    assert named.catalog.voices == {"a": 0, "b": 1, "c": 2, "d": 3, "e": 4}
