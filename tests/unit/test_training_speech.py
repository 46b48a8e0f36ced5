"""What is spoken for training: nothing that is held out, the same every time, and what it is made into."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from support_training import corpus as tones
from support_training import needs_synthesisers

from triton_voice.evaluation.words import spoken_words
from triton_voice.paths import project_root
from triton_voice_training import augment, cast, corpus, hearing, speech, world

AMOUNT = hearing.Amount(requests=800, request_copies=1, replies=800)


def words(texts):
    return {" ".join(spoken_words(text)) for text in texts}


def test_no_held_out_sentence_is_trained_on():
    """Neither Parakeet's texts nor Magpie's, compared by their words as they are spoken."""
    judged = words(hearing.held_out_texts())
    assert len(judged) > 300
    trained = words(hearing.training_texts(AMOUNT))
    assert len(trained) > 1000
    assert not judged & trained
    to_say = words(speech.spoken(text) for text in world.replies("held_out", 200))
    assert not to_say & words(cast.script(600))


def test_no_voice_that_is_held_out_is_trained_on(tmp_path, monkeypatch):
    planned = {}

    def plan(texts, voices, seed, folder, workers, **ranges):
        planned[folder.name] = {each.voice for each in corpus.plan(texts, voices, seed, **ranges)}

    monkeypatch.setattr(hearing, "render", plan)
    hearing.corpora(tmp_path, AMOUNT, 0, 1)
    held_out = {voice.name for voice in speech.VOICES.values() if voice.held_out}
    assert planned["unseen"] == held_out
    assert len(planned["train"]) > 30
    assert not planned["train"] & held_out
    assert not planned["seen"] & held_out


def test_without_the_programs_the_error_says_what_to_install(tmp_path, monkeypatch):
    """Also where another process was to speak."""
    monkeypatch.setenv("PATH", "")
    for voice in ("slt", "en-us"):
        with pytest.raises(speech.SpeechError, match=r"is not installed; on Debian.*apt install espeak-ng flite"):
            speech.synthesize("Hello.", voice)
    with pytest.raises(speech.SpeechError, match="apt install espeak-ng"):
        corpus.render(["Hello."], [speech.VOICES["slt"]], 0, tmp_path, 1)
    with pytest.raises(speech.SpeechError, match="apt install espeak-ng"):
        cast.lexicon()


def test_a_voice_that_nobody_has_is_refused():
    with pytest.raises(speech.SpeechError, match=r"no voice is called 'hal'; there are .*slt"):
        speech.synthesize("Hello.", "hal")


def test_texts_are_read_as_the_server_reads_them_with_nothing_but_the_project_installed():
    """A training is a process of its own, which knows the packages and not the server's folders."""
    installed = os.pathsep.join(str(project_root() / folder) for folder in ("client", "training"))
    said = subprocess.run(
        [sys.executable, "-c", "from triton_voice_training.speech import spoken; print(spoken('It is 7:05 PM.'))"],
        env={**os.environ, "PYTHONPATH": installed}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert said.stdout == "It is seven oh five P M.\n"


@needs_synthesisers
@pytest.mark.parametrize("voice", ["slt", "en-gb"])
def test_speech_has_no_silence_around_it_one_level_and_the_speed_that_was_asked_for(voice):
    normal, fast = (speech.synthesize("Turn on the kitchen lights.", voice, speed) for speed in (1.0, 1.3))
    for audio in (normal, fast):
        assert np.abs(audio).max() == round(speech.PEAK * 32767)
        margin = round(3 * speech.SILENCE_MARGIN_S * speech.SAMPLE_RATE)
        assert min(np.abs(audio[:margin]).max(), np.abs(audio[-margin:]).max()) > 0.005 * 32767
    assert 1.1 < len(normal) / len(fast) < 1.5
    assert len(speech.synthesize("Turn on the kitchen lights.", voice, sample_rate=22_050)) > 1.3 * len(normal)


@needs_synthesisers
def test_an_interrupted_rendering_carries_on_and_gives_the_same(tmp_path):
    texts = ["Yes."] * corpus.UTTERANCES_PER_SHARD + ["No.", "Okay."]
    voices = [speech.VOICES["en-us"], speech.VOICES["en+f2"]]
    whole = corpus.render(texts, voices, 3, tmp_path / "whole", 2)
    assert [each.text for each in whole.utterances] == texts
    assert len({each.voice for each in whole.utterances}) == 2
    kept, lost = tmp_path / "whole" / "00000.npz", tmp_path / "whole" / "00001.npz"
    made_at = kept.stat().st_mtime_ns
    lost.unlink()
    lost.with_suffix(".0.partial").write_bytes(b"half")
    with pytest.raises(speech.SpeechError, match=r"holds no finished speech: .*00001.npz is missing"):
        corpus.load(tmp_path / "whole")
    again = corpus.render(texts, voices, 3, tmp_path / "whole", 1)
    assert np.array_equal(again.audio, whole.audio)
    assert np.array_equal(again.offsets, whole.offsets)
    assert kept.stat().st_mtime_ns == made_at
    with pytest.raises(speech.SpeechError, match="made from other texts or settings; remove it"):
        corpus.render([*texts, "Maybe."], voices, 3, tmp_path / "whole", 1)


def batch(rows=16, seconds=2.0):
    said = tones([f"{index}" for index in range(rows)], seconds=(seconds, seconds))
    audio = torch.from_numpy(said.audio.reshape(rows, -1).astype(np.float32) / 32768)
    return audio, torch.ones(rows, dtype=torch.bool)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


NOTHING = augment.Chances(0, 0, 0, 0, 0, 0, 0, 0)


def test_augmentation_is_the_same_for_the_same_seed_and_within_16_bits():
    audio, is_speech = batch()
    first, again = (augment.augment(audio, is_speech, generator(5)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, augment.augment(audio, is_speech, generator(6)))
    steps = first * 32768
    assert torch.equal(steps, steps.round())
    assert first.abs().max() <= 1


def test_speech_to_which_nothing_happens_stays_what_it_is():
    audio, is_speech = batch()
    assert torch.allclose(augment.augment(audio, is_speech, generator(), NOTHING), audio, atol=1.1 / 32768)


def test_noise_and_gain_are_as_loud_as_is_said():
    audio, is_speech = batch()
    noisy = augment.augment(audio / 8, is_speech, generator(), augment.Chances(1, 0, 0, 0, 0, 0, 0, 0))
    active = audio.abs() > 0.05 * audio.abs().amax(1, keepdim=True)
    level = ((audio / 8).square() * active).sum(1).div(active.sum(1)).sqrt()
    ratio = 20 * torch.log10(level / (noisy - audio / 8).square().mean(1).sqrt())
    low, high = augment.NOISE_SNR_DB
    assert (ratio > low - 0.5).all() and (ratio < high + 0.5).all()
    assert ratio.max() - ratio.min() > 10
    louder = augment.augment(audio / 8, is_speech, generator(), augment.Chances(0, 0, 0, 0, 0, 0, 0, 1))
    gain = 20 * torch.log10(louder.square().mean(1).sqrt() / (audio / 8).square().mean(1).sqrt())
    low, high = augment.GAIN_DB
    assert (gain > low - 0.5).all() and (gain < high + 0.5).all()


def test_rows_without_speech_are_silence_or_noise():
    nobody = torch.zeros(40, 16_000)
    made = augment.augment(nobody, torch.zeros(40, dtype=torch.bool), generator())
    loudness = made.square().mean(1).sqrt()
    silent = loudness == 0
    assert 2 < silent.sum() < 25
    assert 20 * torch.log10(loudness.max()) < augment.NOISE_LEVEL_DB[1] + 1
    assert 20 * torch.log10(loudness[~silent].min()) < -45


def test_a_scene_puts_every_utterance_where_it_says():
    said = tones(["a", "b", "c"])
    scenes = [
        augment.Scene((1,), (500,), 500 + len(said[1])),
        augment.Scene((0, 2), (100, 20_000), 40_000),
        augment.Scene((), (), 4000),
        augment.Scene((2,), (0,), len(said[2]), rate=2.0),
    ]
    made = augment.compose(scenes, torch.from_numpy(said.audio), torch.from_numpy(said.offsets)) * 32768
    assert made.shape == (4, 40_000)
    assert np.array_equal(made[0, 500 : 499 + len(said[1])].numpy(), said[1][:-1])
    assert not made[0, :500].any() and not made[0, 500 + len(said[1]) :].any()
    assert np.array_equal(made[1, 100 : 99 + len(said[0])].numpy(), said[0][:-1])
    assert np.array_equal(made[1, 20_000 : 19_999 + len(said[2])].numpy(), said[2][:-1])
    assert not made[2].any()
    half = len(said[2]) // 2 - 1
    assert np.array_equal(made[3, :half].numpy(), said[2][: 2 * half : 2])


def test_a_batch_depends_on_its_step_alone_and_carries_the_words_of_its_scenes():
    texts = [f"word {index}" for index in range(30)]
    said = tones(texts)
    tokens = [[index, index + 100] for index in range(30)]

    def batches():
        return hearing.Batches(said, tokens, 6, 1, torch.device("cpu"))

    walked, jumped = batches(), batches()
    for step in range(10):
        last = walked[step]
    found = jumped[9]
    for name in ("audio", "samples", "targets", "tokens"):
        assert torch.equal(getattr(last, name), getattr(found, name))
    for row, scene in enumerate(jumped.scenes(9)):
        expected = [token for index in scene.utterances for token in tokens[index]]
        assert found.targets[row, : found.tokens[row]].tolist() == expected
        assert len({said.utterances[index].voice for index in scene.utterances}) <= 1
    jumped.easy = True
    assert all(len(scene.utterances) == 1 and scene.rate == 1 for scene in jumped.scenes(9))
