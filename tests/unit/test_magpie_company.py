"""The same seed is the same speech: again, at another pace, and beside other speakers."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from support_magpie import fresh_model, recorded
from torch.utils._python_dispatch import TorchDispatchMode

from magpie_engine.codec import StreamingCodec
from magpie_engine.engine import SpeechEngine
from magpie_engine.events import AudioChunk, Finished, FinishReason
from magpie_engine.request import SpeechRequest
from magpie_engine.settings import EngineSettings

TEXTS = ["hello world this is a test", "please turn on the lights in the kitchen", "yes", "thank you very much"]
STEPS = 24
#: Of int16 samples, for 1e-4 of full scale and the rounding of both.
AUDIO_TOLERANCE = 5


@pytest.fixture(scope="module")
def settings(tiny):
    return EngineSettings(
        checkpoint=str(tiny.magpie), codec=str(tiny.codec), device="cpu", max_streams=4, normalizer="light"
    )


def speak(engine, seeds, texts=TEXTS, **parameters):
    """Speaks texts at once, each with its seed; returns codes and audio chunks of each."""
    spoken = []
    for seed, text in zip(seeds, texts, strict=False):
        events = []
        wishes = {"voice": "leo", "seed": seed, "temperature": 0.7} | parameters
        request = SpeechRequest.from_parameters(text, wishes, engine.catalog)
        spoken.append((recorded(engine.submit(request, events.append)), events))
    while engine.stats().active or engine.stats().queued:
        engine.step()
    for _, events in spoken:
        assert isinstance(events[-1], Finished), events[-1]
    return [
        (torch.cat(codes, dim=1).cpu(), [event.samples for event in events if isinstance(event, AudioChunk)])
        for codes, events in spoken
    ]


class Work(TorchDispatchMode):
    """Counts operations with the shapes that they work on."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[str(func), tuple(tuple(a.shape) for a in args if isinstance(a, torch.Tensor))] += 1
        return func(*args, **(kwargs or {}))


def work_of_a_step(engine, monkeypatch, products=("",)):
    """Has an engine note the operations of each of its steps, or those with certain names."""
    steps, network = [], engine._runner._network

    def noting(*args):
        with Work() as work:
            result = network(*args)
        steps.append(Counter({own: n for own, n in work.counts.items() if any(name in own[0] for name in products)}))
        return result

    monkeypatch.setattr(engine._runner, "_network", noting)
    return steps


@pytest.mark.parametrize("fixed", [True, False], ids=["fixed batch", "as many as speak"])
def test_with_a_fixed_batch_a_step_is_the_same_work_in_any_company(settings, monkeypatch, fixed):
    """Equal shapes at every step, so that no library has a reason to round otherwise; without, they differ."""
    settings = replace(settings, fixed_batch=int(fixed))
    model = fresh_model(settings)
    model.inference_parameters.max_decoder_steps = STEPS
    engine = SpeechEngine(model, settings)
    steps = work_of_a_step(engine, monkeypatch, ("mm", "addmm", "bmm", "attention", "convolution", "linear"))
    (alone, _), *_ = speak(engine, [7])
    by_itself = list(steps)
    steps.clear()
    (beside, _), *_ = speak(engine, [7, 8, 9, 10])
    assert len(by_itself) == STEPS
    assert (by_itself == steps[:STEPS]) is fixed
    if fixed:
        assert torch.equal(alone, beside)


@pytest.mark.parametrize("fixed", [True, False], ids=["fixed batch", "as many as speak"])
def test_a_step_costs_the_same_at_any_position(settings, monkeypatch, fixed):
    """No step does the work of those before it again: as many operations each, and weights see the newest frame only.

    What alone grows is attention, which looks back at the keys that are kept; with a fixed batch, at as many each time.
    """
    settings = replace(settings, fixed_batch=int(fixed))
    model = fresh_model(settings)
    model.inference_parameters.max_decoder_steps = 2 * STEPS
    engine = SpeechEngine(model, settings)
    steps = work_of_a_step(engine, monkeypatch)
    speak(engine, [7, 8])
    assert len(steps) == 2 * STEPS
    names = ("aten.mm.", "aten.addmm.", "aten.linear.", "aten.convolution.", "aten.embedding.")
    dense = [{own: n for own, n in step.items() if own[0].startswith(names)} for step in steps]
    assert dense[0] and all(step == dense[0] for step in dense)
    # But for views that PyTorch's attention takes or not, by how many keys there are.
    assert len({sum(n for own, n in step.items() if "slice" not in own[0]) for step in steps}) == 1
    if fixed:
        assert all(step == steps[0] for step in steps)


