"""The vectorised attention prior equals NeMo's per-item functions, step by step, on random attention."""

from types import SimpleNamespace

import pytest
import torch
from nemo.collections.tts.models.magpietts import ChunkedInferenceConfig, MagpieTTSModel

from magpie_engine.alignment import AlignmentTracker, SegmentPlace

STEPS = 120
MAX_TEXT = 48


def parameters(start):
    return SimpleNamespace(
        attention_prior_lookahead_window=5,
        attention_prior_epsilon=0.1,
        apply_attention_prior=True,
        start_prior_after_n_audio_steps=start,
        ignore_finished_sentence_tracking=False,
    )


class Upstream:
    """NeMo's functions on one item, driven as `infer_batch` drives them."""

    def __init__(self, length, settings):
        self.length = torch.tensor([length])
        self.settings = settings
        self.last = [[1]]
        self.counter = [{}]
        self.unfinished, self.finished = {}, {}
        self.prior = None

    def update(self, scores, step):
        s = self.settings
        if step >= s.start_prior_after_n_audio_steps:
            attended, self.counter = MagpieTTSModel.get_most_attended_text_timestep(
                None, scores[None], self.last, self.length, s.attention_prior_lookahead_window, self.counter, 1
            )
            self.last.append(attended)
            self.prior, self.unfinished, self.finished = MagpieTTSModel.construct_inference_prior(
                None,
                s.attention_prior_epsilon,
                scores[None],
                self.length,
                attended,
                self.counter,
                self.unfinished,
                self.finished,
                {},
                s.attention_prior_lookahead_window,
                1,
            )
        return bool(self.unfinished.get(0, False)), self.finished.get(0, 0) >= 20


@pytest.mark.parametrize("start", [0, 3])
def test_equals_upstream_for_every_length_of_text(start):
    lengths = [1, 2, 3, 4, 5, 6, 7, 9, 12, 20, 33, MAX_TEXT]
    settings = parameters(start)
    tracker = AlignmentTracker(len(lengths), MAX_TEXT, settings, ChunkedInferenceConfig(), torch.device("cpu"))
    reference = [Upstream(length, settings) for length in lengths]
    for slot, length in enumerate(lengths):
        tracker.reset(slot, SegmentPlace(length))
    generator = torch.Generator().manual_seed(0)
    for step in range(STEPS):
        scores = torch.rand(len(lengths), MAX_TEXT, generator=generator)
        rules = tracker.update(scores, torch.full((len(lengths),), step))
        for slot, (length, item) in enumerate(zip(lengths, reference, strict=True)):
            expected = item.update(scores[slot, :length], step)
            assert (bool(rules.may_not[slot]), bool(rules.must[slot])) == expected, (step, length)
            assert bool(tracker.active[slot]) == (item.prior is not None)
            if item.prior is not None:
                assert tracker.attended[slot] == item.last[-1][0], (step, length)
                assert torch.equal(tracker.prior[slot, :length], item.prior[0, 0]), (step, length)


def test_a_moved_slot_goes_on_as_if_it_had_not_moved():
    settings = parameters(0)
    still = AlignmentTracker(2, MAX_TEXT, settings, ChunkedInferenceConfig(), torch.device("cpu"))
    moved = AlignmentTracker(2, MAX_TEXT, settings, ChunkedInferenceConfig(), torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    for tracker in (still, moved):
        tracker.reset(0, SegmentPlace(9))
        tracker.reset(1, SegmentPlace(30))
    for step in range(40):
        scores = torch.rand(2, MAX_TEXT, generator=generator)
        steps = torch.full((2,), step)
        still.update(scores, steps)
        if step == 20:
            moved.move(1, 0)
        moved.update(scores if step < 20 else scores[1:], steps if step < 20 else steps[1:])
    assert torch.equal(moved.prior[0], still.prior[1])
    assert moved.attended[0] == still.attended[1]
