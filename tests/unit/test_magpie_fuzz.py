"""Listeners who come, go and hang up at any moment: nobody's speech changes and no slot is lost."""

import random

import pytest
import torch
from support_magpie import fresh_model, recorded

from magpie_engine.engine import SpeechEngine
from magpie_engine.errors import QueueFullError
from magpie_engine.events import AudioChunk, Failed, Finished, FinishReason
from magpie_engine.request import SpeechRequest
from magpie_engine.settings import EngineSettings

SLOTS = 3
TEXTS = (
    "yes",
    "thank you very much",
    "please turn on the lights in the kitchen and play some music",
    "Hello world. What time is it? Thank you. " * 6,  # long enough to be split
    "",
    "\U0001f642",
    "42 \x00 <b>",
)


@pytest.fixture(scope="module")
def settings(tiny):
    return EngineSettings(
        checkpoint=str(tiny.magpie),
        codec=str(tiny.codec),
        device="cpu",
        max_streams=SLOTS,
        max_queue=4,
        normalizer="light",
    )


@pytest.fixture(scope="module")
def model(settings):
    model = fresh_model(settings)
    model.inference_parameters.max_decoder_steps = 12
    return model


def submit(engine, text, **parameters):
    events = []
    request = SpeechRequest.from_parameters(text, parameters, engine.catalog)
    handle = engine.submit(request, events.append)
    return handle, recorded(handle), events


def at_rest(engine):
    """Runs until nothing is left; tells whether all slots, codec rows and places of the queue are free again."""
    for _ in range(2000):
        stats = engine.stats()
        if not (stats.active or stats.queued):
            return (engine._runner.free, engine._codec.free, len(engine._waiting)) == (SLOTS, SLOTS, 0)
        engine.step()
    raise AssertionError("the engine did not come to rest")


@pytest.mark.parametrize("seed", range(2))
def test_joining_leaving_and_hanging_up_at_random(model, settings, seed):
    dice = random.Random(seed)
    engine = SpeechEngine(model, settings)
    open_requests, done, refused = [], [], 0
    for step in range(120):
        if dice.random() < 0.4:
            parameters = {"seed": dice.randrange(4), "voice": dice.choice(["leo", "aria"])}
            if dice.random() < 0.3:
                parameters["utterance"] = dice.choice("ab")
            if dice.random() < 0.3:
                parameters["max_seconds"] = dice.choice([0.01, 0.2, 1.0])
            text = dice.choice(TEXTS)
            try:
                open_requests.append((text, parameters, *submit(engine, text, **parameters), step))
            except QueueFullError:
                refused += 1
        if open_requests and dice.random() < 0.15:
            engine.cancel(dice.choice(open_requests)[2])
        engine.step()
        live = engine._runner.live
        assert [utterance.slot for utterance in live] == list(range(len(live)))
        assert len({utterance.row for utterance in live}) == len(live) == SLOTS - engine._codec.free
        ended = [request for request in open_requests if request[4] and not isinstance(request[4][-1], AudioChunk)]
        done += ended
        open_requests = [request for request in open_requests if request not in ended]
    assert at_rest(engine)
    done += open_requests
    for *_, events, _ in done:
        assert sum(not isinstance(event, AudioChunk) for event in events) == 1
        assert not isinstance(events[-1], Failed)
    assert engine.stats().refused == refused
    assert engine.stats().finished + engine.stats().cancelled == len(done)
    # What was heard to its end is what is heard alone, whoever came and went meanwhile.
    whole = [
        request
        for request in done
        if request[3] and request[4][-1].reason is not FinishReason.CANCELLED and "utterance" not in request[1]
    ]
    assert len(whole) > 5
    for text, parameters, _, codes, _, _ in dice.sample(whole, 4):
        _, alone, _ = submit(engine, text, **parameters)
        assert at_rest(engine)
        assert torch.equal(torch.cat(codes, dim=1), torch.cat(alone, dim=1)), (text, parameters)


@pytest.mark.parametrize("steps", [0, 1, 2, 12, 13, 25], ids=lambda steps: f"after {steps} steps")
@pytest.mark.parametrize("company", [0, 3], ids=lambda n: f"{n} others")
def test_hanging_up_at_every_stage_frees_the_slot_within_a_step(model, settings, steps, company):
    """Waiting, admitted, before and after the first chunk, at the last step of a sentence, in the next one."""
    engine = SpeechEngine(model, settings)
    others = [submit(engine, TEXTS[3], seed=number) for number in range(company)]
    handle, codes, events = submit(engine, TEXTS[3], seed=9, utterance="a")
    for _ in range(steps):
        engine.step()
    engine.cancel(handle)
    engine.step()
    decoded = len(codes)
    assert [type(event) for event in events if not isinstance(event, AudioChunk)] == [Finished]
    assert events[-1].reason is FinishReason.CANCELLED
    assert engine.stats().active == min(company, SLOTS) and engine.stats().queued == max(0, company - SLOTS)
    assert engine._codec.free == SLOTS - engine.stats().active
    for _, _, own in others:
        assert not any(isinstance(event, Finished | Failed) for event in own)
    for other, *_ in others:
        engine.cancel(other)
    assert at_rest(engine)
    assert len(codes) == decoded