def test_a_slot_left_at_its_step_limit_does_not_harm_those_who_speak_on(settings):
    """The step goes on with the vacated slot, as a CUDA graph of a larger batch does: it must find noise there."""
    settings = replace(settings, fixed_batch=1)
    model = fresh_model(settings)
    model.inference_parameters.max_decoder_steps = STEPS
    engine = SpeechEngine(model, settings)
    ends = []
    # The first ends soon, and the third, a step younger than the second, moves into its slot below the second's.
    for name, text, parameters in (("a", TEXTS[0], {"max_seconds": 0.1}), ("b", TEXTS[1], {}), ("c", TEXTS[3], {})):
        request = SpeechRequest.from_parameters(text, {"voice": "leo", "seed": 1} | parameters, engine.catalog)
        engine.submit(request, lambda event, name=name: ends.append((name, event)))
        if name == "b":
            engine.step()
    while engine.stats().active or engine.stats().queued:
        engine.step()
    over = [(name, event.reason) for name, event in ends if not isinstance(event, AudioChunk)]
    assert over == [(name, FinishReason.LENGTH) for name in "abc"]


def test_the_pace_changes_the_chunks_and_not_the_speech(settings):
    """Chunks grow by the clock: their sizes differ from run to run, codes do not, nor audio beyond rounding."""
    model = fresh_model(settings)
    model.inference_parameters.max_decoder_steps = STEPS
    heard = []
    for pace in (0.0001, 0.05):
        ticks = itertools.count()
        engine = SpeechEngine(model, settings, clock=lambda ticks=ticks, pace=pace: next(ticks) * pace)
        heard.append(speak(engine, range(2)))
    for (codes, chunks), (again, others) in zip(*heard, strict=True):
        assert torch.equal(codes, again)
        assert [len(own) for own in chunks] != [len(own) for own in others]
        assert np.abs(np.concatenate(chunks).astype(int) - np.concatenate(others)).max() <= AUDIO_TOLERANCE


@pytest.mark.parametrize("tf32", [False, True])
def test_the_codec_rounds_only_where_it_is_allowed_to_and_changes_no_one_elses_flag(settings, tf32):
    model = fresh_model(settings)
    codec = StreamingCodec(model, 1, tf32=tf32)
    decoder, seen = codec._decoder, []

    def noting(latent, state):
        seen.append(torch.backends.cudnn.allow_tf32)
        return decoder(latent, state)

    codec._decoder = noting
    for before in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.backends.cudnn, "allow_tf32", before)
            codec.decode([0], [torch.zeros(1, model.num_audio_codebooks, 2, dtype=torch.long)[0]])
            assert torch.backends.cudnn.allow_tf32 is before
    assert seen == [tf32, tf32]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("graphs", [0, 1], ids=["eager", "graphs"])
def test_on_a_gpu_requests_repeated_together_are_spoken_alike(settings, graphs):
    """Codes bit for bit; a difference here is a race, as shapes, order and noise are the same every time."""
    settings = replace(settings, device="cuda", cuda_graphs=graphs)
    engine = SpeechEngine(fresh_model(settings), settings)
    engine.warm_up()
    first = speak(engine, range(4), max_seconds=2.0)
    for _ in range(8):
        for (codes, chunks), (again, others) in zip(first, speak(engine, range(4), max_seconds=2.0), strict=True):
            assert torch.equal(codes, again)
            assert np.abs(np.concatenate(chunks).astype(int) - np.concatenate(others)).max() <= AUDIO_TOLERANCE


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_on_a_gpu_a_fixed_batch_speaks_alike_in_any_company(settings, precision):
    settings = replace(settings, device="cuda", fixed_batch=1, precision=precision)
    engine = SpeechEngine(fresh_model(settings), settings)
    engine.warm_up()
    beside = speak(engine, range(4), max_seconds=2.0)
    for seed, (codes, _) in enumerate(beside):
        [(alone, _)] = speak(engine, [seed], TEXTS[seed:], max_seconds=2.0)
        assert torch.equal(codes, alone)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("graphs", [False, True], ids=["eager", "graphs"])
def test_on_a_gpu_streamed_audio_is_the_whole_within_the_promise(settings, graphs):
    """Within 1e-4, with PyTorch's flag for TF32 as it finds it: graphs keep what they were captured with."""
    model = fresh_model(replace(settings, device="cuda"))
    codes = torch.randint(0, model.codebook_size, (model.num_audio_codebooks, 60), device="cuda")
    exact = StreamingCodec(model, 4)
    whole = exact.decode([exact.open()], [codes])[0]
    codec = StreamingCodec(model, 4)
    if graphs:
        codec.capture([2, 4, 8])
    row, pieces = codec.open(), []
    for begin, end in itertools.pairwise([0, 2, 6, 14, 22, 23, 25, 33, 41, 49, 57, 60]):
        pieces += codec.decode([row], [codes[:, begin:end]])
    assert (torch.cat(pieces) - whole).abs().max() < 1e-4
