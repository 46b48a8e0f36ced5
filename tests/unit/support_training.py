"""What the tests of the trainings share: something like speech, which needs no synthesiser, and interruptions."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from support import SAMPLE_RATE, speechlike
from triton_voice_training import cast
from triton_voice_training.corpus import Corpus, Utterance

needs_synthesisers = pytest.mark.skipif(
    not (shutil.which("espeak-ng") and shutil.which("flite")),
    reason="espeak-ng and flite are not installed (Debian: apt install espeak-ng flite)",
)


def corpus(texts, voices=("slt", "rms"), seconds=(0.4, 0.9), sample_rate=SAMPLE_RATE):
    """A corpus of gliding tones, one for each text."""
    lengths = np.random.RandomState(0).uniform(*seconds, len(texts))
    audio = [speechlike(length * sample_rate / SAMPLE_RATE, seed) for seed, length in enumerate(lengths)]
    utterances = [Utterance(text, voices[index % len(voices)]) for index, text in enumerate(texts)]
    offsets = np.cumsum([0, *map(len, audio)])
    return Corpus(utterances, np.concatenate(audio), offsets, sample_rate)


def stage(texts, speakers):
    """Gliding tones on the codec's frames."""
    return cast.lay_out(corpus(texts, sample_rate=cast.SAMPLE_RATE), speakers)


def interrupt(training, run, at, monkeypatch):
    """Has a training save its state one step before it is interrupted, as by Ctrl-C, after so many steps.

    Args:
        training: The module, for its `SAVE_EVERY_S`.
        run: The training's run.
        at: Step that it does not take.
        monkeypatch: To make the time for saving come.
    """
    whole = run.steps

    def steps():
        for step in whole():
            if step == at - 1:
                monkeypatch.setattr(training, "SAVE_EVERY_S", -1)
            if step == at:
                monkeypatch.undo()
                raise KeyboardInterrupt
            yield step

    run.steps = steps
